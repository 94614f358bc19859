"""CORS: pages of the origins in CLERK_AUTHORIZED_PARTIES may call the API from a browser, no others."""

from __future__ import annotations

import httpx
import pytest
from flask.testing import FlaskClient

from service import limits
from service.cors import SENDABLE_HEADERS
from tests.conftest import Stack
from tests.service.conftest import MakeApp

ORIGINS = ("https://app.example", "http://localhost:5173")
PREFLIGHT = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,cache-control"}


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    return make_app(CLERK_AUTHORIZED_PARTIES=",".join(ORIGINS)).test_client()


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_preflight_from_an_authorized_party_is_answered(client: FlaskClient, origin: str) -> None:
    answer = client.options("/api/v1/me", headers=PREFLIGHT | {"Origin": origin})
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Access-Control-Allow-Headers"] == SENDABLE_HEADERS
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST, PUT, PATCH, DELETE"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert set(answer.vary) == {"Origin"}


def test_a_preflight_does_not_allow_whatever_header_is_asked_for(client: FlaskClient) -> None:
    asked = PREFLIGHT | {"Access-Control-Request-Headers": "authorization,x-forwarded-for,cookie,x-evil"}
    answer = client.options("/api/v1/me", headers=asked | {"Origin": ORIGINS[0]})
    assert {each.strip().lower() for each in answer.headers["Access-Control-Allow-Headers"].split(",")} == {
        "authorization", "cache-control", "content-type", "x-request-id",
    }  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_an_authorized_party_can_read_that_something_failed(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    refused = limits.Decision(is_allowed=False, limit=600, remaining=0, resets_in=7)
    monkeypatch.setattr(limits.Limits, "count", lambda *_: refused)
    limited = client.get("/api/v1/me", headers={"Origin": origin})
    monkeypatch.setattr(limits.Limits, "count", lambda *_: 1 / 0)
    failed = client.get("/api/v1/me", headers={"Origin": origin})
    assert (limited.status_code, limited.headers["Retry-After"], failed.status_code) == (429, "7", 500)
    for answer in (limited, failed):
        assert answer.content_type == "application/problem+json"
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert {"Retry-After", "X-Request-Id", "RateLimit-Reset", "Content-Disposition"} <= {
            each.strip() for each in answer.headers["Access-Control-Expose-Headers"].split(",")
        }


@pytest.mark.parametrize("origin", ORIGINS)
def test_an_authorized_party_can_read_refusals_too(client: FlaskClient, origin: str) -> None:
    answer = client.get("/api/v1/me", headers={"Origin": origin})
    assert answer.status_code == 401
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "https://app.example.evil", "https://APP.example", "http://app.example", "*"],
)
def test_no_other_origin_is_allowed(client: FlaskClient, origin: str, method: str) -> None:
    answer = client.open("/api/v1/me", method=method, headers=PREFLIGHT | {"Origin": origin})
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
    assert "Origin" in answer.vary


@pytest.mark.parametrize("path", ["/webhooks/clerk", "/jobs/send-mail", "/metrics", "/healthz", "/nowhere"])
def test_pages_of_other_origins_may_call_only_the_api(client: FlaskClient, path: str) -> None:
    answer = client.options(path, headers=PREFLIGHT | {"Origin": ORIGINS[0]})
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


def test_without_authorized_parties_no_other_origin_may_call(make_app: MakeApp) -> None:
    answer = make_app().test_client().options("/api/v1/me", headers=PREFLIGHT | {"Origin": ORIGINS[0]})
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_preflights_do_not_count_against_a_limit(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    monkeypatch.setattr(limits.Limits, "count", lambda _, name, __: counted.append(name))
    client.options("/api/v1/me", headers=PREFLIGHT | {"Origin": ORIGINS[0]})
    assert counted == []
    client.get("/api/v1/me", headers={"Origin": ORIGINS[0]})
    assert counted == ["strangers"]


def test_a_page_on_another_port_signs_in_and_reads_its_session(stack: Stack) -> None:
    page = {"Origin": stack.other_origin}
    asked = {"user_id": "user_ada", "organization_id": "org_acme"}
    issued = httpx.post(f"{stack.environment['CLERK_ISSUER']}/stand-in/tokens", json=asked, headers=page).json()
    assert issued["claims"]["azp"] == stack.other_origin
    url = f"{stack.environment['SERVICE_URL']}/api/v1/me"
    assert httpx.options(url, headers=page | PREFLIGHT).status_code == 204
    me = httpx.get(url, headers=page | {"Authorization": f"Bearer {issued['token']}"})
    assert (me.status_code, me.json()["profile"]["clerk_user_id"]) == (200, "user_ada")
    assert me.headers["Access-Control-Allow-Origin"] == stack.other_origin


def test_a_token_for_another_party_is_refused(stack: Stack) -> None:
    token = stack.token("user_ada", "org_acme", claims={"azp": "http://localhost:5174"})
    url = f"{stack.environment['SERVICE_URL']}/api/v1/me"
    assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 401
