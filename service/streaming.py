"""Sends files while they are being made. Their number and duration are limited: each one holds a thread."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from types import TracebackType
from typing import Any

from flask import Response, stream_with_context

from service.logs import log
from service.problems import Problem
from service.threads import Places, Threads

PER_PERSON = 2
STREAM_SECONDS = 300.0
# A client that does not take this much in service.gunicorn_worker.SEND_SECONDS is disconnected.
PIECE_BYTES = 64 * 1024


class DownloadsLimited(Problem, status=429, slug="downloads-limited", title="Too many downloads at once"):
    """The person, or everyone together, has as many downloads in this process as are allowed: `limit` says which."""

    def __init__(self, limit: str, retry_after: int = 10) -> None:
        whose = f"You have {PER_PERSON} downloads running" if limit == "person" else "Many downloads are running"
        super().__init__(f"{whose}. Try again in {retry_after} s.", limit=limit, retry_after=retry_after)


class DownloadTooSlow(Exception):
    """The file was not complete after STREAM_SECONDS."""


def take_slot(threads: Threads, person: str) -> Slot:
    """A place for one more download of this person. Raises DownloadsLimited."""
    refused_by = threads.downloads.take(person, PER_PERSON, threads.most_downloads)
    if refused_by is not None:
        raise DownloadsLimited(refused_by)
    return Slot(threads.downloads, person)


class Slot:
    """A place until the `with` block ends, or, if send() was called in it, until the response is closed."""

    def __init__(self, places: Places, person: str) -> None:
        self._places = places
        self._person = person
        self._is_taken = True
        self._is_sending = False

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None or not self._is_sending:
            self._release()

    def send(self, pieces: Iterator[bytes], content_type: str, filename: str) -> Response:
        """A response with the `pieces` as its body. The first is made now: an early failure is an ordinary problem.

        After a later failure the body has no final chunk, because gunicorn closes the connection. Clients detect this
        as an incomplete transfer.
        """
        body = self._limit(pieces)
        first = next(body)
        self._is_sending = True
        response = Response(
            stream_with_context(_prepend(first, body)),
            content_type=content_type,
            headers={"Content-Disposition": f'attachment; filename="{filename}"'},
        )
        response.call_on_close(body.close)  # also for HEAD, and if the client disconnects before the first piece
        return response

    def _limit(self, pieces: Any) -> Any:
        """Yields the pieces in small parts. Raises DownloadTooSlow."""
        deadline = monotonic() + STREAM_SECONDS
        try:
            for piece in pieces:
                for start in range(0, len(piece), PIECE_BYTES):
                    if monotonic() > deadline:
                        log.warning("download aborted", extra={"seconds": STREAM_SECONDS})
                        raise DownloadTooSlow
                    yield piece[start : start + PIECE_BYTES]
        finally:
            pieces.close()
            self._release()

    def _release(self) -> None:
        if self._is_taken:
            self._is_taken = False
            self._places.release(self._person)


def _prepend(first: Any, others: Any) -> Iterator[Any]:
    try:
        yield first
        yield from others
    finally:
        others.close()
