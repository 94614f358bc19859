"""Compares the files of a checkout with what a database records about them.

Migrations are recorded in supabase_migrations.schema_migrations, in the format of the Supabase CLI. Sources are
recorded by checksum in app.applied_sources.
"""

from __future__ import annotations

from typing import LiteralString, NamedTuple

from scripts.errors import Failure
from scripts.schema.database import Connection
from scripts.schema.sql_files import BUNDLE_SUFFIX, Files, Migration, Source

# The same statements as in github.com/supabase/cli pkg/migration/history.go: each tool can read the other's history.
HISTORY_TABLE: tuple[LiteralString, ...] = (
    "create schema if not exists supabase_migrations",
    "create table if not exists supabase_migrations.schema_migrations (version text not null primary key)",
    "alter table supabase_migrations.schema_migrations add column if not exists statements text[]",
    "alter table supabase_migrations.schema_migrations add column if not exists name text",
)

ADVICE = {
    "edited": "was edited after it was applied: undo the edit, and make the change in a new migration "
    "(`ballast migrate new NAME`).",
    "missing": "is applied but has no file: restore the file from version control. If it was applied by mistake, run "
    "`supabase migration repair VERSION --status reverted`.",
    "late": "is older than a migration that is already applied: give its file a new timestamp, so that every "
    "database applies them in the same order.",
}


class HistoryDisagrees(Failure):
    """An applied migration was edited or has no file, or a pending one is older than an applied one."""


class AppliedMigration(NamedTuple):
    """A row of supabase_migrations.schema_migrations."""

    name: str
    statements: list[str] | None


class FileState(NamedTuple):
    """The state of a file in the database.

    A migration is applied, pending, edited (after it was applied), missing (applied, but without a file) or late
    (pending, but older than an applied one). A source is current, changed (after it was applied), pending or removed
    (applied, but without a file).
    """

    path: str
    state: str


def read_history(connection: Connection, files: Files) -> list[FileState]:
    """Lists every migration that has a file or is recorded, in version order."""
    applied = read_applied_migrations(connection)
    newest = max(applied, default="")
    history = [FileState(file.path, _find_migration_state(file, applied, newest)) for file in files.migrations]
    for version in applied.keys() - {migration.version for migration in files.migrations}:
        history.append(FileState(f"migrations/{version}_{applied[version].name}.sql", "missing"))
    return sorted(history)


def _find_migration_state(migration: Migration, applied: dict[str, AppliedMigration], newest: str) -> str:
    if migration.version not in applied:
        return "late" if migration.version < newest else "pending"
    recorded = applied[migration.version].statements
    # `supabase migration repair` records no statements if it does not find the file.
    return "applied" if recorded in (None, migration.statements()) else "edited"


def read_file_states(connection: Connection, files: Files) -> list[FileState]:
    """Lists every source in order of application, then the removed ones."""
    checksums = read_applied_sources(connection)
    states = [
        FileState(source.path, _find_source_state(source, checksums.get(source.path))) for source in files.sources
    ]
    removed = checksums.keys() - {source.path for source in files.sources}
    return states + [FileState(path, "removed") for path in sorted(removed)]


def _find_source_state(source: Source, applied: str | None) -> str:
    if applied is None:
        return "pending"
    return "current" if applied == source.checksum else "changed"


def read_applied_migrations(connection: Connection) -> dict[str, AppliedMigration]:
    """Returns the recorded migrations by version, without bundles; empty for a database that was never migrated."""
    if not exists(connection, "supabase_migrations.schema_migrations"):
        return {}
    query = "select version, coalesce(name, ''), statements from supabase_migrations.schema_migrations"
    return {
        version: AppliedMigration(name, statements)
        for version, name, statements in connection.execute(query)
        if not name.endswith(BUNDLE_SUFFIX)
    }


def read_applied_sources(connection: Connection) -> dict[str, str]:
    """Returns checksums by path; empty before the first migration."""
    if not exists(connection, "app.applied_sources"):
        return {}
    return dict(connection.execute("select path, checksum from app.applied_sources").fetchall())


def exists(connection: Connection, table: str) -> bool:
    return connection.execute("select to_regclass(%s) is not null", [table]).fetchone() == (True,)
