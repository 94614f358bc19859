"""Which database a command works on, and the connection to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg
from rich.console import Console
from rich.table import Table

from scripts.errors import Failure
from scripts.local.stack import Stack

Connection = psycopg.Connection[Any]
Tell = Callable[[str], None]

url_option = click.option(
    "--database-url", "url", metavar="URL", help="A postgres role's URL. Default: DATABASE_URL, else the local stack's."
)


class DatabaseUnknown(Failure):
    """Neither an option, nor the environment, nor a local stack names a database."""


class DatabaseUnreachable(Failure):
    """No connection to the database could be made."""


class DatabaseRefused(Failure):
    """A statement of ours failed: the role may not do it, or the connection was lost."""


def say(line: str) -> None:
    """A `Tell` for commands: to stderr, so that a result on stdout stays readable for programs."""
    click.echo(line, err=True)


def print_table(table: Table) -> None:
    """Prints a table; into a pipe or file in its full width, for there is nobody to make the window wider."""
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    console.print(table)


def choose(url: str | None) -> str:
    """The URL given, else DATABASE_URL, else that of BALLAST_HOME's stack. Raises DatabaseUnknown."""
    chosen = url or os.environ.get("DATABASE_URL")
    if chosen:
        return chosen
    postgres = Stack.from_environment().postgres
    if not postgres.exists():
        raise DatabaseUnknown("Which database? Set DATABASE_URL, pass --database-url, or start one with `ballast up`.")
    return postgres.url()


def environment(url: str | None) -> dict[str, str]:
    """The variables that go with a database; the local stack's stand-ins only with its own, and the real ones first."""
    stack = Stack.from_environment()
    chosen = url or os.environ.get("DATABASE_URL")
    is_local = chosen == stack.postgres.url() if chosen else stack.postgres.exists()
    return (stack.environment() if is_local else {}) | {name: value for name, value in os.environ.items() if value}


@contextmanager
def connected(url: str, tell: Tell = lambda _: None) -> Iterator[Connection]:
    """A connection in autocommit mode whose warnings go to `tell`.

    Raises DatabaseUnreachable, without the password, and DatabaseRefused for an error that nobody else handles.
    """
    try:
        connection: Connection = psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,  # A transaction pooler knows no prepared statements
            connect_timeout=10,
            application_name="ballast",
        )
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        message = f"The database does not answer: {reason}\nCheck DATABASE_URL, or run `ballast up`."
        raise DatabaseUnreachable(message) from None
    with connection:
        connection.add_notice_handler(lambda notice: tell(f"{notice.severity}: {notice.message_primary}"))
        try:
            yield connection
        except psycopg.Error as error:
            raise DatabaseRefused(f"The database refused: {error}") from error
