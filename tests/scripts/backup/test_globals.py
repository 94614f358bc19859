"""What a dump omits: publications, default privileges, roles, and objects that no backup contains."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from scripts.scratch.postgres import Postgres
from tests.scripts.conftest import Vault

PUBLICATIONS = {
    "all tables": "create publication probe for all tables",
    "schemas": "create publication probe for tables in schema public, app with (publish = 'insert')",
    "a schema and a table": "create publication probe for tables in schema ops, table public.specimens",
    "columns": "create publication probe for table public.specimens (id, title), public.organizations",
    "a row filter": "create publication probe for table public.specimens where (title in ('a', 'b') and status = 'active')",
    "options": "create publication probe for table public.specimens with (publish = 'update, delete', publish_via_partition_root)",
    "generated columns": "create publication probe for table public.specimens with (publish_generated_columns = stored)",
    "no operations": 'create publication "odd ""name" for table public.specimens with (publish = \'\')',
    "Supabase's publication": "alter publication supabase_realtime set (publish = 'insert'); "
    "alter publication supabase_realtime add table public.organizations (id, name) where (name <> 'a')",
}  # fmt: skip
DEFINITIONS = """
    select p.pubname::text, p.pubowner::regrole::text, (to_jsonb(p) - 'oid' - 'pubowner')::text, t.schemaname::text, t.tablename::text, t.attnames::text[], t.rowfilter
    from pg_publication as p
    left join pg_publication_tables as t on t.pubname = p.pubname and t.schemaname = any('{public,app,ops}') and t.schemaname = 'public'
    order by 1, 4, 5"""


def read(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(DEFINITIONS).fetchall()


@pytest.mark.usefixtures("scratch_at_hand")
@pytest.mark.parametrize("kind", PUBLICATIONS)
def test_a_restored_publication_publishes_the_same(
    folder_vault: Vault, new_database: Callable[..., str], kind: str
) -> None:
    with folder_vault.connect() as connection:
        connection.execute(PUBLICATIONS[kind].encode())
    name = folder_vault.back_up()
    folder_vault.run_to_end("drill")
    target = new_database()
    folder_vault.run_to_end("restore", name, "--to", target)
    assert read(target) == read(folder_vault.url)


def test_a_publication_of_another_role_keeps_its_owner_where_possible(
    folder_vault: Vault, new_database: Callable[..., str]
) -> None:
    with folder_vault.connect() as connection:
        connection.execute("do $$ begin if to_regrole('publisher') is null then create role publisher; end if; end $$")
        connection.execute("grant publisher to postgres; create publication probe for table public.specimens")
        connection.execute(f"grant create on database {connection.info.dbname} to publisher".encode())
        connection.execute("alter publication probe owner to publisher")
    name = folder_vault.back_up()
    for may_own in (False, True):
        target = new_database()
        with psycopg.connect(target, autocommit=True) as connection:
            if may_own:
                connection.execute(f"grant create on database {connection.info.dbname} to publisher".encode())
            restored = folder_vault.run_to_end("restore", name, "--to", target)
            owner = connection.execute("select pubowner::regrole::text from pg_publication where pubname = 'probe'")
            assert owner.fetchall() == [("publisher" if may_own else "postgres",)]
        assert ("does not belong to publisher again: permission denied" in restored.stderr) is not may_own


CHANGES = [
    "alter publication probe set (publish = 'insert')",
    "alter publication probe set table public.specimens (id)",
    "alter publication probe set table public.specimens where (title = 'other')",
    "alter publication probe set table public.specimens, public.organizations",
    "drop publication probe",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_publication_that_publishes_something_else_is_reported(folder_vault: Vault, change: str) -> None:
    from scripts.backup import structure  # noqa: PLC0415

    with folder_vault.connect() as connection:
        connection.execute("create publication probe for table public.specimens (id, title) where (title = 'a')")
        expected = structure.describe(connection)["publication"]
        connection.execute(change.encode())
        assert structure.describe(connection).get("publication") != expected


def test_a_publication_that_the_role_may_not_create_is_reported(
    folder_vault: Vault, new_database: Callable[..., str], bare_server: Postgres
) -> None:
    with folder_vault.connect() as connection:
        connection.execute("create publication probe for all tables")
    name = folder_vault.back_up()
    target = new_database()
    with psycopg.connect(bare_server.url("supabase_admin", target.rpartition("/")[2])) as admin:
        admin.execute("drop event trigger lend_superuser; drop event trigger take_superuser_back")
    restored = folder_vault.run("restore", name, "--to", target, "--json")
    assert restored.exit_code == 1
    reason = "The publication probe was not restored: must be superuser to create FOR ALL TABLES publication"
    assert reason in restored.stderr
    failed = [check["detail"] for check in json.loads(restored.stdout) if not check["passed"]]
    assert failed == ["publication probe is missing"]


# Each is created by a superuser, and no backup contains it.
MISSING = {
    "function helpers.f()": "create schema helpers; create function helpers.f() returns integer language sql return 1; "
    "create view app.uses as select helpers.f()",
    "type helpers.kind": "create schema helpers; create type helpers.kind as enum ('a'); create table app.uses (kind helpers.kind)",
    "server elsewhere": "create extension postgres_fdw; create server elsewhere foreign data wrapper postgres_fdw; "
    "create foreign table app.uses (id integer) server elsewhere",
    "cast from app.uses to integer": "create type app.uses as (a integer); "
    "create function app.as_integer(app.uses) returns integer language sql return ($1).a; create cast (app.uses as integer) with function app.as_integer",
    "event trigger watch": "create function app.watch() returns event_trigger language plpgsql as 'begin end'; "
    "create event trigger watch on sql_drop execute function app.watch()",
    "foreign-data wrapper odd": "create function app.validate(text[], oid) returns void language plpgsql as 'begin end'; "
    "create foreign data wrapper odd validator app.validate",
    "language odd": "create extension hstore; create language odd handler plpgsql_call_handler; "
    "create function app.uses() returns integer language odd as 'begin end'",
}  # fmt: skip


@pytest.mark.parametrize("missing", MISSING)
def test_a_backup_names_what_it_does_not_contain(folder_vault: Vault, bare_server: Postgres, missing: str) -> None:
    with psycopg.connect(bare_server.url("supabase_admin", folder_vault.url.rpartition("/")[2])) as admin:
        admin.execute(MISSING[missing].encode())
        admin.execute("grant usage on schema app to postgres")
    made = folder_vault.run("run")
    found = [line for line in made.stderr.splitlines() if line.startswith("Not in the backup: ")]
    assert [line.removeprefix("Not in the backup: ").partition(",")[0] for line in found] == [missing], made.stderr


def test_a_backup_of_our_own_schema_lacks_nothing(folder_vault: Vault) -> None:
    assert "Not in the backup" not in folder_vault.run_to_end("run").stderr


@pytest.mark.usefixtures("scratch_at_hand")
def test_default_privileges_and_grants_of_roles_with_odd_names_are_restored(
    folder_vault: Vault, new_database: Callable[..., str], bare_server: Postgres
) -> None:
    with psycopg.connect(bare_server.url("supabase_admin", "postgres"), autocommit=True) as admin:
        if not admin.execute("select from pg_roles where rolname = 'Odd \"role'").rowcount:
            admin.execute('create role "Odd ""role"')
    with folder_vault.connect() as connection:
        connection.execute(
            "create extension citext schema extensions; create table app.uses (name extensions.citext); "
            'alter table app.uses enable row level security; create policy own on app.uses to "Odd ""role" using (true); '
            'grant select on app.uses to "Odd ""role"; alter default privileges revoke execute on functions from public; '
            'alter default privileges grant usage on sequences to "Odd ""role"; '
            'alter default privileges in schema app grant select on tables to "Odd ""role"; '
            'create policy odd on realtime.messages for select to "Odd ""role" using (app.user_id() is null)'
        )
    name = folder_vault.back_up()
    folder_vault.run_to_end("drill")
    target = new_database()
    folder_vault.run_to_end("restore", name, "--to", target)
    with psycopg.connect(target) as connection:
        connection.execute("create table app.later (id integer); create sequence app.later_ids")
        found = connection.execute(
            """select has_table_privilege('Odd "role', 'app.uses', 'select'), has_table_privilege('Odd "role', 'app.later', 'select'), """
            """has_sequence_privilege('Odd "role', 'app.later_ids', 'usage'), (select roles::text from pg_policies where policyname = 'odd')"""
        ).fetchall()
    assert found == [(True, True, True, '{"Odd \\"role"}')]
