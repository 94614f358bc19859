"""A page on another port, as a development server has: an authorized origin works, any other origin reads nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from playwright.sync_api import Browser, Error, Page

from service.routes.personal_data import CONFIRMATION
from tests.conftest import Stack

Connection = psycopg.Connection[Any]

ASK = """async ({ CLERK_ISSUER, SERVICE_URL, SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY: apikey }) => {
  const asking = { method: "POST", headers: { "Content-Type": "application/json" } };
  const body = JSON.stringify({ user_id: "user_cleo", organization_id: "org_acme" });
  const { token } = await (await fetch(`${CLERK_ISSUER}/stand-in/tokens`, { ...asking, body })).json();
  const headers = { Authorization: `Bearer ${token}` };
  const me = await fetch(`${SERVICE_URL}/api/v1/me`, { headers: { ...headers, "Cache-Control": "no-cache" } });
  const rows = await fetch(`${SUPABASE_URL}/rest/v1/projects?select=title`, { headers: { ...headers, apikey } });
  return { me: await me.json(), requestId: me.headers.get("X-Request-Id"), rows: await rows.json() };
}"""
# Every header of an answer that the page may read, and its body.
FETCH = """async ({ url, token, method = "GET", body }) => {
  const headers = { Authorization: `Bearer ${token}`, ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
  return { status: answer.status, headers: Object.fromEntries(answer.headers), text: await answer.text() };
}"""
NEWCOMER = "user_other_origin"
REACH = "async (url) => await fetch(url).then(() => 'reached', (error) => error.name)"


class BlankPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Page</title>")

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@contextmanager
def page_at(chromium: Browser, port: int) -> Iterator[Page]:
    """A blank page at http://localhost on that port; 0 means any free port."""
    with ThreadingHTTPServer(("127.0.0.1", port), BlankPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = chromium.new_page()
        page.goto(f"http://localhost:{server.server_port}/")
        yield page
        page.close()
        server.shutdown()


def test_a_page_of_an_authorized_party_signs_in_and_reads(chromium: Browser, stack: Stack) -> None:
    port = urlsplit(stack.other_origin).port
    assert port is not None
    with page_at(chromium, port) as page:
        read = page.evaluate(ASK, stack.environment)
    assert read["me"]["profile"]["clerk_user_id"] == "user_cleo"
    assert read["requestId"]
    assert len(read["rows"]) == 25


@pytest.fixture
def product(chromium: Browser, stack: Stack) -> Iterator[Page]:
    """A page of the authorized party."""
    port = urlsplit(stack.other_origin).port
    assert port is not None
    with page_at(chromium, port) as page:
        yield page


def ask(page: Page, stack: Stack, path: str, person: str = "user_ada", **options: object) -> dict[str, Any]:
    """What the page gets from the service: its status, readable headers and text."""
    organization = None if person == NEWCOMER else "org_acme"
    token = stack.token(person, organization, claims={"azp": stack.other_origin})
    answer: dict[str, Any] = page.evaluate(
        FETCH, {"url": stack.environment["SERVICE_URL"] + path, "token": token} | options
    )
    assert {"ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "x-request-id"} <= answer["headers"].keys()
    return answer


@pytest.fixture
def acme(database: Connection) -> str:
    """The path of an organization in the API."""
    [(organization_id,)] = database.execute("select id from public.organizations where clerk_org_id = 'org_acme'")
    return f"/api/v1/organizations/{organization_id}"


def test_it_downloads_the_persons_data_and_reads_when_it_may_again(product: Page, stack: Stack) -> None:
    export, again = (ask(product, stack, "/api/v1/gdpr/export", "user_dee") for _ in range(2))
    assert (export["status"], json.loads(export["text"])["schema_version"]) == (200, 1)
    assert "user-data-" in export["headers"]["content-disposition"]
    assert (again["status"], json.loads(again["text"])["type"]) == (429, "urn:problem:ballast:export-too-soon")
    assert int(again["headers"]["retry-after"]) > 3000


def test_it_downloads_the_audit_trail(product: Page, stack: Stack, acme: str) -> None:
    file = ask(product, stack, f"{acme}/audit.csv?separator=semicolon")
    assert (file["status"], file["text"].partition(";")[0]) == (200, "id")
    assert 'filename="audit-' in file["headers"]["content-disposition"]


def test_it_invites_and_reads_why_an_invitation_is_refused(product: Page, stack: Stack, acme: str) -> None:
    url, email = f"{acme}/invitations", "other-origin@example.com"
    sent, malformed = (
        ask(product, stack, url, method="POST", body={"email": email, "role": role}) for role in ("viewer", "emperor")
    )
    assert (sent["status"], json.loads(sent["text"])["role"]) == (202, "viewer")
    assert (malformed["status"], malformed["headers"]["content-type"]) == (400, "application/problem+json")
    assert json.loads(malformed["text"])["type"] == "urn:problem:ballast:invitation-malformed"


def test_it_erases_the_person_and_follows_the_erasure(product: Page, stack: Stack) -> None:
    assert stack.ballast("clerk", "send", "user.created", "--data", json.dumps({"id": NEWCOMER})).returncode == 0
    url = "/api/v1/gdpr/erasure"
    unconfirmed = ask(product, stack, url, NEWCOMER, method="POST", body={})
    erased = ask(product, stack, url, NEWCOMER, method="POST", body={"confirmation": CONFIRMATION})
    assert json.loads(unconfirmed["text"])["type"] == "urn:problem:ballast:confirmation-missing"
    assert erased["status"] == 202
    shown = ask(product, stack, erased["headers"]["location"], NEWCOMER)
    assert json.loads(shown["text"])["receipt"] == json.loads(erased["text"])["receipt"]


ROUTES = ("/api/v1/me", "/api/v1/gdpr/export", "/api/v1/gdpr/erasure", "{acme}/audit.csv", "{acme}/invitations")


@pytest.mark.parametrize("path", ROUTES)
def test_a_page_of_any_other_origin_reads_no_route(chromium: Browser, stack: Stack, acme: str, path: str) -> None:
    url = stack.environment["SERVICE_URL"] + path.format(acme=acme)
    options = {"url": url, "token": stack.token("user_ada", "org_acme")}
    with page_at(chromium, 0) as page, pytest.raises(Error, match="Failed to fetch"):
        page.evaluate(FETCH, options)


@pytest.mark.parametrize(("name", "path"), [("CLERK_ISSUER", "/stand-in/people"), ("SERVICE_URL", "/api/v1/me")])
def test_a_page_of_any_other_origin_reads_nothing(chromium: Browser, stack: Stack, name: str, path: str) -> None:
    with page_at(chromium, 0) as page:
        assert page.evaluate(REACH, f"{stack.environment['SUPABASE_URL']}/rest/v1/projects") == "reached"
        assert page.evaluate(REACH, stack.environment[name] + path) == "TypeError"
