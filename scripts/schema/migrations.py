"""Brings a database to what the files say: migrations/ in version order, then functions/ and policies/ that changed.

Under an advisory lock, one transaction applies all migrations and functions, or nothing. Then each changed policies
file has a short transaction of its own: on hosted Supabase every CREATE, ALTER or DROP POLICY by postgres locks some 23
tables of auth, storage and realtime until its transaction ends. Migrations are recorded in
supabase_migrations.schema_migrations as the Supabase CLI records them, sources by checksum in app.applied_sources.
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

# Chosen once, at random; two deployers must agree on it. Shown by pg_locks as classid 0 and objid.
ADVISORY_LOCK = 733_140_617
# A deployment must not queue behind a long query and hold up everyone behind itself; long index builds are fine.
LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "15min"
# Policies: below PostgreSQL's deadlock_timeout (1 s), so that we give up before a writer is chosen as the victim.
POLICIES_LOCK_TIMEOUT = "500ms"
POLICIES_ATTEMPTS = 30
LONGEST_PAUSE_SECONDS = 1.0
CONTINUE = "Nothing of this file was applied; all before it is. Run `ballast migrate up` again, which continues here."

# The words of github.com/supabase/cli pkg/migration/history.go, so that either tool finds what the other made.
HISTORY_TABLE: tuple[LiteralString, ...] = (
    "create schema if not exists supabase_migrations",
    "create table if not exists supabase_migrations.schema_migrations (version text not null primary key)",
    "alter table supabase_migrations.schema_migrations add column if not exists statements text[]",
    "alter table supabase_migrations.schema_migrations add column if not exists name text",
)

ADVICE = {
    "edited": "was edited after it was applied: undo the edit, and make the change in a new migration "
    "(`ballast migrate new NAME`).",
    "missing": "is applied but has no file: get it back from version control (or, if it should never have been: "
    "`supabase migration repair VERSION --status reverted`).",
    "late": "is older than a migration that is already applied: give its file a new timestamp, so that every "
    "database applies them in the same order.",
}

# What `ballast migrate bundle` generates, and how the names of its bundles end: `migrate up` applies their sources.
BUNDLES = Path("supabase/migrations")
BUNDLE_SUFFIX = ".bundle"

Cursor = psycopg.Cursor[Any]

_MIGRATION_NAME = re.compile(r"(?P<version>\d{14})_(?P<name>[a-z0-9_]+)\.sql")
_TRANSACTION_CONTROL = {"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare"}


class FilesInvalid(Failure):
    """A file of migrations/, functions/ or policies/ has a name that says nothing, or cannot be read."""


class HistoryDisagrees(Failure):
    """The applied migrations are not the files: one was edited, is missing, or came too late."""


class StatementFailed(Failure):
    """The server refused a statement; says file, line, the server's words and what was applied."""


class Migration(NamedTuple):
    """A file of migrations/. `path` is relative to the root, as in every message."""

    version: str
    name: str
    path: str
    text: str

    def statements(self) -> list[str]:
        return [statement.text for statement in split(self.text)]


class Source(NamedTuple):
    """A file of functions/ or policies/. `table` is the name, as SQL, of what a policies file defines."""

    path: str
    text: str
    checksum: str
    table: str | None


class AppliedMigration(NamedTuple):
    """A row of supabase_migrations.schema_migrations."""

    name: str
    statements: list[str] | None


class FileState(NamedTuple):
    """How a file stands to the database.

    A migration is applied, pending, edited (since applied), missing (no file) or late (older than one applied);
    a source is current, changed (since applied), pending or removed (applied, but no file any more).
    """

    path: str
    state: str


@dataclass(frozen=True)
class Files:
    """What the checkout declares, in the order of application."""

    migrations: tuple[Migration, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Plan:
    """What stands between the files and the database. `removed` holds source paths that have no file any more."""

    files: Files
    migrations: tuple[Migration, ...]
    sources: tuple[Source, ...]
    removed: tuple[str, ...]

    @property
    def policies(self) -> tuple[Source, ...]:
        """The policies files to apply. One without text closes a table whose file is gone."""
        gone = (Source(path, "", "", policy_table(path)) for path in self.removed)
        return tuple(source for source in (*self.sources, *gone) if source.table is not None)

    @property
    def paths(self) -> list[str]:
        """The files to apply, in order."""
        return [*(migration.path for migration in self.migrations), *(source.path for source in self.sources)]

    @property
    def empty(self) -> bool:
        return not (self.paths or self.removed)


def up(
    database_url: str,
    *,
    root: Path = ROOT,
    dry_run: bool = False,
    notify: Notify = lambda _: None,
) -> Plan:
    """Applies what is new or changed and returns it; with `dry_run` everything runs and is rolled back.

    `notify` gets a line when another deployer or a lock is waited for, and the server's warnings. Raises a Failure:
    then nothing was applied, or only some policies files were not. Run again, it continues.
    """
    files = read_files(root)
    # The lock has a connection of its own: it outlives the transactions of the other, and any pooler keeps it.
    with connect(database_url, notify) as guard, guard.transaction(), connect(database_url, notify) as connection:
        lock(guard, notify)
        with ExitStack() as trial:
            if dry_run:
                trial.enter_context(connection.transaction(force_rollback=True))
            with connection.transaction():
                plan = apply(connection, make_plan(connection, files))
                _check_deferred_constraints(connection)
            for source in plan.policies:
                _apply_policies(connection, source, notify, dry_run=dry_run)
            if not plan.empty:
                connection.execute("notify pgrst, 'reload schema'")
    return plan


def _apply_policies(connection: Connection, source: Source, notify: Notify, *, dry_run: bool) -> None:
    """One policies file in a transaction of its own, tried again while a lock is not free. Raises StatementFailed."""
    for attempt in range(1, POLICIES_ATTEMPTS + 1):
        try:
            # A dry run is one transaction: what is undone here gives its locks back.
            with connection.transaction(force_rollback=dry_run):
                reset_session(connection)
                connection.execute(f"set local lock_timeout = '{POLICIES_LOCK_TIMEOUT}'".encode())
                _record(connection, source)
                apply_source(connection, source)
        except StatementFailed as failure:
            is_busy = isinstance(failure.__cause__, (errors.LockNotAvailable, errors.DeadlockDetected))
            if not is_busy or attempt == POLICIES_ATTEMPTS:
                raise
            if attempt == 1:
                notify(f"{source.path} waits for a lock that another session holds; trying again ...")
            time.sleep(random.uniform(0.1, LONGEST_PAUSE_SECONDS))  # noqa: S311 - not for secrets
        else:
            return


def status(database_url: str, *, root: Path = ROOT, notify: Notify = lambda _: None) -> list[FileState]:
    """Every file with its state, migrations first. Takes no lock. Raises DatabaseUnreachable and FilesInvalid."""
    files = read_files(root)
    with connect(database_url, notify) as connection:
        return read_history(connection, files) + source_states(connection, files)


def lock(connection: Connection, notify: Notify) -> None:
    """Takes the deployers' lock until the transaction ends; waits, and says so, while another holds it."""
    free = connection.execute("select pg_try_advisory_xact_lock(%s)", [ADVISORY_LOCK]).fetchone()
    if free != (True,):
        notify("Another deployment is running on this database; waiting for it to end ...")
        connection.execute("set local lock_timeout = 0")
        connection.execute("set local statement_timeout = 0")
        connection.execute("select pg_advisory_xact_lock(%s)", [ADVISORY_LOCK])


def read_files(root: Path) -> Files:
    """Reads the three folders. Raises FilesInvalid for a name that says nothing or a version used twice."""
    migrations = [_migration(path, text) for path, text in _texts(root, "migrations/*.sql")]
    for earlier, later in pairwise(migrations):
        if earlier.version == later.version:
            raise FilesInvalid(f"{earlier.path} and {later.path} have one version: give the newer another timestamp.")
    patterns = ("functions/**/*.sql", "policies/*.sql")
    sources = [_source(path, text) for pattern in patterns for path, text in _texts(root, pattern)]
    if not migrations and not sources:
        raise FilesInvalid(f"There are no migrations in {root}: run `.venv/bin/ballast` of a checkout.")
    return Files(tuple(migrations), tuple(sources))


def _texts(root: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Path and text, in the order of the paths: all of functions/2_clerk/ comes before functions/3_audit/."""
    for path in sorted(file.relative_to(root).as_posix() for file in root.glob(pattern)):
        try:
            # Not read_text(): it changes line ends, and the Supabase CLI records them as they are.
            yield path, (root / path).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise FilesInvalid(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None


def _migration(path: str, text: str) -> Migration:
    match = _MIGRATION_NAME.fullmatch(path.removeprefix("migrations/"))
    if match is None:
        raise FilesInvalid(
            f"{path} is not named <14 digits>_<lower_case_name>.sql: rename it (`ballast migrate new` does)."
        )
    return Migration(match["version"], match["name"], path, text)


def _source(path: str, text: str) -> Source:
    if path.startswith("policies/public."):
        raise FilesInvalid(f"{path}: leave out the `public.`, so that each table has one file name.")
    return Source(path, text, hashlib.sha256(text.encode()).hexdigest(), policy_table(path))


def policy_table(path: str) -> str | None:
    """The table that policies/<table>.sql or policies/<schema>.<table>.sql defines; None for another folder's file."""
    folder, _, file_name = path.partition("/")
    if folder != "policies":
        return None
    schema, _, table = file_name.removesuffix(".sql").rpartition(".")
    return sql.Identifier(schema or "public", table).as_string()


def make_plan(connection: Connection, files: Files) -> Plan:
    """Compares files and database. Raises HistoryDisagrees when a migration is edited, missing or late."""
    history = dict(read_history(connection, files))
    if wrong := [f"{path} {ADVICE[state]}" for path, state in history.items() if state in ADVICE]:
        raise HistoryDisagrees("\n".join(wrong))
    pending = tuple(migration for migration in files.migrations if history[migration.path] == "pending")
    return _with_sources(connection, Plan(files, pending, (), ()))


def _with_sources(connection: Connection, plan: Plan) -> Plan:
    states = dict(source_states(connection, plan.files))
    return replace(
        plan,
        sources=tuple(source for source in plan.files.sources if states[source.path] != "current"),
        removed=tuple(path for path, state in states.items() if state == "removed"),
    )


def read_history(connection: Connection, files: Files) -> list[FileState]:
    """Every migration that has a file or is recorded, in version order."""
    applied = read_applied_migrations(connection)
    newest = max(applied, default="")
    history = [FileState(file.path, _migration_state(file, applied, newest)) for file in files.migrations]
    for version in applied.keys() - {migration.version for migration in files.migrations}:
        history.append(FileState(f"migrations/{version}_{applied[version].name}.sql", "missing"))
    return sorted(history)


def _migration_state(migration: Migration, applied: dict[str, AppliedMigration], newest: str) -> str:
    if migration.version not in applied:
        return "late" if migration.version < newest else "pending"
    recorded = applied[migration.version].statements
    # `supabase migration repair` of a file that it did not find records no statements.
    return "applied" if recorded in (None, migration.statements()) else "edited"


def source_states(connection: Connection, files: Files) -> list[FileState]:
    """Every source in order of application, then the removed ones."""
    checksums = read_applied_sources(connection)
    states = [FileState(source.path, _source_state(source, checksums.get(source.path))) for source in files.sources]
    removed = checksums.keys() - {source.path for source in files.sources}
    return states + [FileState(path, "removed") for path in sorted(removed)]


def _source_state(source: Source, applied: str | None) -> str:
    if applied is None:
        return "pending"
    return "current" if applied == source.checksum else "changed"


def read_applied_migrations(connection: Connection) -> dict[str, AppliedMigration]:
    """Version → what is recorded, without bundles; empty for a database that was never migrated."""
    if not _exists(connection, "supabase_migrations.schema_migrations"):
        return {}
    query = "select version, coalesce(name, ''), statements from supabase_migrations.schema_migrations"
    return {
        version: AppliedMigration(name, statements)
        for version, name, statements in connection.execute(query)
        if not name.endswith(BUNDLE_SUFFIX)
    }


def read_applied_sources(connection: Connection) -> dict[str, str]:
    """Path → checksum; empty before the first migration."""
    if not _exists(connection, "app.applied_sources"):
        return {}
    return dict(connection.execute("select path, checksum from app.applied_sources").fetchall())


def _exists(connection: Connection, table: str) -> bool:
    return connection.execute("select to_regclass(%s) is not null", [table]).fetchone() == (True,)


def apply(connection: Connection, plan: Plan) -> Plan:
    """Runs a plan's migrations and functions inside the caller's transaction, and returns the plan with its policies.

    Migrations may bring sources along. Raises FilesInvalid and StatementFailed.
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
    plan = _with_sources(connection, plan)
    if (plan.sources or plan.removed) and not _exists(connection, "app.applied_sources"):
        raise FilesInvalid(
            "There is no table app.applied_sources, to record sources in: the first migration must make it."
        )
    for source in plan.sources:
        if source.table is None:
            apply_source(connection, source)
            _record(connection, source)
        else:
            _require_table(connection, source.path, source.table)
    for path in plan.removed:
        if policy_table(path) is None:
            connection.execute("delete from app.applied_sources where path = %s", [path])
    return plan


def _record(connection: Connection, source: Source) -> None:
    """Notes in app.applied_sources what is applied; a source without checksum has no file any more."""
    connection.execute("delete from app.applied_sources where path = %s", [source.path])
    if source.checksum:
        connection.execute(
            "insert into app.applied_sources (path, checksum, applied_at) values (%s, %s, now())",
            [source.path, source.checksum],
        )


def _check_deferred_constraints(connection: Connection) -> None:
    """Now rather than at the commit, which a dry run does not reach."""
    try:
        connection.execute("set constraints all immediate")
    except psycopg.Error as error:
        raise StatementFailed(f"A deferred constraint fails: {error}\nNothing was applied.") from error


def reset_session(connection: Connection) -> None:
    """As the Supabase CLI does for each file: what one has set, the next must not feel, nor we."""
    connection.execute("reset role")
    connection.execute("reset all")
    connection.execute("set client_min_messages = warning")
    connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
    connection.execute(f"set local statement_timeout = '{STATEMENT_TIMEOUT}'")


def apply_source(connection: Connection, source: Source) -> None:
    """Makes the database agree with one file of functions/ or policies/. Raises FilesInvalid and StatementFailed."""
    if source.table is None:
        _apply_functions(connection, source)
    elif source.checksum or _exists(connection, source.table):
        _require_table(connection, source.path, source.table)
        _run_policies(connection, source.path, source.text, source.table)


def _require_table(connection: Connection, path: str, table: str) -> None:
    if not _exists(connection, table):
        raise FilesInvalid(f"{path}: there is no table {table}. {_remedy(table)}")


def _run_policies(connection: Connection, path: str, text: str, table: str) -> None:
    """Sends a whole file at once: from its first policy on, other sessions wait for each round trip."""
    _refuse_transaction_control(path, text)
    clearing = CLEARING.format(table=sql.Literal(table).as_string(), api_roles=API_ROLES)
    statements = list(split(text))
    sent: list[Cursor] = []
    try:
        with connection.pipeline():
            for command in (clearing, *(statement.text for statement in statements)):
                sent.append(connection.execute(command.encode()))
    except psycopg.Error as error:
        failed = sum(cursor.statusmessage is not None for cursor in sent)
        offset = _place(statements[failed - 1], error) if failed else None
        raise _refusal(path, text, offset, error, CONTINUE) from error
    reset_session(connection)


def _remedy(missing_table: str) -> str:
    if missing_table.startswith('"realtime".'):
        return "Supabase Realtime makes it when it is first asked: open the dashboard's Realtime Inspector once."
    return "Rename the file, or make the table."


def _apply_functions(connection: Connection, source: Source) -> None:
    """Runs a file, closes what it made, and runs it again.

    `create or replace` keeps grants: one that the file no longer states would stay. The second run also proves, when
    it is new, that the file can be applied to a database that has it already.
    """
    before = _replaceable(connection)
    run_file(connection, source.path, source.text)
    with _name_file(source.path):
        for made in _replaceable(connection) - before:
            revoke(connection, f"{made.kind} {made.name}")
    try:
        run_file(connection, source.path, source.text)
    except StatementFailed as failure:
        message = f"{source.path} cannot be run twice (use `create or replace`, `if not exists`, `on conflict`):\n"
        raise StatementFailed(f"{message}{failure}") from failure


# Functions and views that we may change: kind, name as SQL has it, and place in the catalogue.
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
    """A function or view as SQL names it; its `place` in the catalogue changes whenever it is created or replaced."""

    kind: str
    name: str
    place: str


def _replaceable(connection: Connection) -> set[_Replaceable]:
    return {_Replaceable(*row) for row in connection.execute(REPLACEABLE)}


def revoke(connection: Connection, thing: str) -> None:
    """Takes every grant of the API's roles from a thing as SQL names it, such as `table public.projects`."""
    connection.execute(f"revoke all on {thing} from {API_ROLES}".encode())


# Takes every policy, and every grant to the API's roles, from a table or view. `table` is a literal: its name as SQL.
# The grants on realtime.messages stay: that table is Supabase's.
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
    """Runs a file's statements. Raises StatementFailed with file, line and the server's words."""
    _refuse_transaction_control(path, text)
    for statement in split(text):
        try:
            connection.execute(statement.text.encode())
        except psycopg.Error as error:
            raise _refusal(path, text, _place(statement, error), error) from error
    reset_session(connection)


def _place(statement: Statement, error: psycopg.Error) -> int:
    """Where in its file a statement failed: the server's position, or the statement's start."""
    if error.diag.statement_position is not None:
        return statement.offset + int(error.diag.statement_position) - 1
    return statement.start if statement.start is not None else statement.offset


def _refuse_transaction_control(path: str, text: str) -> None:
    for statement in split(text):
        if statement.words[:1] and statement.words[0] in _TRANSACTION_CONTROL:
            raise StatementFailed(
                f"{path}:{_line(text, statement.start or 0)}: `{statement.words[0]}` is not possible here: "
                "a file is applied in one transaction. Delete the line.\nNothing was applied."
            )


@contextmanager
def _name_file(path: str) -> Iterator[None]:
    """Names the file for whose sake a statement of ours was run, when the server refuses it."""
    try:
        yield
    except psycopg.Error as error:
        raise StatementFailed(f"{path}: {error}\nNothing was applied.") from error


def _refusal(
    path: str, text: str, offset: int | None, error: psycopg.Error, consequence: str = "Nothing was applied."
) -> StatementFailed:
    said = error.diag
    place = path if offset is None else f"{path}:{_line(text, offset)}"
    lines = [f"{place}: {said.message_primary or error}"]
    for title, words in (("Detail", said.message_detail), ("Hint", said.message_hint)):
        if words:
            lines.append(f"{title}: {words}")
    if said.context and said.statement_position is None:
        lines.append(f"Where: {said.context}")
    if isinstance(error, errors.ActiveSqlTransaction):
        lines.append("All files are applied in one transaction: use a form that can run in one (no `concurrently`).")
    return StatementFailed("\n".join([*lines, consequence]))


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def write_migration(name: str, *, root: Path = ROOT, now: datetime | None = None) -> Path:
    """Writes an empty migration with the present UTC time as its version. Raises FilesInvalid for a bad name."""
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise FilesInvalid(f"{name!r} cannot name a migration: use lower-case words joined by _, such as add_projects.")
    return write_next_migration(name, "-- Why this change is needed, in a sentence.\n", root=root, now=now)


def write_next_migration(name: str, text: str, *, root: Path = ROOT, now: datetime | None = None) -> Path:
    """Writes a migration that comes after all others."""
    path = root / "migrations" / f"{next_version(root, now)}_{name}.sql"
    with path.open("xb") as file:
        file.write(text.encode())
    return path


def next_version(root: Path, now: datetime | None = None) -> str:
    """A version after those of all migrations and bundles: the present time, or a second after the newest."""
    versions = [file.version for file in read_files(root).migrations]
    versions += [path.name.partition("_")[0] for path in (root / BUNDLES).glob("*.sql")]
    return max(f"{now or datetime.now(UTC):%Y%m%d%H%M%S}", f"{int(max(versions, default='0')) + 1:014}")
