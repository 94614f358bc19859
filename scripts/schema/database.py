"""Opens connections to a database, with errors that state what to do. No error shows a part of the password."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from scripts.errors import Failure

# How often two connections are asked for their server process.
PROBES = 4

Connection = psycopg.Connection[Any]
Notify = Callable[[str], None]

SCHEMES = {"postgresql", "postgres"}


class DatabaseUrlInvalid(Failure):
    """The URL of a database is malformed. The message contains no part of it."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The URL of the database is malformed: {reason}.\n"
            "Write it as postgresql://user:password@host:5432/postgres, and percent-encode special characters in the "
            "password: % as %25, @ as %40, / as %2F, ? as %3F, # as %23, & as %26, a space as %20."
        )


class DatabaseUnreachable(Failure):
    """No connection to the database could be opened."""


class StatementRefused(Failure):
    """A statement failed: the role lacks a privilege, or the connection was lost."""


class RowsHidden(Failure):
    """Policies hide rows from the role of the connection, so a full table would look empty to it."""


class SessionShared(Failure):
    """A pooler in transaction mode is in front of the database."""


def parse_url(url: str) -> dict[str, str]:
    """Returns the parts of a database's URL by libpq's names. Raises DatabaseUrlInvalid.

    libpq's errors quote the malformed part, which may be the password. After an `@` or `/` that is not encoded, libpq
    takes the rest of a password for the host or the database, which later errors show: for example
    `postgresql://postgres:s3@cret@host/postgres` names the host `cret@host`.
    """
    scheme, _, rest = url.partition("://")
    credentials, _, place = rest.rpartition("@")
    if scheme not in SCHEMES:
        raise DatabaseUrlInvalid("it does not start with postgresql://")
    if {"@", "/"} & set(credentials):
        raise DatabaseUrlInvalid("it has an @ or a / that is not percent-encoded")
    if "password=" in place:
        raise DatabaseUrlInvalid("its password is not before the @")
    if (parts := _parse_with_libpq(url)) is None:
        has_options = _parse_with_libpq(url.removesuffix(place) + place.partition("?")[0]) is not None
        raise DatabaseUrlInvalid(
            "an option after the ? is not one of PostgreSQL's" if has_options else "a character is not percent-encoded"
        )
    if not all(port.isascii() and port.isdigit() and 1 <= int(port) <= 65535 for port in _list_ports(parts)):
        raise DatabaseUrlInvalid("its port is not a number from 1 to 65535")
    return parts


def _parse_with_libpq(url: str) -> dict[str, str] | None:
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, UnicodeError):
        return None


def _list_ports(parts: dict[str, str]) -> list[str]:
    return [port for port in parts.get("port", "").split(",") if port]


def echo_err(line: str) -> None:
    """Prints a line to stderr, so that programs can read the result on stdout."""
    click.echo(line, err=True)


@contextmanager
def connect(url: str, notify: Notify = lambda _: None, *, own_session: bool = False) -> Iterator[Connection]:
    """Opens a connection in autocommit mode, and passes the server's warnings to `notify`.

    Raises DatabaseUrlInvalid and DatabaseUnreachable, without the password, and StatementRefused for an error that the
    caller does not handle. Raises RowsHidden for a role from which policies hide rows.
    With `own_session`, raises SessionShared behind a pooler in transaction mode.
    """
    parse_url(url)
    try:
        connection: Connection = psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,  # a transaction pooler does not support prepared statements
            connect_timeout=10,
            application_name="ballast",
        )
    except (psycopg.Error, UnicodeError) as error:
        reason = " ".join(str(error).split())
        message = f"The database does not answer: {reason}\nCheck DATABASE_URL, or run `ballast up`."
        raise DatabaseUnreachable(message) from None
    with connection:
        connection.add_notice_handler(lambda notice: notify(f"{notice.severity}: {notice.message_primary}"))
        try:
            _require_rows(connection)
            if own_session:
                _require_own_session(connection)
            yield connection
        except errors.InsufficientPrivilege as error:
            advice = "The role of this connection lacks a right: connect as the owner, which on Supabase is postgres."
            raise StatementRefused(f"The database refused a statement: {error}\n{advice}") from error
        except errors.ReadOnlySqlTransaction as error:
            advice = "This connection is read-only: connect to the primary server, without a read-only setting."
            raise StatementRefused(f"The database refused a statement: {error}\n{advice}") from error
        except psycopg.Error as error:
            raise StatementRefused(f"The database refused a statement: {error}") from error


def _require_rows(connection: Connection) -> None:
    """Raises RowsHidden, which names the owner. An administrator and the owner of our schemas pass."""
    query = """
        select r.rolname, n.nspowner::regrole::text
        from pg_namespace as n join pg_roles as r on r.rolname = current_user
        where n.nspname = 'app' and n.nspowner <> r.oid and not (r.rolsuper or r.rolbypassrls)
    """
    for role, owner in connection.execute(query):
        raise RowsHidden(f"The role {role} may not see all rows of this database: connect as {owner}, which owns it.")


def _require_own_session(connection: Connection) -> None:
    """Raises SessionShared behind a pooler in transaction mode: pg_dump and psql set what lasts until a session ends.

    Such a pooler gives each transaction any free session. So the next statement of pg_dump may lack its settings, and
    other clients, whose session has them, no longer find their tables. Through any other pooler, two connections always
    have two sessions.
    """
    place, password = connection.info.dsn, connection.info.password
    with (
        psycopg.connect(place, password=password, autocommit=True) as one,
        psycopg.connect(place, password=password, autocommit=True) as other,
    ):
        pids = [each.execute("select pg_backend_pid()").fetchone() for _ in range(PROBES) for each in (one, other)]
    if len(set(pids[::2])) > 1 or set(pids[::2]) & set(pids[1::2]):
        raise SessionShared(
            "DATABASE_URL leads to a pooler in transaction mode, which shares sessions between clients. pg_dump and"
            " psql need their own: use the direct connection or the session pooler (on Supabase, port 5432, not 6543)."
        )
