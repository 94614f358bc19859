"""Every error becomes a problem document (RFC 9457). This is the only place where errors become HTTP."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g, json, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from service import sentry
from service.data_api import CallFailed
from service.logs import log


class Problem(Exception):
    """An error that a caller may see. `detail` holds no secret and no personal data; `more` adds document members.

    A subclass sets `slug`, the kind for programs, and `title`, the kind for people. `retry_after` (seconds, here or in
    `more`) sets Retry-After, and `challenge` sets WWW-Authenticate.
    """

    status: HTTPStatus
    slug: str
    title: str
    headers: dict[str, str]

    def __init_subclass__(
        cls, *, status: int, slug: str, title: str, retry_after: int | None = None, challenge: str | None = None
    ) -> None:
        cls.status, cls.slug, cls.title = HTTPStatus(status), slug, title
        cls.headers = {}
        if retry_after:
            cls.headers["Retry-After"] = str(retry_after)
        if challenge:
            cls.headers["WWW-Authenticate"] = challenge

    def __init__(self, detail: str, **more: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.more = more


class DatabaseUnavailable(
    Problem, status=503, slug="database-unavailable", title="The database does not answer", retry_after=5
):
    """The database did not answer, or its answer was not valid."""

    def __init__(self) -> None:
        super().__init__("Try again in a few seconds.")


def register(app: Flask) -> None:
    """Turns every error of `app` into a problem document."""
    app.register_error_handler(Problem, _handle_problem)
    app.register_error_handler(CallFailed, _handle_call_failure)
    app.register_error_handler(HTTPException, _handle_http_error)
    app.register_error_handler(Exception, _handle_unexpected)


def _document(status: int, title: str, detail: str, kind: str = "about:blank", **more: object) -> Response:
    document: dict[str, Any] = {"type": kind, "title": title, "status": status, "detail": detail, **more}
    document["request_id"] = g.request_id
    return Response(json.dumps(document), status, content_type="application/problem+json")


def _handle_problem(error: Problem) -> Response:
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        code = getattr(error.__cause__, "code", None)
        log.error("problem", extra={"problem": error.slug, "code": code} | error.more)
        sentry.report(error, problem=error.slug, code=code, request_id=g.request_id)
    kind = f"urn:problem:ballast:{error.slug}"
    response = _document(error.status, error.title, error.detail, kind, **error.more)
    response.headers.update(error.headers)
    if "retry_after" in error.more:
        response.headers["Retry-After"] = str(error.more["retry_after"])
    return response


def _handle_call_failure(error: CallFailed) -> Response:
    # Routes need not handle it: it means the same to every caller.
    problem = DatabaseUnavailable().with_traceback(error.__traceback__)
    problem.__cause__ = error
    return _handle_problem(problem)


def _handle_http_error(error: HTTPException) -> Response:
    # Werkzeug's description may repeat what the client sent. The standard text of the status does not.
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    response = _document(status, status.phrase, status.description or status.phrase)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return response


def _handle_unexpected(error: Exception) -> Response:
    # An exception's text may hold personal data: log its class and where it was raised, never its message.
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    log.error("unexpected error", extra={"error": type(error).__name__, "where": where, "method": request.method})
    sentry.report(error, request_id=g.request_id)
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return _document(status, status.phrase, "Something went wrong on our side. Quote the request_id to report it.")
