"""A tenant's audit trail as CSV, for those whom the database lets read it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from uuid import UUID

from flask import Blueprint, Response, request, stream_with_context
from flask.typing import ResponseReturnValue

from service.audit_csv import Range, as_csv, read_pages
from service.components import components
from service.data_api import CallFailed, DataApi
from service.identity import current_caller
from service.problems import DatabaseUnavailable, Problem
from service.session import refusal

audit = Blueprint("audit", __name__, url_prefix="/api/v1/organizations/<uuid:organization_id>")

DEFAULT_RANGE = timedelta(days=30)


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


@audit.get("/audit.csv")
def export(organization_id: UUID) -> ResponseReturnValue:
    """The organization's entries in a range, newest first."""
    caller = current_caller(components().session_tokens)
    chosen = _range(request.args.get("from"), request.args.get("to"))
    data_api = components().data_api
    _require_permission(data_api, caller.token, organization_id)
    pages = read_pages(data_api, organization_id, chosen)
    try:
        first = next(pages)  # before the answer begins: what fails here is still an ordinary problem
    except CallFailed as failure:
        raise DatabaseUnavailable("Try again in a few seconds.") from failure
    return Response(
        stream_with_context(as_csv(first, pages)),
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
