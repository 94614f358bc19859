"""`GET /api/v1/me`: the caller's own session, read with the caller's token."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from tests.conftest import Stack
from tests.service.conftest import MakeApp
from tests.service.outside import HANG_UP, Answer, Issuer, Outside, event, rest_answer, sign, stored_answer

URL = "/api/v1/me"


def as_caller(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- on the running stack ---


def test_a_seeded_owner_sees_profile_organizations_and_permissions(online: FlaskClient, stack: Stack) -> None:
    response = online.get(URL, headers=as_caller(stack.token("user_ada", "org_acme")))
    assert response.status_code == 200
    session = response.json
    assert session.keys() == {"profile", "second_factor", "organizations"}
    assert session["profile"]["clerk_user_id"] == "user_ada"
    acme, globex = (
        next(found for found in session["organizations"] if found["clerk_org_id"] == clerk_org_id)
        for clerk_org_id in ("org_acme", "org_globex")
    )
    assert (acme["role"], globex["role"]) == ("owner", "viewer")
    assert "members:read" in globex["permissions"]
    assert "members:invite" not in globex["permissions"]


def test_a_person_without_an_organization_has_a_session(online: FlaskClient, stack: Stack) -> None:
    user_id = sign_up(stack)
    session = online.get(URL, headers=as_caller(stack.token(user_id))).json
    assert (session["profile"]["clerk_user_id"], session["organizations"]) == (user_id, [])


def test_a_banned_person_is_refused_with_the_databases_message(online: FlaskClient, stack: Stack) -> None:
    response = online.get(URL, headers=as_caller(stack.token(sign_up(stack, banned=True))))
    assert (response.status_code, response.json["type"]) == (403, "urn:problem:ballast:session-refused")
    assert "banned" in response.json["detail"]


def sign_up(stack: Stack, **more: object) -> str:
    """Sends a user.created event for a new user and returns the id."""
    user_id = f"user_{secrets.token_hex(8)}"
    sent = stack.ballast("clerk", "send", "user.created", "--data", json.dumps({"id": user_id, **more}))
    assert sent.returncode == 0, sent.stderr
    return user_id


# --- on stand-ins ---


@pytest.fixture
def client(make_app: MakeApp, outside: Outside, issuer: Issuer) -> FlaskClient:
    return make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url).test_client()


def refusal(code: str, status: int, message: str = "This account is banned.", hint: str | None = None) -> Any:
    return lambda *_: rest_answer({"code": code, "message": message, "hint": hint, "details": "row of Ada"}, status)


def test_the_database_is_called_with_the_callers_token_and_the_publishable_key(
    client: FlaskClient, outside: Outside, issuer: Issuer
) -> None:
    seen = []

    def answer(path: str, headers: Any, body: bytes) -> Answer:
        seen.append((path, headers["apikey"], headers["Authorization"], body))
        return rest_answer({})

    outside.answer = answer
    token = issuer.token()
    assert client.get(URL, headers=as_caller(token)).status_code == 200
    assert seen == [("/rest/v1/rpc/start_session", "sb_publishable_test", f"Bearer {token}", b"{}")]


def test_concurrent_callers_never_act_as_each_other(make_app: MakeApp, outside: Outside, issuer: Issuer) -> None:
    def answer(path: str, headers: Any, body: bytes) -> Answer:
        if path.endswith("receive_clerk_event"):
            return stored_answer(headers["Authorization"])
        return rest_answer({"acted_as": headers["Authorization"]})

    outside.answer = answer
    app = make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url)

    def ask(number: int) -> bool:
        if number % 4 == 0:
            body = event()
            response = app.test_client().post("/webhooks/clerk", data=body, headers=sign(body))
            return bool(response.json["outcome"] == "Bearer sb_secret_test")
        headers = as_caller(issuer.token(sub=f"user_{number}"))
        return bool(app.test_client().get(URL, headers=headers).json == {"acted_as": headers["Authorization"]})

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(80)))
    assert outside.connections <= 8


def test_the_data_api_names_the_reason_for_refusing_a_large_token(stack: Stack) -> None:
    headers = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"]}
    headers |= as_caller(stack.token("user_ada", "org_acme", claims={"custom": "x" * 8192}))
    refused = httpx.post(f"{stack.environment['SUPABASE_URL']}/rest/v1/rpc/start_session", json={}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (401, "PT401")
    assert "exceed 8 kB" in refused.json()["message"]
    assert "fewer custom claims" in refused.json()["hint"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (refusal("PT403", 403), (403, "urn:problem:ballast:session-refused")),
        (refusal("PT401", 401), (401, "urn:problem:ballast:token-invalid")),
        (refusal("PGRST301", 401), (401, "urn:problem:ballast:token-invalid")),
        (refusal("PGRST303", 401), (401, "urn:problem:ballast:token-invalid")),
        (refusal("42501", 403), (403, "urn:problem:ballast:session-refused")),
        (refusal("PT429", 429), (429, "urn:problem:ballast:rate-limited")),
        (refusal("57014", 500), (503, "urn:problem:ballast:database-unavailable")),
        (lambda *_: HANG_UP, (503, "urn:problem:ballast:database-unavailable")),
        (lambda *_: (502, {"Content-Type": "text/html"}, b"<html>"), (503, "urn:problem:ballast:database-unavailable")),
    ],
)
def test_database_errors_become_matching_problems(
    client: FlaskClient, outside: Outside, issuer: Issuer, answer: Any, problem: tuple[int, str]
) -> None:
    outside.answer = answer
    response = client.get(URL, headers=as_caller(issuer.token()))
    assert (response.status_code, response.json["type"]) == problem
    assert "row of Ada" not in response.text
    assert ("invalid_token" in response.headers.get("WWW-Authenticate", "")) == (response.status_code == 401)
    assert ("Retry-After" in response.headers) == (response.status_code in (429, 503))


def test_the_databases_message_and_hint_reach_the_caller(client: FlaskClient, outside: Outside, issuer: Issuer) -> None:
    outside.answer = refusal("PT403", 403, hint="Ask an administrator.")
    response = client.get(URL, headers=as_caller(issuer.token()))
    assert response.json["detail"] == "This account is banned. Ask an administrator."


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        (lambda _: {}, (401, "Bearer")),
        (lambda _: as_caller("nonsense"), (401, 'Bearer error="invalid_token"')),
        (lambda issuer: as_caller(issuer.token(exp=1)), (401, 'Bearer error="invalid_token"')),
        (lambda issuer: as_caller(issuer.token(sts="pending")), (403, None)),
    ],
)
def test_without_a_valid_active_token_the_database_is_not_called(
    client: FlaskClient,
    outside: Outside,
    issuer: Issuer,
    headers: Callable[[Issuer], dict[str, str]],
    refusal: tuple[int, str | None],
) -> None:
    response = client.get(URL, headers=headers(issuer))
    assert (response.status_code, response.headers.get("WWW-Authenticate")) == refusal
    assert outside.requests == []


def test_without_clerks_keys_the_caller_is_asked_to_retry(client: FlaskClient, issuer: Issuer) -> None:
    issuer.server.answer = lambda *_: HANG_UP
    response = client.get(URL, headers=as_caller(issuer.token()))
    assert (response.status_code, response.json["type"]) == (503, "urn:problem:ballast:identity-unavailable")
    assert "Retry-After" in response.headers
