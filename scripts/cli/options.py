"""Options that several commands share, and the database and environment that they select."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from scripts.backup.borrowed import Place
from scripts.errors import Failure
from scripts.local.stack import Stack
from scripts.schema.database import Connection, connect, echo_err

url_option = click.option(
    "--database-url",
    "url",
    metavar="URL",
    help="The database, as role postgres. Default: DATABASE_URL, else the local stack.",
)


identity_option = click.option(
    "--identity",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="The file with the secret key, as written by age-keygen. Default: the key in BACKUP_IDENTITY.",
)


def place_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --server and --postgres, and passes them to the command as `place`."""

    @click.option(
        "--server",
        metavar="URL",
        help="Restore on this server, in a new database that is dropped at the end. URL of a superuser.",
    )
    @click.option(
        "--postgres",
        "programs",
        type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
        metavar="BIN",
        help="Restore with the PostgreSQL in this bin folder instead of the embedded one.",
    )
    @wraps(command)
    def wrapped(*arguments: Any, server: str | None, programs: Path | None, **options: Any) -> None:
        if server is not None and programs is not None:
            raise click.UsageError("Choose one of --server and --postgres.")
        command(*arguments, place=Place(server, programs), **options)

    return wrapped


class DatabaseUnknown(Failure):
    """No option, environment variable or local stack selects a database."""


def choose_url(url: str | None) -> str:
    """Returns the given URL, else DATABASE_URL, else the URL of BALLAST_HOME's stack. Raises DatabaseUnknown."""
    chosen = url or os.environ.get("DATABASE_URL")
    if chosen:
        return chosen
    postgres = Stack.from_environment().postgres
    if not postgres.exists():
        raise DatabaseUnknown(
            "No database is selected: set DATABASE_URL, pass --database-url, or start one with `ballast up`."
        )
    return postgres.url()


def build_environment(url: str | None) -> dict[str, str]:
    """Returns the variables for a database. The stack's variables count only for its own database, after real ones."""
    local = Stack.from_environment().environment() if is_local(url) else {}
    return local | {name: value for name, value in os.environ.items() if value}


def is_local(url: str | None) -> bool:
    """Returns whether the chosen database is that of the local stack."""
    postgres = Stack.from_environment().postgres
    chosen = url or os.environ.get("DATABASE_URL")
    return chosen == postgres.url() if chosen else postgres.exists()


class NotMigrated(Failure):
    """The database lacks a table that the command needs."""


@contextmanager
def open_database(url: str | None, *, requires: str) -> Iterator[Connection]:
    """Connects to a database that has the table `requires`; prints warnings to stderr. Raises NotMigrated."""
    with connect(choose_url(url), echo_err) as connection:
        if connection.execute("select to_regclass(%s)", [requires]).fetchone() == (None,):
            raise NotMigrated(f"The database does not have the table {requires} yet: run `ballast migrate up`.")
        yield connection
