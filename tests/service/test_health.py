"""The health checks: /healthz and /readyz."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from tests.service.conftest import MakeApp
from tests.service.outside import HANG_UP, Answer, Outside, rest_answer


def test_the_process_is_alive_even_if_everything_else_is_down(offline: FlaskClient) -> None:
    response = offline.get("/healthz")
    assert (response.status_code, response.json) == (200, {"status": "ok"})


def test_a_deployment_sees_which_release_is_running(make_app: MakeApp) -> None:
    response = make_app(RELEASE="4f1c2d7").test_client().get("/healthz")
    assert response.json == {"status": "ok", "release": "4f1c2d7"}


def test_on_the_running_stack_the_service_is_ready(online: FlaskClient) -> None:
    response = online.get("/readyz")
    assert (response.status_code, response.json) == (200, {"status": "ok", "down": [], "redis": "up"})


def working(path: str, *_: Any) -> Answer:
    return rest_answer(True) if path == "/rest/v1/rpc/ready" else rest_answer({"result": "UE9ORw=="})  # PONG


def slow(*_: Any) -> Answer:
    time.sleep(0.6)
    return rest_answer(True)


BROKEN_ANSWERS = {
    "hangs up": lambda *_: HANG_UP,
    "slow": slow,
    "500": lambda *_: rest_answer({"code": "XX000", "message": "m"}, 500),
    "401": lambda *_: rest_answer({"error": "Unauthorized"}, 401),
    "page": lambda *_: (200, {"Content-Type": "text/html"}, b"<html>a secret</html>"),
    "other JSON": lambda *_: rest_answer({"result": "false"}),
    "list": lambda *_: rest_answer([]),
    "text": lambda *_: rest_answer("text"),
    "null": lambda *_: rest_answer(None),
    "not base64": lambda *_: rest_answer({"result": "%"}),
}


@pytest.mark.parametrize("broken", BROKEN_ANSWERS)
def test_without_the_database_the_service_is_not_ready(
    make_app: MakeApp, outside: Outside, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr("service.data_api.PROBE_TIMEOUT", httpx.Timeout(0.3))
    outside.answer = lambda path, *rest: (
        BROKEN_ANSWERS[broken](path, *rest) if path.startswith("/rest") else working(path)
    )
    response = make_app(SUPABASE_URL=outside.url, UPSTASH_REDIS_REST_URL=outside.url).test_client().get("/readyz")
    assert (response.status_code, response.json["down"]) == (503, ["data_api"])
    assert response.json["detail"] == "No answer from: data_api."
    assert response.json["type"] == "urn:problem:ballast:not-ready"
    assert len(outside.requests) == 2


@pytest.mark.parametrize("broken", BROKEN_ANSWERS)
def test_without_redis_the_service_is_ready_and_reports_it_soon(
    make_app: MakeApp, outside: Outside, broken: str
) -> None:
    outside.answer = lambda path, *rest: (
        working(path) if path.startswith("/rest") else BROKEN_ANSWERS[broken](path, *rest)
    )
    client = make_app(SUPABASE_URL=outside.url, UPSTASH_REDIS_REST_URL=outside.url).test_client()
    began = time.monotonic()
    response = client.get("/readyz")
    state = "hanging" if broken == "slow" else "invalid"
    assert (response.status_code, response.json) == (200, {"status": "ok", "down": ["redis"], "redis": state})
    assert time.monotonic() - began < 1  # Kubernetes' default timeout
    assert len(outside.requests) == 2


def test_a_redis_that_accepts_and_never_answers_is_called_hanging(make_app: MakeApp, silent_server: str) -> None:
    client = make_app(UPSTASH_REDIS_REST_URL=silent_server, METRICS_TOKEN="m" * 32).test_client()
    assert client.get("/readyz").json["redis"] == "hanging"
    metrics = client.get("/metrics", headers={"Authorization": f"Bearer {'m' * 32}"}).text
    assert 'ballast_redis_up{state="hanging"} 0.0' in metrics


def test_both_dependencies_are_named_if_both_are_down(offline: FlaskClient) -> None:
    found = offline.get("/readyz").json
    assert (found["down"], found["redis"]) == (["data_api", "redis"], "unreachable")
