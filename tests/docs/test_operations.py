"""docs/operations.md, cell by cell: the status of each route while a dependency is down, slow or returns garbage."""

from __future__ import annotations

import itertools
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator

import httpx
import psycopg
import pytest
import sentry_sdk
from flask import Flask
from flask.testing import FlaskClient

from service import clerk_api, components, data_api, identity
from tests.conftest import ROOT, Stack
from tests.service.conftest import UNUSED_URL, MakeApp
from tests.service.outside import SECRET, Answer, event, running_outside, sign
from tests.service.test_personal_data import as_caller

PARTS = {
    "database": "SUPABASE_URL", "Redis": "UPSTASH_REDIS_REST_URL", "Clerk's keys": "CLERK_ISSUER", "Clerk's API": "CLERK_API_URL",
    "Resend": "RESEND_API_URL", "Sentry": "SENTRY_DSN",
}  # fmt: skip
PAGE = (ROOT / "docs/operations.md").read_text()
ROWS = [re.findall(r"[^|]+", line) for line in PAGE.splitlines() if line.startswith("|")]
COLUMNS = [cell.strip() for cell in ROWS[0][1:]]
CELLS = {
    (part, *row[0].strip().strip("`").split(" ", 1)): int(cell)
    for row in ROWS[2:]
    for part, cell in zip(COLUMNS, row[1:], strict=True)
}
# The timeout for each part, shortened for the test. SLOW_SECONDS is longer, so a slow part always times out.
TIMEOUTS = {
    "service.data_api.TIMEOUT": httpx.Timeout(0.3), "service.data_api.PROBE_TIMEOUT": httpx.Timeout(0.3),
    "service.clerk_api.TIMEOUT": httpx.Timeout(0.3), "service.components.REDIS_TIMEOUT": httpx.Timeout(0.3),
    "service.mail.TIMEOUT": httpx.Timeout(0.3), "service.identity.FETCH_TIMEOUT_SECONDS": 0.3,
}  # fmt: skip
SLOW_SECONDS = 2.0
PAIRS = list(itertools.product(PARTS, ("down", "slow", "garbage")))


@pytest.fixture(params=PAIRS, ids=" ".join, scope="module")
def outage(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    """A part, and the variables that make it down, slow or return garbage."""
    part, how = request.param

    def answer(*_: object) -> Answer:
        time.sleep(SLOW_SECONDS if how == "slow" else 0)
        return 200, {"Content-Type": "text/html"}, b"<h1>Welcome to nginx!</h1>"

    with running_outside() as server, pytest.MonkeyPatch.context() as patch:
        for name, seconds in TIMEOUTS.items() if how == "slow" else ():
            patch.setattr(name, seconds)
        server.answer = answer
        url = UNUSED_URL if how == "down" else server.url
        yield part, {PARTS[part]: url.replace("//", "//key@") + "/1" if part == "Sentry" else url}
        if part == "Sentry":
            sentry_sdk.get_client().close(timeout=1)
            sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def service(make_app: MakeApp, stack: Stack, outage: tuple[str, dict[str, str]]) -> Flask:
    mail = {"RESEND_API_KEY": "re_key", "MAIL_FROM": "Acme <acme@example.com>", "ENVIRONMENT": "test"}
    webhooks = {"CLERK_WEBHOOK_SECRETS": f"{stack.environment['CLERK_WEBHOOK_SECRETS']},{SECRET}"}
    nowhere = {"RESEND_API_URL": UNUSED_URL}
    return make_app(**(stack.environment | mail | webhooks | nowhere | outage[1]))


def make_request(client: FlaskClient, stack: Stack, method: str, route: str) -> Callable[[], int]:
    """Returns a function that calls the route as an authorized caller and returns the status."""
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        [[acme]] = connection.execute("select id from public.organizations where clerk_org_id = 'org_acme'").fetchall()
    variable = {"/jobs": "JOBS_TOKEN", "/metr": "METRICS_TOKEN", "/api/v1/backups": "OPERATOR_TOKEN"}
    token = next((stack.environment[name] for start, name in variable.items() if route.startswith(start)), None)
    arguments: dict[str, object] = {"headers": as_caller(token or stack.token("user_ada", "org_acme"))}
    if route == "/webhooks/clerk":
        body = event()
        arguments = {"data": body, "headers": sign(body)}
    elif route.endswith("/invitations"):
        arguments["data"] = json.dumps({"email": f"{secrets.token_hex(6)}@example.com", "role": "viewer"})
        arguments["content_type"] = "application/json"
    return lambda: client.open(route.replace("{id}", str(acme)), method=method, **arguments).status_code  # type: ignore[arg-type]


def test_each_route_answers_with_the_status_on_the_page(
    service: Flask, stack: Stack, outage: tuple[str, dict[str, str]]
) -> None:
    part, _ = outage
    expected = {(method, route): status for (of, method, route), status in CELLS.items() if of == part}
    assert len(expected) == 15
    client = service.test_client()
    assert {(method, route): make_request(client, stack, method, route)() for method, route in expected} == expected


def test_timeouts_match_those_on_the_page() -> None:
    def total(timeout: httpx.Timeout) -> float:
        return (timeout.connect or 0) + (timeout.read or 0)

    database, clerk, redis = (total(each) for each in (data_api.TIMEOUT, clerk_api.TIMEOUT, components.REDIS_TIMEOUT))
    page = " ".join(PAGE.split())
    assert f"at most {database:.0f} seconds for the database" in page
    assert f"{clerk:.0f} for Clerk's API" in page
    assert f"{identity.FETCH_TIMEOUT_SECONDS} for Clerk's keys" in page
    assert f"{redis:.0f} for Redis" in page
