"""One moment of a database: held open while it is dumped, and counted and described meanwhile."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from psycopg import sql

from scripts.backup.manifest import SCHEMAS, Seal
from scripts.errors import Failure
from scripts.schema.database import Connection

# Chosen once; public.backup_is_running() looks for it.
ADVISORY_LOCK = 733_140_620
STRUCTURE = Path(__file__).with_name("structure.sql")
GLOBALS = Path(__file__).with_name("globals.sql")
HASH_DIGITS = 16
# How PostgreSQL writes a definition: a partition's bounds in the session's time zone, an interval in its style.
SPELLING = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "quote_all_identifiers": "off",
    "search_path": "pg_catalog",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
}

VIEW_NOISE = re.compile(r'\b[a-z_]\w*\.(?=["a-z_])| AS (?:"[^"]+"|[a-z_]\w*)(?=,| FROM\b| UNION\b|\)|;|$)')

Structure = dict[str, dict[str, str]]


class BackupRunning(Failure):
    """Another backup of this database is running."""


class NothingToBackUp(Failure):
    """The database has none of our schemas."""


@dataclass(frozen=True)
class Globals:
    """What a dump leaves out: the roles that it names, and SQL scripts for before and after it is restored."""

    roles: list[str]
    before: str
    after: str

    @classmethod
    def of(cls, connection: Connection) -> Globals:
        found: dict[str, list[str]] = {}
        for kind, text in connection.execute(GLOBALS.read_bytes(), {"schemas": list(SCHEMAS)}):
            found.setdefault(kind, []).append(text)
        before, after = ("".join(f"{text};\n" for text in found.get(kind, [])) for kind in ("before", "after"))
        return cls(found.get("role", []), before, after)


@dataclass(frozen=True)
class Snapshot:
    """A moment, `taken_at`, that pg_dump sees too when it is given the `name`."""

    connection: Connection
    name: str
    taken_at: datetime


@contextmanager
def take_snapshot(connection: Connection) -> Iterator[Snapshot]:
    """A snapshot, held until the block ends: keep it short. Raises BackupRunning and NothingToBackUp."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        connection.execute("set local statement_timeout = 0")
        connection.execute("set local idle_in_transaction_session_timeout = 0")
        # A role that row level security applies to would see, and back up, less than there is.
        connection.execute("set local row_security = off")
        if connection.execute("select pg_try_advisory_xact_lock(%s)", [ADVISORY_LOCK]).fetchone() != (True,):
            raise BackupRunning("A backup of this database is running already: wait for it to end.")
        present = connection.execute("select from pg_namespace where nspname = any(%s)", [["app", "ops"]]).rowcount
        if not present:
            raise NothingToBackUp("This database has no schema of ours: run `ballast migrate up` first.")
        [[name, moment]] = connection.execute("select pg_export_snapshot(), now()").fetchall()
        yield Snapshot(connection, name, moment)


def estimate_bytes(connection: Connection) -> int:
    """About what a dump takes, uncompressed: the tables without their indexes."""
    query = """
        select coalesce(sum(pg_table_size(c.oid)), 0)::bigint
        from pg_class as c
        where c.relkind = 'r' and c.relnamespace::regnamespace::text = any(%s)
    """
    return int(connection.execute(query, [list(SCHEMAS)]).fetchall()[0][0])


def count_rows(connection: Connection) -> dict[str, int]:
    """Table → rows, of every table of ours that holds any itself: a partition each."""
    tables = connection.execute(
        """
        select n.nspname, c.relname
        from pg_class as c
        join pg_namespace as n on n.oid = c.relnamespace
        where c.relkind = 'r' and n.nspname = any(%s)
        order by 1, 2
        """,
        [list(SCHEMAS)],
    ).fetchall()
    query = sql.SQL("select count(*) from only {}")
    return {
        f"{schema}.{table}": connection.execute(query.format(sql.Identifier(schema, table))).fetchall()[0][0]
        for schema, table in tables
    }


def describe_structure(connection: Connection) -> Structure:
    """Kind → name → hash of the definition, of all in our schemas. No setting of the session changes it."""
    found: Structure = {}
    with connection.transaction():
        for setting, value in SPELLING.items():
            connection.execute("select set_config(%s, %s, true)", [setting, value])
        rows = connection.execute(STRUCTURE.read_bytes(), {"schemas": list(SCHEMAS)}).fetchall()
    for kind, name, definition in rows:
        digest = hashlib.sha256(normalize(kind, definition).encode()).hexdigest()[:HASH_DIGITS]
        found.setdefault(kind, {})[name] = digest
    return found


def normalize(kind: str, definition: str) -> str:
    """The definition in one spelling. PostgreSQL writes a view differently in another version, and when made again.

    Since 16 a column's table is named only where it must be, and a constant in a later arm of a union gets the column's
    name. The columns of a view are compared by themselves.
    """
    if kind != "view":
        return definition
    return VIEW_NOISE.sub("", " ".join(definition.split()))


def find_newest_migration(connection: Connection) -> str | None:
    """Its version."""
    if connection.execute("select to_regclass('supabase_migrations.schema_migrations')").fetchone() == (None,):
        return None
    row = connection.execute("select max(version) from supabase_migrations.schema_migrations").fetchone()
    return row[0] if row else None


def find_last_seal(connection: Connection) -> Seal | None:
    """The newest seal of the audit trail."""
    if connection.execute("select to_regclass('app.audit_seals')").fetchone() == (None,):
        return None
    row = connection.execute(
        "select sequence, encode(seal, 'hex') from app.audit_seals order by sequence desc limit 1"
    ).fetchone()
    return Seal(sequence=row[0], seal=row[1]) if row else None
