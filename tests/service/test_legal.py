"""The privacy page, the terms and the consent banner as the service serves them; tests/e2e/test_consent.py uses a browser."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from service.data_api import CallFailed, DataApi
from service.privacy_notice import (
    LIFE_SECONDS,
    PROCESSORS,
    RETRY_SECONDS,
    PrivacyNotice,
    Processor,
    read_processors,
)
from tests.service.conftest import MakeApp
from tests.service.outside import HANG_UP, Outside, rest_answer

LINE = {
    "category": "Account", "data": "Name <b>& address</b>", "purpose": "To know you", "lawful_basis": "Contract",
    "retention": "30 days", "erasure": "Deleted",
}  # fmt: skip
PAGES = ["/legal/privacy", "/legal/terms"]


@pytest.fixture
def client(make_app: MakeApp, outside: Outside) -> FlaskClient:
    """The service with a stand-in for the database that has one line for the privacy page."""
    outside.answer = lambda *_: rest_answer([LINE])
    return make_app(SUPABASE_URL=outside.url).test_client()


def test_the_privacy_page_shows_the_registry(online: FlaskClient) -> None:
    text = online.get("/legal/privacy").text
    assert all(
        said in text
        for said in (
            "Name, e-mail address, picture, preferences", "400 days from the day of the entry", "Legitimate interest in security",
            "Made anonymous", "30 days after a message was applied",
        )
    )  # fmt: skip
    assert all(each.name in text and each.where in text and each.policy in text for each in PROCESSORS)
    assert {each.name.split()[0] for each in PROCESSORS} >= {
        "Clerk",
        "Supabase",
        "Upstash",
        "Resend",
        "Sentry",
        "Amazon",
    }


def test_a_product_adds_a_processor_with_a_file(tmp_path: Path) -> None:
    lines = 'purpose = "Payments"\ndata = "Invoices"\nwhere = "Ireland"\npolicy = "https://pay.example"\n'
    file = tmp_path / "pay.toml"
    file.write_text(f'name = "Pay"\n{lines}')
    assert read_processors(tmp_path) == [Processor("Pay", "Payments", "Invoices", "Ireland", "https://pay.example")]
    file.write_text(lines)
    with pytest.raises(TypeError, match="'name'") as refused:
        read_processors(tmp_path)
    assert refused.value.__notes__ == [f"The fields of {file} are: name, purpose, data, where, policy."]
    file.write_text("name = Pay")
    with pytest.raises(ValueError, match="line 1") as unreadable:
        read_processors(tmp_path)
    assert unreadable.value.__notes__ == refused.value.__notes__


@pytest.mark.parametrize("path", PAGES)
def test_each_page_names_the_responsible_company(client: FlaskClient, path: str) -> None:
    text = client.get(path).text
    assert all(
        said in text
        for said in ("Ballast &amp; Sons Ltd", "1 Dock Road", "mailto:privacy@ballast.example", "31 January 2026")
    )
    assert "not complete" not in text


def test_lines_are_grouped_by_category(client: FlaskClient, outside: Outside) -> None:
    others = [LINE | {"category": "Your work", "data": "Projects"}, LINE | {"data": "When you were here"}]
    outside.answer = lambda *_: rest_answer([LINE, *others])
    text = client.get("/legal/privacy").text
    assert re.findall(r'class="category"[^>]*>(.+)</th>', text) == ["Account", "Your work"]
    assert text.index("When you were here") < text.index("Your work") < text.index("Projects")


@pytest.mark.parametrize(
    "right", ["/api/v1/gdpr/export", "/api/v1/gdpr/erasure", "Correction", "Objection", "Complaint"]
)
def test_the_privacy_page_lists_peoples_rights(client: FlaskClient, right: str) -> None:
    assert right in client.get("/legal/privacy").text


def test_registry_texts_are_escaped(client: FlaskClient) -> None:
    assert "Name &lt;b&gt;&amp; address&lt;/b&gt;" in client.get("/legal/privacy").text


@pytest.mark.parametrize("path", PAGES)
def test_missing_settings_are_shown_at_the_top(make_app: MakeApp, outside: Outside, path: str) -> None:
    outside.answer = lambda *_: rest_answer([LINE])
    incomplete = make_app(SUPABASE_URL=outside.url, LEGAL_ADDRESS=None, LEGAL_EFFECTIVE_DATE=None).test_client()
    text = incomplete.get(path).text
    assert "not complete: set LEGAL_ADDRESS, LEGAL_EFFECTIVE_DATE" in text
    assert text.index("not complete") < text.index("<h1>")


@pytest.mark.parametrize("path", PAGES)
def test_the_policy_allows_only_own_files(client: FlaskClient, path: str) -> None:
    response = client.get(path)
    policy = response.headers["Content-Security-Policy"]
    assert response.content_type == "text/html; charset=utf-8"
    assert all(
        rule in policy
        for rule in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'")
    )
    assert "unsafe" not in policy
    assert not re.search(r"<style|<script>|style=|\son\w+=", response.text)


def test_the_notice_is_cached_for_visitors(client: FlaskClient, outside: Outside) -> None:
    for _ in range(3):
        assert client.get("/legal/privacy").status_code == 200
    assert len(outside.requests) == 1


def test_the_page_survives_a_database_outage(outside: Outside) -> None:
    outside.answer = lambda *_: rest_answer([LINE])
    now = 0.0
    notice = PrivacyNotice(DataApi(outside.url, "sb_secret_test").call, lambda: now)
    assert notice.categories() == [("Account", [LINE])]

    outside.answer = lambda *_: HANG_UP
    now = LIFE_SECONDS + 1
    assert notice.categories() == notice.categories() == [("Account", [LINE])]
    assert len(outside.requests) == 2  # not one for each visitor

    outside.answer = lambda *_: rest_answer([LINE | {"category": "New"}])
    now += RETRY_SECONDS
    assert notice.categories()[0][0] == "New"


def test_a_failed_database_is_not_retried_for_every_visitor() -> None:
    asked = []

    def call(function: str, _: object) -> object:
        asked.append(function)
        raise CallFailed(function, "ConnectError")

    notice = PrivacyNotice(call)
    for _ in range(3):
        with pytest.raises(CallFailed, match="privacy_notice: ConnectError"):
            notice.categories()
    assert asked == ["privacy_notice"]


def test_a_cached_notice_is_served_while_a_slow_database_is_read() -> None:
    now = 0.0
    is_asked, may_answer = threading.Event(), threading.Event()

    def call(*_: object) -> object:
        if now:
            is_asked.set()
            assert may_answer.wait(10)
        return [LINE | {"category": f"At {now}"}]

    notice = PrivacyNotice(call, lambda: now)
    notice.categories()
    now = LIFE_SECONDS + 1.0
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(notice.categories)
        assert is_asked.wait(10)
        assert notice.categories()[0][0] == "At 0.0"
        may_answer.set()
        assert slow.result()[0][0] == f"At {now}"


def test_without_a_database_there_is_no_privacy_page(offline: FlaskClient) -> None:
    response = offline.get("/legal/privacy")
    assert (response.status_code, response.json["type"]) == (503, "urn:problem:ballast:database-unavailable")
    assert offline.get("/legal/terms").status_code == 200


@pytest.mark.parametrize(("path", "kind"), [("/consent.js", "text/javascript"), ("/style.css", "text/css")])
def test_files_are_cacheable_and_revalidated_by_etag(offline: FlaskClient, path: str, kind: str) -> None:
    first = offline.get(path)
    assert first.content_type.split(";")[0] == kind
    assert first.headers["Cache-Control"] == "public, max-age=3600"
    again = offline.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_the_banner_is_small_and_embeddable(offline: FlaskClient) -> None:
    response: Any = offline.get("/consent.js")
    assert len(response.data) < 8000
    assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert not re.search(r"innerHTML|document\.write|eval\(|import ", response.text)
