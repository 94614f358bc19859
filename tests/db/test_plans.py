"""Query plans of the tenant policies on large tables: the caller's organizations are computed once, for an index condition.

The plans are those of `explain (analyze, costs off, format json)` as authenticated. They must contain neither a SubPlan nor a
filter that calls a function, because both run once per row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from scripts.scratch.postgres import Postgres
from tests.bench.rls import claims, fill
from tests.conftest import Database, OwnDatabase, own_database
from tests.servers import TestRun
from tests.tenant_tables import TABLES, VIEWS

Plan = dict[str, Any]

SPECIMENS = 100_000
INVITATIONS = 20_000
AUDIT_ENTRIES = 50_000
OTHERS_PER_ORGANIZATION = 200


@pytest.fixture(scope="module")
def tenants(test_run: TestRun, request: pytest.FixtureRequest, starts_servers: None) -> Iterator[OwnDatabase]:
    """A separate database with 100 organizations, so that these rows do not change the plans of other tests.

    With --table for a product's table, only this one has many rows.
    """
    only = TABLES.get(request.config.getoption("--table"))
    portion = 100 if only else 1
    with own_database(test_run.postgres("server", request.config.getoption("--postgres"), is_migrated=True)) as server:
        with psycopg.connect(server.url("supabase_admin")) as admin:
            fill(admin, SPECIMENS, portion)
            admin.execute(
                "insert into public.organization_invitations (organization_id, clerk_invitation_id, email, role) "
                "select o.ids[1 + i %% cardinality(o.ids)], 'orginv_' || i, 'x@example.com', 'member' "
                "from (select array_agg(id) as ids from public.organizations) as o, generate_series(1, %s) as i",
                [INVITATIONS // portion],
            )
            admin.execute(
                "insert into public.audit_logs (organization_id, action, resource_type) "
                "select o.ids[1 + i %% cardinality(o.ids)], 'project.updated', 'project' "
                "from (select array_agg(id) as ids from public.organizations) as o, generate_series(1, %s) as i",
                [AUDIT_ENTRIES // portion],
            )
            admin.execute("set session_replication_role = replica")  # without triggers: no audit entries, no broadcasts
            for table in [only] if only else TABLES.values():
                rows = table.insert("public.organizations", OTHERS_PER_ORGANIZATION, without_parents=True)
                admin.execute(rows.encode())
        with psycopg.connect(server.url("supabase_admin"), autocommit=True) as admin:
            admin.execute("vacuum (analyze)")
        yield server


@pytest.fixture
def explain(tenants: Postgres) -> Iterator[Any]:
    """Runs a statement as a member of three organizations, rolls it back, and returns all nodes of its plan."""
    with psycopg.connect(tenants.url()) as connection:
        database = Database(connection)
        database.execute("set search_path = pg_catalog")  # so that plans qualify our functions with their schema

        def plan_of(statement: str) -> list[Plan]:
            with database.acting("authenticated", claims("user_17", "org_1")):
                explained = database.value(
                    f"explain (analyze, costs off, timing off, verbose, format json) {statement}"
                )
            return list(nodes(explained[0]["Plan"]))

        yield plan_of
        connection.rollback()


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def conditions(plan: list[Plan], *kinds: str) -> list[str]:
    """The texts of all conditions of the given kinds in the plan."""
    return [node[kind] for node in plan for kind in kinds if kind in node]


def calls_our_function(text: str) -> bool:
    return re.search(r"\b(app|public)\.\w+\(", text) is not None


TENANT_STATEMENTS = {
    "read specimens": ("select * from public.specimens", "organization_id"),
    "read the newest specimens": (
        "select * from public.specimens order by created_at desc limit 50",
        "organization_id",
    ),
    "count specimens": ("select count(*) from public.specimens", "organization_id"),
    "update specimens": ("update public.specimens set title = 'x' where status = 'archived'", "organization_id"),
    "delete specimens": ("delete from public.specimens where status = 'archived'", "organization_id"),
    "read members": ("select * from public.organization_memberships", "organization_id"),
    "read invitations": ("select * from public.organization_invitations", "organization_id"),
    "read the audit log": ("select id, action, metadata from public.audit_logs", "organization_id"),
} | {
    f"{what} {table.name}": (statement, "organization_id")
    for table in TABLES.values()
    for what, statement in {
        "read": f"select * from public.{table.name}",
        "read the newest": f"select * from public.{table.name} order by created_at desc limit 50",
        "count": f"select count(*) from public.{table.name}",
        **table.write(),
    }.items()
}

# These tables have so few rows that PostgreSQL may prefer a sequential scan.
SMALL_STATEMENTS = {
    "read profiles": "select id, full_name from public.profiles",
    "read organizations": "select * from public.organizations",
    "update organizations": "update public.organizations set name = 'x'",
    "update the own profile": "update public.profiles set full_name = 'x'",
    "insert a specimen": "insert into public.specimens (organization_id, title) select id, 'x' from public.organizations returning id",
}

VIEW_STATEMENTS = {f"read {view}": (f"select * from public.{view}", "organization_id") for view in VIEWS}

EVERY_STATEMENT = {name: statement for name, (statement, _) in TENANT_STATEMENTS.items()} | SMALL_STATEMENTS


READING = TENANT_STATEMENTS | VIEW_STATEMENTS


@pytest.mark.parametrize(("statement", "column"), READING.values(), ids=READING)
def test_the_callers_organizations_are_an_index_condition(explain: Any, statement: str, column: str) -> None:
    plan = explain(statement)
    found = conditions(plan, "Index Cond")
    assert any(re.search(rf"\b{column} = ANY \(", condition) for condition in found), plan
    assert not any(node["Node Type"] == "Seq Scan" for node in plan if not is_empty(node)), plan


def is_empty(scan: Plan) -> bool:
    """PostgreSQL scans an empty partition of the audit trail sequentially."""
    return scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0) == 0


@pytest.mark.parametrize("statement", EVERY_STATEMENT.values(), ids=EVERY_STATEMENT)
def test_the_callers_organizations_are_computed_once(explain: Any, statement: str) -> None:
    init_plans = [node for node in explain(statement) if node.get("Parent Relationship") == "InitPlan"]
    assert init_plans
    assert all(node["Actual Loops"] <= 1 for node in init_plans), init_plans


@pytest.mark.parametrize("statement", EVERY_STATEMENT.values(), ids=EVERY_STATEMENT)
def test_no_function_or_subplan_runs_once_per_row(explain: Any, statement: str) -> None:
    plan = explain(statement)
    assert not [node for node in plan if node.get("Parent Relationship") == "SubPlan"], plan
    filters = conditions(plan, "Filter", "Join Filter", "Index Cond", "Recheck Cond", "One-Time Filter")
    assert not [each for each in filters if calls_our_function(each)], filters


def test_counting_many_specimens_uses_an_index_only_scan(explain: Any) -> None:
    plan = explain("select count(*) from public.specimens")
    assert [node["Node Type"] for node in plan if node["Node Type"].startswith(("Index", "Bitmap"))] == [
        "Index Only Scan"
    ], plan


def test_every_tenant_table_has_its_plan_tested(database: Database) -> None:
    tables = database.rows(
        "select distinct tablename from pg_policies where schemaname = 'public' and 'authenticated' = any(roles) "
        "and coalesce(qual, with_check) <> 'true'"
    )
    untested = [table for (table,) in tables if not any(f"public.{table}" in each for each in EVERY_STATEMENT.values())]
    assert not untested
