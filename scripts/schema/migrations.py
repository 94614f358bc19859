"""Applies pending files to a database: migrations/ in version order, then changed files of functions/ and policies/.

Each file is one short transaction, which also records it. So a file is applied whole or not at all, and a run that ends
early, however it ends, is continued by the next one. People write meanwhile: see locks.py. On hosted Supabase every
CREATE, ALTER or DROP POLICY by postgres locks some 23 tables of auth, storage and realtime until its transaction ends.

An advisory lock allows one deployment at a time. sql_files.py reads the files, history.py what was applied before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import errors, sql

from scripts.errors import Failure
from scripts.schema import structure
from scripts.schema.database import Connection, Notify, connect
from scripts.schema.history import (
    ADVICE,
    FINISH_RENAMING,
    HISTORY_TABLE,
    RENAME,
    AppliedMigration,
    FileState,
    HistoryDisagrees,
    exists,
    read_file_states,
    read_history,
)
from scripts.schema.locks import BUSY, START, Locks
from scripts.schema.sql_files import ROOT, Files, FilesInvalid, Migration, Source, parse_policy_table, read_files
from scripts.schema.statements import Statement, split

# A random constant: all deployers must use the same key. pg_locks shows it as objid, with classid 0.
ADVISORY_LOCK = 733_140_617
# Sent before each file. `reset` as the Supabase CLI does for each file: files must not affect each other or us. The
# others last until the transaction ends, so that a transaction pooler gives the session to others unchanged.
RESET: tuple[LiteralString, ...] = ("reset role", "reset all")
SETTINGS: tuple[LiteralString, ...] = (
    *RESET,
    "set local client_min_messages = warning",
    # A long index build is allowed.
    "set local statement_timeout = '15min'",
    # If this process or its connection dies, the server soon releases the locks.
    "set local client_connection_check_interval = '1s'",
    "set local idle_in_transaction_session_timeout = '1min'",
)
# How long a pooler may take to provide a session. Its other clients wait meanwhile if it has only one.
SESSION_SECONDS = 10
NOTHING_APPLIED = "Nothing was applied."
CONTINUE = (
    "This file was not applied; all files before it were. Run `ballast migrate up` again: it continues with this file."
)

HISTORY = "The history of migrations"
# The owner of what exists, or else of the database. On Supabase both are postgres.
ROLE = """
    select current_user, coalesce(c.relowner, d.datdba)::regrole::text,
      coalesce(c.relowner::regrole = current_user::regrole, has_database_privilege(d.oid, 'create')),
      pg_is_in_recovery() or current_setting('transaction_read_only')::boolean
    from pg_database as d
    left join (pg_class as c join pg_namespace as n on n.oid = c.relnamespace and n.nspname = 'app')
      on c.relname = 'applied_sources' and c.relkind = 'r'
    where d.datname = current_database()
"""

# Checks deferred constraints, so that a failure is reported with its file.
CHECK_CONSTRAINTS: LiteralString = "set constraints all immediate"

Cursor = psycopg.Cursor[Any]

_TRANSACTION_CONTROL = {"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare"}


class RoleUnfit(Failure):
    """The role of the connection may not migrate. The message names the one that may."""


class PoolTooSmall(Failure):
    """A pooler had no second session for the deployment."""


class StatementFailed(Failure):
    """The server refused a statement. The message has file, line, the server's error, and what was applied."""


class Command(NamedTuple):
    """What is sent to the server. `statement` is the one of the file that it is, None for one of ours."""

    text: str
    statement: Statement | None = None
    parameters: tuple[object, ...] | None = None
    is_second_run: bool = False


@dataclass(frozen=True)
class Plan:
    """The pending work of a deployment. `removed` holds the paths of applied sources whose file was deleted.

    `renamed` holds applied migrations that the database records under another version, by path.
    """

    files: Files
    migrations: tuple[Migration, ...]
    sources: tuple[Source, ...]
    removed: tuple[str, ...]
    renamed: dict[str, AppliedMigration]

    @property
    def changes(self) -> tuple[Source, ...]:
        """The sources to apply, in order, then the deleted ones. A deleted policies file closes its table."""
        return (*self.sources, *(Source(path, "", "", parse_policy_table(path)) for path in self.removed))

    @property
    def pending(self) -> tuple[Migration | Source, ...]:
        """What to apply, in order."""
        return (*self.migrations, *self.changes)

    @property
    def paths(self) -> list[str]:
        """The files to apply, in order."""
        return [*(migration.path for migration in self.migrations), *(source.path for source in self.sources)]

    @property
    def is_empty(self) -> bool:
        return not (self.paths or self.removed or self.renamed)


def up(
    database_url: str,
    *,
    root: Path = ROOT,
    dry_run: bool = False,
    notify: Notify = lambda _: None,
    on_applied: Callable[[Migration | Source], None] = lambda _: None,
) -> Plan:
    """Applies new and changed files, and returns the plan. With `dry_run`, everything runs and is rolled back.

    `notify` receives the server's warnings, and a line while the deployment waits for another one or for a lock.
    `on_applied` receives each file once it is committed. Raises a Failure: then the files before the one
    that failed are applied. A second run continues with it.
    """
    files = read_files(root)
    with open_deployment(database_url, notify) as locks:
        _check_role(locks.connection)
        plan = make_plan(locks.connection, files)
        for file in plan.pending:
            _refuse_transaction_control(file.path, file.text)
        return _try(locks, plan) if dry_run else _apply(locks, plan, on_applied)


def _apply(locks: Locks, plan: Plan, on_applied: Callable[[Migration | Source], None]) -> Plan:
    """Applies each file of a plan in its own transaction, and returns the plan with the sources that were applied."""
    apply_file = partial(_apply_file, known=structure.list_changes(locks.connection))
    if plan.migrations:
        locks.retry(HISTORY, lambda: _create_history(locks))
    if plan.renamed:
        locks.retry(HISTORY, lambda: _rename_records(locks, plan))
    for migration in plan.migrations:
        locks.retry(migration.path, partial(apply_file, locks, migration))
        on_applied(migration)
    plan = _plan_sources(locks.connection, plan)
    for source in plan.changes:
        locks.retry(source.path, partial(apply_file, locks, source))
        on_applied(source)
    if not plan.is_empty:
        locks.connection.execute("notify pgrst, 'reload schema'")
    return plan


def _try(locks: Locks, plan: Plan) -> Plan:
    """Applies a plan and rolls it back: each file at once, or all together if later files need earlier ones."""
    if not plan.migrations:
        try:
            for source in plan.changes:
                locks.retry(source.path, partial(_apply_file, locks, source, NOTHING_APPLIED), force_rollback=True)
        except StatementFailed:
            pass
        else:
            return plan
    return locks.retry("The dry run", lambda: _try_together(locks, plan), force_rollback=True, gives_way=True)


def _try_together(locks: Locks, plan: Plan) -> Plan:
    if plan.migrations:
        _create_history(locks)
    if plan.renamed:
        _rename_records(locks, plan)
    for migration in plan.migrations:
        _apply_file(locks, migration, NOTHING_APPLIED, is_together=True)
    plan = _plan_sources(locks.connection, plan)
    for source in plan.changes:
        # Nothing needs a policies file, so its locks are released at once.
        with locks.connection.transaction(force_rollback=source.table is not None):
            _apply_file(locks, source, NOTHING_APPLIED, is_together=True)
    run(locks, "Deferred constraints", "", [Command(CHECK_CONSTRAINTS)], NOTHING_APPLIED)
    return plan


def _create_history(locks: Locks) -> None:
    run(locks, HISTORY, "", [Command(text) for text in (*SETTINGS, *HISTORY_TABLE)], NOTHING_APPLIED)


def _rename_records(locks: Locks, plan: Plan) -> None:
    """Records applied migrations under the versions of their files, so that the Supabase CLI finds them too."""
    files = {migration.path: migration for migration in plan.files.migrations}
    commands = [
        Command(RENAME, parameters=(f"-{file.version}", file.name, file.statements(), record.version))
        for file, record in ((files[path], record) for path, record in plan.renamed.items())
    ]
    run(locks, HISTORY, "", [*map(Command, SETTINGS), *commands, Command(FINISH_RENAMING)], NOTHING_APPLIED)


def _apply_file(
    locks: Locks,
    file: Migration | Source,
    consequence: str = CONTINUE,
    *,
    known: str = "[]",
    is_together: bool = False,
) -> None:
    """Applies and records one file in the caller's transaction. The only place where this happens.

    `known` lists what someone changed by hand: see structure.py. With `is_together`, other files preceded it in this
    transaction, and their locks are held. Raises FilesInvalid and StatementFailed.
    """
    commands = [Command(text) for text in (SETTINGS if is_together else (*SETTINGS, START))]
    commands += _list_record_commands(locks.connection, file)
    commands += list_commands(locks.connection, file)
    # Checking constraints makes them immediate, so files that are tried together check them at the end.
    commands += [Command(text) for text in (RESET if is_together else (*RESET, CHECK_CONSTRAINTS))]
    commands += [Command(structure.SET_KNOWN, parameters=(known,)), Command(structure.RECORD)]
    run(locks, file.path, file.text, commands, consequence)


def _list_record_commands(connection: Connection, file: Migration | Source) -> Iterator[Command]:
    """Records a file. A source without a checksum was deleted, and its row is removed.

    This precedes the file's statements. If an ended deployment's server process still applies the file, this waits.
    """
    if isinstance(file, Migration):
        yield Command(
            "insert into supabase_migrations.schema_migrations (version, name, statements) values (%s, %s, %s)",
            parameters=(file.version, file.name, file.statements()),
        )
        return
    if not exists(connection, "app.applied_sources"):
        raise FilesInvalid(
            "The table app.applied_sources, which records sources, does not exist: create it in the first migration."
        )
    yield Command("delete from app.applied_sources where path = %s", parameters=(file.path,))
    if file.checksum:
        yield Command(
            "insert into app.applied_sources (path, checksum, applied_at) values (%s, %s, now())",
            parameters=(file.path, file.checksum),
        )


def list_states(database_url: str, *, root: Path = ROOT, notify: Notify = lambda _: None) -> list[FileState]:
    """Lists every file with its state, migrations first. Takes no lock. Raises DatabaseUnreachable and FilesInvalid."""
    files = read_files(root)
    with connect(database_url, notify) as connection:
        return read_history(connection, files).states + read_file_states(connection, files)


@contextmanager
def open_deployment(database_url: str, notify: Notify) -> Iterator[Locks]:
    """Holds the deployment lock during the block. Raises PoolTooSmall.

    The lock has its own connection, so that it outlives the other's transactions, through any pooler.
    """
    with (
        connect(database_url, notify) as guard,
        connect(database_url, notify) as connection,
        guard.transaction(),
    ):
        lock(guard, notify)
        _require_second_session(connection, guard)
        yield Locks(connection, guard, notify)


def _require_second_session(connection: Connection, guard: Connection) -> None:
    """Raises PoolTooSmall if the guard's transaction occupies all sessions of a pooler, which then serves no one."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(connection.execute, "select")
        try:
            answer.result(timeout=SESSION_SECONDS)
        except TimeoutError:
            guard.close()
            raise PoolTooSmall(
                f"The pooler had no second session for {SESSION_SECONDS} s, and the deployment needs two: use the "
                f"direct connection or the session pooler, or give the pooler more sessions.\n{NOTHING_APPLIED}"
            ) from None


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


def _check_role(connection: Connection) -> None:
    """Refuses a role without rights, and one whose new objects the owner of the others could not change later."""
    row = connection.execute(ROLE).fetchone()
    role, owner, may_create, is_read_only = row or ("", "", False, False)
    if is_read_only:
        raise RoleUnfit("This connection is read-only: connect to the primary server, without a read-only setting.")
    if not may_create:
        raise RoleUnfit(f"The role {role} may not migrate this database: connect as {owner}, which owns it.")


def make_plan(connection: Connection, files: Files) -> Plan:
    """Compares files and database. Raises HistoryDisagrees if a migration is edited, missing or late."""
    history = read_history(connection, files)
    states = dict(history.states)
    if wrong := [f"{path} {ADVICE[state]}" for path, state in states.items() if state in ADVICE]:
        raise HistoryDisagrees("\n".join(wrong))
    pending = tuple(migration for migration in files.migrations if states[migration.path] == "pending")
    return _plan_sources(connection, Plan(files, pending, (), (), history.renamed))


def _plan_sources(connection: Connection, plan: Plan) -> Plan:
    states = dict(read_file_states(connection, plan.files))
    return replace(
        plan,
        sources=tuple(source for source in plan.files.sources if states[source.path] != "current"),
        removed=tuple(path for path, state in states.items() if state == "removed"),
    )


def list_commands(connection: Connection, file: Migration | Source) -> list[Command]:
    """Returns what applies a file, without its record. Raises FilesInvalid."""
    statements = [Command(statement.text, statement) for statement in split(file.text)]
    if isinstance(file, Migration):
        return statements
    if file.table is not None:
        return _list_policies_commands(connection, file, file.table, statements)
    if not file.checksum:
        return []
    # `create or replace` keeps existing grants, also those that the file no longer contains. The second run restores
    # the declared ones. For a new file, it also proves that the file can be applied twice.
    again = [command._replace(is_second_run=True) for command in statements]
    return [Command(REMEMBER_REPLACEABLE), *statements, Command(REVOKE_REPLACED), *again]


def _list_policies_commands(
    connection: Connection, source: Source, table: str, statements: list[Command]
) -> list[Command]:
    if not exists(connection, table):
        if not source.checksum:
            return []
        raise FilesInvalid(f"{source.path}: there is no table {table}. {_advise_on_missing_table(table)}")
    clearing = CLEARING.format(table=sql.Literal(table).as_string(), api_roles=API_ROLES)
    return [Command(clearing), *statements]


def _advise_on_missing_table(missing_table: str) -> str:
    if missing_table.startswith('"realtime".'):
        return "Supabase Realtime creates it at its first use: open the dashboard's Realtime Inspector once."
    return "Rename the file, or create the table."


# Functions and views that this role may change: kind, SQL name, and location of the catalogue row (ctid). PostgreSQL's
# own have numbers below 16384: a superuser may change these too, and listing thousands for each file takes minutes.
REPLACEABLE = """
    select
      'routine' as kind, format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name,
      p.ctid::text as place
    from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
    where p.oid >= 16384 and pg_has_role(p.proowner, 'usage')
    union all
    select 'table', format('%I.%I', n.nspname, c.relname), r.ctid::text
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace join pg_rewrite as r on r.ev_class = c.oid
    where c.oid >= 16384 and pg_has_role(c.relowner, 'usage') and c.relkind = 'v'
"""
API_ROLES = "public, anon, authenticated, service_role"


# Remembers all functions and views until the transaction ends. A setting, because it writes no catalogue row.
REMEMBER_REPLACEABLE = f"""\
select set_config(
  'ballast.before', array(select concat_ws(' ', kind, name, place) from ({REPLACEABLE}) as r order by 1)::text, true
)"""  # noqa: S608 - constants
# A replaced function keeps its old grants, and a new one may have default grants: revokes the grants of both.
REVOKE_REPLACED = f"""\
do $ballast$
declare
  made record;
begin
  if coalesce(current_setting('ballast.before', true), '') = '' then
    raise exception 'Apply this file in one transaction, as the Supabase CLI does.';
  end if;
  for made in
    select r.kind, r.name from ({REPLACEABLE}) as r
    where concat_ws(' ', r.kind, r.name, r.place) <> all (current_setting('ballast.before')::text[])
  loop
    execute format('revoke all on %s %s from {API_ROLES}', made.kind, made.name);
  end loop;
end;
$ballast$"""  # noqa: S608 - constants


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


def run(locks: Locks, path: str, text: str, commands: Sequence[Command], consequence: str) -> None:
    """Sends all commands in one pipeline: after the first lock, other sessions wait during each round trip.

    Raises StatementFailed with file, line, the server's error and the `consequence`.
    """
    sent: list[Cursor] = []
    try:
        with locks.connection.pipeline():
            for command in commands:
                # Each time, because `reset all` and files change it, and because the time runs out.
                locks.connection.execute(locks.limit.encode())
                sent.append(locks.connection.execute(command.text.encode(), command.parameters))
    except psycopg.Error as error:
        failed = commands[min(sum(cursor.pgresult is not None for cursor in sent), len(commands) - 1)]
        raise _make_failure(path, text, failed, error, consequence) from error


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
                f"each file is applied in one transaction. Delete the line.\n{NOTHING_APPLIED}"
            )


def _make_failure(path: str, text: str, failed: Command, error: psycopg.Error, consequence: str) -> StatementFailed:
    details = error.diag
    offset = _locate_error(failed.statement, error) if failed.statement is not None else None
    place = path if offset is None else f"{path}:{_find_line(text, offset)}"
    message, detail = details.message_primary or str(error), details.message_detail
    # No personal data: these name values of rows, unless the server points to a literal of the file.
    if isinstance(error, errors.IntegrityError):
        detail = None
    elif isinstance(error, errors.DataError) and details.statement_position is None:
        message, detail = re.sub(r'".*"', "(a value of a row)", message, flags=re.DOTALL), None
    lines = [f"{place}: {message}"]
    if failed.is_second_run and not isinstance(error, BUSY):
        lines.insert(0, f"{path} cannot be run twice (use `create or replace`, `if not exists`, `on conflict`):")
    for title, words in (("Detail", detail), ("Hint", details.message_hint)):
        if words:
            lines.append(f"{title}: {words}")
    if details.context and details.statement_position is None:
        lines.append(f"Where: {details.context}")
    if isinstance(error, errors.ActiveSqlTransaction):
        lines.append("Each file is applied in one transaction: use a form that can run in one (no `concurrently`).")
    return StatementFailed("\n".join([*lines, consequence]))


def _find_line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1
