"""Sends files while they are being made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Response, stream_with_context


def stream_file(pieces: Iterator[Any], content_type: str, filename: str) -> Response:
    """A response whose body is the `pieces`. The first is made now, so an early failure becomes an ordinary problem.

    After a later failure the body has no final chunk, because gunicorn closes the connection. Clients detect this as an
    incomplete transfer.
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
        others.close()  # also if the client disconnects before the second piece
