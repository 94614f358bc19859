"""Tables that several commands print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from scripts.backup.checks import Check


def print_table(table: Table) -> None:
    """Prints a table; into a pipe or file in its full width, for there is nobody to make the window wider."""
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    console.print(table)


def show_checks(checks: Iterable[Check], *, as_json: bool) -> None:
    """Each with its verdict."""
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
        return
    table = Table("Check", "", "Found", "Seconds")
    for check in checks:
        verdict = "[green]passed" if check.passed else "[red]FAILED"
        table.add_row(check.name, verdict, check.detail, f"{check.seconds:.2f}")
    print_table(table)
