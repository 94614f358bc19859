"""Prints the results of commands as tables or as JSON."""

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
    """Prints a table. On a terminal it wraps; in a pipe or file each row stays on one line, for grep and the like."""
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    for column in table.columns:
        column.overflow = "fold"  # rich would cut off a long word
    console.print(table)


def print_json(value: Any) -> None:
    """Prints a value for programs: dataclasses as objects, durations in seconds, types that JSON lacks as text."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.total_seconds() if isinstance(value, timedelta) else str(value)


def show_checks(checks: Iterable[Check], *, as_json: bool) -> None:
    """Prints each check with its result."""
    if as_json:
        print_json(list(checks))
        return
    table = Table("Check", "", "Found", "Seconds")
    for check in checks:
        verdict = "[green]passed" if check.passed else "[red]FAILED"
        table.add_row(check.name, verdict, check.detail, f"{check.seconds:.2f}")
    print_table(table)
