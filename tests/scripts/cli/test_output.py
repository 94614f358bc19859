"""Tables fit a terminal of 80 columns, and lose no text there."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime

import psycopg
import pytest
from rich.table import Table

from scripts.cli import ballast, inbox, person
from scripts.cli.output import print_table

FUNCTION = (
    "invoices_of_an_organization_between_two_dates_with_currency(organization_id uuid, since timestamp with time zone)"
)
RECEIPT = "a1b2c3d4-0000-4000-8000-000000000001"
WIDE_TABLES = {
    ("audit", "verify"): ["seal broken: it does not follow from the previous seal: a seal was changed or removed"],
    ("migrate", "status"): ["policies/organization_memberships.sql", "current"],
    ("migrate", "check"): [f"public.{FUNCTION}", "undeclared"],
    ("doctor",): ["SUPABASE_SECRET_KEY is missing", "skipped"],
    ("status",): ["webhook", "There is no backup"],
    ("person", "resume"): [RECEIPT],
}


class Terminal(io.StringIO):
    """An output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def capture_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], str]:
    """Returns a function that calls another, and returns its output on a terminal of 80 columns without colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")

    def capture(show: Callable[[], None]) -> str:
        with contextlib.redirect_stdout(Terminal()) as terminal:
            show()
        return terminal.getvalue()

    return capture


def test_a_long_word_is_folded(capture_terminal: Callable[[Callable[[], None]], str]) -> None:
    table = Table("Check", "Found", box=None)
    path = "/a/folder/" + "deep/" * 30
    table.add_row("pg_dump", path)
    printed = capture_terminal(lambda: print_table(table))
    assert max(map(len, printed.splitlines())) <= 80
    assert path in "".join(printed.split())


def test_the_inbox_shows_the_ids_and_errors_of_events(capture_terminal: Callable[[Callable[[], None]], str]) -> None:
    error = 'duplicate key violates unique constraint "profiles_clerk_user_id_key"'
    message = {
        "message_id": f"msg_{'2NvZk8sQ0' * 3}", "type": "organizationMembership.created", "outcome": "failed",
        "attempts": 3, "received_at": datetime(2026, 12, 1, 4, 43, tzinfo=UTC), "error": error,
        "dismissed_by": None, "dismissal_reason": None,
    }  # fmt: skip
    printed = capture_terminal(lambda: inbox.print_messages([message]))
    assert max(map(len, printed.splitlines())) <= 80
    assert all(str(message[name]) in printed for name in ("message_id", "outcome", "type"))
    words = " ".join(printed.split())
    assert all(word in words for word in ("2026-12-01 04:43:00+0000, 3 attempts:", *error.split()))


def test_a_receipt_stays_on_one_line(capture_terminal: Callable[[Callable[[], None]], str]) -> None:
    receipt = "01234567-89ab-cdef-0123-456789abcdef"
    counts = {"projects": 12, "organization_memberships": 3, "audit_logs": 1_234_567}
    receipts = [{"receipt": receipt, "state": "complete", "counts": counts, "skipped": 0}]
    printed = capture_terminal(lambda: person.show_receipts(receipts, as_json=False))
    assert max(map(len, printed.splitlines())) <= 80
    assert all(text in printed for text in (receipt, "complete", *counts))


def test_a_row_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("Check", "Found", box=None)
    table.add_row("pg_dump", "word " * 50)
    print_table(table)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.fixture(scope="module")
def wide_database(lasting_database: Callable[..., str], populated_database: str) -> str:
    """A database whose tables have long cells."""
    url = lasting_database(populated_database)
    with psycopg.connect(url.replace("//postgres:", "//supabase_admin:"), autocommit=True) as admin:
        admin.execute("set session_replication_role = replica")
        admin.execute("update app.audit_seals set seal = sha256('x')")
        admin.execute(
            "insert into app.erasure_log (receipt, subject_hash, person, requested_by, requested_at) "
            "values (%s, repeat('a', 64), (null, 'user_x', null), 'person', now())",
            [RECEIPT],
        )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create function public.{FUNCTION} returns bigint language sql as 'select 1'".encode())
    return url


def join_cells(table: str) -> str:
    """Returns the text of a table column by column, without whitespace, borders and line breaks."""
    rows = [re.split("[│┃]", line)[1:-1] for line in table.splitlines() if line[:1] in {"│", "┃"}]
    if not rows:  # a table without borders
        return re.sub(r"\s", "", table)
    return "".join(re.sub(r"\s", "", "".join(cells)) for cells in zip(*rows, strict=True))


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        pytest.param(*item, marks=[pytest.mark.thorough] if item[0] == ("doctor",) else [])
        for item in WIDE_TABLES.items()
    ],
    ids=map(" ".join, WIDE_TABLES),
)
def test_the_widest_tables_fit_80_columns(
    wide_database: str,
    capture_terminal: Callable[[Callable[[], None]], str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    texts: list[str],
) -> None:
    for name, value in {
        "DATABASE_URL": wide_database, "CLERK_SECRET_KEY": "sk_test_x", "CLERK_API_URL": "http://127.0.0.1:9",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def run() -> None:
        with contextlib.suppress(SystemExit):
            ballast(words)

    printed = capture_terminal(run)
    assert printed
    assert [line for line in printed.splitlines() if len(line) > 80] == []
    for text in texts:
        assert re.sub(r"\s", "", text) in join_cells(printed), printed
