"""A new database is like a new project on hosted Supabase: its owners, grants, extensions and reserved roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from scripts.schema import drift, migrations
from scripts.scratch.postgres import ServerDidNotStart
from scripts.scratch.server import scratch_server
from tests.conftest import Database

CREATE_POLICY = "create policy probe on realtime.messages for select to authenticated using (true)"


@pytest.fixture
def project(new_database: Callable[..., str]) -> Iterator[Database]:
    """A new project, as its role postgres. Everything is rolled back, because roles belong to the whole server."""
    with psycopg.connect(new_database()) as connection, connection.transaction(force_rollback=True):
        yield Database(connection)


def grants(database: Database, schema: str, role: str) -> set[str]:
    rows = database.rows(
        "select lower(g.privilege_type) from pg_namespace as n cross join aclexplode(n.nspacl) as g "
        "where n.nspname = %s and g.grantee = %s::regrole",
        schema,
        role,
    )
    return {privilege for (privilege,) in rows}


def test_postgres_may_create_in_public_without_a_grant(project: Database) -> None:
    assert (
        project.value("select nspowner::regrole::text from pg_namespace where nspname = 'public'")
        == "pg_database_owner"
    )
    assert grants(project, "public", "postgres") == {"usage"}
    project.execute("create table public.test_probe (id integer)")


def test_new_objects_in_public_are_open_to_the_roles_of_the_api(project: Database) -> None:
    project.execute("create table public.test_probe (id integer)")
    for role in ("anon", "authenticated", "service_role"):
        assert project.value("select has_table_privilege(%s, 'public.test_probe', 'select, delete, truncate')", role)


def test_the_extensions_of_a_new_project_are_in_the_schema_extensions(project: Database) -> None:
    found = project.rows(
        "select a.name::text, n.nspname::text from pg_available_extensions as a left join pg_extension as e on e.extname = a.name "
        "left join pg_namespace as n on n.oid = e.extnamespace "
        "where a.name in ('uuid-ossp', 'pgcrypto', 'pg_stat_statements')"
    )
    assert ("pg_stat_statements", "extensions") in found
    assert {schema for _, schema in found} == {"extensions"}


def test_the_time_zone_is_utc_regardless_of_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    with scratch_server(tmp_path, fsync="off") as server, psycopg.connect(server.url()) as connection:
        assert connection.execute("show timezone").fetchone() == ("UTC",)


def test_a_server_that_refuses_its_setup_is_an_error_in_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerDidNotStart, match=r"could not be set up: cannot execute CREATE ROLE in a read-only trans"),
        scratch_server(tmp_path, fsync="off", default_transaction_read_only="on"),
    ):
        pytest.fail("the server was set up")


# --- realtime.messages ---


@pytest.mark.parametrize(
    "statements",
    [
        [CREATE_POLICY],
        [CREATE_POLICY, "alter policy probe on realtime.messages using (false)"],
        [CREATE_POLICY, "drop policy probe on realtime.messages"],
    ],
    ids=["create", "alter", "drop"],
)
def test_postgres_manages_policies_on_messages_that_it_does_not_own(project: Database, statements: list[str]) -> None:
    table = "select relowner::regrole::text, relacl::text from pg_class where oid = 'realtime.messages'::regclass"
    before = project.rows(table)
    for statement in statements:
        project.execute(statement)
    assert project.rows(table) == before
    assert before[0][0] == "supabase_realtime_admin"
    assert not project.value("select pg_has_role('supabase_realtime_admin', 'member')")


@pytest.mark.parametrize(
    "statement",
    [
        "alter table realtime.messages add column probe integer",
        "alter table realtime.messages disable row level security",
        "create trigger probe after insert on realtime.messages execute function suppress_redundant_updates_trigger()",
        "drop table realtime.messages",
        "create table realtime.probe (id integer)",
        "create or replace function realtime.topic() returns text language sql as 'select null'",
    ],
)
def test_postgres_cannot_change_other_objects_of_realtime(project: Database, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        project.execute(statement)


def test_a_role_created_by_postgres_cannot_manage_policies_on_messages(project: Database) -> None:
    project.execute(
        "create role probe; grant probe to postgres; grant usage on schema realtime to probe; set local role probe"
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        project.execute(CREATE_POLICY)


def test_a_policy_on_any_table_locks_the_messages_until_the_transaction_ends(project: Database) -> None:
    project.execute("create table public.test_probe (id integer)")
    locks = "select mode from pg_locks where pid = pg_backend_pid() and relation = 'realtime.messages'::regclass and mode like '%%Exclusive%%'"
    assert project.rows(locks) == []
    project.execute("create policy probe on public.test_probe using (true)")
    assert project.rows(locks) == [("AccessExclusiveLock",)]


@pytest.mark.parametrize(
    "is_member",
    [False, pytest.param(True, marks=pytest.mark.thorough)],
    ids=["a new project", "a project from before July 2026"],
)
def test_the_schema_is_applied_to_projects_of_both_kinds(tmp_path: Path, is_member: bool) -> None:
    """If postgres is a member of the owner, the event triggers that lend it the table are not needed."""
    with scratch_server(tmp_path, fsync="off") as server:
        if is_member:
            with psycopg.connect(server.url("supabase_admin")) as admin:
                admin.execute("grant supabase_realtime_admin to postgres")
                admin.execute("drop event trigger lend_messages; drop event trigger take_messages_back")
        migrations.up(server.url())
        assert migrations.up(server.url()).is_empty
        assert drift.check(server.url())[1] == []


# --- what a superuser does for postgres ---


def is_superuser(database: Database) -> bool:
    return bool(database.value("select rolsuper from pg_roles where rolname = 'postgres'"))


@pytest.mark.parametrize(
    "statement",
    [
        "create extension moddatetime schema extensions",
        "create extension earthdistance schema extensions cascade",
        "create extension if not exists pg_stat_statements",
        "create publication probe for all tables",
        "create publication probe for tables in schema public",
    ],
)
def test_postgres_may_create_the_extensions_and_publications_that_hosted_supabase_allows(
    project: Database, statement: str
) -> None:
    project.execute(statement)
    assert not is_superuser(project)
    owners = project.rows("select pubowner::regrole::text from pg_publication where pubname = 'probe'")
    assert owners == ([("postgres",)] if "publication" in statement else [])


@pytest.mark.parametrize("extension", ["pageinspect", "file_fdw"])
def test_postgres_cannot_create_an_extension_that_hosted_supabase_refuses(project: Database, extension: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), project.connection.transaction():
        project.execute(f"create extension {extension}")
    assert not is_superuser(project)


def test_other_roles_cannot_create_a_publication_for_all_tables(project: Database) -> None:
    project.execute("create role probe; grant probe to postgres; set local role probe")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        project.execute("create publication probe for all tables")


# --- reserved roles ---


@pytest.mark.parametrize(
    "statement",
    [
        "alter role authenticator set pgrst.db_pre_request = 'app.check_request'",
        "alter role authenticator reset pgrst.db_pre_request",
        "alter role authenticator set statement_timeout = '10s'",
        "alter role anon set statement_timeout = '2s'",
        "alter role postgres set search_path = public",
        "create role probe; grant authenticated to probe",
    ],
)
def test_postgres_may_change_the_settings_that_hosted_supabase_allows(project: Database, statement: str) -> None:
    project.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "alter role supabase_admin nologin",
        "alter role supabase_admin set statement_timeout = '1s'",
        "grant supabase_admin to postgres",
        "drop role supabase_admin",
        "drop role authenticated",
        "drop role authenticator",
        "drop role supabase_realtime_admin",
        "alter role postgres superuser",
        "alter role authenticator superuser",
        "alter role authenticator set log_statement = 'all'",
    ],
)
def test_postgres_cannot_change_the_superuser_or_drop_reserved_roles(project: Database, statement: str) -> None:
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.DependentObjectsStillExist)):
        project.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "alter role supabase_realtime_admin nocreaterole",
        "alter role supabase_realtime_admin set search_path = public",
        "alter role supabase_realtime_admin rename to probe",
        "grant supabase_realtime_admin to postgres",
    ],
)
def test_postgres_cannot_change_the_owner_of_the_messages(project: Database, statement: str) -> None:
    if project.connection.info.server_version < 160000:
        pytest.skip("before PostgreSQL 16, CREATEROLE may change every role that is not a superuser")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        project.execute(statement)
