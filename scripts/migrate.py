"""`ballast migrate`: apply, list, check and make migrations."""

from __future__ import annotations

import os

import click

from scripts import migrations
from scripts.failure import Failure


class DatabaseUnknown(Failure):
    """No --database-url, no DATABASE_URL."""


def chosen(given: str | None) -> str:
    """The option, else the environment. Raises DatabaseUnknown."""
    url = given or os.environ.get("DATABASE_URL")
    if not url:
        raise DatabaseUnknown("Which database? Set DATABASE_URL, or pass --database-url.")
    return url


url_option = click.option("--database-url", metavar="URL", help="Default: DATABASE_URL.")


@click.group()
def migrate() -> None:
    """Bring a database to what migrations/, functions/ and policies/ say."""


@migrate.command()
@url_option
@click.option("--dry-run", is_flag=True, help="Do everything, roll it back, and say what it would have been.")
def up(database_url: str | None, dry_run: bool) -> None:
    """Apply new migrations and changed functions and policies, in one transaction."""
    plan = migrations.up(chosen(database_url), dry_run=dry_run, tell=lambda line: click.echo(line, err=True))
    _print_plan(plan, dry_run=dry_run)


@migrate.command()
@click.argument("name")
def new(name: str) -> None:
    """Write an empty migration and print its path."""
    click.echo(migrations.new(name).relative_to(migrations.ROOT))


def _print_plan(plan: migrations.Plan, *, dry_run: bool) -> None:
    if plan.empty:
        files = plan.files
        migration_count, source_count = _count(len(files.migrations), "migration"), _count(len(files.sources), "source")
        click.echo(f"Nothing to do: {migration_count}, {source_count} are current.")
        return
    verb = "Would apply" if dry_run else "Applied"
    for path in (*(migration.path for migration in plan.migrations), *(source.path for source in plan.sources)):
        click.echo(f"{verb} {path}")
    for path in plan.removed:
        click.echo(f"{'Would forget' if dry_run else 'Forgot'} {path}, which has no file any more")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
