"""Opens connections to a database, with errors that state what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg
from psycopg import errors

from scripts.errors import Failure

Connection = psycopg.Connection[Any]
Notify = Callable[[str], None]


class DatabaseUnreachable(Failure):
    """No connection to the database could be opened."""


class StatementRefused(Failure):
    """A statement failed: the role lacks a privilege, or the connection was lost."""


def echo_err(line: str) -> None:
    """Prints a line to stderr, so that programs can read the result on stdout."""
    click.echo(line, err=True)


@contextmanager
def connect(url: str, notify: Notify = lambda _: None) -> Iterator[Connection]:
    """Opens a connection in autocommit mode, and passes the server's warnings to `notify`.

    Raises DatabaseUnreachable, without the password, and StatementRefused for an error that the caller does not handle.
    """
    try:
        connection: Connection = psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,  # a transaction pooler does not support prepared statements
            connect_timeout=10,
            application_name="ballast",
        )
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        message = f"The database does not answer: {reason}\nCheck DATABASE_URL, or run `ballast up`."
        raise DatabaseUnreachable(message) from None
    with connection:
        connection.add_notice_handler(lambda notice: notify(f"{notice.severity}: {notice.message_primary}"))
        try:
            yield connection
        except errors.InsufficientPrivilege as error:
            advice = "The role of this connection lacks a right: connect as the owner, which on Supabase is postgres."
            raise StatementRefused(f"The database refused a statement: {error}\n{advice}") from error
        except psycopg.Error as error:
            raise StatementRefused(f"The database refused a statement: {error}") from error
