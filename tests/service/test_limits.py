"""Rate limits: a client that exceeds one gets 429 and a time to wait. All others are served, also without Redis."""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from service import limits
from service.limits import EXCEPTIONS, LIMITS, PREFIXES, Limit, Per, find_limit
from tests.conftest import Stack
from tests.service.conftest import Growth, MakeApp
from tests.service.outside import (
    HANG_UP,
    Answer,
    Issuer,
    Outside,
    event,
    rest_answer,
    running_outside,
    sign,
    stored_answer,
)

LOW_LIMIT = 5
PAGE = "/legal/terms"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets every limit to five requests a minute."""
    monkeypatch.setattr(limits, "LIMITS", {name: Limit(LOW_LIMIT, 60, limit.per) for name, limit in LIMITS.items()})


@pytest.fixture
def app(few: None, make_app: MakeApp, stack: Stack, outside: Outside, issuer: Issuer) -> Flask:
    """The service with the stack's Redis, its own counters, and a stand-in for the database."""
    outside.answer = lambda *_: stored_answer()
    names = ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN")
    redis = {name: stack.environment[name] for name in names}
    return make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url, TRUSTED_PROXIES="1", **redis)


@pytest.fixture
def address() -> str:
    """An address that only this test uses, because Redis remembers the others."""
    return new_address()


def new_address() -> str:
    return ".".join(str(secrets.randbelow(254) + 1) for _ in range(4))


def get(app: Flask, path: str, address: str, **headers: str) -> Any:
    return app.test_client().get(path, headers={"X-Forwarded-For": address} | headers)


def as_caller(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- what the caller sees ---


def test_every_response_shows_what_is_left_of_the_limit(app: Flask, address: str) -> None:
    answers = [get(app, PAGE, address) for _ in range(LOW_LIMIT)]
    assert [answer.status_code for answer in answers] == [200] * LOW_LIMIT
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["4", "3", "2", "1", "0"]
    assert {answer.headers["RateLimit-Limit"] for answer in answers} == {"5"}
    assert all(1 <= int(answer.headers["RateLimit-Reset"]) <= 60 for answer in answers)


def test_exceeding_a_limit_returns_a_problem_with_retry_after(app: Flask, address: str) -> None:
    for _ in range(LOW_LIMIT):
        get(app, PAGE, address)
    refused = get(app, PAGE, address)
    assert (refused.status_code, refused.content_type) == (429, "application/problem+json")
    assert (refused.json["type"], refused.json["limit"]) == ("urn:problem:ballast:rate-limited", "pages")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit-Remaining"] == "0"


def test_requests_are_allowed_again_after_the_window(
    monkeypatch: pytest.MonkeyPatch, make_app: MakeApp, stack: Stack, address: str
) -> None:
    monkeypatch.setattr(limits, "LIMITS", {name: Limit(2, 1, limit.per) for name, limit in LIMITS.items()})
    app = make_app(**(stack.environment | {"ENVIRONMENT": "test", "TRUSTED_PROXIES": "1"}))
    assert 429 in [get(app, PAGE, address).status_code for _ in range(4)]
    time.sleep(2)
    assert get(app, PAGE, address).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_checks_are_never_limited(app: Flask, address: str, path: str) -> None:
    answers = [get(app, path, address) for _ in range(LOW_LIMIT * 2)]
    assert 429 not in {answer.status_code for answer in answers}
    assert not any("RateLimit-Limit" in answer.headers for answer in answers)


def test_unknown_paths_are_limited_too(app: Flask, address: str) -> None:
    assert [get(app, "/nothing", address).status_code for _ in range(LOW_LIMIT + 1)] == [404] * LOW_LIMIT + [429]


def test_threads_and_processes_share_one_count(app: Flask, address: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(lambda _: get(app, PAGE, address).status_code, range(40)))
    assert sorted(codes) == [200] * LOW_LIMIT + [429] * 35


# --- who is one caller ---


def test_a_person_is_counted_once_across_addresses(app: Flask, issuer: Issuer) -> None:
    token = issuer.token(sub=f"user_{secrets.token_hex(8)}")
    codes = [get(app, "/api/v1/me", new_address(), **as_caller(token)).status_code for _ in range(LOW_LIMIT + 1)]
    assert codes == [200] * LOW_LIMIT + [429]


def test_people_behind_one_address_are_counted_separately(app: Flask, issuer: Issuer, address: str) -> None:
    tokens = [issuer.token(sub=f"user_{secrets.token_hex(8)}") for _ in range(LOW_LIMIT + 2)]
    assert {get(app, "/api/v1/me", address, **as_caller(token)).status_code for token in tokens} == {200}


def test_an_unauthenticated_caller_is_counted_by_address_not_as_the_claimed_person(
    app: Flask, issuer: Issuer, address: str
) -> None:
    victim = f"user_{secrets.token_hex(8)}"
    forged = issuer.token(sub=victim, exp=1)
    codes = [get(app, "/api/v1/me", address, **as_caller(forged)).status_code for _ in range(LOW_LIMIT + 1)]
    assert codes == [401] * LOW_LIMIT + [429]
    assert get(app, "/api/v1/me", address, **as_caller(issuer.token(sub=victim))).status_code == 200


def test_webhooks_are_counted_by_address(app: Flask, address: str) -> None:
    def deliver() -> int:
        body = event()
        headers = sign(body) | {"X-Forwarded-For": address}
        return app.test_client().post("/webhooks/clerk", data=body, headers=headers).status_code

    assert [deliver() for _ in range(LOW_LIMIT + 1)] == [200] * LOW_LIMIT + [429]


@pytest.mark.parametrize(
    ("proxies", "forwarded", "counted"),
    [
        ("0", "198.51.100.7", "192.0.2.1"),
        ("1", "198.51.100.7", "198.51.100.7"),
        ("1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("2", "203.0.113.9, 198.51.100.7, 198.51.100.8", "198.51.100.7"),
        ("2", "198.51.100.7", "192.0.2.1"),
        ("1", "", "192.0.2.1"),
        ("1", "nonsense", "nonsense"),
        ("1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("1", "::ffff:198.51.100.7", "198.51.100.7"),
    ],
)
def test_only_trusted_proxies_can_set_the_address(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, proxies: str, forwarded: str, counted: str
) -> None:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(limits.Limits, "count", lambda _, name, caller: seen.append((name, caller)))
    app = make_app(TRUSTED_PROXIES=proxies)
    environ = {"REMOTE_ADDR": "192.0.2.1"}
    app.test_client().get(PAGE, headers={"X-Forwarded-For": forwarded}, environ_overrides=environ)
    assert seen == [("pages", counted)]


def test_redis_stores_neither_ids_nor_addresses(few: None, make_app: MakeApp, outside: Outside, issuer: Issuer) -> None:
    heard: list[bytes] = []

    def answer(path: str, headers: Any, body: bytes) -> Answer:
        heard.append(body)
        return rest_answer({"result": 4})

    with running_outside() as redis:
        redis.answer = answer
        app = make_app(CLERK_ISSUER=issuer.url, TRUSTED_PROXIES="1", UPSTASH_REDIS_REST_URL=redis.url)
        get(app, PAGE, "198.51.100.7")
        get(app, "/api/v1/me", "198.51.100.7", **as_caller(issuer.token(sub="user_other")))
    assert heard
    assert not [body for body in heard if b"198.51" in body or b"user_other" in body]


# --- the table ---


def test_every_route_has_its_intended_limit(offline_app: Flask) -> None:
    found = {rule.endpoint: find_limit(rule.endpoint, rule.rule) for rule in offline_app.url_map.iter_rules()}
    expected = {
        "health.alive": None, "health.ready": None, "me.show": "person", "members.invite": "invitations",
        "members.remove": "person", "audit.export": "person", "personal_data.export": "exports",
        "personal_data.erase": "erasures", "personal_data.show_erasure": "pages", "webhooks.receive": "webhooks", "mail.receive": "webhooks",
        "backups.start": "backups", "backups.show": "backups", "jobs.run": "jobs", "legal.privacy": "pages",
        "openapi.show": "pages",
    }  # fmt: skip
    assert found | expected == found


def test_the_table_names_only_existing_routes_and_limits(offline_app: Flask) -> None:
    assert {*EXCEPTIONS.values(), *PREFIXES.values()} <= LIMITS.keys()
    endpoints = {rule.endpoint for rule in offline_app.url_map.iter_rules()}
    assert EXCEPTIONS.keys() <= endpoints | {endpoint.partition(".")[0] for endpoint in endpoints}
    assert all(limit.requests > 0 and limit.seconds > 0 and isinstance(limit.per, Per) for limit in LIMITS.values())


# --- Redis fails ---

NONSENSE: dict[str, Callable[..., Answer | None]] = {
    "hangs up": lambda *_: HANG_UP,
    "an error": lambda *_: rest_answer({"error": "ERR"}, 400),
    "page": lambda *_: (502, {}, b"<html>"),
    "text": lambda *_: rest_answer({"result": "eA=="}),
    "null": lambda *_: rest_answer({"result": None}),
    "true": lambda *_: rest_answer({"result": True}),
    "more than there is": lambda *_: rest_answer({"result": 10**9}),
    "list": lambda *_: rest_answer({"result": []}),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_without_redis_no_request_is_refused_and_the_outage_is_logged_once(
    few: None,
    make_app: MakeApp,
    outside: Outside,
    log: io.StringIO,
    limits_growth: Growth,
    answer: Callable[..., Answer | None],
) -> None:
    outside.answer = answer
    app = make_app(UPSTASH_REDIS_REST_URL=outside.url)
    answers = [app.test_client().get(PAGE) for _ in range(LOW_LIMIT * 3)]
    assert {each.status_code for each in answers} == {200}
    assert not any("RateLimit-Limit" in each.headers for each in answers)
    assert limits_growth() == {"errors": LOW_LIMIT * 3}
    assert log.getvalue().count("redis does not answer") == 1


def test_a_slow_redis_delays_only_one_request(
    make_app: MakeApp, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.components.REDIS_TIMEOUT", 0.3)
    outside.answer = lambda *_: time.sleep(2) or HANG_UP  # type: ignore[func-returns-value]
    client = make_app(UPSTASH_REDIS_REST_URL=outside.url).test_client()
    began = time.monotonic()
    assert {client.get(PAGE).status_code for _ in range(30)} == {200}
    assert time.monotonic() - began < 1


def test_allowed_and_refused_requests_are_counted(app: Flask, address: str, limits_growth: Growth) -> None:
    for _ in range(LOW_LIMIT + 2):
        get(app, PAGE, address)
    assert limits_growth() == {"allowed": LOW_LIMIT, "refused": 2}


@pytest.mark.parametrize("value", ["-1", "10", "x", "1.5"])
def test_an_invalid_number_of_proxies_stops_the_start(make_app: MakeApp, value: str) -> None:
    with pytest.raises(Exception, match="TRUSTED_PROXIES"):
        make_app(TRUSTED_PROXIES=value)


def test_normal_use_on_the_running_stack_is_not_limited(online: FlaskClient, stack: Stack) -> None:
    answers = [online.get("/api/v1/me", headers=as_caller(stack.token("user_ada"))) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].headers["RateLimit-Limit"] == "600"
