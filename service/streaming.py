"""Files that are sent while they are made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Response, stream_with_context


def stream_file(pieces: Iterator[Any], content_type: str, filename: str) -> Response:
    """An answer whose body is the `pieces`. The first is made now, so that what fails by then is an ordinary problem.

    A later failure leaves the body without its last chunk, which a client sees as a broken transfer: once the headers
    are sent, gunicorn answers an exception by closing the connection.
    """
    first = next(pieces)
    return Response(
        stream_with_context(_prepend(first, pieces)),
        content_type=content_type,
        headers={"Content-Disposition": f'attachment; filename="{filename}"'},
    )


def _prepend(first: Any, others: Any) -> Iterator[Any]:
    try:
        yield first
        yield from others
    finally:
        others.close()  # also when the client has gone before the second piece
