"""Applies pending files to a database: migrations/ in version order, then changed files of functions/ and policies/.

Under an advisory lock, one transaction applies all migrations and functions, or nothing. Then each changed policies
file is applied in its own short transaction. The reason: on hosted Supabase every CREATE, ALTER or DROP POLICY by
postgres locks some 23 tables of auth, storage and realtime until its transaction ends.

Migrations are recorded in supabase_migrations.schema_migrations, in the format of the Supabase CLI. Sources are
recorded by checksum in app.applied_sources.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import errors, sql

from scripts.errors import Failure
from scripts.schema.database import Connection, Notify, connect
from scripts.schema.statements import Statement, split

ROOT = Path(__file__).resolve().parents[2]

# A random constant: all deployers must use the same key. pg_locks shows it as objid, with classid 0.
ADVISORY_LOCK = 733_140_617
# Statements that wait for a lock block all later queries on the table, so a deployment gives up soon. A long index
# build is allowed.
LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "15min"
# For policies, less than PostgreSQL's deadlock_timeout (1 s): we give up before PostgreSQL aborts a writer.
POLICIES_LOCK_TIMEOUT = "500ms"
POLICIES_ATTEMPTS = 30
MAX_PAUSE_SECONDS = 1.0
NOTHING_APPLIED = "Nothing was applied."
CONTINUE = (
    "This file was not applied; all files before it were. Run `ballast migrate up` again: it continues with this file."
)

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

# The folder that `ballast migrate bundle` writes, and the suffix of bundle names. `migrate up` ignores recorded
# bundles, because it applies their sources itself.
BUNDLES = Path("supabase/migrations")
BUNDLE_SUFFIX = ".bundle"

Cursor = psycopg.Cursor[Any]

_MIGRATION_NAME = re.compile(r"(?P<version>\d{14})_(?P<name>[a-z0-9_]+)\.sql")
_TRANSACTION_CONTROL = {"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare"}


class FilesInvalid(Failure):
    """A file of migrations/, functions/ or policies/ has an invalid name, or cannot be read."""


class HistoryDisagrees(Failure):
    """An applied migration was edited or has no file, or a pending one is older than an applied one."""


class StatementFailed(Failure):
    """The server refused a statement. The message has file, line, the server's error, and what was applied."""


class Migration(NamedTuple):
    """A file of migrations/. `path` is relative to the root, as in every message."""

    version: str
    name: str
    path: str
    text: str

    def statements(self) -> list[str]:
        return [statement.text for statement in split(self.text)]


class Source(NamedTuple):
    """A file of functions/ or policies/. `table` is the quoted SQL name of the table that a policies file defines."""

    path: str
    text: str
    checksum: str
    table: str | None


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


@dataclass(frozen=True)
class Files:
    """The files of the checkout, in the order of application."""

    migrations: tuple[Migration, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Plan:
    """The pending work of a deployment. `removed` holds the paths of applied sources whose file was deleted."""

    files: Files
    migrations: tuple[Migration, ...]
    sources: tuple[Source, ...]
    removed: tuple[str, ...]

    @property
    def policies(self) -> tuple[Source, ...]:
        """The policies files to apply. A source without text closes a table whose policies file was deleted."""
        gone = (Source(path, "", "", parse_policy_table(path)) for path in self.removed)
        return tuple(source for source in (*self.sources, *gone) if source.table is not None)

    @property
    def paths(self) -> list[str]:
        """The files to apply, in order."""
        return [*(migration.path for migration in self.migrations), *(source.path for source in self.sources)]

    @property
    def is_empty(self) -> bool:
        return not (self.paths or self.removed)


def up(
    database_url: str,
    *,
    root: Path = ROOT,
    dry_run: bool = False,
    notify: Notify = lambda _: None,
) -> Plan:
    """Applies new and changed files, and returns the plan. With `dry_run`, everything runs and is rolled back.

    `notify` receives the server's warnings, and a line while the deployment waits for another one or for a lock.
    Raises a Failure: then nothing was applied, or everything but some policies files. A second run applies those.
    """
    files = read_files(root)
    # The lock has its own connection, so that it outlives the other's transactions, through any pooler.
    with (
        connect(database_url, notify) as guard,
        guard.transaction(),
        connect(database_url, notify) as connection,
    ):
        lock(guard, notify)
        with ExitStack() as trial:
            if dry_run:
                trial.enter_context(connection.transaction(force_rollback=True))
            with connection.transaction():
                plan = apply(connection, make_plan(connection, files))
                _check_deferred_constraints(connection)
            for source in plan.policies:
                _apply_policies(connection, source, notify, dry_run=dry_run)
            if not plan.is_empty:
                connection.execute("notify pgrst, 'reload schema'")
    return plan


def _apply_policies(connection: Connection, source: Source, notify: Notify, *, dry_run: bool) -> None:
    """Applies one policies file in its own transaction; retries while a lock is held. Raises StatementFailed."""
    # A dry run keeps the locks of the migrations meanwhile, so it does not retry.
    attempts = 1 if dry_run else POLICIES_ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            # A dry run is one outer transaction: rolling back this inner one releases its locks.
            with connection.transaction(force_rollback=dry_run):
                reset_session(connection)
                connection.execute(f"set local lock_timeout = '{POLICIES_LOCK_TIMEOUT}'".encode())
                _record(connection, source)
                apply_source(connection, source, NOTHING_APPLIED if dry_run else CONTINUE)
        except StatementFailed as failure:
            is_busy = isinstance(failure.__cause__, (errors.LockNotAvailable, errors.DeadlockDetected))
            if not is_busy or attempt == attempts:
                raise
            if attempt == 1:
                notify(f"{source.path} waits for a lock that another session holds; retrying ...")
            time.sleep(random.uniform(0.1, MAX_PAUSE_SECONDS))  # noqa: S311 - not for secrets
        else:
            return


def list_states(database_url: str, *, root: Path = ROOT, notify: Notify = lambda _: None) -> list[FileState]:
    """Lists every file with its state, migrations first. Takes no lock. Raises DatabaseUnreachable and FilesInvalid."""
    files = read_files(root)
    with connect(database_url, notify) as connection:
        return read_history(connection, files) + read_file_states(connection, files)


def lock(connection: Connection, notify: Notify) -> None:
    """Takes the deployment lock until the transaction ends. While another session holds it, waits with a notice."""
    # The lock's session may be idle for as long as a migration runs.
    connection.execute("set local idle_in_transaction_session_timeout = 0")
    free = connection.execute("select pg_try_advisory_xact_lock(%s)", [ADVISORY_LOCK]).fetchone()
    if free != (True,):
        notify("Another deployment is running on this database; waiting until it ends ...")
        connection.execute("set local lock_timeout = 0")
        connection.execute("set local statement_timeout = 0")
        connection.execute("select pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])


def read_files(root: Path) -> Files:
    """Reads the three folders. Raises FilesInvalid for an invalid name or a duplicate version."""
    migrations = [_parse_migration(path, text) for path, text in _read_sql_files(root, "migrations/*.sql")]
    for earlier, later in pairwise(migrations):
        if earlier.version == later.version:
            raise FilesInvalid(
                f"{earlier.path} and {later.path} have the same version: give the newer file another timestamp."
            )
    patterns = ("functions/**/*.sql", "policies/*.sql")
    sources = [_parse_source(path, text) for pattern in patterns for path, text in _read_sql_files(root, pattern)]
    if not migrations and not sources:
        raise FilesInvalid(f"There are no migrations in {root}: run `.venv/bin/ballast` in a checkout.")
    return Files(tuple(migrations), tuple(sources))


def _read_sql_files(root: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Yields path and text, ordered by path: all files of functions/2_clerk/ precede those of functions/3_audit/."""
    for path in sorted(file.relative_to(root).as_posix() for file in root.glob(pattern)):
        try:
            # Not read_text(): it converts line ends, but the Supabase CLI records them unchanged.
            yield path, (root / path).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise FilesInvalid(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None


def _parse_migration(path: str, text: str) -> Migration:
    match = _MIGRATION_NAME.fullmatch(path.removeprefix("migrations/"))
    if match is None:
        raise FilesInvalid(
            f"{path} is not named <14 digits>_<lower_case_name>.sql: rename it (`ballast migrate new` does)."
        )
    return Migration(match["version"], match["name"], path, text)


def _parse_source(path: str, text: str) -> Source:
    if path.startswith("policies/public."):
        raise FilesInvalid(f"{path}: remove `public.` from the file name, so that each table has only one.")
    return Source(path, text, hashlib.sha256(text.encode()).hexdigest(), parse_policy_table(path))


def parse_policy_table(path: str) -> str | None:
    """Returns the table of policies/<table>.sql or policies/<schema>.<table>.sql; None for a file of another folder."""
    folder, _, file_name = path.partition("/")
    if folder != "policies":
        return None
    schema, _, table = file_name.removesuffix(".sql").rpartition(".")
    return sql.Identifier(schema or "public", table).as_string()


def make_plan(connection: Connection, files: Files) -> Plan:
    """Compares files and database. Raises HistoryDisagrees if a migration is edited, missing or late."""
    history = dict(read_history(connection, files))
    if wrong := [f"{path} {ADVICE[state]}" for path, state in history.items() if state in ADVICE]:
        raise HistoryDisagrees("\n".join(wrong))
    pending = tuple(migration for migration in files.migrations if history[migration.path] == "pending")
    return _plan_sources(connection, Plan(files, pending, (), ()))


def _plan_sources(connection: Connection, plan: Plan) -> Plan:
    states = dict(read_file_states(connection, plan.files))
    return replace(
        plan,
        sources=tuple(source for source in plan.files.sources if states[source.path] != "current"),
        removed=tuple(path for path, state in states.items() if state == "removed"),
    )


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
    if not _exists(connection, "supabase_migrations.schema_migrations"):
        return {}
    query = "select version, coalesce(name, ''), statements from supabase_migrations.schema_migrations"
    return {
        version: AppliedMigration(name, statements)
        for version, name, statements in connection.execute(query)
        if not name.endswith(BUNDLE_SUFFIX)
    }


def read_applied_sources(connection: Connection) -> dict[str, str]:
    """Returns checksums by path; empty before the first migration."""
    if not _exists(connection, "app.applied_sources"):
        return {}
    return dict(connection.execute("select path, checksum from app.applied_sources").fetchall())


def _exists(connection: Connection, table: str) -> bool:
    return connection.execute("select to_regclass(%s) is not null", [table]).fetchone() == (True,)


def apply(connection: Connection, plan: Plan) -> Plan:
    """Runs a plan's migrations and functions in the caller's transaction, and returns the plan with its policies.

    The returned plan may have more sources, because a migration may change what is recorded about them. Raises
    FilesInvalid and StatementFailed.
    """
    reset_session(connection)
    if plan.migrations:
        for statement in HISTORY_TABLE:
            connection.execute(statement)
    for migration in plan.migrations:
        run_file(connection, migration.path, migration.text)
        connection.execute(
            "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)",
            [migration.version, migration.name, migration.statements()],
        )
    plan = _plan_sources(connection, plan)
    if (plan.sources or plan.removed) and not _exists(connection, "app.applied_sources"):
        raise FilesInvalid(
            "The table app.applied_sources, which records sources, does not exist: create it in the first migration."
        )
    for source in plan.sources:
        if source.table is None:
            apply_source(connection, source)
            _record(connection, source)
        else:
            _require_table(connection, source.path, source.table)
            _refuse_transaction_control(source.path, source.text)
    for path in plan.removed:
        if parse_policy_table(path) is None:
            connection.execute("delete from app.applied_sources where path = %s", [path])
    return plan


def _record(connection: Connection, source: Source) -> None:
    """Records a source in app.applied_sources. A source without a checksum was deleted, and its row is removed."""
    connection.execute("delete from app.applied_sources where path = %s", [source.path])
    if source.checksum:
        connection.execute(
            "insert into app.applied_sources (path, checksum, applied_at) values (%s, %s, now())",
            [source.path, source.checksum],
        )


def _check_deferred_constraints(connection: Connection) -> None:
    """Checks deferred constraints now, because a dry run does not reach the commit."""
    try:
        connection.execute("set constraints all immediate")
    except psycopg.Error as error:
        raise StatementFailed(f"A deferred constraint fails: {error}\nNothing was applied.") from error


def reset_session(connection: Connection) -> None:
    """Resets role and settings, as the Supabase CLI does for each file: files must not affect each other or us."""
    connection.execute("reset role")
    connection.execute("reset all")
    connection.execute("set client_min_messages = warning")
    connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
    connection.execute(f"set local statement_timeout = '{STATEMENT_TIMEOUT}'")


def apply_source(connection: Connection, source: Source, consequence: str = NOTHING_APPLIED) -> None:
    """Applies one file of functions/ or policies/. Raises FilesInvalid and StatementFailed.

    `consequence` ends the message of a policies file that fails: it states what was applied.
    """
    if source.table is None:
        _apply_functions(connection, source)
    elif source.checksum or _exists(connection, source.table):
        _require_table(connection, source.path, source.table)
        _run_policies(connection, source, source.table, consequence)


def _require_table(connection: Connection, path: str, table: str) -> None:
    if not _exists(connection, table):
        raise FilesInvalid(f"{path}: there is no table {table}. {_advise_on_missing_table(table)}")


def _run_policies(connection: Connection, source: Source, table: str, consequence: str) -> None:
    """Sends a whole file in one pipeline: after its first policy, other sessions wait during each round trip."""
    _refuse_transaction_control(source.path, source.text)
    clearing = CLEARING.format(table=sql.Literal(table).as_string(), api_roles=API_ROLES)
    statements = list(split(source.text))
    sent: list[Cursor] = []
    try:
        with connection.pipeline():
            for command in (clearing, *(statement.text for statement in statements)):
                sent.append(connection.execute(command.encode()))
    except psycopg.Error as error:
        failed = sum(cursor.statusmessage is not None for cursor in sent)
        offset = _locate_error(statements[failed - 1], error) if failed else None
        raise _make_failure(source.path, source.text, offset, error, consequence) from error
    reset_session(connection)


def _advise_on_missing_table(missing_table: str) -> str:
    if missing_table.startswith('"realtime".'):
        return "Supabase Realtime creates it at its first use: open the dashboard's Realtime Inspector once."
    return "Rename the file, or create the table."


def _apply_functions(connection: Connection, source: Source) -> None:
    """Runs a file, revokes all grants on what it created, and runs it again.

    `create or replace` keeps existing grants, also those that the file no longer contains. The second run restores the
    declared ones. For a new file, it also proves that the file can be applied twice.
    """
    before = _read_replaceable(connection)
    run_file(connection, source.path, source.text)
    with _name_file(source.path):
        for made in _read_replaceable(connection) - before:
            revoke(connection, f"{made.kind} {made.name}")
    try:
        run_file(connection, source.path, source.text)
    except StatementFailed as failure:
        message = f"{source.path} cannot be run twice (use `create or replace`, `if not exists`, `on conflict`):\n"
        raise StatementFailed(f"{message}{failure}") from failure


# Functions and views that this role may change: kind, SQL name, and location of the catalogue row (ctid).
REPLACEABLE = """
    select
      'routine' as kind, format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name,
      p.ctid::text as place
    from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
    where pg_has_role(p.proowner, 'usage')
    union all
    select 'table', format('%I.%I', n.nspname, c.relname), r.ctid::text
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace join pg_rewrite as r on r.ev_class = c.oid
    where pg_has_role(c.relowner, 'usage') and c.relkind = 'v'
"""
API_ROLES = "public, anon, authenticated, service_role"


class _Replaceable(NamedTuple):
    """A function or view. `place` is the ctid of its catalogue row, which changes with each `create or replace`."""

    kind: str
    name: str
    place: str


def _read_replaceable(connection: Connection) -> set[_Replaceable]:
    return {_Replaceable(*row) for row in connection.execute(REPLACEABLE)}


def revoke(connection: Connection, thing: str) -> None:
    """Revokes every grant to the API roles on an object, such as `table public.projects`."""
    connection.execute(f"revoke all on {thing} from {API_ROLES}".encode())


# Drops every policy of a table or view, and revokes every grant to the API roles. `table` is a literal, its SQL name.
# The grants on realtime.messages stay, because Supabase owns that table.
CLEARING = """\
do $ballast$
declare
  policy name;
begin
  for policy in select p.polname from pg_policy as p where p.polrelid = {table}::regclass loop
    execute format('drop policy %I on %s', policy, {table});
  end loop;
  if {table} not like '"realtime".%' then
    execute format('revoke all on %s from {api_roles}', {table});
  end if;
end;
$ballast$;
"""


def run_file(connection: Connection, path: str, text: str) -> None:
    """Runs a file's statements. Raises StatementFailed with file, line and the server's error."""
    _refuse_transaction_control(path, text)
    for statement in split(text):
        try:
            connection.execute(statement.text.encode())
        except psycopg.Error as error:
            raise _make_failure(path, text, _locate_error(statement, error), error) from error
    reset_session(connection)


def _locate_error(statement: Statement, error: psycopg.Error) -> int:
    """Returns the offset of an error in its file: the server's position, or else the statement's start."""
    if error.diag.statement_position is not None:
        return statement.offset + int(error.diag.statement_position) - 1
    return statement.start if statement.start is not None else statement.offset


def _refuse_transaction_control(path: str, text: str) -> None:
    for statement in split(text):
        if statement.words[:1] and statement.words[0] in _TRANSACTION_CONTROL:
            raise StatementFailed(
                f"{path}:{_find_line(text, statement.start or 0)}: `{statement.words[0]}` is not allowed here, because "
                "each file is applied in one transaction. Delete the line.\nNothing was applied."
            )


@contextmanager
def _name_file(path: str) -> Iterator[None]:
    """Adds the file's path to an error of a statement that we run on behalf of this file."""
    try:
        yield
    except psycopg.Error as error:
        raise StatementFailed(f"{path}: {error}\nNothing was applied.") from error


def _make_failure(
    path: str, text: str, offset: int | None, error: psycopg.Error, consequence: str = NOTHING_APPLIED
) -> StatementFailed:
    details = error.diag
    place = path if offset is None else f"{path}:{_find_line(text, offset)}"
    lines = [f"{place}: {details.message_primary or error}"]
    for title, words in (("Detail", details.message_detail), ("Hint", details.message_hint)):
        if words:
            lines.append(f"{title}: {words}")
    if details.context and details.statement_position is None:
        lines.append(f"Where: {details.context}")
    if isinstance(error, errors.ActiveSqlTransaction):
        lines.append("All files are applied in one transaction: use a form that can run in one (no `concurrently`).")
    return StatementFailed("\n".join([*lines, consequence]))


def _find_line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def write_migration(name: str, *, root: Path = ROOT, now: datetime | None = None) -> Path:
    """Writes an empty migration with the current UTC time as its version. Raises FilesInvalid for an invalid name."""
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise FilesInvalid(
            f"{name!r} is not a valid migration name: use lower-case words joined by _, such as add_projects."
        )
    return write_next_migration(name, "-- Why this change is needed, in a sentence.\n", root=root, now=now)


def write_next_migration(name: str, text: str, *, root: Path = ROOT, now: datetime | None = None) -> Path:
    """Writes a migration that is newer than all others."""
    path = root / "migrations" / f"{choose_next_version(root, now)}_{name}.sql"
    with path.open("xb") as file:
        file.write(text.encode())
    return path


def choose_next_version(root: Path, now: datetime | None = None) -> str:
    """Returns a version after all migrations and bundles: the current time, or the newest version plus one."""
    versions = [file.version for file in read_files(root).migrations]
    versions += [path.name.partition("_")[0] for path in (root / BUNDLES).glob("*.sql")]
    return max(f"{now or datetime.now(UTC):%Y%m%d%H%M%S}", f"{int(max(versions, default='0')) + 1:014}")
