"""The limit on writes through the Data API. The statements of docs/limits.md switch it on and off."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from postgrest.exceptions import APIError
from supabase import ClientOptions, create_client

from tests.conftest import ROOT, Stack

BURST = 100
RELOAD_SECONDS = 10
PAGE = (ROOT / "docs/limits.md").read_text()
SWITCH_ON, SWITCH_OFF = re.findall(r"^```sql\n(alter role .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# A bucket with a future time is not refilled, so its tokens are exactly the remaining writes.
FILL = """
insert into app.rate_limits as l values (app.rate_limit_caller(%s), 'writes', %s, clock_timestamp() + interval '1 hour')
on conflict (caller, bucket) do update set tokens = excluded.tokens, refilled_at = excluded.refilled_at
"""
Ask = Callable[..., httpx.Response]


@pytest.fixture
def postgres(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    """A connection like the SQL editor's. Afterwards the limit is off again for other tests."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        try:
            yield connection
        finally:
            connection.execute(SWITCH_OFF)
            connection.execute("delete from app.rate_limits")
            _wait_until(stack, limited=False)


@pytest.fixture
def editor(stack: Stack, postgres: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The same connection, with the limit switched on."""
    postgres.execute(SWITCH_ON)
    _wait_until(stack, limited=True)
    return postgres


@pytest.fixture
def ask(stack: Stack) -> Iterator[Ask]:
    """Returns a function that sends a request to the Data API as a user, or as the service."""
    with httpx.Client(base_url=f"{stack.environment['SUPABASE_URL']}/rest/v1") as client:

        def send(method: str, path: str, user: str | None = "user_cleo", **more: Any) -> httpx.Response:
            if user is None:
                headers = {"apikey": stack.environment["SUPABASE_SECRET_KEY"]}
            else:
                token = stack.token(user, "org_acme")
                headers = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"], "Authorization": f"Bearer {token}"}
            return client.request(method, path, headers=headers, **more)

        yield send


def _write(ask: Ask, user: str = "user_cleo") -> int:
    """The status of a write that changes no row."""
    return ask("PATCH", "/organizations?name=eq.nothing", user, json={"name": "x"}).status_code


def _is_limited(stack: Stack) -> bool:
    """Whether an anonymous request fails at the limit's function, which it may not call, and not at the table."""
    url = f"{stack.environment['SUPABASE_URL']}/rest/v1/organizations"
    answer = httpx.get(url, headers={"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"]})
    assert (answer.status_code, answer.json()["code"]) == (401, "42501")
    return "organizations" not in answer.json()["message"]


def _wait_until(stack: Stack, *, limited: bool) -> None:
    """Waits until PostgREST has reloaded its configuration, which happens soon after the notification."""
    deadline = time.monotonic() + RELOAD_SECONDS
    while _is_limited(stack) != limited:
        assert time.monotonic() < deadline, "The Data API did not reload its configuration."
        time.sleep(0.02)


def test_a_user_may_write_a_hundred_times_at_once_and_the_next_write_gets_429(
    editor: psycopg.Connection[Any], ask: Ask
) -> None:
    assert _write(ask) == 204
    editor.execute("update app.rate_limits set refilled_at = refilled_at + interval '1 hour'")
    assert [_write(ask) for _ in range(BURST)] == [204] * (BURST - 1) + [429]


def test_the_refusal_has_the_seconds_after_which_a_write_is_accepted(editor: psycopg.Connection[Any], ask: Ask) -> None:
    editor.execute(FILL, ["user_cleo", -40])
    editor.execute("update app.rate_limits set refilled_at = clock_timestamp()")
    refused = ask("PATCH", "/organizations?name=eq.nothing", json={"name": "x"})
    assert (refused.status_code, refused.reason_phrase) == (429, "Too Many Requests")
    assert refused.headers["Content-Type"] == "application/json; charset=utf-8"
    seconds = int(refused.headers["Retry-After"])
    assert 1 <= seconds <= 3
    assert refused.json() == {
        "code": "PT429", "message": "Too many writes.", "details": None, "hint": f"Try again in {seconds} s."
    }  # fmt: skip
    time.sleep(seconds)
    assert _write(ask) == 204


def test_supabase_clients_receive_the_code_and_the_seconds(editor: psycopg.Connection[Any], stack: Stack) -> None:
    editor.execute(FILL, ["user_cleo", 0])
    options = ClientOptions(headers={"Authorization": f"Bearer {stack.token('user_cleo', 'org_acme')}"})
    cleo = create_client(
        stack.environment["SUPABASE_URL"], stack.environment["SUPABASE_PUBLISHABLE_KEY"], options=options
    )
    with pytest.raises(APIError) as refusal:
        cleo.table("organizations").update({"name": "x"}).eq("name", "nothing").execute()
    assert (refusal.value.code, refusal.value.message) == ("PT429", "Too many writes.")
    assert re.fullmatch(r"Try again in \d+ s\.", refusal.value.hint or "")


def test_audit_events_have_their_own_limit_which_is_always_on(postgres: psycopg.Connection[Any], ask: Ask) -> None:
    [[acme]] = postgres.execute("select id::text from public.organizations where clerk_org_id = 'org_acme'").fetchall()
    event = {"p_organization_id": acme, "p_action": "client.done", "p_resource_type": "report"}
    assert ask("POST", "/rpc/log_audit_event", json=event).status_code == 200
    postgres.execute("update app.rate_limits set tokens = 0, refilled_at = clock_timestamp()")
    refused = ask("POST", "/rpc/log_audit_event", json=event)
    assert (refused.status_code, refused.json()["code"]) == (429, "PT429")
    assert re.fullmatch(r"Try again in [1-3] s\.", refused.json()["hint"])
    assert ask("POST", "/rpc/log_audit_event", None, json=event).status_code == 200
    assert _write(ask) == 204


def test_only_writes_are_limited_and_each_user_separately(editor: psycopg.Connection[Any], ask: Ask) -> None:
    editor.execute(FILL, ["user_cleo", 1])
    assert [_write(ask), _write(ask), _write(ask, "user_ben")] == [204, 429, 204]
    assert ask("POST", "/rpc/start_session", json={}).status_code == 429
    assert ask("GET", "/organizations?select=id").status_code == 200
    assert ask("HEAD", "/organizations?select=id").status_code == 200
    assert ask("POST", "/rpc/ready", None, json={}).status_code == 200


def test_the_service_returns_the_refusal_to_its_client(editor: psycopg.Connection[Any], stack: Stack) -> None:
    editor.execute(FILL, ["user_cleo", 0])
    headers = {"Authorization": f"Bearer {stack.token('user_cleo', 'org_acme')}", "Cache-Control": "no-cache"}
    refused = httpx.get(f"{stack.environment['SERVICE_URL']}/api/v1/me", headers=headers)
    assert refused.status_code == 429
    # As the database says: an hour until the bucket refills, and the time that one token takes, rounded up.
    assert 3590 <= int(refused.headers["Retry-After"]) <= 3601
    assert (refused.json()["type"], refused.json()["limit"]) == ("urn:problem:ballast:rate-limited", "writes")


def test_a_call_of_a_stable_function_counts_as_a_read(editor: psycopg.Connection[Any], ask: Ask) -> None:
    editor.execute(FILL, ["user_cleo", 0])
    arguments = {"organization_id": "00000000-0000-0000-0000-000000000000", "permission": "projects:read"}
    assert ask("POST", "/rpc/has_permission", json=arguments).status_code == 200


def test_a_failed_write_is_not_counted(editor: psycopg.Connection[Any], ask: Ask) -> None:
    editor.execute(FILL, ["user_cleo", 1])
    refused = ask("PATCH", "/organizations?name=eq.nothing", json={"clerk_org_id": "org_other"})
    assert (refused.status_code, refused.json()["code"]) == (403, "42501")
    assert [_write(ask), _write(ask)] == [204, 429]


def test_the_limit_starts_with_the_notification_and_can_be_switched_off(
    postgres: psycopg.Connection[Any], stack: Stack, ask: Ask
) -> None:
    postgres.execute(FILL, ["user_cleo", 0])
    setting, notification = SWITCH_ON.strip().split("\n")
    postgres.execute(setting.encode())
    assert (_is_limited(stack), _write(ask)) == (False, 204)
    postgres.execute(notification.encode())
    _wait_until(stack, limited=True)
    assert _write(ask) == 429
    postgres.execute(SWITCH_OFF)
    _wait_until(stack, limited=False)
    assert _write(ask) == 204
