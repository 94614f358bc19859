"""The consent banner in Chromium, on the demo page, the legal pages and a page of another origin; and a person's own data."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.conftest import Stack
from tests.e2e.conftest import SCREENSHOTS, OpenWindow, membership
from tests.e2e.test_accessibility import FIND_ILLEGIBLE, PHONE

pytestmark = pytest.mark.thorough

LISTEN = """
  globalThis.answers = [];
  document.addEventListener("consent", ({ detail }) => answers.push(detail));
  globalThis.violations = [];
  document.addEventListener("securitypolicyviolation", ({ blockedURI, violatedDirective }) => violations.push([violatedDirective, blockedURI]));
"""
SIZES: dict[str, Any] = {"desktop": {"width": 1200, "height": 800}, "phone": PHONE}
LEGAL_PAGES = ["/legal/privacy", "/legal/terms"]
NO_CONSENT = {"analytics": False, "marketing": False}


@pytest.fixture
def page(chromium: Browser, stack: Stack) -> Iterator[Page]:
    """A window without a stored choice."""
    with chromium.new_context(base_url=stack.environment["SERVICE_URL"]) as context:
        context.add_init_script(LISTEN)
        yield context.new_page()


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Your privacy")


def read_consent(page: Page) -> Any:
    return json.loads(page.evaluate("localStorage.getItem('consent')") or "null")


def press(page: Page, name: str) -> None:
    dialog(page).get_by_role("button", name=name).click()


# --- the choice


@pytest.mark.parametrize("path", ["/", "/legal/privacy"])
def test_before_a_choice_nothing_is_stored_or_allowed(page: Page, path: str) -> None:
    page.goto(path)
    expect(dialog(page)).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert page.evaluate("['analytics', 'marketing', 'essential', 'other'].map(consent.allows)") == [
        False,
        False,
        True,
        False,
    ]
    assert page.evaluate("answers") == []
    assert page.evaluate("violations") == []


@pytest.mark.parametrize(("button", "allowed"), [("Refuse all", False), ("Accept all", True)])
def test_one_click_refuses_or_accepts_and_is_remembered(page: Page, button: str, allowed: bool) -> None:
    page.goto("/legal/terms")
    press(page, button)
    expect(dialog(page)).to_be_hidden()
    choices = dict.fromkeys(NO_CONSENT, allowed)
    answer = read_consent(page)
    assert (answer["version"], answer["choices"]) == ("1", choices)
    assert answer["at"].endswith("Z")
    assert page.evaluate("answers") == [choices]
    page.reload()
    expect(dialog(page)).to_be_hidden()
    assert page.evaluate("[answers, consent.choices]") == [[choices], choices]


def test_refusing_looks_the_same_as_accepting(page: Page) -> None:
    page.goto("/legal/terms")
    looks = "(each) => { const { color, backgroundColor, fontSize, fontWeight, border, padding } = getComputedStyle(each); return [color, backgroundColor, fontSize, fontWeight, border, padding, each.offsetWidth, each.offsetHeight]; }"
    refuse, accept = (dialog(page).get_by_role("button", name=name) for name in ("Refuse all", "Accept all"))
    assert refuse.evaluate(looks) == accept.evaluate(looks)


def test_categories_are_chosen_one_by_one_and_start_off(page: Page) -> None:
    page.goto("/legal/terms")
    press(page, "Choose")
    switches = dialog(page).get_by_role("switch")
    assert [each.is_checked() for each in switches.all()] == [True, False, False]
    expect(dialog(page).get_by_role("switch", name="Essential")).to_be_disabled()
    dialog(page).get_by_role("switch", name="analytics").check()
    press(page, "Save my choice")
    assert read_consent(page)["choices"] == NO_CONSENT | {"analytics": True}
    assert page.evaluate("[consent.allows('analytics'), consent.allows('marketing')]") == [True, False]


def test_another_version_asks_again(page: Page) -> None:
    page.add_init_script(
        "localStorage.setItem('consent', JSON.stringify({version: '0', at: '', choices: {analytics: true}}))"
    )
    page.goto("/legal/terms")
    expect(dialog(page)).to_be_visible()
    assert page.evaluate("consent.allows('analytics')") is False


def test_a_malformed_stored_answer_is_ignored(page: Page) -> None:
    page.goto("/legal/terms")
    with_version = ['{"version": "1"}', '{"version": "1", "choices": null}', '{"version": "1", "choices": 7}']
    for nonsense in ["", "null", "7", "{", *with_version]:
        page.evaluate("(nonsense) => localStorage.setItem('consent', nonsense)", nonsense)
        page.reload()
        expect(dialog(page), nonsense).to_be_visible()
    press(page, "Refuse all")
    page.reload()
    expect(dialog(page)).to_be_hidden()


def test_without_storage_the_answer_applies_to_the_page(page: Page) -> None:
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('blocked', 'SecurityError'); } });"
    )
    page.goto("/legal/terms")
    press(page, "Accept all")
    expect(dialog(page)).to_be_hidden()
    assert page.evaluate("consent.allows('analytics')") is True


# --- accessibility


def test_the_keyboard_reaches_it_first_and_can_do_everything(page: Page) -> None:
    page.goto("/legal/privacy")
    assert page.evaluate("document.activeElement === document.body")  # the banner takes no focus
    focused = "document.activeElement.shadowRoot?.activeElement?.textContent ?? document.activeElement.textContent"
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
    assert reached == ["Privacy policy", "Refuse all", "Accept all", "Choose"]
    page.keyboard.press("Enter")
    page.keyboard.press("Space")  # the first switch has the focus
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Save my choice"
    page.keyboard.press("Enter")
    assert read_consent(page)["choices"] == NO_CONSENT | {"analytics": True}


def test_it_can_be_reopened_and_escape_changes_nothing(page: Page) -> None:
    page.goto("/legal/privacy")
    page.keyboard.press("Escape")
    expect(dialog(page)).to_be_visible()  # Escape is not a choice
    press(page, "Refuse all")
    before = read_consent(page)
    opener = page.get_by_role("button", name="Privacy choices")
    opener.focus()
    page.keyboard.press("Enter")
    expect(dialog(page)).to_be_focused()
    dialog(page).get_by_role("switch", name="marketing").check()
    page.keyboard.press("Escape")
    expect(dialog(page)).to_be_hidden()
    expect(opener).to_be_focused()
    assert read_consent(page) == before
    assert page.evaluate("answers.length") == 1
    assert page.evaluate("violations") == []


def test_before_a_choice_escape_returns_the_focus_and_keeps_the_banner(page: Page) -> None:
    page.goto("/legal/privacy")
    opener = page.get_by_role("button", name="Privacy choices")
    opener.focus()
    page.keyboard.press("Enter")
    expect(dialog(page)).to_be_focused()
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    expect(dialog(page)).to_be_visible()


def test_reopened_it_shows_the_choice_which_can_be_withdrawn(page: Page) -> None:
    page.goto("/legal/privacy")
    press(page, "Accept all")
    page.evaluate("consent.open()")
    switches = dialog(page).get_by_role("switch")
    assert [each.is_checked() for each in switches.all()] == [True, True, True]
    press(page, "Refuse all")
    assert read_consent(page)["choices"] == NO_CONSENT
    assert page.evaluate("answers") == [dict.fromkeys(NO_CONSENT, True), NO_CONSENT]


def test_a_choice_in_one_tab_applies_to_the_others(page: Page) -> None:
    other = page.context.new_page()
    for each in (page, other):
        each.goto("/legal/terms")
    press(other, "Accept all")
    expect(dialog(page)).to_be_hidden()
    assert page.evaluate("[answers, consent.allows('marketing')]") == [[dict.fromkeys(NO_CONSENT, True)], True]


def test_it_respects_reduced_motion(page: Page) -> None:
    page.goto("/legal/terms")
    animation = "(each) => getComputedStyle(each).animationName"
    page.emulate_media(reduced_motion="reduce")
    assert dialog(page).evaluate(animation) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert dialog(page).evaluate(animation) == "rise"


def test_screen_readers_announce_it(page: Page) -> None:
    page.goto("/legal/terms")
    expect(page.get_by_role("status")).to_have_text("Please make your privacy choices at the top of the page.")
    expect(dialog(page)).to_have_accessible_description(
        "We store what this site needs to work. We store anything else only if you agree. Privacy policy"
    )
    press(page, "Refuse all")
    expect(page.get_by_role("status")).to_have_text("Your choice is saved.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_banner_and_the_pages_are_legible_and_fit(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto("/legal/privacy")
    for size, viewport in SIZES.items():
        page.set_viewport_size(viewport)
        page.screenshot(path=SCREENSHOTS / f"consent-{size}-{scheme}-asks.png")
    press(page, "Choose")
    for size, viewport in SIZES.items():
        page.set_viewport_size(viewport)
        page.screenshot(path=SCREENSHOTS / f"consent-{size}-{scheme}.png")
        assert dialog(page).evaluate(FIND_ILLEGIBLE) == []
    press(page, "Save my choice")
    for path in [*LEGAL_PAGES, "/dev/mail"]:
        page.goto(path)
        for size, viewport in SIZES.items():
            page.set_viewport_size(viewport)
            page.screenshot(path=SCREENSHOTS / f"{path.rpartition('/')[2]}-{size}-{scheme}.png", full_page=True)
            assert page.evaluate(FIND_ILLEGIBLE) == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- elsewhere


@contextmanager
def serve_foreign_page(script: str) -> Iterator[str]:
    """A page of another origin with the banner on it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f'<!doctype html><title>Shop</title><p>Shop</p><a href="#" data-consent-open>Cookies</a>{script}'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_any_page_can_embed_it_with_its_own_categories(page: Page, stack: Stack) -> None:
    source = f"{stack.environment['SERVICE_URL']}/consent.js"
    with serve_foreign_page(
        f'<script src="{source}" defer data-categories="maps, chat" data-version="2026"></script>'
    ) as url:
        page.goto(url)
        link = dialog(page).get_by_role("link", name="Privacy policy")
        expect(link).to_have_attribute("href", f"{stack.environment['SERVICE_URL']}/legal/privacy")
        press(page, "Accept all")
        assert read_consent(page)["choices"] == {"maps": True, "chat": True}
        assert read_consent(page)["version"] == "2026"
        page.get_by_role("link", name="Cookies").click()
        expect(dialog(page)).to_be_visible()


def test_the_demo_page_reopens_it_without_policy_violations(window: OpenWindow) -> None:
    opened = window().open()
    opened.page.get_by_role("button", name="Privacy choices").click()
    press(opened.page, "Accept all")
    assert opened.page.evaluate("consent.choices") == dict.fromkeys(NO_CONSENT, True)
    assert opened.errors == []


# --- a person's own data, on the demo page


def test_a_person_downloads_their_data_once(window: OpenWindow, clerk: Any) -> None:
    clerk("user.created", id="user_ivy", first_name="Ivy", last_name="Stone")
    clerk("organizationMembership.created", **membership("user_ivy", "org_acme"))
    ivy = window().open().sign_in("Ivy Stone")
    with ivy.page.expect_download() as waiting:
        ivy.page.get_by_role("button", name="Download my data").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert [row["full_name"] for row in json.loads(archive.read("profile.json"))] == ["Ivy Stone"]
    message = ivy.page.locator("#your-data-message")
    expect(message).to_have_text(f"{waiting.value.suggested_filename} was downloaded.")
    assert ivy.errors == []
    ivy.page.get_by_role("button", name="Download my data").click()
    expect(message).to_contain_text("The last export is less than an hour old, or still running. Try again in")
    clerk("user.deleted", id="user_ivy")


def test_a_sole_owner_sees_why_they_cannot_be_erased(window: OpenWindow) -> None:
    eve = window().open().sign_in("Eve Moreau")
    eve.page.get_by_role("button", name="Erase my account").click()
    expect(eve.page.get_by_role("button", name="Cancel")).to_be_focused()
    eve.page.get_by_role("button", name="Erase", exact=True).click()
    expect(eve.page.locator("#your-data-message")).to_contain_text("You are the only owner of Globex.")


def test_a_person_erases_their_account_and_disappears_for_others(
    window: OpenWindow, clerk: Any, database: psycopg.Connection[Any]
) -> None:
    clerk("user.created", id="user_gone", first_name="Gone", last_name="Tomorrow")
    clerk("organizationMembership.created", **membership("user_gone", "org_acme"))
    ben = window().open().sign_in("Ben Okafor")
    gone = window().open().sign_in("Gone Tomorrow")
    expect(ben.member("Gone Tomorrow")).to_be_visible()
    gone.page.get_by_role("button", name="Erase my account").click()
    gone.page.get_by_role("button", name="Erase", exact=True).click()
    expect(gone.page.get_by_role("heading", name="Sign in as a demo user")).to_be_visible()
    expect(gone.page.locator("#receipt")).to_be_focused()
    receipt = (gone.page.locator("#receipt").text_content() or "").rpartition(" ")[2]
    gone.wait_until(
        lambda: (
            gone.page.evaluate(f"fetch('/api/v1/gdpr/erasure/{receipt}').then((answer) => answer.json())")["state"]
            == "complete"
        )
    )
    expect(ben.member("Gone Tomorrow")).to_be_hidden()
    assert database.execute("select from public.profiles where clerk_user_id = 'user_gone'").rowcount == 0
    expect(ben.page.locator("#audit-entries")).to_contain_text("removed a former member")
    expect(ben.alert).to_be_empty()
