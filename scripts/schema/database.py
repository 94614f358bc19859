"""The connection to a database, with errors that a person can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg

from scripts.errors import Failure

Connection = psycopg.Connection[Any]
Notify = Callable[[str], None]


class DatabaseUnreachable(Failure):
    """No connection to the database could be made."""


class DatabaseRefused(Failure):
    """A statement of ours failed: the role may not do it, or the connection was lost."""


def echo_err(line: str) -> None:
    """A `Notify` for commands: to stderr, so that a result on stdout stays readable for programs."""
    click.echo(line, err=True)


@contextmanager
def connect(url: str, notify: Notify = lambda _: None) -> Iterator[Connection]:
    """A connection in autocommit mode whose warnings go to `notify`.

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
        connection.add_notice_handler(lambda notice: notify(f"{notice.severity}: {notice.message_primary}"))
        try:
            yield connection
        except psycopg.Error as error:
            raise DatabaseRefused(f"The database refused: {error}") from error
