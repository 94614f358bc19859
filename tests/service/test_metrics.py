"""`/metrics`: the token, the counts, and that no person is named."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import httpx
import psycopg
import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Stack
from tests.service.conftest import MakeApp
from tests.service.outside import event, sign
from tests.service.test_personal_data import as_caller

TOKEN = "the monitor's token, 32 characters"


def read(text: str) -> dict[tuple[str, ...], float]:
    """{(sample, label values in the order of the labels' names, …): value}."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def client(make_app: MakeApp, stack: Stack) -> FlaskClient:
    return make_app(**(stack.environment | {"METRICS_TOKEN": TOKEN})).test_client()


@pytest.fixture
def samples(client: FlaskClient) -> Callable[[], dict[tuple[str, ...], float]]:
    return lambda: read(client.get("/metrics", headers=as_caller(TOKEN)).text)


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", TOKEN])
def test_metrics_require_the_token(client: FlaskClient, offline: FlaskClient, given: str) -> None:
    for each in (client, offline):
        refused = each.get("/metrics", headers={"Authorization": given} if given else {})
        assert (refused.status_code, refused.json["type"]) == (401, "urn:problem:ballast:metrics-refused")


def test_requests_are_counted_by_route_and_never_by_path(
    client: FlaskClient, samples: Callable[[], dict[tuple[str, ...], float]]
) -> None:
    before = samples()
    for path in (
        "/healthz",
        "/healthz",
        "/ada@example.com",
        "/api/v1/gdpr/erasure/00000000-0000-0000-0000-000000000000",
    ):
        client.get(path)
    after = samples()

    def count_added(*name: str) -> float:
        return after[name] - before.get(name, 0)

    assert count_added("ballast_requests_total", "GET", "/healthz", "200") == 2
    assert count_added("ballast_requests_total", "none", "none", "404") == 1
    assert count_added("ballast_requests_total", "GET", "/api/v1/gdpr/erasure/<uuid:receipt>", "404") == 1
    assert count_added("ballast_request_seconds_count", "/healthz") == 2
    assert "ada@example.com" not in client.get("/metrics", headers=as_caller(TOKEN)).text


def test_webhooks_are_counted_by_outcome_and_lag(make_app: MakeApp, stack: Stack, online: FlaskClient) -> None:
    reader = make_app(**(stack.environment | {"METRICS_TOKEN": TOKEN})).test_client()
    before = read(reader.get("/metrics", headers=as_caller(TOKEN)).text)
    for age in (0, 20_000):
        body = json.loads(event()) | {"timestamp": int(time.time() * 1000) - age}
        text = json.dumps(body).encode()
        assert online.post("/webhooks/clerk", data=text, headers=sign(text)).status_code == 200
    after = read(reader.get("/metrics", headers=as_caller(TOKEN)).text)
    assert after[("ballast_webhooks_total", "ignored")] - before.get(("ballast_webhooks_total", "ignored"), 0) == 2
    lag = after[("ballast_webhook_lag_seconds_sum",)] - before.get(("ballast_webhook_lag_seconds_sum",), 0)
    assert 20 <= lag < 30


def test_metrics_include_the_databases_state(stack: Stack, samples: Callable[[], dict[tuple[str, ...], float]]) -> None:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("delete from public.backup_logs")
        assert ("ballast_backup_age_seconds",) not in samples()
        connection.execute(
            "insert into public.backup_logs (filename, backup_type, status, created_at, drilled_at, drill_passed) "
            "values ('old', 'manual', 'completed', now() - interval '3 hours', now() - interval '1 hour', true)"
        )
        found = samples()
        health = connection.execute("select subject, status from ops.health").fetchall()
        connection.execute("delete from public.backup_logs")
    assert found[("ballast_database_up",)] == 1
    assert found[("ballast_backup_age_seconds",)] == pytest.approx(10800, abs=30)
    assert found[("ballast_drill_age_seconds",)] == pytest.approx(3600, abs=30)
    assert found[("ballast_webhook_failures",)] >= 0
    assert found[("ballast_mail_queued",)] >= 0
    lights = {"green": 0, "yellow": 1, "red": 2}
    assert {subject: found[("ballast_health", subject)] for subject, _ in health} == {
        subject: lights[status] for subject, status in health
    }
    assert len(health) > 3


def test_cache_and_limit_decisions_are_counted(
    client: FlaskClient, stack: Stack, samples: Callable[[], dict[tuple[str, ...], float]]
) -> None:
    before = samples()
    for _ in range(3):
        assert client.get("/api/v1/me", headers=as_caller(stack.token("user_dee"))).status_code == 200
    after = samples()
    assert after[("ballast_cache_total", "hits")] - before.get(("ballast_cache_total", "hits"), 0) >= 2
    assert after[("ballast_limits_total", "allowed")] - before.get(("ballast_limits_total", "allowed"), 0) >= 3


def test_metrics_are_served_without_a_database(make_app: MakeApp) -> None:
    text = make_app(METRICS_TOKEN=TOKEN).test_client().get("/metrics", headers=as_caller(TOKEN)).text
    assert read(text)[("ballast_database_up",)] == 0


def test_metrics_sum_over_all_workers(stack: Stack) -> None:
    """Under gunicorn, whose two workers share nothing but the metrics folder."""
    headers = {"Authorization": f"Bearer {stack.environment['METRICS_TOKEN']}"}
    url = stack.environment["SERVICE_URL"]

    def healthy() -> float:
        answer = httpx.get(f"{url}/metrics", headers=headers)
        assert answer.status_code == 200, answer.text
        return read(answer.text).get(("ballast_requests_total", "GET", "/healthz", "200"), 0)

    before = healthy()
    for _ in range(20):  # each on a new connection, so that both workers get some
        httpx.get(f"{url}/healthz")
    assert {healthy() - before for _ in range(6)} == {20}
