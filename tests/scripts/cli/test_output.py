"""Tables fit a terminal of 80 columns, and lose no text there."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from rich.table import Table

from scripts.cli import inbox, person
from scripts.cli.output import print_table


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
    }  # fmt: skip
    printed = capture_terminal(lambda: inbox.print_messages([message]))
    assert max(map(len, printed.splitlines())) <= 80
    assert all(str(message[name]) in printed for name in ("message_id", "outcome", "type"))
    words = " ".join(printed.split())
    assert all(word in words for word in ("2026-12-01 04:43:00+0000, 3 attempts:", *error.split()))


def test_a_receipt_stays_on_one_line(capture_terminal: Callable[[Callable[[], None]], str]) -> None:
    receipt = "01234567-89ab-cdef-0123-456789abcdef"
    counts = {"projects": 12, "organization_memberships": 3, "audit_logs": 1_234_567}
    receipts = [{"receipt": receipt, "state": "complete", "counts": counts}]
    printed = capture_terminal(lambda: person.show_receipts(receipts, as_json=False))
    assert max(map(len, printed.splitlines())) <= 80
    assert all(text in printed for text in (receipt, "complete", *counts))


def test_a_row_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("Check", "Found", box=None)
    table.add_row("pg_dump", "word " * 50)
    print_table(table)
    assert len(capsys.readouterr().out.splitlines()) == 2
