"""docs/extend.md, "Background code": what the secret key may reach, and what each of the two ways opens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, create_client

from tests.conftest import ROOT, Database, Stack
from tests.db.test_schema_rules import RULES

PAGE = (ROOT / "docs/extend.md").read_text()
SECTION = PAGE.split("\n## Background code\n")[1].split("\n## ")[0]
# A product may have the page's objects: here they have other names.
SECTION = re.sub(r"\b(invoices|unpaid_invoices)\b", r"test_\1", SECTION)
FUNCTION, GRANT = re.findall(r"^```sql\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
[PROGRAM] = re.findall(r"^```python\n.*?\n(unpaid = .*?)^```", SECTION, re.MULTILINE | re.DOTALL)
INVOICES = """
create table public.test_invoices (
  id uuid primary key default gen_random_uuid(), organization_id uuid not null references public.organizations on delete cascade,
  client_id uuid, number text, amount numeric, status text not null default 'sent', created_at timestamptz not null default now()
);
alter table public.test_invoices enable row level security, force row level security;
insert into public.organizations (clerk_org_id, name) values ('org_background_1', 'One'), ('org_background_2', 'Two');
insert into public.test_invoices (organization_id, number)
select id, name from public.organizations where clerk_org_id like 'org\\_background\\__';
"""
SECRET_KEY = {"role": "service_role", "iss": "supabase"}
CLERK_TOKEN = {"role": "service_role", "iss": "https://clerk.example.com", "sub": "user_cleo"}
CALL = "select number from public.test_unpaid_invoices() order by number"
READ = "select number from public.test_invoices order by number"
FOUND = [("One",), ("Two",)]


@pytest.fixture
def invoices(database: Database) -> Database:
    """The database with the page's example table, which holds an invoice of each of two tenants."""
    database.execute(INVOICES)
    return database


def test_the_secret_key_reaches_no_table(invoices: Database) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), invoices.acting("service_role", SECRET_KEY):
        invoices.rows(READ)


def test_the_function_serves_the_secret_key_and_refuses_a_clerk_token(invoices: Database) -> None:
    invoices.execute(FUNCTION)
    with invoices.acting("service_role", SECRET_KEY):
        assert invoices.rows(CALL) == FOUND
    refusal = pytest.raises(psycopg.errors.InsufficientPrivilege, match="Only the secret key")
    with refusal, invoices.acting("service_role", CLERK_TOKEN):
        invoices.rows(CALL)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), invoices.acting("authenticated", {"sub": "user_cleo"}):
        invoices.rows(CALL)


@pytest.mark.parametrize("rule", [rule for rule in RULES if "function" in rule])
def test_the_function_obeys_the_rules(invoices: Database, rule: str) -> None:
    invoices.execute(FUNCTION)
    assert invoices.rows(RULES[rule]) == []


def test_the_grant_opens_every_tenant_also_to_a_clerk_token(invoices: Database) -> None:
    invoices.execute(GRANT)
    for claims in (SECRET_KEY, CLERK_TOKEN):
        with invoices.acting("service_role", claims):
            assert invoices.rows(READ) == FOUND
    with pytest.raises(psycopg.errors.InsufficientPrivilege), invoices.acting("service_role", SECRET_KEY):
        invoices.execute("update public.test_invoices set number = 'x'")


# --- through the Data API, with the secret key


@pytest.fixture
def service(stack: Stack) -> Client:
    return create_client(stack.environment["SUPABASE_URL"], stack.environment["SUPABASE_SECRET_KEY"])


@pytest.fixture
def granted(stack: Stack) -> Iterator[str]:
    """Opens projects to the secret key for the test. Returns the id of Acme."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("grant select, insert (organization_id, title) on public.projects to service_role")
        try:
            [[acme]] = connection.execute(
                "select id::text from public.organizations where clerk_org_id = 'org_acme'"
            ).fetchall()
            yield str(acme)
        finally:
            connection.execute("revoke all on public.projects from service_role")
            connection.execute("revoke all (organization_id, title) on public.projects from service_role")
            connection.execute("delete from public.projects where title = 'By the service'")


@pytest.mark.parametrize("table", ["projects", "profiles", "organizations", "role_permissions"])
def test_a_table_answers_the_secret_key_with_42501(service: Client, table: str) -> None:
    with pytest.raises(APIError) as refused:
        service.table(table).select("*").execute()
    assert (refused.value.code, refused.value.message) == ("42501", f"permission denied for table {table}")


def test_a_granted_table_is_written_as_the_service(stack: Stack, granted: str) -> None:
    key, headers = stack.environment["SUPABASE_SECRET_KEY"], {"x-actor": "nightly import"}
    for options, actor in ((ClientOptions(), "service"), (ClientOptions(headers=headers), "nightly import")):
        client = create_client(stack.environment["SUPABASE_URL"], key, options)
        row = {"organization_id": granted, "title": "By the service"}
        written: Any = client.table("projects").insert(row).execute().data
        assert written[0]["created_by"] is None
        with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
            entries = connection.execute(
                "select actor from public.audit_logs where resource_id = %s", [written[0]["id"]]
            )
            assert entries.fetchall() == [(actor,)]


def test_the_program_calls_the_function(stack: Stack, service: Client) -> None:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "create table public.test_invoices (id uuid, organization_id uuid, number text, status text, created_at timestamptz); "
            "alter table public.test_invoices enable row level security; "
            "insert into public.test_invoices (number, status) values ('2026-17', 'sent'), ('2026-18', 'paid')"
        )
        try:
            connection.execute(f"{FUNCTION}; notify pgrst, 'reload schema'".encode())
            names: dict[str, Any] = {"supabase": service}
            exec(PROGRAM, names)  # noqa: S102 - the page is ours
            assert [row["number"] for row in names["unpaid"]] == ["2026-17"]
        finally:
            connection.execute("drop function if exists public.test_unpaid_invoices(); drop table public.test_invoices")
            connection.execute("notify pgrst, 'reload schema'")
