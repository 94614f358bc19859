"""A snapshot of a database, held open while it is dumped, counted and described."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from psycopg import sql

from scripts.backup.manifest import SCHEMAS, Extension, Seal
from scripts.backup.structure import pin_session, pinned
from scripts.errors import Failure
from scripts.schema.database import Connection

# An arbitrary number; public.backup_is_running() checks for the same one.
ADVISORY_LOCK = 733_140_620
GLOBALS = Path(__file__).with_name("globals.sql")


class BackupRunning(Failure):
    """Another backup of this database is running."""


class NothingToBackUp(Failure):
    """The database does not have our schemas."""


@dataclass(frozen=True)
class Globals:
    """What a dump omits: roles and extensions that it needs, and SQL scripts to run before and after it is restored.

    `missing` describes objects that our objects need, or that use them, and that no backup contains.
    """

    roles: list[str]
    extensions: list[Extension]
    missing: list[str]
    before: str
    after: str

    @classmethod
    def of(cls, connection: Connection) -> Globals:
        found: dict[str, list[str]] = {}
        with pinned(connection):
            for kind, text in connection.execute(GLOBALS.read_bytes(), {"schemas": list(SCHEMAS)}):
                found.setdefault(kind, []).append(text)
        before, after = ("".join(f"{text};\n" for text in found.get(kind, [])) for kind in ("before", "after"))
        extensions = [Extension.model_validate_json(text) for text in found.get("extension", [])]
        return cls(found.get("role", []), extensions, found.get("missing", []), before, after)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was taken at `taken_at`; pg_dump reads the same one by its `name`."""

    connection: Connection
    name: str
    taken_at: datetime


@contextmanager
def take_snapshot(connection: Connection) -> Iterator[Snapshot]:
    """Holds a snapshot until the block ends, so keep the block short. Raises BackupRunning and NothingToBackUp."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        connection.execute("set local statement_timeout = 0")
        connection.execute("set local idle_in_transaction_session_timeout = 0")
        # With `off`, a query that policies would filter fails. Otherwise the backup would be incomplete.
        connection.execute("set local row_security = off")
        pin_session(connection, until_commit=True)
        if connection.execute("select pg_try_advisory_xact_lock(%s)", [ADVISORY_LOCK]).fetchone() != (True,):
            raise BackupRunning("Another backup of this database is running: wait until it has ended.")
        present = connection.execute("select from pg_namespace where nspname = any(%s)", [["app", "ops"]]).rowcount
        if not present:
            raise NothingToBackUp("This database has no Ballast schemas: run `ballast migrate up` first.")
        [[name, moment]] = connection.execute("select pg_export_snapshot(), now()").fetchall()
        yield Snapshot(connection, name, moment)


def estimate_bytes(connection: Connection) -> int:
    """Estimates the size of an uncompressed dump: the tables without their indexes."""
    query = """
        select coalesce(sum(pg_table_size(c.oid)), 0)::bigint
        from pg_class as c
        where c.relkind = 'r' and c.relnamespace::regnamespace::text = any(%s)
    """
    return int(connection.execute(query, [list(SCHEMAS)]).fetchall()[0][0])


def count_rows(connection: Connection) -> dict[str, int]:
    """Counts the rows of each of our tables. Partitions count separately."""
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


def find_newest_migration(connection: Connection) -> str | None:
    """The version of the newest applied migration."""
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
