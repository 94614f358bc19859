"""`ballast upgrade-check`: what this checkout's migrations do to an older database, tested on a restored backup.

It verifies that every row keeps its values, that everything that clients use still exists, and that no table is open to
other tenants. A migration that changes values or removes something on purpose declares it in a separate line:

    -- upgrade-check: changes public.organizations.plan
    -- upgrade-check: deletes public.role_permissions
    -- upgrade-check: removes public.projects.status
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from scripts.backup import checks
from scripts.backup.checks import Check, CheckResult, join_reasons, run_check
from scripts.backup.drill import UNSUITABLE, scratch_target
from scripts.backup.progress import Bar
from scripts.backup.restore import restore_and_check
from scripts.backup.restore_engine import Backup
from scripts.backup.structure import pinned
from scripts.errors import Failure
from scripts.schema import drift, migrations, sql_files
from scripts.schema.database import Connection

_DECLARATION = re.compile(
    r"^-- upgrade-check: (?P<verb>changes|deletes|removes) (?P<name>[a-z_]\w*(?:\.[a-z_]\w*){1,2})$", re.MULTILINE
)
# Each migration rewrites these tables from the files of the checkout, so they are not compared.
DECLARED_DATA = ("app.applied_sources", "app.recorded_objects", "app.personal_data")

TABLES = """
    select n.nspname, c.relname, array_agg(a.attname::text order by a.attnum)
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relkind in ('r', 'p') and not c.relispartition and n.nspname in ('public', 'app')
    group by n.nspname, c.relname
    order by 1, 2
"""
# The columns of schema public, and the functions there that a role of the Data API may call.
CLIENT_API = """
    select format('%I.%I.%I %s', 'public', c.relname, a.attname, format_type(a.atttypid, a.atttypmod))
    from pg_class as c
    join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
    union all
    select format('%I.%I(%s) %s', 'public', p.proname, pg_get_function_identity_arguments(p.oid), role.name)
    from pg_proc as p
    cross join (values ('anon'), ('authenticated'), ('service_role')) as role (name)
    where p.pronamespace = 'public'::regnamespace and has_function_privilege(role.name, p.oid, 'execute')
    order by 1
"""


class UpgradeFailed(Failure):
    """The upgrade failed, or loses data or functions."""


@dataclass(frozen=True)
class DeclaredChanges:
    """The losses that pending migrations declare.

    `changes` lists columns (schema.table.column), `deletes` the tables that lose rows, and `removes` what is dropped:
    schema.table, schema.table.column or schema.function.
    """

    changes: tuple[str, ...]
    deletes: tuple[str, ...]
    removes: tuple[str, ...]

    @classmethod
    def read(cls, plan: migrations.Plan) -> DeclaredChanges:
        found = [match for file in plan.migrations for match in _DECLARATION.finditer(file.text)]
        verbs = ("changes", "deletes", "removes")
        return cls(*(tuple(each["name"] for each in found if each["verb"] == verb) for verb in verbs))


def check_upgrade(backup: Backup, bar: Bar) -> list[Check]:
    """Restores, migrates and compares a backup. An error is reported as a failed check.

    Raises the errors in UNSUITABLE, which say nothing about the migrations.
    """
    done: list[Check] = []
    began = time.monotonic()
    try:
        with scratch_target(backup, bar) as target:
            done += restore_and_check(backup, target, bar)
            bar.start_stage("Migrating")
            done += migrate_and_compare(target.url, target.connection, sql_files.ROOT)
    except UNSUITABLE:
        raise
    except Failure as failure:
        done.append(Check("upgrade", False, str(failure), round(time.monotonic() - began, 3)))
    return done


def migrate_and_compare(url: str, connection: Connection, root: Path) -> Iterator[Check]:
    """Hashes the data, applies the files in `root`, and compares. Raises what `migrate up` raises."""
    record_hashes(connection)
    api_before = _list_client_api(connection)
    began = time.monotonic()
    plan = migrations.up(url, root=root)
    applied = f"{len(plan.migrations)} migrations and {len(plan.sources)} sources were applied"
    yield Check("migrations", True, applied, round(time.monotonic() - began, 3))
    declared = DeclaredChanges.read(plan)
    yield run_check("data", lambda: _compare_data(connection, declared))
    yield run_check("types", lambda: _compare_client_api(connection, api_before, declared))
    yield run_check("drift", lambda: _check_drift(url, root))
    yield run_check("policies", lambda: _check_policies(connection))
    yield checks.check_tenant_isolation(connection)


def record_hashes(connection: Connection) -> None:
    """Stores a hash of every value in the schema upgrade_check of the temporary server."""
    with pinned(connection):
        connection.execute("create schema upgrade_check")
        connection.execute(
            "create table upgrade_check.before (relation text, columns text[], key text, hashes bigint[])"
        )
        for schema, table, columns in connection.execute(TABLES).fetchall():
            query = sql.SQL("insert into upgrade_check.before select {}, {}, {}, {} from {} as t").format(
                sql.Literal(f"{schema}.{table}"), sql.Literal(columns), _key(connection, schema, table),
                _hashes(columns), sql.Identifier(schema, table),
            )  # fmt: skip
            if f"{schema}.{table}" not in DECLARED_DATA:
                connection.execute(query)


def _key(connection: Connection, schema: str, table: str) -> sql.Composable:
    """A row's primary key as text. All our tables have one."""
    rows = connection.execute(
        "select a.attname from pg_index as i "
        "join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = any(i.indkey) "
        "where i.indrelid = %s::regclass and i.indisprimary order by array_position(i.indkey::int2[], a.attnum)",
        [f"{sql.Identifier(schema, table).as_string()}"],
    ).fetchall()
    return sql.SQL("row({})::text").format(sql.SQL(", ").join(sql.Identifier("t", name) for (name,) in rows))


def _hashes(columns: list[str]) -> sql.Composable:
    each = (sql.SQL("hashtextextended({}::text, 0)").format(sql.Identifier("t", column)) for column in columns)
    return sql.SQL("array[{}]").format(sql.SQL(", ").join(each))


def _compare_data(connection: Connection, declared: DeclaredChanges) -> CheckResult:
    """Checks that every earlier row still exists with its values."""
    tables_now = {f"{schema}.{table}": columns for schema, table, columns in connection.execute(TABLES).fetchall()}
    wrong: list[str] = []
    total = 0
    before = connection.execute("select relation, columns, count(*) from upgrade_check.before group by 1, 2 order by 1")
    for relation, columns, rows in before.fetchall():
        total += rows
        if relation not in tables_now:
            wrong += [] if _is_declared(relation, declared.removes) else [f"{relation} is gone with {rows:,} rows"]
            continue
        wrong += _find_losses(connection, relation, columns, tables_now[relation], declared)
    return not wrong, join_reasons(wrong) or f"{total:,} rows still have their values"


def _find_losses(
    connection: Connection, relation: str, columns: list[str], columns_now: list[str], declared: DeclaredChanges
) -> Iterator[str]:
    schema, _, table = relation.partition(".")
    gone = [column for column in columns if column not in columns_now]
    yield from (
        f"{relation}.{column} is gone" for column in gone if not _is_declared(f"{relation}.{column}", declared.removes)
    )
    kept = [column for column in columns if column in columns_now]
    counts = [
        sql.SQL("count(*) filter (where n.key is not null and b.hashes[{}] is distinct from n.hashes[{}])").format(
            columns.index(column) + 1, kept.index(column) + 1
        )
        for column in kept
    ]
    query = sql.SQL(
        "select count(*) filter (where n.key is null), {} from upgrade_check.before as b "
        "left join (select {} as key, {} as hashes from {} as t) as n on n.key = b.key where b.relation = {}"
    ).format(
        sql.SQL(", ").join(counts),
        _key(connection, schema, table),
        _hashes(kept),
        sql.Identifier(schema, table),
        relation,
    )
    with pinned(connection):
        [[missing, *changed]] = connection.execute(query).fetchall()
    if missing and not _is_declared(relation, declared.deletes + declared.removes):
        yield f"{missing:,} rows of {relation} are gone"
    for column, number in zip(kept, changed, strict=True):
        if number and not _is_declared(f"{relation}.{column}", declared.changes):
            yield f"{relation}.{column} differs in {number:,} rows"


def _compare_client_api(connection: Connection, before: set[str], declared: DeclaredChanges) -> CheckResult:
    """Checks that existing clients still find every column with its type, and every function that they may call."""
    gone = sorted(
        each
        for each in before - _list_client_api(connection)
        if not _is_declared(re.split(r"[ (]", each)[0], declared.removes)
    )
    return not gone, join_reasons(
        [f"{each} is gone" for each in gone]
    ) or f"{len(before):,} columns and functions still exist"


def _list_client_api(connection: Connection) -> set[str]:
    return {name for (name,) in connection.execute(CLIENT_API)}


def _check_drift(url: str, root: Path) -> CheckResult:
    _, found = drift.check(url, root=root)
    wrong = [f"{entry.kind} {entry.name} is {entry.problem}" for entry in found]
    return not wrong, join_reasons(
        wrong
    ) or "functions, views, policies and grants match the files; no key joins tenants"


def _check_policies(connection: Connection) -> CheckResult:
    gaps = connection.execute(
        "select concat(schema, '.', relation, ': ', gap) from ops.rls_coverage where gap is not null"
    )
    wrong = [gap for (gap,) in gaps]
    return not wrong, join_reasons(wrong) or "row level security covers every table"


def _is_declared(name: str, declared: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in declared)
