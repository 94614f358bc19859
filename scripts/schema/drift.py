"""Finds drift: differences between a database and functions/ and policies/, in the schemas public, app and ops.

In a transaction that is rolled back, this revokes every grant and applies every file again. An object that then differs
has drifted. A function, view or trigger that no file created again is undeclared. Each policies file is rolled back
immediately, which releases its locks (see migrations.py). Tables and indexes are not compared: migrations create them.

Example: someone ran `grant select on public.projects to anon` in production. The revocation removes this grant and no
file grants it again, so that it is reported as undeclared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.schema import migrations
from scripts.schema.database import Connection, Notify, connect
from scripts.schema.locks import Locks
from scripts.schema.migrations import ROOT, Files, Plan, Source

VIEWS = """
    select format(
        'create or replace view %I.%I %s as %s', n.nspname, c.relname,
        'with (' || nullif(array_to_string(c.reloptions, ', '), '') || ')', pg_get_viewdef(c.oid)
      )
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname in ('public', 'app', 'ops') and c.relkind = 'v' and pg_has_role(c.relowner, 'usage')
      and ('pg_class'::regclass, c.oid) not in (select classid, objid from pg_depend where deptype = 'e')
"""
RUN_AGAIN = "The check changes nothing. If another session holds a lock, run it again."
OBJECTS = Path(__file__).with_suffix(".sql")
KINDS = ("table", "function", "view", "trigger", "policy", "default", "grant")
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


class Drift(NamedTuple):
    """A drifted object. `problem` is undeclared (only in the database), missing (only in a file) or different."""

    kind: str
    name: str
    problem: str


def check(database_url: str, *, root: Path = ROOT, notify: Notify = lambda _: None) -> tuple[Plan, list[Drift]]:
    """Returns the pending plan and, if no migration is pending, the drift. Locks tables as `up` does, then rolls back.

    Raises HistoryDisagrees as `up` does, and StatementFailed if a file cannot be applied to this database.
    """
    files = migrations.read_files(root)
    with (
        connect(database_url, notify) as guard,
        guard.transaction(),
        connect(database_url, notify) as connection,
    ):
        migrations.lock(guard, notify)
        plan = migrations.make_plan(connection, files)
        if plan.migrations:
            return plan, []
        locks = Locks(connection, guard, notify)
        return plan, locks.retry("The check", lambda: find_drift(locks, files), force_rollback=True)


def find_drift(locks: Locks, files: Files) -> list[Drift]:
    """Compares in the caller's transaction, which the caller must roll back."""
    connection = locks.connection
    for setting in migrations.SETTINGS:
        connection.execute(setting)
    connection.execute(locks.limit.encode())
    _settle_views(connection)
    before = read_objects(connection)
    _revoke_grants(connection, before)
    cleared = read_objects(connection)
    for source in files.sources:
        if source.table is None:
            _apply(locks, source)
    after = read_objects(connection)
    _settle_views(connection)
    settled = {identity: found for identity, found in read_objects(connection).items() if identity.kind != "policy"}
    for source in files.sources:
        if source.table is not None:
            settled |= _read_declared(locks, source, source.table)
    drift = [
        Drift(*identity, _describe_problem(before.get(identity), settled.get(identity)))
        for identity in before | settled
        if identity.kind != "table"
    ]
    drift += [
        Drift(*identity, "undeclared")
        for identity, definition in after.items()
        if definition.place is not None and definition == cleared.get(identity)
    ]
    return sorted(found for found in drift if found.problem)


def _settle_views(connection: Connection) -> None:
    """Creates each view again from PostgreSQL's own text of it, so that both sides of the comparison have this form.

    PostgreSQL may print a view differently from its source. A restore creates the view from the printed text, which may
    change the printed text once more. A view created from its printed text is then printed the same.
    """
    for statement, *_ in connection.execute(VIEWS).fetchall():
        connection.execute(statement.encode())


def _describe_problem(before: Definition | None, after: Definition | None) -> str:
    if before is None:
        return "missing"
    if after is None:
        return "undeclared"
    return "" if before.text == after.text else "different"


def read_objects(connection: Connection, kinds: Sequence[str] = KINDS) -> dict[Identity, Definition]:
    """Reads our tables in public, app and ops, and every object that files declare."""
    every_kind = OBJECTS.read_bytes().rstrip(b";\n").replace(b"%", b"%%")
    rows = connection.execute(b"select * from (%b) as object where kind = any(%%s)" % every_kind, [list(kinds)])
    return {Identity(kind, name): Definition(text, place) for kind, name, text, place in rows}


def _apply(locks: Locks, source: Source) -> None:
    commands = [*migrations.list_commands(locks.connection, source), *map(migrations.Command, migrations.SETTINGS)]
    migrations.run(locks, source.path, source.text, commands, RUN_AGAIN)


def _read_declared(locks: Locks, source: Source, table: str) -> dict[Identity, Definition]:
    """Reads the policies and grants that a policies file declares."""
    connection = locks.connection
    with connection.transaction(force_rollback=True):
        _apply(locks, source)
        made = read_objects(connection, ["policy", "grant"])
        [[name]] = connection.execute(NAME, [table]).fetchall()
    return {
        identity: definition
        for identity, definition in made.items()
        if identity.kind == "grant" or identity.name.endswith(f" on {name}")
    }


def _revoke_grants(connection: Connection, objects: Iterable[Identity]) -> None:
    """Revokes every grant to the API roles; the files restore the declared ones. Grants on Supabase's table stay."""
    for kind, name in objects:
        if kind == "function" or (kind == "table" and not name.startswith("realtime.")):
            migrations.revoke(connection, f"{'routine' if kind == 'function' else 'table'} {name}")
