"""`ballast migrate`: apply, list, check and create migrations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.table import Table

from scripts.cli import options
from scripts.cli.output import print_json, print_table
from scripts.schema import bundle, database, drift, history, migrations, sql_files

PENDING_STATES = {"pending", "renamed", "changed", "removed"}
RED_STATES = {"edited", "missing", "late", "undeclared", "different", drift.ACROSS_TENANTS}


@click.group(epilog="Example: ballast migrate up")
def migrate() -> None:
    """Apply migrations/, functions/ and policies/ to a database, or compare them with it.

    Each migration is applied once, in the order of the timestamps. A file of functions/ or policies/ is applied again
    when it changes. This command and the Supabase CLI share the history of migrations.
    """


@migrate.command(epilog="Example: ballast migrate up --dry-run")
@options.url_option
@click.option("--dry-run", is_flag=True, help="Run everything, roll it back, and print what would be applied.")
def up(url: str | None, dry_run: bool) -> None:
    """Apply new and changed files.

    Each file is applied in its own short transaction, whole or not at all. People may write meanwhile: a file that does
    not get a lock within 200 ms is tried again for a minute. After a failure, or if this was killed, run it again: it
    continues with the first file that is not applied.
    """
    with _advise_on_local_history(url):
        plan = migrations.up(
            options.choose_url(url),
            dry_run=dry_run,
            notify=database.echo_err,
            on_applied=lambda file: click.echo(_describe_applied(file, "Applied", "Forgot")),
        )
    for path, record in plan.renamed.items():
        verb = "Would record" if dry_run else "Recorded"
        click.echo(f"{verb} {path} under this name: it was applied as {record.version}_{record.name}.sql")
    if plan.is_empty:
        click.echo(f"Nothing to do: {_format_current(plan)}.")
    elif dry_run:
        for file in plan.pending:
            click.echo(_describe_applied(file, "Would apply", "Would forget"))


@migrate.command(epilog="Example: ballast migrate status --json")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def status(url: str | None, as_json: bool) -> None:
    """List every file with its state. Changes nothing and takes no locks."""
    entries = migrations.list_states(options.choose_url(url), notify=database.echo_err)
    if as_json:
        print_json([entry._asdict() for entry in entries])
        return
    _print_table(["File", "State"], [list(entry) for entry in entries])
    for path, state in entries:
        if state in history.ADVICE:
            database.echo_err(f"{path} {history.ADVICE[state]}")
    if pending := [path for path, state in entries if state in PENDING_STATES]:
        database.echo_err(f"Next: {pending[0]}. `ballast migrate up` applies it, and then the files after it.")


@migrate.command(epilog="Example: ballast migrate check")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def check(url: str | None, as_json: bool) -> None:
    """Report pending files, drift, and keys across tenants. Exits with 1 if there are any.

    Compares functions, views, triggers, column defaults, policies and grants of the schemas public, app and ops. Runs
    every file and rolls it back at once. People may write meanwhile.

    A foreign or unique key of a table with organization_id must include that column, or a comment must explain it.
    """
    with _advise_on_local_history(url):
        plan, found = drift.check(options.choose_url(url), notify=database.echo_err)
    if as_json:
        pending = [*plan.renamed, *plan.paths, *plan.removed]
        print_json({"pending": pending, "drift": [entry._asdict() for entry in found]})
    elif found:
        _print_table(["Kind", "Name", "In the database"], [list(entry) for entry in found])
        if any(entry.problem != drift.ACROSS_TENANTS for entry in found):
            database.echo_err(
                "Add what you want to keep to functions/ or policies/; drop the other undeclared objects."
            )
        if any(entry.problem == drift.ACROSS_TENANTS for entry in found):
            database.echo_err(
                "A key across tenants reveals whether another tenant's row exists. Include organization_id, or "
                "explain: comment on constraint (or index) … is 'Across tenants: …'"
            )
    if not as_json and not plan.is_empty:
        database.echo_err("\n".join(f"Pending: {path}" for path in (*plan.renamed, *plan.paths, *plan.removed)))
        database.echo_err("Apply them with `ballast migrate up`.")
    if found or not plan.is_empty:
        sys.exit(1)
    if not as_json:
        click.echo(f"No drift: {_format_current(plan)}.")


@migrate.command(epilog="Example: ballast migrate new add_invoices")
@click.argument("name")
def new(name: str) -> None:
    """Write an empty migration and print its path."""
    click.echo(sql_files.write_migration(name).relative_to(sql_files.ROOT))


@migrate.command("bundle", epilog="Example: ballast migrate bundle --check")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if supabase/migrations/ is not current.")
def bundle_command(check: bool) -> None:
    """Write supabase/migrations/, which Supabase itself deploys.

    `supabase db push` and preview branches apply only that folder. It contains copies of migrations/, and bundles of
    the changed files of functions/ and policies/. Run this before you merge. `migrate up` does not need it.
    """
    found = bundle.find_unbundled(sql_files.ROOT)
    if not found.paths:
        click.echo(f"Nothing to do: {sql_files.BUNDLES} is current.")
    elif check:
        database.echo_err("\n".join(f"Not bundled: {path}" for path in found.paths))
        database.echo_err("Write them with `ballast migrate bundle`, and commit them.")
        sys.exit(1)
    else:
        for path in bundle.write(sql_files.ROOT, found):
            click.echo(f"Wrote {path}")


@contextmanager
def _advise_on_local_history(url: str | None) -> Iterator[None]:
    """Adds the simplest remedy if the history disagrees with a database that may be deleted."""
    try:
        yield
    except history.HistoryDisagrees as failure:
        if not options.is_local(url):
            raise
        advice = "This is the local stack's database: `ballast reset` and `ballast up` create it again from the files."
        raise history.HistoryDisagrees(f"{failure}\n{advice}") from None


def _describe_applied(file: sql_files.Migration | sql_files.Source, applied: str, forgot: str) -> str:
    if isinstance(file, sql_files.Source) and not file.checksum:
        return f"{forgot} {file.path}, because the file was removed{_format_leftovers(file.path)}"
    return f"{applied} {file.path}"


def _format_current(plan: migrations.Plan) -> str:
    migration_count = _format_count(len(plan.files.migrations), "migration")
    return f"{migration_count}, {_format_count(len(plan.files.sources), 'source')} are current"


def _format_count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _format_leftovers(path: str) -> str:
    return "; `ballast migrate check` lists its remaining objects" if path.startswith("functions/") else ""


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    table = Table(*columns)
    for *cells, state in rows:
        style = "red" if state in RED_STATES else "green" if state in ("applied", "current") else "yellow"
        table.add_row(*cells, f"[{style}]{state}[/]")
    print_table(table)
