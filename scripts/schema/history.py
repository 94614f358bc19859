"""Compares the files of a checkout with what a database records about them.

Migrations are recorded in supabase_migrations.schema_migrations, in the format of the Supabase CLI. Sources are
recorded by checksum in app.applied_sources.

A migration keeps its record when its file gets another timestamp. `ballast upgrade` gives a release's migrations new
ones, two branches may give the same migration two, and people rename files. The record has the statements, and so the
first line that identifies a release's migration (see sql_files.py).

Example: a branch took release 1 as 20270301_rank.sql, and its database applied it. The main branch took it as
20270405_rank.sql, after its own 20270402_notes.sql. After the merge, the branch's database applies only
20270402_notes.sql, and records the other one as 20270405_rank.sql. The main database applies nothing twice either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString, NamedTuple

from scripts.errors import Failure
from scripts.schema.database import Connection
from scripts.schema.sql_files import BUNDLE_SUFFIX, Files, Migration, Source, read_origin, strip_origin

# The same statements as in github.com/supabase/cli pkg/migration/history.go: each tool can read the other's history.
HISTORY_TABLE: tuple[LiteralString, ...] = (
    "create schema if not exists supabase_migrations",
    "create table if not exists supabase_migrations.schema_migrations (version text not null primary key)",
    "alter table supabase_migrations.schema_migrations add column if not exists statements text[]",
    "alter table supabase_migrations.schema_migrations add column if not exists name text",
)
# Two steps, because two migrations may have exchanged their versions.
RENAME: LiteralString = (
    "update supabase_migrations.schema_migrations set version = %s, name = %s, statements = %s where version = %s"
)
FINISH_RENAMING: LiteralString = """
    update supabase_migrations.schema_migrations set version = ltrim(version, '-') where starts_with(version, '-')
"""

ADVICE = {
    "edited": "was edited after it was applied: undo the edit, and make the change in a new migration "
    "(`ballast migrate new NAME`).",
    "missing": "is applied but has no file: restore the file from version control. If it was applied by mistake, run "
    "`supabase migration repair VERSION --status reverted`.",
    "late": "is older than a migration that is already applied: give its file a new timestamp, so that every "
    "database applies them in the same order. Databases that applied it recognize its text.",
}


class HistoryDisagrees(Failure):
    """An applied migration was edited or has no file, or a pending one is older than an applied one."""


class AppliedMigration(NamedTuple):
    """A row of supabase_migrations.schema_migrations. `supabase migration repair` may record no statements."""

    version: str
    name: str
    statements: list[str] | None

    @property
    def origin(self) -> str | None:
        return read_origin(self.statements[0]) if self.statements else None

    def has_text_of(self, migration: Migration) -> bool:
        return self.statements is not None and _strip(self.statements) == _strip(migration.statements())


class FileState(NamedTuple):
    """The state of a file in the database.

    A migration is applied, renamed (applied, but recorded under another timestamp), pending, edited (after it was
    applied), missing (applied, but without a file) or late (pending, but older than an applied one). A source is
    current, changed (after it was applied), pending or removed (applied, but without a file).
    """

    path: str
    state: str


class History(NamedTuple):
    """The state of each migration in version order, and the records of those that a database has under another version.

    `renamed` is keyed by the path of the file.
    """

    states: list[FileState]
    renamed: dict[str, AppliedMigration]


def read_history(connection: Connection, files: Files) -> History:
    """Compares every migration that has a file or is recorded."""
    applied = read_applied_migrations(connection)
    records = _match_records(files.migrations, applied)
    matched = {record.version for record in records.values()}
    # A renamed migration is as old as its older name, so that neither order of two branches makes another one late.
    ages = [
        min(migration.version, records[migration.path].version)
        for migration in files.migrations
        if migration.path in records
    ]
    newest = max([*ages, *(version for version in applied if version not in matched)], default="")
    states = [
        FileState(file.path, _find_migration_state(file, records.get(file.path), newest)) for file in files.migrations
    ]
    for version in applied.keys() - matched:
        states.append(FileState(f"migrations/{version}_{applied[version].name}.sql", "missing"))
    renamed = {path: records[path] for path, state in states if state == "renamed"}
    return History(sorted(states), renamed)


def _match_records(
    migrations: Sequence[Migration], applied: dict[str, AppliedMigration]
) -> dict[str, AppliedMigration]:
    """Returns the record of each applied migration by its path.

    Found by its version, else by the release's version, else by its text, if no other file or record has that text.
    """
    found = {
        migration.path: applied[migration.version]
        for migration in migrations
        if migration.version in applied and not _are_different(migration, applied[migration.version])
    }
    for is_same in (_have_one_origin, _have_one_text):
        files = [migration for migration in migrations if migration.path not in found]
        matched = {record.version for record in found.values()}
        records = [record for version, record in applied.items() if version not in matched]
        pairs = [(file, record) for file in files for record in records if is_same(file, record)]
        for file, record in pairs:
            if sum(file is other or record is another for other, another in pairs) == 1:
                found[file.path] = record
    return found


def _are_different(migration: Migration, record: AppliedMigration) -> bool:
    return None not in (migration.origin, record.origin) and migration.origin != record.origin


def _have_one_origin(migration: Migration, record: AppliedMigration) -> bool:
    return migration.origin is not None and migration.origin == record.origin


def _have_one_text(migration: Migration, record: AppliedMigration) -> bool:
    return record.has_text_of(migration) and not _are_different(migration, record)


def _strip(statements: list[str]) -> list[str]:
    """Returns the statements without the line that identifies a release's migration."""
    first = [text for text in (strip_origin(text).strip() for text in statements[:1]) if text]
    return first + statements[1:]


def _find_migration_state(migration: Migration, record: AppliedMigration | None, newest: str) -> str:
    if record is None:
        return "late" if migration.version < newest else "pending"
    if record.statements is not None and not record.has_text_of(migration):
        return "edited"
    return "applied" if record.version == migration.version else "renamed"


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
        version: AppliedMigration(version, name, statements)
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
