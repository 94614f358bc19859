"""A page on another port, as a development server has: an authorized origin works, any other origin reads nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page

from tests.conftest import Stack

ASK = """async ({ CLERK_ISSUER, SERVICE_URL, SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY: apikey }) => {
  const asking = { method: "POST", headers: { "Content-Type": "application/json" } };
  const body = JSON.stringify({ user_id: "user_cleo", organization_id: "org_acme" });
  const { token } = await (await fetch(`${CLERK_ISSUER}/stand-in/tokens`, { ...asking, body })).json();
  const headers = { Authorization: `Bearer ${token}` };
  const me = await fetch(`${SERVICE_URL}/api/v1/me`, { headers: { ...headers, "Cache-Control": "no-cache" } });
  const rows = await fetch(`${SUPABASE_URL}/rest/v1/projects?select=title`, { headers: { ...headers, apikey } });
  return { me: await me.json(), requestId: me.headers.get("X-Request-Id"), rows: await rows.json() };
}"""
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


@pytest.mark.parametrize(("name", "path"), [("CLERK_ISSUER", "/stand-in/people"), ("SERVICE_URL", "/api/v1/me")])
def test_a_page_of_any_other_origin_reads_nothing(chromium: Browser, stack: Stack, name: str, path: str) -> None:
    with page_at(chromium, 0) as page:
        assert page.evaluate(REACH, f"{stack.environment['SUPABASE_URL']}/rest/v1/projects") == "reached"
        assert page.evaluate(REACH, stack.environment[name] + path) == "TypeError"
