"""The demo page stays correct: across lost connections, expired tokens, other tenants and switched organizations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from playwright.sync_api import APIResponse, Route, WebSocket, expect

from tests.conftest import Stack
from tests.e2e.conftest import OpenWindow, Window, membership, organization_id, titles_in
from tests.relay import Relay, relay_to

Connection = psycopg.Connection[Any]
LOST_MESSAGE = "Connection lost, reconnecting"


@pytest.fixture
def relay(stack: Stack) -> Iterator[Relay]:
    """A connection between the browser and Supabase that can be cut."""
    with relay_to(urlsplit(stack.environment["SUPABASE_URL"]).port or 0) as cable:
        yield cable


def open_behind(relay: Relay, window: OpenWindow, stack: Stack) -> Window:
    """A window whose page reaches Supabase through the relay. The page's policy, which allows only the real address, is off."""
    opened = window(bypass_csp=True)

    def rewrite(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | {"supabase_url": f"http://127.0.0.1:{relay.port}"})

    opened.page.route(f"{stack.environment['SERVICE_URL']}/demo/config.json", rewrite)
    return opened.open()


def test_the_list_is_complete_after_the_network_was_down(
    window: OpenWindow, database: Connection, stack: Stack, relay: Relay
) -> None:
    acme = organization_id(database, "org_acme")
    add = "insert into public.projects (organization_id, title) values (%s, %s)"
    for title in ("Stays", "Goes", "Old name"):
        database.execute(add, [acme, title])
    cleo = open_behind(relay, window, stack).sign_in("Cleo Santos")
    expect(cleo.titles).to_have_text(titles_in(database, acme, 10))

    relay.cut()
    expect(cleo.live).to_have_text(LOST_MESSAGE)
    database.execute(add, [acme, "Came meanwhile"])
    database.execute("update public.projects set title = 'New name' where title = 'Old name'")
    database.execute("delete from public.projects where title = 'Goes'")
    relay.repair()

    cleo.expect_live()
    expect(cleo.titles).to_have_text(titles_in(database, acme, 10))
    expect(cleo.alert).to_be_empty()
    database.execute(add, [acme, "Came afterwards"])
    expect(cleo.titles.first).to_have_text("Came afterwards")


def test_a_failed_first_connection_is_shown_and_recovers(window: OpenWindow, stack: Stack, relay: Relay) -> None:
    relay.cut()
    cleo = open_behind(relay, window, stack)
    cleo.page.get_by_role("button", name="Cleo Santos").click()
    expect(cleo.alert).not_to_be_empty()
    relay.repair()
    cleo.expect_live()
    expect(cleo.alert).to_be_empty()


def test_a_broadcast_during_a_query_is_not_overwritten_by_the_older_answer(
    window: OpenWindow, database: Connection, stack: Stack
) -> None:
    acme = organization_id(database, "org_acme")
    database.execute(
        "insert into public.projects (organization_id, title, created_at)"
        " select organization_id, 'On the second page', created_at - interval '1 microsecond'"
        " from public.projects where title = 'Security audit'"
    )
    cleo = window().open().sign_in("Cleo Santos")
    held: list[tuple[Route, APIResponse]] = []

    def hold(route: Route) -> None:
        held.append((route, route.fetch()))

    cleo.page.route(f"{stack.environment['SUPABASE_URL']}/rest/v1/projects?*", hold, times=1)
    cleo.page.get_by_role("button", name="Show more").click()
    cleo.wait_until(lambda: held)
    database.execute("update public.projects set title = 'Renamed' where title = 'On the second page'")
    for title in ("First", "Last"):  # broadcasts arrive in commit order: after the last one, all have arrived
        database.execute("insert into public.projects (organization_id, title) values (%s, %s)", [acme, title])
    expect(cleo.titles.first).to_have_text("Last")
    [(route, older)] = held
    assert "On the second page" in older.text()
    route.fulfill(response=older)
    expected = titles_in(database, acme, 22)
    assert "Renamed" in expected
    expect(cleo.titles).to_have_text(expected)


def shorten_tokens(window: Window, stack: Stack) -> list[str]:
    """Makes the window's tokens live 5 s instead of 60. Returns a list to which each issued token is added."""
    issued: list[str] = []

    def shorten(route: Route) -> None:
        wanted = json.loads(route.request.post_data or "{}") | {"lifetime": 5}
        response = route.fetch(post_data=json.dumps(wanted))
        issued.append(response.json()["token"])
        route.fulfill(response=response)

    window.page.route(f"{stack.environment['CLERK_ISSUER']}/stand-in/tokens", shorten)
    return issued


def test_the_page_stays_live_when_its_tokens_expire(window: OpenWindow, database: Connection, stack: Stack) -> None:
    acme = organization_id(database, "org_acme")
    cleo = window()
    issued = shorten_tokens(cleo, stack)
    cleo.open().sign_in("Cleo Santos")
    first = len(issued)
    # supabase-js asks for a token only every 15 s, so Realtime closes the channels at 5 s and the page rejoins them.
    cleo.wait_until(lambda: LOST_MESSAGE in cleo.live_states() and cleo.live_states()[-1] == "Live")
    assert len(issued) > first
    database.execute("insert into public.projects (organization_id, title) values (%s, 'Still live')", [acme])
    expect(cleo.titles.first).to_have_text("Still live")


def test_concurrent_callers_share_one_token_request(window: OpenWindow, stack: Stack) -> None:
    cleo = window()
    posted: list[str] = []
    cleo.page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    cleo.open().sign_in("Cleo Santos")
    assert posted.count(f"{stack.environment['CLERK_ISSUER']}/stand-in/tokens") == 1


def test_a_tenant_receives_nothing_about_another_tenant(window: OpenWindow, database: Connection) -> None:
    globex = organization_id(database, "org_globex")
    eve, cleo = window(), window().open().sign_in("Cleo Santos")
    wire = Wire(eve)
    eve.open().sign_in("Eve Moreau")
    before = titles_in(database, globex, 10)
    expect(eve.titles).to_have_text(before)

    cleo.create("Acme's own")
    cleo.rename("Acme's own", "Acme's only")
    expect(cleo.project("Acme's only")).to_be_visible()
    # Broadcasts arrive in commit order: once this change has reached Eve, earlier ones would have reached her too.
    database.execute("insert into public.projects (organization_id, title) values (%s, 'Globex''s own')", [globex])
    expect(eve.titles).to_have_text(["Globex's own", *before])
    expect(eve.page.locator("#present-count")).to_have_text("1 online")
    assert "Globex's own" in wire.received
    assert "Acme" not in wire.received


def test_after_a_switch_only_the_new_organization_is_shown_and_subscribed(
    window: OpenWindow, database: Connection
) -> None:
    acme, globex = (organization_id(database, each) for each in ("org_acme", "org_globex"))
    ada = window()
    wire = Wire(ada)
    ada.open().sign_in("Ada Winter")
    for organization in ("Globex", "Acme", "Globex"):
        ada.switch_to(organization)
    expect(ada.page.locator("#role")).to_have_text("viewer")
    ada.expect_live()
    expect(ada.titles).to_have_text(titles_in(database, globex, 10))
    assert {topic.split(":")[2] for topic in wire.list_joined()} == {globex}

    database.execute("insert into public.projects (organization_id, title) values (%s, 'Of Acme')", [acme])
    database.execute("insert into public.projects (organization_id, title) values (%s, 'Of Globex')", [globex])
    expect(ada.titles.first).to_have_text("Of Globex")
    expect(ada.project("Of Acme")).to_have_count(0)

    ada.page.get_by_role("button", name="Sign out").click()
    ada.wait_until(lambda: not wire.list_joined())


JOIN_LEAVE_JOIN = """async ([supabaseUrl, publishableKey, token, organization]) => {
  const { createBallastClient } = await import("/demo/ballast.js");
  const clerk = { session: { getToken: async () => token } };
  const ballast = createBallastClient(clerk, { ...supabase, supabaseUrl, publishableKey });
  const joined = () => new Promise((resolve) => {
    const leave = ballast.listen(organization, "projects:read", { onSubscribed: () => resolve(leave) });
  });
  (await joined())();
  return await Promise.race([joined().then(() => true), new Promise((resolve) => setTimeout(resolve, 5000))]);
}"""


def test_a_topic_can_be_rejoined_while_it_is_still_being_left(
    window: OpenWindow, database: Connection, stack: Stack
) -> None:
    page = window().open().page
    acme = organization_id(database, "org_acme")
    project = [stack.environment[name] for name in ("SUPABASE_URL", "SUPABASE_PUBLISHABLE_KEY")]
    assert page.evaluate(JOIN_LEAVE_JOIN, [*project, stack.token("user_cleo", "org_acme"), acme])


def test_an_answer_that_arrives_after_a_switch_is_not_shown(
    window: OpenWindow, database: Connection, stack: Stack
) -> None:
    acme, globex = (organization_id(database, each) for each in ("org_acme", "org_globex"))
    ada = window()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    ada.page.route(f"{stack.environment['SUPABASE_URL']}/rest/v1/projects?*{acme}*", hold)
    ada.open()
    ada.page.get_by_role("button", name="Ada Winter").click()
    ada.wait_until(lambda: held)
    ada.switch_to("Globex")
    expect(ada.titles).to_have_text(titles_in(database, globex, 10))
    for route in held:
        route.continue_()
    ada.expect_live()
    expect(ada.titles).to_have_text(titles_in(database, globex, 10))


def test_a_removed_member_no_longer_sees_the_organization(window: OpenWindow, clerk: Callable[..., None]) -> None:
    clerk("user.created", id="user_gus", first_name="Gus")
    clerk("organizationMembership.created", **membership("user_gus", "org_acme"))
    gus = window().open().sign_in("Gus")
    expect(gus.member("Gus")).to_contain_text("online")
    clerk("organizationMembership.deleted", **membership("user_gus", "org_acme"))
    expect(gus.alert).to_contain_text("You are not a member of any organization")
    expect(gus.titles).to_have_count(0)
    clerk("user.deleted", id="user_gus")


def test_a_banned_person_sees_nothing_once_the_token_expires(
    window: OpenWindow, clerk: Callable[..., None], stack: Stack
) -> None:
    clerk("user.created", id="user_hal", first_name="Hal")
    clerk("organizationMembership.created", **membership("user_hal", "org_acme"))
    hal = window()
    shorten_tokens(hal, stack)
    hal.open().sign_in("Hal")
    clerk("user.updated", id="user_hal", banned=True)
    expect(hal.alert).to_contain_text("banned, deactivated or deleted", timeout=10_000)
    expect(hal.page.locator("#projects > li, #members > li")).to_have_count(0)
    clerk("user.deleted", id="user_hal")


class Wire:
    """Records the traffic of a window's WebSockets."""

    def __init__(self, window: Window) -> None:
        self.received = ""
        self._joined: dict[WebSocket, set[str]] = {}
        window.page.on("websocket", self._listen)

    def list_joined(self) -> set[str]:
        """The topics that were joined and not left."""
        return set().union(*(topics for socket, topics in self._joined.items() if not socket.is_closed()))

    def _listen(self, socket: WebSocket) -> None:
        self._joined[socket] = set()
        socket.on("framereceived", self._receive)
        socket.on("framesent", lambda frame: self._record_sent(self._joined[socket], frame))

    def _receive(self, frame: str | bytes) -> None:
        self.received += frame if isinstance(frame, str) else frame.decode(errors="replace")

    def _record_sent(self, joined: set[str], frame: str | bytes) -> None:
        if isinstance(frame, str):
            _, _, topic, event, _ = json.loads(frame)
            if event == "phx_join":
                joined.add(topic)
            elif event == "phx_leave":
                joined.discard(topic)
