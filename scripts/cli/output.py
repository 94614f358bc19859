"""How commands print what they found: as a table, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from scripts.backup.checks import Check


def print_table(table: Table) -> None:
    """Prints a table; into a pipe or file in its full width, for there is nobody to make the window wider."""
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    console.print(table)


def print_json(value: Any) -> None:
    """Prints a value for programs: dataclasses as objects, durations in seconds, and what JSON lacks as text."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def show_checks(checks: Iterable[Check], *, as_json: bool) -> None:
    """Each with its verdict."""
    if as_json:
        print_json(list(checks))
        return
    table = Table("Check", "", "Found", "Seconds")
    for check in checks:
        verdict = "[green]passed" if check.passed else "[red]FAILED"
        table.add_row(check.name, verdict, check.detail, f"{check.seconds:.2f}")
    print_table(table)
