"""Checks that a restored database equals the one that was backed up, and that tenants are still isolated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from scripts.backup import snapshot
from scripts.backup.manifest import SCHEMAS, Manifest
from scripts.backup.structure import Structure, find_differences
from scripts.errors import Failure
from scripts.schema.database import Connection
from service.audit_store import AuditStore
from service.erasure_ledger import LedgerUnavailable

MAX_REASONS = 3
# A drill queries the data as this many members of real tenants.
MAX_PEOPLE = 20
STEP_SECONDS = 0.05
MAX_WAITS = 100

FUNCTIONS = """
    select p.oid::regprocedure::text, format('select %%s(%%s)', l.lanvalidator::regproc, p.oid)
    from pg_proc as p
    join pg_language as l on l.oid = p.prolang
    where p.pronamespace::regnamespace::text = any(%(schemas)s) and p.prokind <> 'a' and l.lanvalidator <> 0
    order by 1
"""
# The tables whose rows belong to an organization and that members may read, with the column that names it.
TENANT_TABLES = """
    select c.oid::regclass::text, a.attname::text
    from pg_class as c
    join pg_attribute as a on a.attrelid = c.oid and not a.attisdropped
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
        and a.attname = case when c.relname = 'organizations' then 'id' else 'organization_id' end
        and has_column_privilege('authenticated', c.oid, a.attnum, 'select')
    order by 1
"""
# Two tenants with one member each. The transaction is rolled back.
CREATE_TEST_TENANTS = """
    with organization as (
        insert into public.organizations (clerk_org_id, name) values ('org_drill', 'One'), ('org_drill_two', 'Two')
        returning id, clerk_org_id
    ), person as (
        insert into public.profiles (clerk_user_id) values ('user_drill'), ('user_drill_two')
        returning id, clerk_user_id
    )
    insert into public.organization_memberships (organization_id, user_id, role)
    select o.id, p.id, (select r.key from public.roles as r order by r.rank limit 1)
    from organization as o
    join person as p on substr(p.clerk_user_id, 6) = substr(o.clerk_org_id, 5)
"""


@dataclass(frozen=True)
class Check:
    """The result of one check; `detail` describes what was found."""

    name: str
    passed: bool
    detail: str
    seconds: float


class CheckFailed(Failure):
    """A restored database differs from the one that was backed up."""


CheckResult = tuple[bool, str]


def compare_with_manifest(connection: Connection, manifest: Manifest, definitions: Structure) -> Iterator[Check]:
    """Compares a database with the manifest. Call it right after the restore, before anything changes the data."""
    yield run_check("row counts", lambda: _compare_rows(connection, manifest))
    yield run_check("structure", lambda: _compare_structure(connection, manifest, definitions))
    yield run_check("functions", lambda: _validate_functions(connection))
    yield run_check("audit seal", lambda: _compare_seal(connection, manifest))


def replay_erasures(
    connection: Connection, ledger: Callable[[], list[dict[str, Any]]], audit_store: AuditStore | None
) -> Check:
    """Repeats the erasures in the ledger, because the backup may contain people who were erased since."""
    return run_check("erasures replayed", lambda: _replay_ledger(connection, ledger(), audit_store))


def check_tenant_isolation(connection: Connection) -> Check:
    """Tries to read other tenants' rows as members of several tenants. Rolls everything back."""
    return run_check("other tenants denied", lambda: _read_as_people(connection))


def run_check(name: str, compare: Callable[[], CheckResult]) -> Check:
    """Runs and times a comparison. A check that raises an error has failed."""
    began = time.monotonic()
    try:
        passed, detail = compare()
    except psycopg.Error as error:
        passed, detail = False, f"{type(error).__name__} {error.sqlstate}"
    except Failure as failure:
        passed, detail = False, str(failure)
    return Check(name, passed, detail, round(time.monotonic() - began, 3))


def _compare_rows(connection: Connection, manifest: Manifest) -> CheckResult:
    found = snapshot.count_rows(connection)
    wrong = [
        f"{table} has {found.get(table, 0):,} rows instead of {manifest.rows.get(table, 0):,}"
        for table in sorted(found.keys() | manifest.rows.keys())
        if found.get(table) != manifest.rows.get(table)
    ]
    total = sum(manifest.rows.values())
    return not wrong, join_reasons(wrong) or f"{total:,} rows in {len(manifest.rows)} tables, as backed up"


def _compare_structure(connection: Connection, manifest: Manifest, definitions: Structure) -> CheckResult:
    wrong = [str(each) for each in find_differences(connection, manifest, definitions)]
    migration = snapshot.find_newest_migration(connection)
    if migration != manifest.migration:
        wrong.append(f"the migration is {migration} instead of {manifest.migration}")
    objects = sum(len(names) for names in manifest.structure.values())
    return not wrong, join_reasons(wrong) or f"{objects:,} objects of {len(manifest.structure)} kinds, as backed up"


def _validate_functions(connection: Connection) -> CheckResult:
    """Runs each language's validator on its functions: a restore turns check_function_bodies off."""
    wrong = []
    functions = connection.execute(FUNCTIONS, {"schemas": list(SCHEMAS)}).fetchall()
    for name, validation in functions:
        try:
            with connection.transaction():
                connection.execute(validation.encode())
        except psycopg.Error as error:
            wrong.append(f"{name}: {error.diag.message_primary}")
    return not wrong, join_reasons(wrong) or f"{len(functions)} functions are valid"


def _compare_seal(connection: Connection, manifest: Manifest) -> CheckResult:
    seal = snapshot.find_last_seal(connection)
    if seal != manifest.audit_seal:
        return False, "the last seal of the audit trail is not the one that was backed up"
    return True, f"the last seal is {seal.sequence}, as backed up" if seal else "the audit trail has no seal yet"


def _replay_ledger(connection: Connection, ledger: list[dict[str, Any]], audit_store: AuditStore | None) -> CheckResult:
    if connection.execute("select to_regproc('app.replay_erasures')").fetchone() == (None,):
        return not ledger, (
            f"entries in the ledger: {len(ledger):,}; this backup predates erasures: run `ballast migrate up`,"
            " then `ballast person replay`"
        )
    returned = connection.execute("select app.replay_erasures(%s)", [Jsonb(ledger)]).fetchall()
    unfinished = [receipt for (receipt,) in returned if not _finish_erasure(connection, receipt, audit_store)]
    if unfinished:
        return False, f"{len(unfinished):,} of {len(returned):,} erasures are unfinished: run `ballast person resume`"
    return True, f"entries in the ledger: {len(ledger):,}; people in the backup, erased again: {len(returned):,}"


def _finish_erasure(connection: Connection, receipt: str, audit_store: AuditStore | None) -> bool:
    """Whether the erasure is finished. Raises CheckFailed if a receipt cannot be stored."""
    step: dict[str, Any] = {}
    waits = 0
    while waits < MAX_WAITS:
        before = step
        try:
            [[step]] = connection.execute(
                "select public.continue_erasure(%s, %s)", [receipt, audit_store is not None]
            ).fetchall()
        except psycopg.DatabaseError as error:
            connection.execute("select public.postpone_erasure(%s, %s, in_step => true)", [receipt, error.sqlstate])
        else:
            if step["state"] != "running":
                return True
            if step.get("is_blocked"):
                return False
            if audit_store is not None and step["receipt_to_store"] is not None:
                _store_receipt(connection, step["receipt_to_store"], audit_store)
        if step == before:  # it failed, or other transactions are still running
            waits += 1
            time.sleep(STEP_SECONDS)
    return False


def _store_receipt(connection: Connection, receipt: dict[str, Any], audit_store: AuditStore) -> None:
    try:
        audit_store.put_receipt(receipt)
    except LedgerUnavailable as failure:
        raise CheckFailed(f"{failure} Continue with `ballast person resume`.") from None
    connection.execute("select public.confirm_receipt(%s)", [receipt["digest"]])


def _read_as_people(connection: Connection) -> CheckResult:
    with connection.transaction(force_rollback=True):
        connection.execute(CREATE_TEST_TENANTS)
        tables = connection.execute(TENANT_TABLES).fetchall()
        people = connection.execute(
            """
            select p.clerk_user_id, array_agg(m.organization_id)
            from public.profiles as p
            join public.organization_memberships as m on m.user_id = p.id
            where p.clerk_user_id is not null and not p.banned
            group by p.id, p.clerk_user_id
            order by p.clerk_user_id <> 'user_drill', count(*) desc
            limit %s
            """,
            [MAX_PEOPLE],
        ).fetchall()
        own = others = 0
        for user_id, organizations in people:
            claims = json.dumps({"sub": user_id, "role": "authenticated", "fva": [0, 0]})
            connection.execute("select set_config('request.jwt.claims', %s, true)", [claims])
            connection.execute("set local role authenticated")
            for table, column in tables:
                query = sql.SQL(
                    "select count(*) filter (where {column} = any(%(own)s)),"
                    " count(*) filter (where {column} <> all(%(own)s)) from {table}"
                ).format(column=sql.Identifier(column), table=sql.SQL(table))
                [[mine, theirs]] = connection.execute(query, {"own": organizations}).fetchall()
                own, others = own + mine, others + theirs
            connection.execute("reset role")
    if others or not own:
        return False, f"{len(people)} people saw {own:,} rows of their own tenants and {others:,} of other tenants"
    return True, f"{len(people)} people saw {own:,} rows of their own tenants and none of other tenants"


def join_reasons(wrong: list[str]) -> str:
    """Lists the first few problems and the number of others. Returns an empty text if there are none."""
    rest = f", and {len(wrong) - MAX_REASONS:,} more" if len(wrong) > MAX_REASONS else ""
    return "; ".join(wrong[:MAX_REASONS]) + rest
