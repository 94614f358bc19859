"""The real clients, unmodified: supabase and realtime from PyPI, and supabase-js in Chromium."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates
from supabase import acreate_client

from tests.conftest import ROOT
from tests.realtime.conftest import PATIENCE, Json, Server

SUPABASE_JS = ROOT / "node_modules/@supabase/supabase-js/dist/umd/supabase.js"
NOTES = {"schema": "probe", "table": "notes"}


# --- Python


class Callback:
    """A callback that queues its arguments. It must not raise: then the client would stop calling it."""

    def __init__(self) -> None:
        self._queue = asyncio.Queue[Any]()

    def __call__(self, *arguments: Any) -> None:
        self._queue.put_nowait(arguments[0] if len(arguments) == 1 else arguments)

    async def next(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self._queue.get()


async def subscribe_channel(channel: AsyncRealtimeChannel) -> AsyncRealtimeChannel:
    heard = Callback()
    await channel.subscribe(heard)
    state, error = await heard.next()
    assert (state, error) == (RealtimeSubscribeStates.SUBSCRIBED, None)
    return channel


def run_with_python(
    server: Server, story: Callable[[AsyncRealtimeClient], Awaitable[None]], sub: str = "user_ada"
) -> None:
    """Runs `story` with the asynchronous client of supabase-py, which has a Clerk token of the user."""

    async def run() -> None:
        supabase = await acreate_client(server.url, server.key)
        await supabase.realtime.set_auth(server.clerk_token(sub))
        try:
            await story(supabase.realtime)
        finally:
            await supabase.realtime.close()

    asyncio.run(run())


def test_python_receives_changes(server: Server) -> None:
    async def story(realtime: AsyncRealtimeClient) -> None:
        heard = Callback()
        channel = realtime.channel("db").on_postgres_changes(
            "*", heard, table="notes", schema="probe", filter="id=lt.10"
        )
        await subscribe_channel(channel)
        server.sql(
            "insert into probe.notes (id, owner, title) values (1, 'user_ada', 'One'), (2, 'user_ben', 'x'), (11, 'user_ada', 'x')"
        )
        data = (await heard.next())["data"]
        assert (data["type"], data["record"]["title"]) == ("INSERT", "One")
        server.sql("update probe.notes set title = 'Two' where id = 1")
        data = (await heard.next())["data"]
        assert (data["type"], data["record"]["title"], data["old_record"]) == ("UPDATE", "Two", {"id": 1})
        server.sql("delete from probe.notes where id = 1")
        data = (await heard.next())["data"]
        assert (data["type"], data["old_record"]) == ("DELETE", {"id": 1})

    run_with_python(server, story)


def test_python_sends_and_receives_broadcasts(server: Server) -> None:
    async def story(realtime: AsyncRealtimeClient) -> None:
        heard, settings = (
            Callback(),
            {"config": {"private": True, "broadcast": {"self": True, "ack": True}, "presence": None}},
        )
        channel = await subscribe_channel(realtime.channel("write:1", settings).on_broadcast("said", heard))  # type: ignore[arg-type]
        await channel.send_broadcast("said", {"a": 1})
        assert (await heard.next())["payload"] == {"a": 1}
        server.sql("select realtime.send('{\"b\": 2}', 'said', 'write:1')")
        assert (await heard.next())["payload"]["b"] == 2

    run_with_python(server, story)


def test_python_receives_an_error_for_a_channel_that_it_may_not_join(server: Server) -> None:
    async def story(realtime: AsyncRealtimeClient) -> None:
        heard = Callback()
        await realtime.channel(
            "own:user_ben", {"config": {"private": True, "broadcast": None, "presence": None}}
        ).subscribe(heard)
        state, error = await heard.next()
        assert state == RealtimeSubscribeStates.CHANNEL_ERROR
        assert "You do not have permissions to read" in str(error)

    run_with_python(server, story)


def test_python_receives_presence(server: Server) -> None:
    async def story(realtime: AsyncRealtimeClient) -> None:
        synced, joined, left = Callback(), Callback(), Callback()
        channel = realtime.channel("room").on_presence_sync(synced).on_presence_join(joined).on_presence_leave(left)
        await subscribe_channel(channel)
        await channel.track({"name": "Ada"})
        key, _, [meta] = await joined.next()
        assert meta["name"] == "Ada"
        other = server.client()
        other.join("room", presence={"key": "ben", "enabled": True})
        other.ask("realtime:room", "presence", {"event": "track", "payload": {"name": "Ben"}})
        assert (await joined.next())[0] == "ben"
        assert channel.presence_state().keys() == {key, "ben"}
        other.connection.close()
        assert (await left.next())[0] == "ben"

    run_with_python(server, story)


def test_python_keeps_a_channel_with_a_new_token_and_loses_it_when_the_token_expires(server: Server) -> None:
    async def story(realtime: AsyncRealtimeClient) -> None:
        heard, states = Callback(), Callback()
        await realtime.set_auth(server.clerk_token("user_ada", lifetime=3))
        channel = realtime.channel("db").on_postgres_changes("*", heard, table="notes", schema="probe")
        await channel.subscribe(states)
        assert (await states.next())[0] == RealtimeSubscribeStates.SUBSCRIBED
        await realtime.set_auth(server.clerk_token("user_ada", lifetime=6))
        await asyncio.sleep(4)  # until the first token has expired
        server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
        assert (await heard.next())["data"]["record"]["id"] == 1
        assert (await states.next())[0] in (RealtimeSubscribeStates.CHANNEL_ERROR, RealtimeSubscribeStates.CLOSED)

    run_with_python(server, story)


# --- supabase-js


@pytest.fixture
def page(server: Server, chromium: Browser) -> Iterator[Page]:
    """An empty page with supabase-js and a `client`. `hear(kind)` is a callback that appends its argument to `heard`."""
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.add_script_tag(path=SUPABASE_JS)
    page.evaluate(
        """([url, key, token]) => {
          globalThis.token = token;
          globalThis.heard = [];
          globalThis.client = supabase.createClient(url, key, { accessToken: async () => globalThis.token });
          globalThis.hear = (kind) => (argument) => heard.push({ kind, argument });
        }""",
        [server.url, server.key, server.clerk_token("user_ada")],
    )
    yield page
    context.close()


def subscribe(page: Page, setup: str) -> None:
    """Creates `channel` with an expression that may use `client` and `hear`, and waits until it is subscribed."""
    page.evaluate(
        f"globalThis.channel = {setup}; channel.subscribe((state, error) => hear('state')({{ state, error: error?.message }}))"
    )
    assert next_heard(page, "state")["state"] == "SUBSCRIBED"


def next_heard(page: Page, kind: str) -> Any:
    """The argument of the next call of this callback."""
    page.wait_for_function("kind => heard.some((each) => each.kind === kind)", arg=kind)
    return page.evaluate("kind => heard.splice(heard.findIndex((each) => each.kind === kind), 1)[0].argument", kind)


def test_javascript_receives_changes(server: Server, page: Page) -> None:
    wanted = json.dumps(NOTES | {"event": "*", "filter": "id=lt.10"})
    subscribe(page, f"client.channel('db').on('postgres_changes', {wanted}, hear('change'))")
    server.sql(
        "insert into probe.notes (id, owner, title) values (1, 'user_ada', 'One'), (2, 'user_ben', 'x'), (11, 'user_ada', 'x')"
    )
    change = next_heard(page, "change")
    assert (change["eventType"], change["new"]["title"], change["errors"]) == ("INSERT", "One", None)
    server.sql("update probe.notes set amount = 1.5, tags = '{a,b}', done = true where id = 1")
    change = next_heard(page, "change")
    assert (change["new"]["amount"], change["new"]["tags"], change["new"]["done"], change["old"]) == (
        1.5,
        ["a", "b"],
        True,
        {"id": 1},
    )
    server.sql("delete from probe.notes where id = 1")
    change = next_heard(page, "change")
    assert (change["eventType"], change["old"], change["new"]) == ("DELETE", {"id": 1}, {})


def test_javascript_sends_and_receives_broadcasts_as_text_and_binary(server: Server, page: Page) -> None:
    other = server.client(server.project_token(sub="user_ben"), version=1)
    other.join("write:1", private=True)
    settings = "{ config: { private: true, broadcast: { self: true, ack: true } } }"
    subscribe(page, f"client.channel('write:1', {settings}).on('broadcast', {{ event: '*' }}, hear('broadcast'))")
    assert page.evaluate("channel.send({ type: 'broadcast', event: 'said', payload: { a: 'é' } })") == "ok"
    assert next_heard(page, "broadcast")["payload"] == {"a": "é"}
    assert other.broadcast("write:1")["payload"] == {"a": "é"}
    other.send("realtime:write:1", "broadcast", {"type": "broadcast", "event": "answered", "payload": {"b": 1}})
    assert next_heard(page, "broadcast")["event"] == "answered"
    assert (
        page.evaluate("channel.send({ type: 'broadcast', event: 'bytes', payload: new Uint8Array([0, 255]).buffer })")
        == "ok"
    )
    page.wait_for_function("heard.some((each) => each.kind === 'broadcast')")
    assert page.evaluate("[...new Uint8Array(heard.shift().argument.payload)]") == [0, 255]
    server.sql("select realtime.send('{\"c\": 3}', 'from_sql', 'write:1')")
    broadcast = next_heard(page, "broadcast")
    assert (broadcast["event"], broadcast["payload"]["c"], broadcast["meta"].keys()) == ("from_sql", 3, {"id"})


def test_javascript_sends_by_rest_before_it_has_joined(server: Server, page: Page) -> None:
    other = server.client(server.project_token(sub="user_ben"))
    other.join("write:1", private=True)
    sent = page.evaluate("client.channel('write:1', { config: { private: true } }).httpSend('said', { a: 1 })")
    assert sent["success"] is True
    assert other.broadcast("write:1")["payload"] == {"a": 1}


def test_javascript_receives_an_error_for_a_channel_that_it_may_not_join(page: Page) -> None:
    page.evaluate(
        "client.channel('own:user_ben', { config: { private: true } }).subscribe((state, error) => hear('state')({ state, error: error?.message }))"
    )
    state = next_heard(page, "state")
    assert state["state"] == "CHANNEL_ERROR"
    assert "You do not have permissions to read" in state["error"]


def test_javascript_receives_presence(server: Server, page: Page) -> None:
    subscribe(
        page,
        "client.channel('room', { config: { presence: { key: 'ada' } } })"
        ".on('presence', { event: 'join' }, hear('join')).on('presence', { event: 'leave' }, hear('leave'))",
    )
    assert page.evaluate("channel.track({ name: 'Ada' })") == "ok"
    assert next_heard(page, "join")["newPresences"][0]["name"] == "Ada"
    other = server.client()
    other.join("room", presence={"key": "ben", "enabled": True})
    assert other.event("presence_state", "room").keys() == {"ada"}
    other.ask("realtime:room", "presence", {"event": "track", "payload": {}})
    assert next_heard(page, "join")["key"] == "ben"
    other.connection.close()
    assert next_heard(page, "leave")["key"] == "ben"
    assert page.evaluate("Object.keys(channel.presenceState())") == ["ada"]


def test_javascript_keeps_a_channel_with_new_tokens(server: Server, page: Page) -> None:
    wanted = json.dumps(NOTES | {"event": "*"})
    page.evaluate("token => { globalThis.token = token }", server.clerk_token("user_ada", lifetime=2))
    subscribe(
        page,
        f"client.channel('db').on('postgres_changes', {wanted}, hear('change')).on('system', {{}}, hear('system'))",
    )
    page.evaluate(
        "token => { globalThis.token = token; return client.realtime.setAuth() }",
        server.clerk_token("user_ada", lifetime=4),
    )
    page.wait_for_timeout(2000)  # until the first token has expired
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    assert next_heard(page, "change")["new"]["id"] == 1
    system: Json = {}
    while system.get("status") != "error":
        system = next_heard(page, "system")
    assert system["message"].startswith("Token has expired")
    assert next_heard(page, "state")["state"] in ("CHANNEL_ERROR", "CLOSED")


def test_javascript_reconnects_by_itself(server: Server, page: Page) -> None:
    wanted = json.dumps(NOTES | {"event": "*"})
    subscribe(page, f"client.channel('db').on('postgres_changes', {wanted}, hear('change'))")
    server.run(server.realtime.disconnect_clients())
    states = [next_heard(page, "state")["state"]]
    while states[-1] != "SUBSCRIBED":
        states.append(next_heard(page, "state")["state"])
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    assert next_heard(page, "change")["new"]["id"] == 1
