"""No claims that a client may send make a policy raise. A policy only decides which rows are visible."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Claims, Database
from tests.deep_json import LEVELS, nest
from tests.tenant_tables import TABLES

READABLE = (
    "organizations", "profiles", "organization_memberships", "organization_invitations", "specimens", "audit_logs", "role_permissions",
    *TABLES,
)  # fmt: skip

ODD_CLAIMS: list[str] = [
    "", "null", "true", "0", '"text"', "[]", "[1, 2]", "not json", "{", "{}", '{"sub": "user_ada"', "\ufffd",
    '{"sub": null}', '{"sub": []}', '{"sub": {}}', '{"sub": 12}', '{"sub": ""}', '{"sub": "\'; drop table profiles; --"}',
    '{"sub": "user_ada", "o": []}', '{"sub": "user_ada", "o": "x"}', '{"sub": "user_ada", "o": {"id": {}}}',
    '{"sub": "user_ada", "fva": {}}', '{"sub": "user_ada", "fva": "x"}', '{"sub": "user_ada", "fva": [1]}',
    '{"sub": "user_ada", "fva": ["a", "b"]}', '{"sub": "user_ada", "fva": [0, 1e400]}', '{"sub": "user_ada", "fva": [0, null]}',
    '{"sub": "user_ada", "sts": []}', '{"sub": "user_ada", "iat": "x"}', '{"sub": "' + "u" * 100_000 + '"}',
    '{"sub": "user_ada", "role": null}', '{"sub": "user_ada", "role": ["authenticated"]}', '{"role": "authenticated"}',
    '{"sub": "\\u0000"}', '{"sub": "\\ud800"}', "[" * 20_000, '{"sub": "user_ada", "o": ' + "[" * 8_160,
    f'{{"sub": "user_ada", "o": {"[" * 4_000}{"]" * 4_000}}}',
]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
claim_names = st.sampled_from(["sub", "sts", "o", "fva", "iat", "role", "org_id", "org_role", "act", "v"])


@pytest.fixture
def ada(database: Database) -> Claims:
    """Claims, with a second factor, of the owner of an organization that has a row in every product table."""
    database.execute("insert into public.profiles (clerk_user_id) values ('user_ada')")
    database.execute("insert into public.organizations (clerk_org_id, name) values ('org_acme', 'Acme')")
    database.execute(
        "insert into public.organization_memberships (organization_id, user_id, role) "
        "select o.id, p.id, 'owner' from public.organizations as o, public.profiles as p"
    )
    database.execute(
        "insert into public.specimens (organization_id, title) select id, 'Apollo' from public.organizations"
    )
    for table in TABLES.values():
        database.execute(table.insert("public.organizations"))
    return {"sub": "user_ada", "role": "authenticated", "fva": [0, 0]}


def touch_everything(database: Database, claims: str) -> dict[str, int]:
    """Reads, updates and deletes in all tables with policies. Returns the visible rows per table before the deletion."""
    seen = {}
    with database.acting("authenticated", claims):
        for table in READABLE:
            seen[table] = database.value(f"select count(*) from public.{table}")
        for statement in (
            "update public.specimens set title = title",
            "update public.profiles set full_name = full_name",
            "update public.organizations set name = name",
            "delete from public.specimens",
        ):
            database.execute(statement)
        for table in reversed(TABLES.values()):
            for statement in table.write().values():
                # A row to which others refer may stay.
                with contextlib.suppress(psycopg.errors.IntegrityError), database.connection.transaction():
                    database.execute(statement)
        database.execute("select * from public.my_permissions()")
        assert database.value("select public.has_permission(gen_random_uuid(), 'specimens:read')") is False
    return seen


def is_empty(seen: dict[str, int]) -> bool:
    return all(count == 0 for table, count in seen.items() if table != "role_permissions")


def test_the_owner_sees_her_rows(database: Database, ada: Claims) -> None:
    assert touch_everything(database, json.dumps(ada)) | {"role_permissions": 0} == {
        "organizations": 1, "profiles": 1, "organization_memberships": 1, "organization_invitations": 0, "specimens": 1,
        "audit_logs": 3 + len(TABLES), "role_permissions": 0,
    } | dict.fromkeys(TABLES, 1)  # fmt: skip


def test_claims_with_more_than_64_levels_identify_no_caller(database: Database, ada: Claims) -> None:
    for levels, is_known in ((LEVELS, True), (LEVELS + 1, False)):
        with database.acting("authenticated", ada | {"metadata": json.loads(nest(levels - 1))}):
            assert (database.value("select app.user_id()") is not None) == is_known


def test_odd_claims_never_make_a_policy_raise(database: Database, ada: Claims) -> None:
    for claims in ODD_CLAIMS:
        with database.connection.transaction(force_rollback=True):
            touch_everything(database, claims)


def test_odd_claims_never_make_a_realtime_policy_raise(database: Database, ada: Claims) -> None:
    """Realtime evaluates both policies when a client joins a private channel: it reads a message and inserts one."""
    probe = "insert into realtime.messages (topic, extension) values (%s, 'presence')"
    topic = f"org:{database.value('select gen_random_uuid()')}:presence"
    database.execute(probe, topic)
    for claims in ODD_CLAIMS:
        with database.acting("authenticated", claims):
            assert database.value("select count(*) from realtime.messages where topic = %s", topic) == 0
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
            database.acting("authenticated", claims),
        ):
            database.execute(probe, topic)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claims=st.dictionaries(claim_names, json_values, max_size=5))
def test_no_claims_make_a_policy_raise_or_reveal_foreign_rows(database: Database, claims: dict[str, Any]) -> None:
    assert is_empty(touch_everything(database, json.dumps(claims)))


@pytest.mark.parametrize("claims", ["", "null", "{}", "[]", "not json"])
def test_an_insert_without_an_identity_is_refused_by_the_policy(database: Database, ada: Claims, claims: str) -> None:
    organization = database.value("select id from public.organizations")
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
        database.acting("authenticated", claims),
    ):
        database.execute("insert into public.specimens (organization_id, title) values (%s, 'x')", organization)
    for table in (table for table in TABLES.values() if "insert" in table.needs):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
            database.acting("authenticated", claims),
        ):
            database.execute(table.insert(f"(select '{organization}'::uuid as id)"))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sub": "user_unknown"}, "unknown person"),
        ({"sub": "USER_ADA"}, "another spelling"),
        ({"sts": "pending"}, "unfinished sign-in"),
        ({"sts": "blocked"}, "an unknown status"),
    ],
)
def test_a_token_without_a_known_active_person_shows_no_rows(
    database: Database, ada: Claims, changed: Claims, reason: str
) -> None:
    assert is_empty(touch_everything(database, json.dumps(ada | changed))), reason


def test_a_banned_person_sees_no_rows(database: Database, ada: Claims) -> None:
    database.execute("update public.profiles set banned = true")
    assert is_empty(touch_everything(database, json.dumps(ada)))


@pytest.mark.parametrize("fva", [[0, -1], [0], None, "0", [0, None]])
def test_an_owner_without_a_second_factor_may_do_what_a_viewer_may(
    database: Database, ada: Claims, fva: object
) -> None:
    organization = database.value("select id from public.organizations")
    with database.acting("authenticated", ada | {"fva": fva}):
        assert database.value("select public.has_permission(%s, 'specimens:read')", organization)
        assert not database.value("select public.has_permission(%s, 'specimens:create')", organization)
        assert database.execute("update public.specimens set title = 'Gemini'").rowcount == 0
    database.execute("update public.organizations set mfa_required = false")
    with database.acting("authenticated", ada | {"fva": fva}):
        assert database.value("select public.has_permission(%s, 'specimens:create')", organization)


def test_a_new_organization_gets_the_mfa_setting_of_the_installation(database: Database) -> None:
    database.execute("update app.settings set mfa_required = false")
    assert (
        database.value(
            "insert into public.organizations (clerk_org_id, name) values ('org_x', 'X') returning mfa_required"
        )
        is False
    )


def test_anon_cannot_read_any_table(database: Database, ada: Claims) -> None:
    for table in (*READABLE, "backup_logs"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), database.acting("anon", ada):
            database.execute(f"select from public.{table}")


def test_an_update_without_a_change_does_not_bump_updated_at(database: Database, ada: Claims) -> None:
    database.execute("update public.specimens set updated_at = '2020-01-01'")
    before = database.value(
        "update public.specimens set updated_at = '2020-01-01', title = 'Mercury' returning updated_at"
    )
    assert database.value("update public.specimens set title = title returning updated_at") == before
    assert database.value("update public.profiles set last_seen_at = '2020-01-01' returning updated_at = now()")


def test_leaving_an_organization_clears_it_as_the_current_one(database: Database, ada: Claims) -> None:
    database.execute("update public.profiles set current_organization_id = (select id from public.organizations)")
    database.execute("delete from public.organization_memberships")
    assert database.value("select current_organization_id from public.profiles") is None


SERVICE_FUNCTIONS = """
    select p.oid::regproc || '(' || array_to_string(array(
      select format('%s => null::%s', p.proargnames[i], format_type(p.proargtypes[i - 1], null)) from generate_series(1, p.pronargs) as i
    ), ', ') || ')'
    from pg_proc as p
    where p.pronamespace in ('public'::regnamespace, 'app'::regnamespace) and has_function_privilege('service_role', p.oid, 'execute')
      and not has_function_privilege('authenticated', p.oid, 'execute')"""
CLERK_REFUSAL = "Only the secret key may call this function, not a Clerk token."
SECRET_KEY = {"iss": "supabase", "ref": "abcdefghijklmnopqrst", "role": "service_role", "iat": 1, "exp": 4102444800}


CLERK_TOKENS: tuple[Claims, ...] = (
    {"iss": "https://clerk.example.com", "sub": "user_ada", "role": "service_role", "sid": "sess_1"},
    {"iss": "https://clerk.example.com", "sub": "mch_1", "role": "service_role"},
    {"iss": "https://example.com/__clerk", "role": "service_role"},
    {"iss": "https://clerk.supabase.co.example.com", "role": "service_role"},
    {"iss": "https://growing-pheasant-22.clerk.accounts.dev", "role": "service_role"},
    {"iss": "http://127.0.0.1:54323", "role": "service_role"},
    {"sub": "user_ada", "role": "service_role"},
    SECRET_KEY | {"sub": "user_ada"},
)


@pytest.mark.parametrize(
    "claims",
    [*map(json.dumps, CLERK_TOKENS), "not json", "[]", json.dumps({"x": "x" * 8192})],
    ids=lambda claims: claims[:90],
)
def test_functions_for_the_service_refuse_clerk_tokens(database: Database, claims: str) -> None:
    calls = [row[0] for row in database.rows(SERVICE_FUNCTIONS)]
    assert len(calls) > 30
    for call in calls:
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match=CLERK_REFUSAL),
            database.acting("service_role", claims),
        ):
            database.execute(f"select {call}")


@pytest.mark.parametrize("claims", CLERK_TOKENS, ids=str)
def test_a_clerk_token_cannot_name_the_actor_of_an_audit_event(database: Database, claims: Claims) -> None:
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege, match=CLERK_REFUSAL),
        database.acting("service_role", claims),
    ):
        database.execute(
            "select public.log_audit_event(null, 'client.forged', 'thing', p_user_id => gen_random_uuid())"
        )


@pytest.mark.parametrize(
    "claims",
    [
        None,
        {"role": "service_role"},
        SECRET_KEY,
        SECRET_KEY | {"iss": "supabase-demo"},
        SECRET_KEY | {"iss": "https://abcdefghijklmnopqrst.supabase.co/auth/v1"},
        SECRET_KEY | {"iss": "https://abcdefghijklmnopqrst.supabase.co"},
        SECRET_KEY | {"iss": "https://api.supabase.com"},
        SECRET_KEY | {"iss": "https://api.example.com/auth/v1"},
        SECRET_KEY | {"sub": "5c9a4b1e-0000-4000-8000-000000000000", "aud": "authenticated"},
    ],
    ids=str,
)
def test_the_projects_secret_key_may_call_the_functions_for_the_service(
    database: Database, claims: Claims | None
) -> None:
    with database.acting("service_role", claims):
        assert database.value("select public.ready()") is True
        assert database.value("select public.backup_is_running()") is False
        database.execute("select public.service_metrics()")
