"""A tenant's audit trail as CSV, read from the database page by page."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from service.data_api import CallFailed, DataApi
from service.logs import log

PAGE = 1000  # the most rows that Supabase's Data API returns
LOWEST_ID = str(UUID(int=0))
COLUMNS = (
    "id", "created_at", "organization_id", "actor", "user_id", "impersonator", "action", "resource_type", "resource_id",
    "metadata", "changes", "ip_address", "user_agent", "request_id",
)  # fmt: skip
SEPARATORS = {"comma": ",", "semicolon": ";"}
BYTE_ORDER_MARK = "\ufeff"  # without it Excel takes the file for another encoding than UTF-8
# A formula, as a spreadsheet sees it that splits lines at another separator than the file's: at the start of a cell, or
# after any separator in it. Spreadsheets may strip spaces and quotes first, and Japanese ones accept full-width forms.
# Source: OWASP, "CSV Injection". The pattern consumes each run of separators and spaces once, so it takes linear time.
FORMULA = re.compile(r"(?:^|[,;|\t\n\v\f\r\x85\u2028\u2029])[,;|\s\"'`]*+([=+\-@＝＋－＠])?")  # noqa: RUF001 - full-width

Entry = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Entries from `start` up to but excluding `end`; without `end`, up to the moment when the first page is read."""

    start: datetime
    end: datetime | None

    @property
    def filename(self) -> str:
        return f"audit-{self.start:%Y%m%dT%H%M%SZ}-{self.end or datetime.now(UTC):%Y%m%dT%H%M%SZ}.csv"


def read_pages(data_api: DataApi, organization_id: str, chosen: Range) -> Iterator[list[Entry]]:
    """Yields pages of up to PAGE entries and 2 MB; the last page is empty. Raises CallFailed."""
    before = (chosen.end.isoformat() if chosen.end else "infinity", LOWEST_ID)
    while True:
        arguments = {
            "organization_id": organization_id,
            "since": chosen.start.isoformat(),
            "before_time": before[0],
            "before_id": before[1],
            "page": PAGE,
        }
        page = cast("list[Entry]", data_api.call("audit_page", arguments))
        yield page
        if not page:
            return
        before = (page[-1]["created_at"], page[-1]["id"])


def as_csv(pages: Iterator[list[Entry]], separator: str = ",") -> Iterator[bytes]:
    """Yields the file in pieces, one per page. Raises CallFailed."""
    heading, entries = BYTE_ORDER_MARK + _format_rows([COLUMNS], separator), 0
    try:
        for page in pages:
            yield (heading + _format_rows(map(_make_row, page), separator)).encode()
            heading = ""
            entries += len(page)
    except CallFailed as failure:
        if entries:
            log.error("audit export aborted", extra={"code": failure.code, "entries": entries})
        raise
    log.info("audit export", extra={"entries": entries})


def _format_rows(rows: Any, separator: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(rows)
    return text.getvalue()


def _make_row(entry: Entry) -> list[str]:
    return [_format_cell(entry[column]) for column in COLUMNS]


def _format_cell(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return FORMULA.sub(_quote_formula, text)


def _quote_formula(found: re.Match[str]) -> str:
    """Puts ' in front of the sign that begins a formula. docs/audit.md explains how to remove it again."""
    return f"{found[0][:-1]}'{found[1]}" if found[1] else found[0]
