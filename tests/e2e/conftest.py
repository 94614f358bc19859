"""Fixtures for the demo page in Chromium: each window is one person.

Every test restores the database, except the audit trail.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from scripts.cli import clerk as sending
from tests.conftest import ROOT, Stack

SCREENSHOTS = ROOT / "artefacts/screenshots"
SCREENSHOTS.mkdir(parents=True, exist_ok=True)
expect.set_options(timeout=15_000)  # supabase-js waits up to 5 s before it tries again
# Records every state of the indicator: polling would miss two quick changes.
REMEMBER_LIVE_STATES = """
  globalThis.liveStates = [];
  addEventListener("DOMContentLoaded", () => {
    const live = document.getElementById("live");
    new MutationObserver(() => liveStates.push(live.textContent)).observe(live, { childList: true });
  });
"""


# All tests start with a stored consent choice, except tests/e2e/test_consent.py.
REFUSE_CONSENT = """
  localStorage.setItem("consent", JSON.stringify({ version: "1", at: "2026-01-01T00:00:00.000Z", choices: {} }));
"""


@dataclass
class Window:
    """A window with the demo page. `errors` are the console's errors and warnings, such as policy violations."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda said: self._record_complaint(said.type, said.text))
        self.page.on("pageerror", lambda error: self._record_complaint("error", str(error)))
        self.page.add_init_script(REMEMBER_LIVE_STATES + REFUSE_CONSENT)

    def _record_complaint(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.errors.append(text)

    def open(self) -> Window:
        self.page.goto("/")
        return self

    def sign_in(self, name: str, *, second_factor: bool = True) -> Window:
        """Signs in and waits until the page is live and shows its projects."""
        switch = self.page.get_by_role("switch", name="Second factor verified")
        switch.set_checked(second_factor)
        self.page.get_by_role("button", name=name).click()
        self.expect_live()
        return self

    def expect_live(self) -> None:
        expect(self.live).to_have_text("Live")
        expect(self.page.locator("#project-count")).not_to_be_empty()

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Lets the page run until the condition holds, for conditions that Playwright cannot wait for."""
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true within 15 s"
            self.page.wait_for_timeout(20)

    def live_states(self) -> list[str]:
        """All texts of the live indicator since the page was opened."""
        states: list[str] = self.page.evaluate("globalThis.liveStates")
        return states

    @property
    def live(self) -> Locator:
        return self.page.locator("#live")

    @property
    def alert(self) -> Locator:
        return self.page.get_by_role("alert")

    @property
    def titles(self) -> Locator:
        return self.page.locator("#projects [data-slot=title]")

    def project(self, title: str) -> Locator:
        exactly = self.page.locator("[data-slot=title]", has_text=re.compile(f"^{re.escape(title)}$"))
        return self.page.locator("#projects > li").filter(has=exactly)

    def member(self, name: str) -> Locator:
        return self.page.locator("#members > li").filter(has_text=name)

    def create(self, title: str) -> None:
        self.page.get_by_label("Title of the new project").fill(title)
        self.page.get_by_role("button", name="Create").click()

    def rename(self, title: str, to: str) -> None:
        row = self.project(title)
        row.get_by_role("button", name="Rename").click()
        renaming = self.page.locator("#projects > li[data-mode=renaming]")
        renaming.get_by_label("New title").fill(to)
        renaming.get_by_role("button", name="Save").click()

    def delete(self, title: str) -> None:
        row = self.project(title)
        row.get_by_role("button", name=f"Delete {title}").click()
        row.get_by_role("button", name="Delete", exact=True).click()

    def switch_to(self, organization: str) -> None:
        self.page.get_by_role("combobox", name="Organization").select_option(organization)

    def show_all_actions(self) -> None:
        self.page.get_by_role("switch", name="Show actions I am not allowed to do").check()


OpenWindow = Callable[..., Window]


@pytest.fixture
def window(chromium: Browser, stack: Stack, request: pytest.FixtureRequest) -> Iterator[OpenWindow]:
    """Opens windows, with the options of Playwright's new_context. Takes a screenshot of each at the end."""
    windows: list[Window] = []

    def make(**options: Any) -> Window:
        context = chromium.new_context(base_url=stack.environment["SERVICE_URL"], **options)
        opened = Window(context.new_page())
        windows.append(opened)
        return opened

    yield make
    for number, each in enumerate(windows, 1):
        each.page.screenshot(path=SCREENSHOTS / f"{request.node.name}-{number}.png")
        each.page.context.close()


@pytest.fixture
def database(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    """A connection as postgres, with autocommit. Afterwards it deletes new projects and checks the others."""
    everything = "select id::text, to_jsonb(p) from public.projects as p"
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        before = dict(connection.execute(everything).fetchall())
        yield connection
        connection.execute("delete from public.projects where id::text <> all(%s)", [list(before)])
        assert dict(connection.execute(everything).fetchall()) == before


@pytest.fixture
def clerk(stack: Stack) -> Callable[..., None]:
    """Sends a signed Clerk event, as `ballast clerk send` does."""

    def send(event_type: str, **data: Any) -> None:
        answer = sending.send(stack.environment, event_type, data)
        assert answer["outcome"] == "processed"

    return send


def organization_id(database: psycopg.Connection[Any], clerk_id: str) -> str:
    row = database.execute("select id::text from public.organizations where clerk_org_id = %s", [clerk_id]).fetchone()
    assert row is not None
    return str(row[0])


def titles_in(database: psycopg.Connection[Any], organization: str, limit: int = 1000) -> list[str]:
    """The organization's titles, newest first."""
    rows = database.execute(
        "select title from public.projects where organization_id = %s order by created_at desc, id desc limit %s",
        [organization, limit],
    )
    return [title for (title,) in rows.fetchall()]


def membership(user: str, organization: str, **more: Any) -> dict[str, Any]:
    """The data of a Clerk event about this membership."""
    return {"public_user_data": {"user_id": user}, "organization": {"id": organization}, **more}
