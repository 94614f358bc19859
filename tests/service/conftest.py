"""Fixtures for the service: on the running stack for success, on stand-ins for failures."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import Counter as PrometheusCounter

from scripts.local.stack import product_variables
from service import logs, metrics
from service.app import create_app
from service.logs import JsonLines
from tests.conftest import Stack
from tests.service.outside import OLD_SECRET, SECRET, Issuer, Outside, running_outside

UNUSED_URL = "http://127.0.0.1:9"  # the discard port: nothing listens there

ENVIRONMENT = {
    "ENVIRONMENT": "test",
    "SUPABASE_URL": UNUSED_URL,
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_test",
    "SUPABASE_SECRET_KEY": "sb_secret_test",
    "CLERK_ISSUER": UNUSED_URL,
    "CLERK_WEBHOOK_SECRETS": f"{SECRET},{OLD_SECRET}",
    "CLERK_SECRET_KEY": "sk_test_key",
    "CLERK_API_URL": UNUSED_URL,
    "JOBS_TOKEN": "the scheduler's token, 32 and more",
    "UPSTASH_REDIS_REST_URL": UNUSED_URL,
    "UPSTASH_REDIS_REST_TOKEN": "test",
}

# Only production requires these.
LEGAL = {
    "LEGAL_COMPANY": "Ballast & Sons Ltd",
    "LEGAL_ADDRESS": "1 Dock Road, 12345 Harbour",
    "LEGAL_CONTACT": "privacy@ballast.example",
    "LEGAL_EFFECTIVE_DATE": "2026-01-31",
}

MakeApp = Callable[..., Flask]
Growth = Callable[[], Counter[str]]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Collects the service's log. test_gunicorn.py shows that it goes to stderr."""
    yield io.StringIO()
    for handler in our_handlers():
        logging.root.removeHandler(handler)


@pytest.fixture
def cache_growth() -> Growth:
    """Returns what the cache has counted since the test began."""
    return measure_growth(metrics.CACHE)


@pytest.fixture
def limits_growth() -> Growth:
    """Returns what the limits have counted since the test began."""
    return measure_growth(metrics.LIMITS)


def measure_growth(counter: PrometheusCounter) -> Growth:
    def read() -> Counter[str]:
        samples = [sample for metric in counter.collect() for sample in metric.samples]
        return Counter({each.labels["what"]: int(each.value) for each in samples if each.name.endswith("_total")})

    before = read()
    return lambda: read() - before


def our_handlers() -> list[logging.StreamHandler[io.StringIO]]:
    return [handler for handler in logging.root.handlers if isinstance(handler.formatter, JsonLines)]


def make_in(environment: dict[str, str | None]) -> Flask:
    """Creates the app in an environment, with the values of a product's examples. None removes a variable."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (product_variables() | environment).items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        return create_app()


@pytest.fixture
def make_app(log: io.StringIO) -> MakeApp:
    """Creates apps in the test environment with changes."""

    def make(**changes: str | None) -> Flask:
        app = make_in(ENVIRONMENT | LEGAL | changes)
        for handler in our_handlers():
            handler.setStream(log)
        return app

    return make


@pytest.fixture(scope="session")
def offline_app() -> Flask:
    return make_in(ENVIRONMENT | LEGAL)


@pytest.fixture
def offline(offline_app: Flask, log: io.StringIO) -> FlaskClient:
    """The service without a database, Redis or Clerk."""
    logs.configure()
    for handler in our_handlers():
        handler.setStream(log)
    return offline_app.test_client()


@pytest.fixture
def online(make_app: MakeApp, stack: Stack) -> FlaskClient:
    """The service on the running stack. It also accepts the secret that Svix publishes as an example."""
    secrets = f"{stack.environment['CLERK_WEBHOOK_SECRETS']},{SECRET},{OLD_SECRET}"
    return make_app(**(stack.environment | {"CLERK_WEBHOOK_SECRETS": secrets})).test_client()


@pytest.fixture
def outside() -> Iterator[Outside]:
    with running_outside() as server:
        yield server


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_outside() as server:
        yield Issuer(server)


@pytest.fixture
def log_lines(log: io.StringIO) -> Callable[[], list[dict[str, object]]]:
    """Returns the log lines so far, except the warning that Redis is missing, as it is in most of these tests."""
    lines = lambda: [json.loads(line) for line in log.getvalue().splitlines()]  # noqa: E731
    return lambda: [line for line in lines() if line["message"] != "redis does not answer"]
