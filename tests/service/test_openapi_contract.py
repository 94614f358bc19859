"""Every route gets requests that its description allows, and many that it forbids. It answers as described, never with a 5xx."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import psycopg
import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from service.routes.openapi import DOCUMENT
from tests.conftest import Stack
from tests.service.conftest import make_in
from tests.service.test_personal_data import as_caller

# A separate person, because the requests may erase them.
PERSON, VICTIM, ANOTHER = "user_contract", "user_contract_erased", "user_contract_refused"
# Redis, PostgREST, Clerk and the outbox belong to the running stack.
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ROUTES = sorted((path, method) for path, methods in DOCUMENT["paths"].items() for method in methods)
# Failures are not shrunk, because that takes minutes.
EACH = settings(
    max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


@pytest.fixture(scope="module")
def app(stack: Stack) -> Iterator[Flask]:
    for person in (PERSON, VICTIM, ANOTHER):
        sent = stack.ballast("clerk", "send", "user.created", "--data", json.dumps({"id": person}))
        assert sent.returncode == 0, sent.stderr
    yield make_in(stack.environment)
    # Started backups run in their own processes.
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if not connection.execute("select from public.backup_logs where status = 'started'").rowcount:
                return
            time.sleep(0.2)


def credentials(stack: Stack, path: str, victim: str) -> dict[str, str]:
    """Credentials for the route, valid for a minute."""
    security = {
        name for method in DOCUMENT["paths"][path].values() for each in method.get("security", []) for name in each
    }
    tokens = {"jobs": "JOBS_TOKEN", "operator": "OPERATOR_TOKEN", "metrics": "METRICS_TOKEN"}
    for name, variable in tokens.items():
        if name in security:
            return as_caller(stack.environment[variable])
    person = victim if path == "/api/v1/gdpr/erasure" else PERSON
    return as_caller(stack.token(person)) if "clerk" in security else {}


@pytest.mark.parametrize("authorized", [True, False], ids=["authorized", "unauthorized"])
@pytest.mark.parametrize(("path", "method"), ROUTES, ids=lambda value: value)
def test_a_route_answers_as_described(stack: Stack, app: Flask, path: str, method: str, authorized: bool) -> None:
    operation = schemathesis.openapi.from_wsgi("/openapi.json", app)[path][method.upper()]
    headers = credentials(stack, path, VICTIM) if authorized else {}

    @EACH
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    def call_and_validate(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=headers, checks=CHECKS)

    call_and_validate()


WITH_INPUT = [
    (path, method)
    for path, method in ROUTES
    if {"parameters", "requestBody"} & (DOCUMENT["paths"][path].keys() | DOCUMENT["paths"][path][method].keys())
]


@pytest.mark.parametrize(("path", "method"), WITH_INPUT, ids=lambda value: value)
def test_a_route_refuses_what_its_description_forbids(stack: Stack, app: Flask, path: str, method: str) -> None:
    operation = schemathesis.openapi.from_wsgi("/openapi.json", app)[path][method.upper()]

    headers = credentials(stack, path, ANOTHER)

    @EACH
    @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def forbidden(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=headers, checks=[*CHECKS, negative_data_rejection])

    forbidden()
