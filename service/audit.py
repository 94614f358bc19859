"""A tenant's audit trail as CSV, streamed page by page, for those whom the database lets read it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, cast
from uuid import UUID

from flask import Blueprint, Response, request, stream_with_context
from flask.typing import ResponseReturnValue

from service.data_api import CallFailed, DataApi
from service.identity import current_caller
from service.logs import log
from service.me import DatabaseUnavailable, refusal
from service.parts import parts
from service.problems import Problem

audit = Blueprint("audit", __name__, url_prefix="/api/v1/organizations/<uuid:organization_id>")

PAGE = 1000  # the most that Supabase's Data API answers with
DEFAULT_RANGE = timedelta(days=30)
LOWEST_ID = str(UUID(int=0))
COLUMNS = (
    "id", "created_at", "organization_id", "actor", "user_id", "impersonator", "action", "resource_type", "resource_id",
    "metadata", "changes", "ip_address", "user_agent", "request_id",
)  # fmt: skip
# What a spreadsheet takes for a formula (OWASP, "CSV Injection"), also behind the spaces and quotes that one may strip,
# and in the wide forms that Japanese ones accept.
FORMULA = re.compile(r"[\s\"'`]*[=+\-@＝＋－＠]|[\t\r\n]")  # noqa: RUF001 - the wide forms

Entry = dict[str, Any]


class RangeInvalid(Problem):
    """`from` or `to` is not a time with an offset, or the range ends before it begins."""

    status = HTTPStatus.BAD_REQUEST
    slug = "range-invalid"
    title = "The range is not valid"


class AuditRefused(Problem):
    """The caller lacks audit:read there; also when there is no such organization, which others need not know."""

    status = HTTPStatus.FORBIDDEN
    slug = "audit-refused"
    title = "The audit trail is not yours to read"


@dataclass(frozen=True)
class Range:
    """Entries from `start` on and before `end`; without one, whatever is recorded when the first page is read."""

    start: datetime
    end: datetime | None

    @property
    def filename(self) -> str:
        return f"audit-{self.start:%Y%m%dT%H%M%SZ}-{self.end or datetime.now(UTC):%Y%m%dT%H%M%SZ}.csv"


@audit.get("/audit.csv")
def export(organization_id: UUID) -> ResponseReturnValue:
    """The organization's entries in a range, newest first."""
    caller = current_caller(parts().session_tokens)
    chosen = _range(request.args.get("from"), request.args.get("to"))
    data_api = parts().data_api
    _require_permission(data_api, caller.token, organization_id)
    pages = _pages(data_api, organization_id, chosen)
    try:
        first = next(pages)  # before the answer begins: what fails here is still an ordinary problem
    except CallFailed as failure:
        raise DatabaseUnavailable("Try again in a few seconds.") from failure
    return Response(
        stream_with_context(_csv(first, pages)),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{chosen.filename}"'},
    )


def _range(start: str | None, end: str | None) -> Range:
    """Raises RangeInvalid."""
    try:
        until = _moment("to", end) if end is not None else None
        latest = until or datetime.now(UTC)
        since = _moment("from", start) if start is not None else latest - DEFAULT_RANGE
    except OverflowError:
        raise RangeInvalid("The range is outside the calendar.") from None
    if since > latest:
        raise RangeInvalid("`from` is later than `to`, or than now.")
    return Range(since, until)


def _moment(name: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        # A plus sign in a query string is a space.
        raise RangeInvalid(f"`{name}` must be ISO 8601 with an offset, such as 2026-01-31T00:00:00Z; write + as %2B.")
    return moment.astimezone(UTC)


def _require_permission(data_api: DataApi, token: str, organization_id: UUID) -> None:
    """Raises AuditRefused, TokenInvalid, SessionRefused, DatabaseUnavailable."""
    question = {"organization_id": str(organization_id), "permission": "audit:read"}
    try:
        allowed = data_api.call_as(token, "has_permission", question)
    except CallFailed as failure:
        raise refusal(failure) from failure
    if allowed is not True:
        raise AuditRefused(
            "It needs the permission audit:read in this organization, and a second factor where it asks for one."
        )


def _pages(data_api: DataApi, organization_id: UUID, chosen: Range) -> Iterator[list[Entry]]:
    """At least one page, the last one not full. Raises CallFailed."""
    before = (chosen.end.isoformat() if chosen.end else "infinity", LOWEST_ID)
    while True:
        arguments = {
            "organization_id": str(organization_id),
            "from_": chosen.start.isoformat(),
            "before_time": before[0],
            "before_id": before[1],
            "page": PAGE,
        }
        page = cast("list[Entry]", data_api.call("audit_page", arguments))
        yield page
        if len(page) < PAGE:
            return
        before = (page[-1]["created_at"], page[-1]["id"])


def _csv(first: list[Entry], others: Iterator[list[Entry]]) -> Iterator[str]:
    """The file in pieces. A failure leaves the body without its last chunk, which a client sees as a broken transfer.

    That is gunicorn's answer to an exception once the headers are sent: it closes the connection.
    """
    yield _lines([COLUMNS])
    yield _lines(map(_row, first))
    entries = len(first)
    try:
        for page in others:
            yield _lines(map(_row, page))
            entries += len(page)
    except CallFailed as failure:
        log.error("audit export broke off", extra={"code": failure.code, "entries": entries})
        raise
    log.info("audit export", extra={"entries": entries})


def _lines(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _row(entry: Entry) -> list[str]:
    return [_cell(entry[column]) for column in COLUMNS]


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if FORMULA.match(text) else text
