"""Request ids, and logs on stderr: one JSON object per line, no bodies, no query strings, no personal data."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime

from flask import Flask, Response, g, has_request_context, request

log = logging.getLogger("service")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# gunicorn quotes the address and the first line of a request that it cannot parse.
QUOTED_REQUEST = re.compile(r"^(Invalid request|Error handling request)\b.*", re.DOTALL)
STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}


class JsonLines(logging.Formatter):
    """One object per record: time, level, message, request_id during a request, and the fields in `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": QUOTED_REQUEST.sub(r"\1", record.getMessage()),
        }
        if has_request_context():
            line["request_id"] = g.request_id
        line.update({name: value for name, value in record.__dict__.items() if name not in STANDARD_FIELDS})
        if record.exc_info and record.exc_info[0]:
            # Only the class: an exception's text may hold personal data.
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, default=str)


def configure() -> None:
    """Sends every logger's warnings, and our own info records, to stderr as JSON. A second call changes nothing."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    unformatted = [other for other in logging.root.handlers if not isinstance(other.formatter, JsonLines)]
    logging.root.handlers = [*unformatted, handler]
    logging.root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)


def register(app: Flask) -> None:
    """Gives every request of `app` an id, returned in X-Request-Id, and writes one log line for it."""
    app.before_request(_start_request)
    app.after_request(_log_request)


def _start_request() -> None:
    g.started = time.perf_counter()
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _log_request(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    fields = {
        "method": request.method,
        # The template, not the path: a path may name a person.
        "route": request.url_rule.rule if request.url_rule else None,
        "status": response.status_code,
        "duration_ms": round((time.perf_counter() - g.started) * 1000, 1),
    }
    log.info("request", extra=fields)
    return response
