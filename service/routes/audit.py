"""An organization's audit trail as CSV, for callers who hold audit:read there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from service.audit_csv import SEPARATORS, Range, as_csv, read_pages
from service.components import components
from service.permissions import PermittedCaller, requires
from service.problems import Problem
from service.streaming import take_slot

audit = Blueprint("audit", __name__, url_prefix="/api/v1/organizations/<uuid:organization_id>")

DEFAULT_RANGE = timedelta(days=30)


class RangeInvalid(Problem, status=400, slug="range-invalid", title="The range is not valid"):
    """`from` or `to` is not a time with a UTC offset, or `from` is later than `to`."""


class SeparatorInvalid(Problem, status=400, slug="separator-invalid", title="The separator is not valid"):
    """`separator` is not the name of one."""


@audit.get("/audit.csv")
@requires("audit:read", refresh=True)
def export(permitted: PermittedCaller) -> ResponseReturnValue:
    """Sends the organization's entries in a range, newest first."""
    chosen = _read_range(request.args.get("from"), request.args.get("to"))
    separator = SEPARATORS.get(request.args.get("separator", "comma"))
    if separator is None:
        raise SeparatorInvalid(f"`separator` must be one of {', '.join(SEPARATORS)}.")
    with take_slot(components().threads, permitted.caller.user_id) as slot:
        pages = read_pages(components().data_api, permitted.organization["id"], chosen)
        return slot.send(as_csv(pages, separator), "text/csv; charset=utf-8", chosen.filename)


def _read_range(start: str | None, end: str | None) -> Range:
    """Raises RangeInvalid."""
    try:
        until = _parse_time("to", end) if end is not None else None
        latest = until or datetime.now(UTC)
        since = _parse_time("from", start) if start is not None else latest - DEFAULT_RANGE
    except OverflowError:
        raise RangeInvalid("The range is outside the years 1 to 9999: choose other dates.") from None
    if since > latest:
        raise RangeInvalid("`from` is later than `to`, or in the future: choose an earlier time.")
    return Range(since, until)


def _parse_time(name: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        # An unescaped plus sign in a query string means a space.
        raise RangeInvalid(f"`{name}` must be ISO 8601 with an offset, such as 2026-01-31T00:00:00Z. Escape + as %2B.")
    return moment.astimezone(UTC)
