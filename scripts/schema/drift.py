"""Finds drift: differences between a database and functions/ and policies/, in the schemas public, app and ops.

In a transaction that is rolled back, this revokes every grant and applies every file again. An object that then differs
has drifted. A function, view or trigger that no file created again is undeclared. Tables and indexes are not compared:
migrations create them. But check() also reports their keys that join rows of several tenants (tenant_keys.sql).

Each file is rolled back at once, which releases its locks, and retried if it does not get them (see locks.py). If a
file fails because the database lacks an object of an earlier file, all are applied together instead. Then this gives
way to anyone who waits for it.

Example: someone ran `grant select on public.projects to anon` in production. The revocation removes this grant and no
file grants it again, so that it is reported as undeclared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scripts.schema import migrations, sql_files
from scripts.schema.database import Connection, Notify
from scripts.schema.locks import START, Locks
from scripts.schema.migrations import Command, Plan, StatementFailed
from scripts.schema.sql_files import ROOT, Files, Source

VIEWS = """
    select format(
        'create or replace view %%I.%%I %%s as %%s', n.nspname, c.relname,
        'with (' || nullif(array_to_string(c.reloptions, ', '), '') || ')', pg_get_viewdef(c.oid)
      )
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where c.relkind = 'v' and format('%%I.%%I', n.nspname, c.relname) = any (%s)
"""
ACROSS_TENANTS = "across tenants"
RUN_AGAIN = "The check changes nothing. If another session holds a lock, run it again."
OBJECTS = Path(__file__).with_suffix(".sql").read_bytes()
TENANT_KEYS = Path(__file__).with_name("tenant_keys.sql").read_bytes()
NAME = """
    select format('%%I.%%I', n.nspname, c.relname)
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = %s::regclass
"""


class Identity(NamedTuple):
    """The identity of an object: its kind and its name."""

    kind: str
    name: str


class Definition(NamedTuple):
    """An object's definition, and the ctid of its catalogue row, which changes if the object is created again."""

    text: str
    place: str | None


Objects = dict[Identity, Definition]


class Drift(NamedTuple):
    """A drifted object. `problem` is undeclared (only in the database), missing (only in a file) or different.

    A key that joins rows of several tenants has the problem `across tenants`.
    """

    kind: str
    name: str
    problem: str


def check(database_url: str, *, root: Path = ROOT, notify: Notify = lambda _: None) -> tuple[Plan, list[Drift]]:
    """Returns the pending plan and, if no migration is pending, the drift. Locks tables as `up` does, then rolls back.

    Raises HistoryDisagrees as `up` does, and StatementFailed if a file cannot be applied to this database.
    """
    files = sql_files.read_files(root)
    with migrations.open_deployment(database_url, notify) as locks:
        plan = migrations.make_plan(locks.connection, files)
        if plan.migrations:
            return plan, []
        return plan, [*find_drift(locks, files), *find_tenant_keys(locks.connection)]


def find_tenant_keys(connection: Connection) -> Iterator[Drift]:
    """Finds the keys that join rows of several tenants."""
    for kind, name in connection.execute(TENANT_KEYS):
        yield Drift(kind, name, ACROSS_TENANTS)


def find_drift(locks: Locks, files: Files) -> list[Drift]:
    """Compares and rolls back. Raises LockUnavailable, and StatementFailed if a file cannot be applied."""
    drift = _find(locks, files, [])
    views = [found.name for found in drift if found.kind == "view" and found.problem == "different"]
    return _find(locks, files, views) if views else drift


def _find(locks: Locks, files: Files, views: list[str]) -> list[Drift]:
    try:
        with locks.connection.transaction(force_rollback=True):
            return _compare(locks, files, views)
    except StatementFailed:
        together = partial(_compare, locks, files, views, is_together=True)
        return locks.retry("The check", together, force_rollback=True, gives_way=True)


def _compare(locks: Locks, files: Files, views: list[str], *, is_together: bool = False) -> list[Drift]:
    """Compares in the caller's transaction, which the caller must roll back. `views` are settled before.

    With `is_together`, functions stay until the caller's transaction ends, and the caller retries.
    """
    connection = locks.connection

    def attempt(what: str, work: Callable[[], Objects], *, is_kept: bool = False) -> Objects:
        if is_together:
            with connection.transaction(force_rollback=not is_kept):
                return work()
        return locks.retry(what, work, force_rollback=True)

    def apply(source: Source) -> Objects:
        commands = [*migrations.SETTINGS, *([] if is_together else [START])]
        applying = [*map(Command, commands), *migrations.list_commands(connection, source)]
        migrations.run(locks, source.path, source.text, [*applying, *map(Command, migrations.SETTINGS)], RUN_AGAIN)
        made = read_objects(connection)
        # Only those that this file created: the others still have the text of the database.
        changed = [view for view in views if made.get(Identity("view", view)) != cleared.get(Identity("view", view))]
        return _read_settled(connection, changed) if changed else made

    for setting in migrations.SETTINGS:
        connection.execute(setting)
    before = attempt("The check", lambda: _read_settled(connection, views))
    _revoke_grants(connection, before)
    cleared = read_objects(connection)
    declared = {identity: found for identity, found in cleared.items() if identity.kind != "policy"}
    created: set[Identity] = set()
    for source in files.sources:
        made = attempt(source.path, partial(apply, source), is_kept=source.table is None)
        if source.table is not None:
            declared |= _select_declared(connection, made, source.table)
            continue
        changed = {identity: found for identity, found in made.items() if found != cleared.get(identity)}
        for identity in cleared.keys() - made.keys():
            declared.pop(identity, None)
        declared |= {identity: found for identity, found in changed.items() if identity.kind != "policy"}
        created |= changed.keys()
    drift = [
        Drift(*identity, _describe_problem(before.get(identity), declared.get(identity)))
        for identity in before | declared
        if identity.kind != "table"
    ]
    drift += [
        Drift(*identity, "undeclared")
        for identity, definition in cleared.items()
        if definition.place is not None and identity in declared and identity not in created
    ]
    return sorted(found for found in drift if found.problem)


def _read_settled(connection: Connection, views: list[str]) -> Objects:
    """Creates `views` again from PostgreSQL's own text of them, so that both sides of a comparison have this form.

    PostgreSQL may print a view differently from its source. A restore creates the view from the printed text, which may
    change the printed text once more. A view created from its printed text is then printed the same.
    """
    if views:
        for statement, *_ in connection.execute(VIEWS, [views]).fetchall():
            connection.execute(statement.encode())
    return read_objects(connection)


def _describe_problem(before: Definition | None, after: Definition | None) -> str:
    if before is None:
        return "missing"
    if after is None:
        return "undeclared"
    return "" if before.text == after.text else "different"


def read_objects(connection: Connection) -> Objects:
    """Reads our tables in public, app and ops, and every object that files declare."""
    return {Identity(kind, name): Definition(text, place) for kind, name, text, place in connection.execute(OBJECTS)}


def _select_declared(connection: Connection, made: Objects, table: str) -> Objects:
    """Selects the policies of a table, and all grants."""
    [[name]] = connection.execute(NAME, [table]).fetchall()
    return {
        identity: definition
        for identity, definition in made.items()
        if identity.kind == "grant" or (identity.kind == "policy" and identity.name.endswith(f" on {name}"))
    }


def _revoke_grants(connection: Connection, objects: Iterable[Identity]) -> None:
    """Revokes every grant to the API roles; the files restore the declared ones. Grants on Supabase's table stay."""
    for kind, name in objects:
        if kind == "function" or (kind == "table" and not name.startswith("realtime.")):
            migrations.revoke(connection, f"{'routine' if kind == 'function' else 'table'} {name}")
