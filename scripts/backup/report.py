"""What a restore or a drill found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import click
from rich.table import Table

from scripts.backup.checks import Check
from scripts.cli import database


def show_checks(checks: Iterable[Check], *, as_json: bool) -> None:
    """Each with its verdict."""
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
        return
    table = Table("Check", "", "Found", "Seconds")
    for check in checks:
        verdict = "[green]passed" if check.passed else "[red]FAILED"
        table.add_row(check.name, verdict, check.detail, f"{check.seconds:.2f}")
    database.print_table(table)
