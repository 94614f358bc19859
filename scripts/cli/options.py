"""Options that several commands have, and which database and environment they mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from scripts.errors import Failure
from scripts.local.stack import Stack
from scripts.schema.database import Connection, connect, echo_err

url_option = click.option(
    "--database-url", "url", metavar="URL", help="A postgres role's URL. Default: DATABASE_URL, else the local stack's."
)


identity_option = click.option(
    "--identity",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="The secret key, as age-keygen writes it. Default: the text of BACKUP_IDENTITY.",
)


class DatabaseUnknown(Failure):
    """Neither an option, nor the environment, nor a local stack names a database."""


def choose_url(url: str | None) -> str:
    """The URL given, else DATABASE_URL, else that of BALLAST_HOME's stack. Raises DatabaseUnknown."""
    chosen = url or os.environ.get("DATABASE_URL")
    if chosen:
        return chosen
    postgres = Stack.from_environment().postgres
    if not postgres.exists():
        raise DatabaseUnknown("Which database? Set DATABASE_URL, pass --database-url, or start one with `ballast up`.")
    return postgres.url()


def build_environment(url: str | None) -> dict[str, str]:
    """The variables that go with a database; the local stack's stand-ins only with its own, and the real ones first."""
    stack = Stack.from_environment()
    chosen = url or os.environ.get("DATABASE_URL")
    is_local = chosen == stack.postgres.url() if chosen else stack.postgres.exists()
    return (stack.environment() if is_local else {}) | {name: value for name, value in os.environ.items() if value}


class NotMigrated(Failure):
    """The database lacks a table that the command needs."""


@contextmanager
def open_database(url: str | None, *, requires: str) -> Iterator[Connection]:
    """A connection to a database that has the table `requires`; warnings go to stderr. Raises NotMigrated."""
    with connect(choose_url(url), echo_err) as connection:
        if connection.execute("select to_regclass(%s)", [requires]).fetchone() == (None,):
            raise NotMigrated(f"This database has no table {requires} yet: run `ballast migrate up`.")
        yield connection
