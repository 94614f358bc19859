"""Sentry gets the location and the organization of an error or a request, and no personal data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
import sentry_sdk
from flask import Flask, request

from service.components import components
from service.data_api import CallFailed
from tests.conftest import Stack
from tests.service.conftest import ENVIRONMENT, MakeApp
from tests.service.outside import Issuer, running_outside

PRIVATE = (
    "ada@example.com",
    "Ada Winter",
    "203.0.113.9",
    "5ecret",
    "cookie-of-ada",
    "user_test",
    "the payload",
    "sb_secret_test",
)


@dataclass
class Sink:
    """A stand-in for Sentry: collects the envelopes that it receives."""

    dsn: str
    raw: list[bytes] = field(default_factory=list)

    def receive(self, _path: str, _headers: object, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.raw.append(gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body)
        return 200, {}, b"{}"

    def items(self, kind: str) -> list[dict[str, Any]]:
        """The events (`event`) or traces (`transaction`) in the envelopes."""
        sentry_sdk.flush(timeout=5)
        found = []
        for envelope in self.raw:
            lines = envelope.splitlines()[1:]
            for header, item in zip(lines[::2], lines[1::2], strict=False):
                if json.loads(header)["type"] == kind:
                    found.append(json.loads(item))
        return found


@pytest.fixture
def sink() -> Iterator[Sink]:
    with running_outside() as server:
        heard = Sink(f"http://public@127.0.0.1:{urlsplit(server.url).port}/1")
        server.answer = heard.receive
        sentry_sdk.get_isolation_scope().clear()  # set by other tests outside a request
        yield heard
        sentry_sdk.flush(timeout=2)
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def app(make_app: MakeApp, sink: Sink, issuer: Issuer) -> Flask:
    """The service with routes that fail while they hold private data."""
    app = make_app(SENTRY_DSN=sink.dsn, SENTRY_TRACES_SAMPLE_RATE="1", RELEASE="1.2.3", CLERK_ISSUER=issuer.url)

    def boom(name: str) -> str:
        local = "Ada Winter"
        components().session_tokens.authenticate(request.headers.get("Authorization"))
        raise RuntimeError(f"{name} {local} ada@example.com 5ecret {request.get_data(as_text=True)}")

    def unavailable(name: str) -> str:
        raise CallFailed("f", "ConnectTimeout", f"{name} 5ecret")

    app.add_url_rule("/people/<name>/boom", "boom", boom, methods=["POST"])
    app.add_url_rule("/people/<name>/unavailable", "unavailable", unavailable)
    return app


def ask(app: Flask, issuer: Issuer, method: str, path: str) -> int:
    headers = {
        "Authorization": f"Bearer {issuer.token(email='ada@example.com')}", "Cookie": "session=cookie-of-ada", "X-Forwarded-For": "203.0.113.9",
        "User-Agent": "Browser of Ada Winter", "X-Request-Id": "r-1",
    }  # fmt: skip
    client = app.test_client(use_cookies=False)
    return client.open(path + "?email=ada@example.com", method=method, headers=headers, data="the payload").status_code


def test_an_unexpected_error_is_reported_with_its_location_and_organization(
    app: Flask, sink: Sink, issuer: Issuer
) -> None:
    assert ask(app, issuer, "POST", "/people/ada@example.com/boom") == 500
    [event] = sink.items("event")
    [error] = event["exception"]["values"]
    assert error["type"] == "RuntimeError"
    assert error["stacktrace"]["frames"][-1]["function"] == "boom"
    assert (event["release"], event["environment"]) == ("1.2.3", "test")
    assert event["transaction"] == "/people/<name>/boom"
    assert event["tags"] == {"organization": "org_test", "request_id": "r-1"}
    assert len(event["user"]["id"]) == 16


def test_server_side_problems_are_reported_with_their_kind(app: Flask, sink: Sink, issuer: Issuer) -> None:
    assert ask(app, issuer, "GET", "/people/ada@example.com/unavailable") == 503
    [event] = sink.items("event")
    assert [each["type"] for each in event["exception"]["values"]] == ["CallFailed", "DatabaseUnavailable"]
    assert event["tags"] == {"problem": "database-unavailable", "code": "ConnectTimeout", "request_id": "r-1"}


def test_client_errors_are_not_reported(app: Flask, sink: Sink) -> None:
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/nothing", "/api/v1/me")] == [404, 401]
    assert client.post("/webhooks/clerk").status_code == 400
    assert sink.items("event") == []


def test_traces_name_routes_and_not_paths(app: Flask, sink: Sink, issuer: Issuer) -> None:
    ask(app, issuer, "POST", "/people/ada@example.com/boom")
    app.test_client().get("/healthz")
    assert [trace["transaction"] for trace in sink.items("transaction")] == ["/people/<name>/boom", "/healthz"]


def test_nothing_private_leaves_the_service(app: Flask, sink: Sink, issuer: Issuer) -> None:
    token = issuer.token()
    ask(app, issuer, "POST", "/people/ada@example.com/boom")
    ask(app, issuer, "GET", "/people/ada@example.com/unavailable")
    app.test_client().get("/ada@example.com/5ecret")
    sink.items("event")
    sent = b"\n".join(sink.raw).decode()
    assert len(sink.raw) >= 4
    assert not [word for word in (*PRIVATE, token) if word in sent]


def test_without_a_dsn_nothing_is_sent(make_app: MakeApp) -> None:
    make_app()
    assert not sentry_sdk.is_initialized()


def test_a_job_checks_in_with_its_schedule_and_nothing_else(make_app: MakeApp, sink: Sink, stack: Stack) -> None:
    app = make_app(**(stack.environment | {"SENTRY_DSN": sink.dsn, "SENTRY_TRACES_SAMPLE_RATE": "1"}))
    headers = {"Authorization": f"Bearer {stack.environment['JOBS_TOKEN']}", "X-Forwarded-For": "203.0.113.9"}
    assert app.test_client().post("/jobs/erasures", headers=headers).status_code == 200
    [check_in] = sink.items("check_in")
    assert (check_in["monitor_slug"], check_in["status"]) == ("ballast-erasures", "ok")
    assert check_in["monitor_config"]["schedule"] == {"type": "interval", "value": 1, "unit": "minute"}
    sent = b"".join(sink.raw).decode()
    assert not [each for each in ("203.0.113.9", stack.environment["JOBS_TOKEN"]) if each in sent]
    known = {"type", "monitor_slug", "check_in_id", "status", "duration", "environment", "release", "monitor_config"}
    assert check_in.keys() == known | {"event_id", "timestamp"}


def test_a_failed_job_checks_in_as_failed(make_app: MakeApp, sink: Sink) -> None:
    app = make_app(SENTRY_DSN=sink.dsn)
    headers = {"Authorization": f"Bearer {ENVIRONMENT['JOBS_TOKEN']}"}
    assert app.test_client().post("/jobs/mail", headers=headers).status_code == 503
    [check_in] = sink.items("check_in")
    assert (check_in["monitor_slug"], check_in["status"]) == ("ballast-mail", "error")
    assert "monitor_config" not in check_in
