"""`ballast doctor`: whether Supabase, Clerk, the service, Redis and the backups fit together."""

from __future__ import annotations

from collections.abc import Mapping

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.cli import options
from scripts.cli.output import print_json, print_table
from scripts.health.context import Context, Finding, LocalStack
from scripts.health.doctor import run_checks
from scripts.local.clerk.client import ClerkClient
from scripts.local.stack import STAND_IN, Stack


@click.command(epilog="Example: ballast doctor --json")
@options.url_option
@click.option("--write", is_flag=True, help="Also write a small file beside the backups, and delete it.")
@click.option("--session-token", metavar="TOKEN", help="A session token of Clerk's, to see that Supabase trusts Clerk.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(url: str | None, write: bool, session_token: str | None, as_json: bool) -> None:
    """Check that everything fits together, and say what to do where it does not. Exits with 1 when a check fails.

    Reads the service's variables from the environment; beside a local stack's own database, from the stack.
    """
    environment = options.build_environment(url)
    console = Console(stderr=True)
    with console.status("Looking …"):
        context = Context(
            environment, url, session_token=session_token, local=local_stack(environment), may_write=write
        )
        findings = run_checks(context)
    if as_json:
        print_json(findings)
    else:
        _show(findings)
    if any(finding.outcome == "failed" for finding in findings):
        raise click.exceptions.Exit(1)


def local_stack(environment: Mapping[str, str]) -> LocalStack:
    """The stack of BALLAST_HOME, whether it runs or not. Its Clerk stand-in is asked only for a token."""
    stack = Stack.from_environment()

    def mint_token(person: str) -> str:
        return str(ClerkClient(environment["CLERK_ISSUER"]).token(person, None)["token"])

    return LocalStack(stack.postgres.url(), mint_token if stack.clerk == STAND_IN else None)


def _show(findings: list[Finding]) -> None:
    styles = {"passed": "green", "failed": "red", "skipped": "yellow"}
    table = Table("check", "", "found", box=None)
    for finding in findings:
        remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
        table.add_row(
            finding.name, f"[{styles[finding.outcome]}]{finding.outcome}[/]", escape(f"{finding.found}{remedy}")
        )
    print_table(table)
