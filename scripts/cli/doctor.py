"""`ballast doctor`: checks the configuration of Supabase, Clerk, the service, Redis and the backups."""

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
@click.option("--write", is_flag=True, help="Also write a small test file to the backup store, and delete it.")
@click.option("--session-token", metavar="TOKEN", help="A Clerk session token, to check that Supabase trusts Clerk.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(url: str | None, write: bool, session_token: str | None, as_json: bool) -> None:
    """Check the whole configuration, and print how to fix each problem. Exits with 1 if a check fails.

    Includes the lights of `ballast status`: yellow is a warning, red a failure.

    Reads the service's variables from the environment. For a local stack's database, adds the stack's variables.
    """
    environment = options.build_environment(url)
    console = Console(stderr=True)
    with console.status("Checking …"):
        context = Context(
            environment, url, session_token=session_token, local=local_stack(environment, url), may_write=write
        )
        findings = run_checks(context)
    if as_json:
        print_json(findings)
    else:
        _show(findings)
    if any(finding.outcome == "failed" for finding in findings):
        raise click.exceptions.Exit(1)


def local_stack(environment: Mapping[str, str], url: str | None) -> LocalStack:
    """Returns the stack of BALLAST_HOME, even if it is not running. Its Clerk stand-in is used only for a token.

    The stack's `.env` is read only if the stack's database is checked.
    """
    stack = Stack.from_environment()
    database_url = stack.postgres.url()
    is_local = (url or environment.get("DATABASE_URL")) == database_url

    def mint_token(person: str) -> str:
        return str(ClerkClient(environment["CLERK_ISSUER"]).token(person, None)["token"])

    return LocalStack(database_url, mint_token if is_local and stack.clerk == STAND_IN else None)


def _show(findings: list[Finding]) -> None:
    styles = {"passed": "green", "warning": "yellow", "failed": "red", "skipped": "yellow"}
    table = Table("check", "", "found", box=None)
    for finding in findings:
        remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
        table.add_row(
            finding.name, f"[{styles[finding.outcome]}]{finding.outcome}[/]", escape(f"{finding.found}{remedy}")
        )
    print_table(table)
