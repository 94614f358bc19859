"""ops.role_faults: each way in which the API's roles can become more than intended, or run without a timeout."""

from __future__ import annotations

import re

import pytest

from tests.conftest import Database

AS_SUPERUSER = "as a superuser. On hosted Supabase ask support to do it"

# What breaks a role, the light, the fault and its remedy. A remedy in backticks that is one statement is run.
FAULTS = {
    "alter role authenticated bypassrls": (
        "red", "The role authenticated has the attribute bypassrls.", f"Run `alter role authenticated nobypassrls` {AS_SUPERUSER}",
    ),
    "alter role anon superuser": ("red", "anon has the attribute superuser", "`alter role anon nosuperuser`"),
    "alter role anon login": ("red", "anon has the attribute login", "`alter role anon nologin`"),
    "alter role anon createrole": ("red", "anon has the attribute createrole", "`alter role anon nocreaterole`"),
    "alter role authenticated createdb": ("red", "has the attribute createdb", "`alter role authenticated nocreatedb`"),
    "alter role authenticated replication": ("red", "has the attribute replication", "noreplication`"),
    "alter role service_role superuser": ("red", "service_role has the attribute superuser", AS_SUPERUSER),
    "alter role service_role createrole": ("red", "service_role has the attribute createrole", AS_SUPERUSER),
    "alter role service_role nobypassrls": ("red", "service_role lacks the attribute bypassrls", "`alter role service_role bypassrls`"),
    "alter role authenticator bypassrls": ("red", "authenticator has the attribute bypassrls", AS_SUPERUSER),
    "alter role authenticator superuser": ("red", "authenticator has the attribute superuser", AS_SUPERUSER),
    "alter role authenticator nologin": ("red", "authenticator lacks the attribute login", "`alter role authenticator login`"),
    "alter role authenticator inherit": ("red", "authenticator has the attribute inherit", "`alter role authenticator noinherit`"),
    "grant service_role to authenticated": ("red", "The role authenticated may act as service_role.", "`revoke service_role from authenticated`"),
    "grant authenticated to anon": ("red", "anon may act as authenticated", "`revoke authenticated from anon`"),
    "grant supabase_admin to service_role": ("red", "service_role may act as supabase_admin", "`revoke supabase_admin from service_role`"),
    "grant pg_read_all_data to authenticated": ("red", "authenticated may act as pg_read_all_data", "`revoke pg_read_all_data from"),
    "grant supabase_admin to authenticator": ("red", "may act as supabase_admin", "`revoke supabase_admin from authenticator`"),
    "grant pg_write_all_data to authenticator": ("red", "authenticator may act as pg_write_all_data", "`revoke pg_write_all_data"),
    "create role partner; grant pg_read_all_data to partner; grant partner to authenticator": (
        "red", "authenticator may act as partner", "`revoke partner from authenticator`",
    ),
    "alter role authenticator set search_path = app, public": (
        "yellow", "The role authenticator has its own search_path: app, public.", "`alter role authenticator reset search_path`, then `notify pgrst",
    ),
    "alter role authenticated set search_path = app": ("yellow", "authenticated has its own search_path", "`alter role authenticated reset"),
    "alter role anon in database {database} set search_path = app": (
        "yellow", "anon has its own search_path: app", "`alter role anon in database {database} reset search_path`",
    ),
    "alter database {database} set search_path = app": (
        "yellow", "has its own search_path: app", "`alter database {database} reset search_path`",
    ),
    "alter role all set search_path = app": ("yellow", "has its own search_path: app", "`alter role all reset search_path`"),
    "alter role authenticator set role = 'service_role'": ("red", "starts every session with another role: service_role", "reset role`"),
    "alter role authenticator set pgrst.db_anon_role = 'service_role'": ("red", "act as service_role", "reset pgrst.db_anon_role`"),
    "alter role authenticator set pgrst.db_schemas = 'public, app'": ("red", "shows a private schema", "reset pgrst.db_schemas`"),
    "alter role service_role set session_replication_role = replica": (
        "red", "service_role sets session_replication_role to replica: triggers and foreign keys do nothing", "reset session_replication_role`",
    ),
    "alter database {database} set session_replication_role = replica": ("red", "triggers and foreign keys", "`alter database {database} reset"),
    "alter role anon reset statement_timeout": (
        "yellow", "Statements of the role anon have no timeout", "`alter role anon set statement_timeout = '3s'`, then `notify pgrst",
    ),
    "alter role authenticated set statement_timeout = 0": ("yellow", "authenticated have no timeout", "statement_timeout = '8s'`"),
    "alter role authenticator set statement_timeout = '0s'": ("yellow", "authenticator have no timeout", "statement_timeout = '8s'`"),
    "alter role anon in database {database} set statement_timeout = 0": ("yellow", "anon have no timeout", "in database {database} set statement_timeout = '3s'`"),
    "alter default privileges for role postgres in schema public grant select on tables to anon": (
        "red", "New tables are granted to anon", "`alter default privileges for role postgres in schema public revoke all on tables from anon`",
    ),
    "alter default privileges for role postgres grant execute on functions to authenticated": (
        "red", "New functions are granted to authenticated", "`alter default privileges for role postgres revoke all on functions from authenticated`",
    ),
    "alter default privileges for role postgres grant execute on functions to public": (
        "red", "Every role may execute a new function", "`alter default privileges for role postgres revoke execute on functions from public`",
    ),
}  # fmt: skip


def verdict(database: Database) -> tuple[str, str]:
    [found] = database.rows("select status, advice from ops.health where subject = 'role'")
    return found[0], found[1]


def test_the_roles_of_a_new_project_are_green(database: Database) -> None:
    assert database.rows("select * from ops.role_faults") == []
    assert verdict(database) == ("green", "OK.")


@pytest.mark.parametrize("breaking", FAULTS)
def test_a_role_that_is_not_as_intended_is_reported_with_its_remedy(superuser: Database, breaking: str) -> None:
    name = superuser.value("select quote_ident(current_database())")
    light, fault, remedy = (text.replace("{database}", name) for text in FAULTS[breaking])
    superuser.execute(breaking.replace("{database}", name))
    status, advice = verdict(superuser)
    assert status == light
    assert fault in advice or any(fault in found for (found,) in superuser.rows("select fault from ops.role_faults"))
    assert any(remedy in found for (found,) in superuser.rows("select remedy from ops.role_faults"))


@pytest.mark.parametrize("breaking", FAULTS)
def test_the_remedies_end_the_fault(superuser: Database, breaking: str) -> None:
    superuser.execute(breaking.replace("{database}", superuser.value("select quote_ident(current_database())")))
    faults = superuser.rows("select fault, remedy from ops.role_faults")
    assert faults
    for _, remedy in faults:
        superuser.execute(re.findall("`([^`]+)`", remedy)[0])
    assert verdict(superuser) == ("green", "OK.")


def test_several_faults_are_counted_and_the_red_one_is_named(superuser: Database) -> None:
    superuser.execute("alter role anon reset statement_timeout")
    superuser.execute("alter role authenticated bypassrls")
    status, advice = verdict(superuser)
    assert (status, "authenticated has the attribute bypassrls" in advice) == ("red", True)
    assert advice.endswith(" 1 more in ops.role_faults.")


@pytest.mark.parametrize("harmless", [
    "create role partner; grant partner to authenticator; grant anon to partner",
    "alter role authenticated set statement_timeout = '30s'",
    "alter role authenticated set statement_timeout = 500",
    "alter role anon reset statement_timeout; alter database {database} set statement_timeout = '3s'",
    "alter role authenticator set pgrst.db_schemas = 'public, happy_apps'",
    "alter role authenticator set pgrst.db_pre_request = 'app.check_request'",
    "alter role postgres set search_path = public",
])  # fmt: skip
def test_a_setting_that_gives_no_role_more_is_not_reported(superuser: Database, harmless: str) -> None:
    superuser.execute(harmless.replace("{database}", superuser.value("select quote_ident(current_database())")))
    assert superuser.rows("select * from ops.role_faults") == []


def test_authenticator_must_not_inherit_the_privileges_of_its_roles(superuser: Database) -> None:
    if superuser.connection.info.server_version < 160000:
        pytest.skip("before PostgreSQL 16 only the role's attribute decides")
    superuser.execute("grant service_role to authenticator with inherit true")
    status, advice = verdict(superuser)
    assert (status, "authenticator inherits the privileges of service_role" in advice) == ("red", True)
    assert "`grant service_role to authenticator with inherit false`" in advice
    superuser.execute("grant service_role to authenticator with inherit false")
    assert verdict(superuser) == ("green", "OK.")
