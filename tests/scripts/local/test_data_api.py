"""The local Data API behaves as the PostgREST of hosted Supabase. Most requests go through supabase-py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, create_client

from tests.conftest import Stack

CREATE_SCRATCH = """
create table public.test_scratch (
  id integer primary key,
  at timestamptz not null default '2026-11-22 08:40:06.5Z',
  local_time timestamp not null default '2026-11-22 08:40:06',
  price numeric(10, 2) not null default 1.50,
  ratio double precision not null default 0.25,
  bytes bytea not null default '\\x00ff',
  note jsonb,
  name text unique,
  path text not null default current_setting('request.path'),
  method text not null default current_setting('request.method')
);
alter table public.test_scratch enable row level security, force row level security;
grant all on public.test_scratch to service_role;
grant select on public.test_scratch to authenticated;
create policy "odd ones" on public.test_scratch for select to authenticated using (id % 2 = 1);

create function public.test_scratch_echo(value jsonb, label text default '') returns jsonb language sql
as $$ select jsonb_build_object('type', jsonb_typeof(value), 'value', value, 'label', label) $$;
create function public.test_scratch_raise(code text) returns void language plpgsql
as $$ begin raise exception using errcode = code, message = 'what', detail = 'why', hint = 'what now'; end $$;
create function public.test_scratch_caller() returns jsonb language sql as $$
  select jsonb_build_object('role', current_user, 'timeout', current_setting('statement_timeout'),
    'claims', current_setting('request.jwt.claims')::jsonb, 'headers', current_setting('request.headers')::jsonb,
    'sub', auth.jwt() ->> 'sub', 'auth_role', auth.role())
$$;
create function public.test_scratch_refused() returns void language sql as $$ select $$;
grant execute on function public.test_scratch_echo, public.test_scratch_raise, public.test_scratch_caller
to anon, authenticated, service_role;
grant execute on function public.test_scratch_refused to anon, authenticated;
revoke execute on function public.test_scratch_refused from public, anon, authenticated;
"""
DROP_SCRATCH = """
drop table if exists public.test_scratch, public.test_scratch_later;
drop function if exists public.test_scratch_echo, public.test_scratch_raise, public.test_scratch_caller, public.test_scratch_refused;
"""


@pytest.fixture(scope="module")
def api(stack: Stack) -> Iterator[Stack]:
    """The stack, with a scratch table and functions."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(DROP_SCRATCH)
        connection.execute(CREATE_SCRATCH)
        _wait_for_table(stack, "test_scratch")
        yield stack
        connection.execute(DROP_SCRATCH)
        # While the Data API reloads the catalog, requests of the next test may fail.
        _wait_for_table(stack, "test_scratch", httpx.codes.NOT_FOUND)


def _wait_for_table(stack: Stack, table: str, status: int = httpx.codes.OK) -> None:
    for _ in range(100):
        if _get(stack, f"/rest/v1/{table}?limit=0", _secret(stack)).status_code == status:
            return
        time.sleep(0.05)
    raise AssertionError(f"{table} did not answer {status} within 100 attempts")


def _secret(stack: Stack) -> dict[str, str]:
    return {"apikey": stack.environment["SUPABASE_SECRET_KEY"]}


def _public(stack: Stack, token: str | None = None) -> dict[str, str]:
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    return {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"]} | authorization


def _get(stack: Stack, path: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.get(stack.environment["SUPABASE_URL"] + path, headers=headers)


def _caller(stack: Stack, headers: dict[str, str]) -> dict[str, Any]:
    answer = httpx.post(
        f"{stack.environment['SUPABASE_URL']}/rest/v1/rpc/test_scratch_caller", headers=headers, json={}
    )
    assert answer.status_code == httpx.codes.OK, answer.text
    caller: dict[str, Any] = answer.json()
    return caller


def _admin(stack: Stack) -> Client:
    return create_client(stack.environment["SUPABASE_URL"], stack.environment["SUPABASE_SECRET_KEY"])


def _person(stack: Stack, token: str) -> Client:
    options = ClientOptions(headers={"Authorization": f"Bearer {token}"})
    return create_client(
        stack.environment["SUPABASE_URL"], stack.environment["SUPABASE_PUBLISHABLE_KEY"], options=options
    )


def _mint_token(stack: Stack, **options: Any) -> str:
    url = f"{stack.environment['CLERK_ISSUER']}/stand-in/tokens"
    return str(httpx.post(url, json={"user_id": "user_ada"} | options).json()["token"])


# --- values ----------------------------------------------------------------------------------------------------------


def test_values_have_the_format_of_postgrest(api: Stack) -> None:
    row = _admin(api).table("test_scratch").insert({"id": 1, "note": {"a": [1, None]}}).execute().data[0]
    assert row == {
        "id": 1,
        "at": "2026-11-22T08:40:06.5+00:00",
        "local_time": "2026-11-22T08:40:06",
        "price": 1.5,
        "ratio": 0.25,
        "bytes": "\\x00ff",
        "note": {"a": [1, None]},
        "name": None,
        "path": "/test_scratch",
        "method": "POST",
    }


@pytest.mark.parametrize("value", [{"a": [1]}, [1, "a"], "text", "123", '{"a": 1}', "", 5, 1.5, True, False])
def test_a_json_argument_is_received_unchanged(api: Stack, value: object) -> None:
    echoed = _admin(api).rpc("test_scratch_echo", {"value": value, "label": "123"}).execute().data
    assert echoed["value"] == value
    assert echoed["label"] == "123"


def test_a_json_argument_of_a_get_request_is_json_text(api: Stack) -> None:
    answer = _get(api, '/rest/v1/rpc/test_scratch_echo?value={"a":"1"}', _secret(api))
    assert answer.json()["value"] == {"a": "1"}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *(("P0001", 400), ("22P02", 400), ("23514", 400), ("23502", 400), ("23503", 409), ("23505", 409)),
        *(("25006", 405), ("28000", 403), ("0L000", 403), ("40001", 500), ("42P17", 500), ("42P01", 404)),
        *(("53300", 503), ("54001", 500), ("55P03", 500), ("57014", 500), ("P0002", 500), ("XX000", 500)),
        *(("42501", 401), ("PT403", 403), ("PT429", 429)),
    ],
)
def test_a_sqlstate_has_the_status_and_body_of_postgrest(api: Stack, code: str, status: int) -> None:
    url = f"{api.environment['SUPABASE_URL']}/rest/v1/rpc/test_scratch_raise"
    answer = httpx.post(url, headers=_public(api), json={"code": code})
    assert answer.status_code == status
    assert answer.json() == {"code": code, "message": "what", "details": "why", "hint": "what now"}


def test_a_conflict_is_reported_with_its_key(api: Stack) -> None:
    admin = _admin(api)
    admin.table("test_scratch").upsert({"id": 2, "name": "taken"}).execute()
    with pytest.raises(APIError) as refusal:
        admin.table("test_scratch").insert({"id": 4, "name": "taken"}).execute()
    assert refusal.value.code == "23505"
    assert refusal.value.details == "Key (name)=(taken) already exists."


def test_values_of_a_refused_request_are_not_logged(api: Stack) -> None:
    log = api.home / "logs" / "data-api.log"
    for filter_ in ("name=badop.eve@example.com", "or=(eve@example.com)", "id=eq.eve@example.com"):
        assert _get(api, f"/rest/v1/test_scratch?{filter_}", _secret(api)).status_code == httpx.codes.BAD_REQUEST
    assert "GET /test_scratch" in log.read_text()
    assert "eve@example.com" not in log.read_text()


# --- permissions -----------------------------------------------------------------------------------------------------


def test_a_role_without_a_grant_is_refused(api: Stack) -> None:
    answer = _get(api, "/rest/v1/test_scratch", _public(api))
    assert (answer.status_code, answer.json()["code"]) == (401, "42501")


def test_a_revoked_function_is_refused(api: Stack) -> None:
    with pytest.raises(APIError) as refusal:
        _person(api, _mint_token(api)).rpc("test_scratch_refused").execute()
    assert refusal.value.code == "42501"


def test_policies_limit_what_a_user_reads_and_grants_what_a_user_writes(api: Stack) -> None:
    _admin(api).table("test_scratch").upsert([{"id": 11}, {"id": 12}]).execute()
    person = _person(api, _mint_token(api))
    assert [row["id"] for row in person.table("test_scratch").select("id").in_("id", [11, 12]).execute().data] == [11]
    with pytest.raises(APIError) as refusal:
        person.table("test_scratch").insert({"id": 13}).execute()
    assert refusal.value.code == "42501"


def test_a_users_token_sets_the_role_and_the_claims_of_the_caller(api: Stack) -> None:
    caller = _caller(api, _public(api, _mint_token(api, organization_id="org_acme")))
    assert (caller["role"], caller["auth_role"], caller["sub"]) == ("authenticated", "authenticated", "user_ada")
    assert caller["claims"]["o"]["id"] == "org_acme"
    assert caller["timeout"] == "8s"


def test_a_users_token_takes_precedence_over_the_secret_key(api: Stack) -> None:
    token = _mint_token(api)
    assert _caller(api, _secret(api) | {"Authorization": f"Bearer {token}"})["role"] == "authenticated"


def test_concurrent_callers_keep_their_identities(api: Stack) -> None:
    tokens = {user: _mint_token(api, user_id=user) for user in ("user_ada", "user_ben", "user_eve")}

    def who_am_i(user: str) -> tuple[str, str, str]:
        headers = _public(api, tokens[user]) | {"X-User": user}
        caller = _caller(api, headers)
        return user, caller["sub"], caller["headers"]["x-user"]

    with ThreadPoolExecutor(12) as threads:
        assert all(user == sub == header for user, sub, header in threads.map(who_am_i, [*tokens] * 20))


def test_a_clerk_token_without_a_role_is_anonymous(api: Stack) -> None:
    assert _caller(api, _public(api, _mint_token(api, claims={"role": None})))["role"] == "anon"


# --- the schema ------------------------------------------------------------------------------------------------------


def test_only_public_is_exposed(api: Stack) -> None:
    for schema in ("app", "ops", "auth", "supabase_migrations", "pg_catalog"):
        answer = _get(api, "/rest/v1/webhook_events", _secret(api) | {"Accept-Profile": schema})
        assert (answer.status_code, answer.json()["code"]) == (406, "PGRST106"), schema
    assert _get(api, "/rest/v1/webhook_events", _secret(api)).json()["code"] == "PGRST205"


def test_a_new_table_is_served_without_a_restart(api: Stack) -> None:
    with psycopg.connect(api.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("create table public.test_scratch_later (id int primary key)")
        connection.execute("grant select on public.test_scratch_later to service_role")
    _wait_for_table(api, "test_scratch_later")


def test_the_data_api_creates_no_objects_in_the_database(api: Stack) -> None:
    with psycopg.connect(api.environment["DATABASE_URL"]) as connection:
        owner, columns = connection.execute(
            """select c.relowner::regrole::text, array_agg(a.attname::text order by a.attname)
            from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
            where c.oid = 'supabase_migrations.schema_migrations'::regclass group by 1"""
        ).fetchall()[0]
        assert owner == "postgres"
        assert set(columns) <= {"version", "name", "statements"}
        assert connection.execute("select from pg_class where relowner = 'authenticator'::regrole").rowcount == 0
        assert connection.execute("select from pg_class where relnamespace = 'auth'::regnamespace").rowcount == 0
        grants = "select from pg_class as c, aclexplode(relacl) where grantee = 'authenticator'::regrole"
        assert connection.execute(grants).rowcount == 0


# --- the gateway -----------------------------------------------------------------------------------------------------


def test_each_api_key_has_its_role(api: Stack) -> None:
    anonymous, service = _caller(api, _public(api)), _caller(api, _secret(api))
    assert (anonymous["role"], anonymous["timeout"]) == ("anon", "3s")
    assert (service["role"], service["timeout"]) == ("service_role", "8s")


def test_a_key_in_the_query_is_accepted(api: Stack) -> None:
    key = api.environment["SUPABASE_SECRET_KEY"]
    assert _get(api, f"/rest/v1/test_scratch?limit=0&apikey={key}", {}).status_code == httpx.codes.OK


def test_a_key_repeated_as_bearer_token_is_accepted(api: Stack) -> None:
    key = api.environment["SUPABASE_SECRET_KEY"]
    assert _caller(api, {"apikey": key, "Authorization": f"Bearer {key}"})["role"] == "service_role"


def test_two_different_keys_in_a_request_are_refused(api: Stack) -> None:
    headers = _public(api, api.environment["SUPABASE_SECRET_KEY"])
    assert _get(api, "/rest/v1/test_scratch", headers).json()["code"] == "PGRST301"


def test_a_request_without_a_valid_key_is_refused(api: Stack) -> None:
    token = _mint_token(api)
    for headers, message in (
        ({}, "No API key found in request"),
        ({"Authorization": f"Bearer {token}"}, "No API key found in request"),
        ({"apikey": "sb_secret_wrong"}, "Invalid API key"),
        ({"apikey": token}, "Invalid API key"),
    ):
        answer = _get(api, "/rest/v1/test_scratch", headers)
        assert (answer.status_code, answer.json()["message"]) == (401, message)


def test_a_secret_key_is_refused_in_a_browser(api: Stack) -> None:
    answer = _get(api, "/rest/v1/test_scratch", _secret(api) | {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"})
    assert answer.status_code == httpx.codes.UNAUTHORIZED


def test_the_database_receives_the_origin_of_a_request_but_no_key(api: Stack) -> None:
    headers = _caller(api, _public(api) | {"X-Forwarded-For": "203.0.113.9", "X-Custom": "yes"})["headers"]
    assert headers["x-forwarded-for"] == "203.0.113.9, 127.0.0.1"
    assert headers["x-custom"] == "yes"
    assert "apikey" not in headers


def test_browsers_of_any_origin_may_call(api: Stack) -> None:
    wanted = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    url = f"{api.environment['SUPABASE_URL']}/rest/v1/test_scratch"
    preflight = httpx.options(url, headers=wanted | {"Access-Control-Request-Headers": "apikey,prefer"})
    assert preflight.status_code == httpx.codes.OK
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert preflight.headers["access-control-allow-headers"] == "apikey,prefer"
    refused = _get(api, "/rest/v1/test_scratch", {"Origin": "https://app.example"})
    assert refused.headers["access-control-allow-origin"] == "*"


def test_sign_up_outside_clerk_is_disabled(api: Stack) -> None:
    url = f"{api.environment['SUPABASE_URL']}/auth/v1/signup"
    answer = httpx.post(url, headers=_public(api), json={"email": "a@example.com", "password": "long enough 1"})
    assert answer.json()["error_code"] == "signup_disabled"


def test_only_the_apis_are_served(api: Stack) -> None:
    for port in (1, 6):
        base = int(api.environment["BALLAST_PORT_BASE"]) + port
        assert httpx.get(f"http://127.0.0.1:{base}/_system/config").status_code == httpx.codes.NOT_FOUND
