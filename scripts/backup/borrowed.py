"""A temporary database on a running server, set up like a new Supabase project. Other databases stay untouched."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from scripts.errors import Failure
from scripts.schema.database import Connection, connect, echo_err
from scripts.scratch.postgres import prepare_database

OWNER = "postgres"
# The roles that a Supabase project has, with the attributes that matter to a restored database.
ROLES = {
    OWNER: "createrole createdb replication bypassrls",
    "anon": "",
    "authenticated": "",
    "service_role": "bypassrls",
    "authenticator": "noinherit",
    "supabase_realtime_admin": "noinherit",
}


class SuperuserMissing(Failure):
    """The role in the URL of a server is not a superuser."""

    exit_code = 2


@dataclass(frozen=True)
class Place:
    """Where a test restore runs: on the `server` of a URL, or on a temporary one with the `programs` of a folder."""

    server: str | None = None
    programs: Path | None = None


EMBEDDED = Place()


@dataclass(frozen=True)
class Borrowed:
    """The URLs of a temporary database: for the role postgres, and for the superuser that created it."""

    url: str
    admin_url: str


@contextmanager
def borrow_database(url: str, roles: Iterable[str]) -> Iterator[Borrowed]:
    """Creates a database on the server of a superuser's URL, and drops it when the block ends.

    `roles` and the roles of a Supabase project are created if they are missing, without a login, and dropped at the
    end. The password of postgres is unknown, so a temporary login role acts as postgres.
    Raises SuperuserMissing, DatabaseUnreachable.
    """
    name = f"ballast_scratch_{secrets.token_hex(6)}"
    password = secrets.token_urlsafe(16)
    created: list[str] = []
    try:
        with connect(url, echo_err) as admin:
            _require_superuser(admin)
            _create_roles(admin, dict.fromkeys(roles, "") | ROLES, created)
            created.append(name)
            admin.execute(_format("create role {} login noinherit in role {}", name, OWNER))
            admin.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(name), password))
            for role in _list_grantable(admin, roles):
                admin.execute(_format("grant {} to {}", role, name))
            admin.execute(_format("create database {} owner {} template template0 encoding 'UTF8'", name, OWNER))
            admin.execute(_format('alter database {} set search_path = "$user", public, extensions', name))
        borrowed = Borrowed(
            _change_url(url, dbname=name, user=name, password=password, options=f"-c role={OWNER}"),
            _change_url(url, dbname=name),
        )
        with connect(borrowed.admin_url) as inside:
            prepare_database(inside)
        yield borrowed
    finally:
        if created:
            _drop(url, name, created[::-1])


def _change_url(url: str, **changes: str) -> str:
    parts = conninfo_to_dict(url) | changes
    login = ":".join(quote(str(parts.pop(name)), safe="") for name in ("user", "password") if name in parts)
    return f"postgresql://{login}@?{urlencode(parts, quote_via=quote)}"


def _require_superuser(admin: Connection) -> None:
    [[role, is_superuser]] = admin.execute(
        "select rolname::text, rolsuper from pg_roles where rolname = current_user"
    ).fetchall()
    if not is_superuser:
        raise SuperuserMissing(
            f"The role {role} of --server is not a superuser, and only a superuser may create every extension there."
            " Put a superuser into the URL, such as supabase_admin, or use --postgres BIN."
        )


def _create_roles(admin: Connection, roles: dict[str, str], created: list[str]) -> None:
    """Creates the missing roles, and appends them to `created`."""
    for role, attributes in roles.items():
        if not admin.execute("select from pg_roles where rolname = %s", [role]).rowcount:
            admin.execute(_format(f"create role {{}} {attributes}", role))
            created.append(role)


def _list_grantable(admin: Connection, roles: Iterable[str]) -> list[str]:
    """The roles that the restored database uses, without superusers and postgres."""
    found = admin.execute(
        "select rolname::text from pg_roles where rolname = any(%s) and not rolsuper order by 1",
        [sorted({*roles, *ROLES} - {OWNER})],
    )
    return [role for (role,) in found]


def _drop(url: str, database: str, roles: list[str]) -> None:
    """Drops the database, then the roles that were created. Reports what stays: another error may be on its way."""
    statements = [_format("drop database if exists {} with (force)", database)]
    statements += [_format("drop role if exists {}", role) for role in roles]
    try:
        with connect(url) as admin:
            for statement in statements:
                try:
                    admin.execute(statement)
                except psycopg.errors.DependentObjectsStillExist as error:
                    echo_err(f"{error.diag.message_primary}: it stays on the server of --server.")
    except Failure as failure:
        echo_err(f"{failure}\nOn the server of --server, drop the database and the role {database} if they are left.")


def _format(statement: str, *names: str) -> sql.Composed:
    return sql.SQL(statement).format(*map(sql.Identifier, names))
