"""The demo page: served only where ENVIRONMENT is local, with a strict policy, and without secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from service.routes import demo
from tests.service.conftest import UNUSED_URL, MakeApp

HTTPS = dict.fromkeys(
    ("SUPABASE_URL", "CLERK_ISSUER", "CLERK_API_URL", "UPSTASH_REDIS_REST_URL"), "https://outside.example"
)
FILES = sorted(file.name for file in demo.FOLDER.iterdir())


@pytest.fixture
def local(make_app: MakeApp) -> FlaskClient:
    return make_app(ENVIRONMENT="local", CLERK_ISSUER="http://127.0.0.1:10").test_client()


@pytest.mark.parametrize("environment", ["test", "staging", "production"])
@pytest.mark.parametrize("path", ["/", "/demo/config.json", "/demo/page.js", "/demo/supabase.js"])
def test_outside_local_there_is_no_demo_page(make_app: MakeApp, environment: str, path: str) -> None:
    response = make_app(**HTTPS, ENVIRONMENT=environment).test_client().get(path)
    assert (response.status_code, response.content_type) == (404, "application/problem+json")


def test_the_policy_allows_only_own_files_supabase_and_clerk(local: FlaskClient) -> None:
    response = local.get("/")
    assert (response.status_code, response.content_type) == (200, "text/html; charset=utf-8")
    policy = dict(each.split(" ", 1) for each in response.headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": f"'self' {UNUSED_URL} {UNUSED_URL.replace('http', 'ws')} http://127.0.0.1:10",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", response.text)


@pytest.mark.parametrize("name", [*FILES, "ballast.js", "supabase.js"])
def test_every_file_of_the_page_is_served_with_its_type(local: FlaskClient, name: str) -> None:
    response = local.get(f"/demo/{name}")
    types = {".js": "text/javascript", ".html": "text/html", ".svg": "image/svg+xml"}
    assert (response.status_code, response.mimetype) == (200, types[Path(name).suffix])
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


def test_the_configuration_holds_the_publishable_key_and_no_secret(local: FlaskClient) -> None:
    response = local.get("/demo/config.json")
    assert response.json == {
        "supabase_url": UNUSED_URL,
        "supabase_publishable_key": "sb_publishable_test",
        "clerk_issuer": "http://127.0.0.1:10",
    }
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "..\\app.py", "/etc/passwd", "%2fetc%2fpasswd", "%00", "."],
)
def test_no_other_file_is_served(local: FlaskClient, path: str) -> None:
    assert local.get(f"/demo/{path}").status_code == 404


def test_another_host_name_is_redirected_to_the_origin_that_clerk_accepts(make_app: MakeApp) -> None:
    origin = "http://127.0.0.1:54323"
    client = make_app(ENVIRONMENT="local", CLERK_AUTHORIZED_PARTIES=origin).test_client()
    response = client.get("/", base_url="http://localhost:54323")
    assert (response.status_code, response.headers["Location"]) == (302, f"{origin}/")
    assert client.get("/", base_url=origin).status_code == 200


@pytest.mark.parametrize("path", ["/", "/demo/supabase.js"])
def test_without_supabase_js_a_problem_explains_how_to_install_it(
    local: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(demo, "SUPABASE_JS", tmp_path)
    response = local.get(path)
    assert (response.status_code, response.content_type) == (503, "application/problem+json")
    assert "./scripts/setup" in response.json["detail"]


def test_a_second_authorized_party_does_not_redirect_the_page(make_app: MakeApp) -> None:
    parties = "http://127.0.0.1:54323,http://localhost:5173"
    client = make_app(ENVIRONMENT="local", CLERK_AUTHORIZED_PARTIES=parties).test_client()
    assert client.get("/", base_url="http://127.0.0.1:54323").status_code == 200
