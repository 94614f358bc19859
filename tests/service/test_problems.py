"""The format of every error response and of every log line."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import datetime

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.exceptions import Gone

from service.jobs import find_jobs
from service.problems import Problem
from service.routes.members import ROLE_KEY
from service.routes.openapi import DOCUMENT
from service.routes.personal_data import CONFIRMATION
from tests.service.conftest import MakeApp

LogLines = Callable[[], list[dict[str, object]]]
PRIVATE = "ada@example.com"


@pytest.fixture
def failing(make_app: MakeApp) -> FlaskClient:
    """The service with routes that fail."""
    app = make_app()

    def raising(error: Exception) -> Callable[[], str]:
        def view() -> str:
            raise error

        return view

    for name, error in {"boom": RuntimeError(PRIVATE), "gone": Gone(PRIVATE)}.items():
        app.add_url_rule(f"/{name}", name, raising(error))
    app.add_url_rule("/people/<name>", "person", lambda name: name)
    app.add_url_rule("/logging", "logging", logs_an_exception)
    return app.test_client()


def logs_an_exception() -> str:
    try:
        raise KeyError(PRIVATE)  # noqa: TRY301
    except KeyError:
        logging.getLogger("some.library").exception("it failed")
    return ""


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", f"/missing/{PRIVATE}", 404, "Not Found"),
        ("DELETE", "/webhooks/clerk", 405, "Method Not Allowed"),
        ("GET", "/webhooks/clerk", 405, "Method Not Allowed"),
        ("BREW", "/healthz", 405, "Method Not Allowed"),
        ("GET", "/gone", 410, "Gone"),
        ("GET", "/boom", 500, "Internal Server Error"),
    ],
)
def test_every_error_is_a_problem_document_without_traces_or_personal_data(
    failing: FlaskClient, method: str, path: str, status: int, title: str
) -> None:
    response = failing.open(path, method=method)
    assert response.content_type == "application/problem+json"
    assert response.json == {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": response.json["detail"],
        "request_id": response.headers["X-Request-Id"],
    }
    assert response.status_code == status
    assert PRIVATE not in response.text
    assert "Traceback" not in response.text


def test_the_answer_to_a_wrong_method_lists_the_allowed_ones(offline: FlaskClient) -> None:
    assert offline.delete("/webhooks/clerk").headers["Allow"] == "OPTIONS, POST"


def test_a_request_is_never_redirected_to_the_host_that_it_names(offline: FlaskClient) -> None:
    response = offline.get("/api//v1/me", headers={"Host": "evil.example"})
    assert (response.status_code, response.headers.get("Location")) == (404, None)


def test_an_unexpected_error_is_logged_with_its_location_and_without_its_text(
    failing: FlaskClient, log_lines: LogLines
) -> None:
    failing.get("/boom")
    error, request = log_lines()
    assert (error["message"], error["error"], request["status"]) == ("unexpected error", "RuntimeError", 500)
    assert "test_problems.py" in str(error["where"])
    assert PRIVATE not in str(error)
    assert error["request_id"] == request["request_id"]


def test_other_loggers_write_json_too_without_exception_texts(failing: FlaskClient, log_lines: LogLines) -> None:
    failing.get("/logging")
    line = log_lines()[0]
    assert (line["logger"], line["level"], line["message"], line["error"]) == (
        "some.library",
        "error",
        "it failed",
        "KeyError",
    )
    assert PRIVATE not in str(line)


def test_a_request_is_logged_with_its_route_but_not_its_path_or_query(
    failing: FlaskClient, log_lines: LogLines
) -> None:
    failing.post("/people/ada?token=5ecret", data=PRIVATE)
    failing.get(f"/people/{PRIVATE}?token=5ecret", headers={"X-Request-Id": "abc"})
    refused, line = log_lines()
    assert refused["status"] == 405
    assert line.keys() == {
        "time", "level", "logger", "message", "request_id", "method", "route", "status", "duration_ms",
    }  # fmt: skip
    assert (line["method"], line["route"], line["status"], line["request_id"]) == ("GET", "/people/<name>", 200, "abc")
    assert 0 <= float(str(line["duration_ms"])) < 1000
    assert datetime.fromisoformat(str(line["time"])).tzinfo is not None
    assert not re.search(f"{PRIVATE}|5ecret", str([refused, line]))


def test_the_log_outside_a_request_has_no_request_id(offline: FlaskClient, log_lines: LogLines) -> None:
    logging.getLogger("service").info("started")
    assert "request_id" not in log_lines()[0]


@pytest.mark.parametrize("given", ["a", "Az09._-", "x" * 64])
def test_a_well_formed_request_id_is_kept(offline: FlaskClient, given: str) -> None:
    assert offline.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", 'quote"', "\xe9", "a/b", "a,b", "<b>"])
def test_a_malformed_request_id_is_replaced(offline: FlaskClient, given: str) -> None:
    made = [offline.get("/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"] for _ in range(2)]
    assert re.fullmatch("[0-9a-f]{32}", made[0])
    assert len({given, *made}) == 3


PATHS = ("/healthz", "/readyz", "/openapi.json", "/nothing", "/boom", "/api/v1/me", "/legal/terms", "/consent.js")


@pytest.mark.parametrize("path", PATHS)
def test_responses_forbid_sniffing_framing_referrers_and_devices(failing: FlaskClient, path: str) -> None:
    headers = failing.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert {"camera=()", "geolocation=()", "microphone=()"} <= set(headers["Permissions-Policy"].split(", "))


@pytest.mark.parametrize("path", PATHS[:-1])
def test_responses_forbid_storing_unless_they_concern_no_caller(failing: FlaskClient, path: str) -> None:
    assert failing.get(path).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("environment", "expected"),
    [("local", None), ("test", None), ("staging", "max-age=31536000"), ("production", "max-age=31536000")],
)
def test_browsers_must_use_https_except_where_the_service_has_none(
    make_app: MakeApp, environment: str, expected: str | None, path: str
) -> None:
    urls = ("SUPABASE_URL", "CLERK_ISSUER", "CLERK_API_URL", "UPSTASH_REDIS_REST_URL")
    client = make_app(ENVIRONMENT=environment, **dict.fromkeys(urls, "https://127.0.0.1:9")).test_client()
    assert client.get(path).headers.get("Strict-Transport-Security") == expected


def problem_classes() -> set[type[Problem]]:
    return set(Problem.__subclasses__())


def test_every_problem_has_a_unique_slug() -> None:
    assert len({problem.slug for problem in problem_classes()}) == len(problem_classes()) > 5


def test_the_openapi_document_lists_exactly_the_routes(make_app: MakeApp) -> None:
    app: Flask = make_app()
    document = app.test_client().get("/openapi.json").json
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    routed = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods or set()
        if method not in {"HEAD", "OPTIONS"}
    }
    assert described == routed


def test_the_openapi_document_states_the_accepted_jobs_roles_and_confirmation() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert DOCUMENT["paths"]["/jobs/{name}"]["post"]["parameters"][0]["schema"]["enum"] == list(find_jobs())
    assert schemas["Confirmation"]["properties"]["confirmation"]["const"] == CONFIRMATION
    assert schemas["RoleKey"]["pattern"] == f"^{ROLE_KEY.pattern}$"
    for name in ("Invitation", "InvitationSent"):
        assert schemas[name]["properties"]["role"] == {"$ref": "#/components/schemas/RoleKey"}


def test_the_openapi_document_has_429_where_a_limit_applies() -> None:
    documented = {
        path: {"429" in method["responses"] for method in methods.values()}
        for path, methods in DOCUMENT["paths"].items()
    }
    assert documented == {path: {path not in {"/healthz", "/readyz"}} for path in DOCUMENT["paths"]}


def test_the_openapi_document_has_no_dangling_references(offline: FlaskClient) -> None:
    response = offline.get("/openapi.json")
    schemas = response.json["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", response.text)) == schemas.keys()
