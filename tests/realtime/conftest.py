"""A Realtime server in this process with its own Postgres and Clerk keys, and a client that returns each frame."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import psycopg
import pytest
from aiohttp import web
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from scripts.local.clerk.server import ClerkStandIn, svix
from scripts.local.realtime.protocol import MAX_FRAME_BYTES
from scripts.local.realtime.server import Realtime
from scripts.local.stack import Secrets, Stack
from scripts.scratch.postgres import stop
from tests.conftest import free_port_block
from tests.schema import migrate

Json = dict[str, Any]
PATIENCE = 10.0
VERSIONS = {1: "1.0.0", 2: "2.0.0"}

# One table for each case of Realtime. Notes belong to the `sub` of a token. A token whose `divisor` is not a number makes the policy raise.
TABLES = """
create schema probe;
grant usage on schema probe to anon, authenticated, service_role;
create table probe.notes (
  id integer primary key, owner text, title text, secret text, amount numeric, at timestamptz, day date, tags text[], doc jsonb,
  raw bytea, done boolean, filled text
);
alter table probe.notes enable row level security;
create policy own on probe.notes for select to authenticated
using (owner = current_setting('request.jwt.claims')::jsonb ->> 'sub' and (current_setting('request.jwt.claims')::jsonb ->> 'divisor')::integer / 2 >= 0);
grant select (id, owner, title, amount, at, day, tags, doc, raw, done, filled) on probe.notes to authenticated;
create table probe.open (id integer primary key, title text, hidden text);
grant select (id, title) on probe.open to anon, authenticated;
alter table probe.open replica identity full;
create table probe.keyless (title text);
grant select on probe.keyless to authenticated;
alter table probe.keyless replica identity full;
create table probe.unreadable_key (id integer primary key, title text);
grant select (title) on probe.unreadable_key to authenticated;
create table probe.unpublished (id integer primary key);
create table probe.full_identity (id integer primary key, title text);
alter table probe.full_identity enable row level security, replica identity full;
create policy all_rows on probe.full_identity for select to authenticated using (true);
grant select on probe.full_identity to authenticated;
alter publication supabase_realtime add table probe.notes, probe.open, probe.keyless, probe.unreadable_key, probe.full_identity;
-- Access to private topics: all users may read read:* and write:*, and write to write:*. own:<sub> is for one user. The policy raises
-- for odd:* (reading) and read:odd* (writing) if `sub` is not a number.
create policy probe_read on realtime.messages for select to authenticated
using (
  realtime.topic() like 'read:%' or realtime.topic() like 'write:%'
  or realtime.topic() = 'own:' || (current_setting('request.jwt.claims')::jsonb ->> 'sub')
  or (realtime.topic() like 'odd:%' and (current_setting('request.jwt.claims')::jsonb ->> 'sub')::integer > 0)
);
create policy probe_write on realtime.messages for insert to authenticated
with check (
  realtime.topic() like 'write:%'
  or (realtime.topic() like 'read:odd%' and (current_setting('request.jwt.claims')::jsonb ->> 'sub')::integer > 0)
);
"""


@dataclass
class Server:
    """A running Realtime. `url` is the project's URL for clients."""

    stack: Stack
    realtime: Realtime
    clerk: ClerkStandIn
    process: subprocess.Popen[bytes]
    loop: asyncio.AbstractEventLoop
    clients: list[Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.stack.environment()["SUPABASE_URL"]

    @property
    def key(self) -> str:
        return self.stack.secrets.publishable_key

    def project_token(self, role: str = "authenticated", lifetime: int = 600, **claims: object) -> str:
        """A token signed with the project's secret."""
        wanted = {"role": role, "exp": math.ceil(time.time()) + lifetime, "divisor": 1} | claims
        given = {name: value for name, value in wanted.items() if value is not None}
        return jwt.encode(given, self.stack.secrets.jwt_secret, "HS256")

    def clerk_token(self, sub: str, lifetime: int = 60, **claims: object) -> str:
        """A token signed with the Clerk key."""
        issuer = self.stack.environment()["CLERK_ISSUER"]
        wanted = {
            "role": "authenticated",
            "exp": math.ceil(time.time()) + lifetime,
            "iss": issuer,
            "sub": sub,
            "fva": [0, 0],
        }
        return self.clerk.keys.sign(wanted | {"divisor": 1} | claims)

    def client(self, token: str | None = None, *, version: int = 2) -> Client:
        """A connected client. It joins with `token`, or with the publishable key if there is none."""
        query = urlencode({"apikey": self.key, "vsn": VERSIONS[version]})
        address = f"{self.url.replace('http', 'ws')}/realtime/v1/websocket?{query}"
        client = Client(open_websocket(address, max_size=None, close_timeout=0.5), version, token)
        self.clients.append(client)
        return client

    def sql(self, statement: str, *values: object, user: str = "postgres") -> list[tuple[Any, ...]]:
        """Runs a statement as `user` and commits it."""
        with psycopg.connect(self.stack.postgres.url(user), autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)  # type: ignore[call-overload]
            return list(cursor.fetchall()) if cursor.description else []

    def close_clients(self) -> None:
        """Closes all clients, because each of them has threads."""
        for client in self.clients:
            client.connection.close()
        self.clients.clear()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)


@dataclass
class Client:
    """A client that sends and receives single frames."""

    connection: ClientConnection
    version: int
    token: str | None = None
    waiting: list[tuple[str | None, str, str, Any]] = field(default_factory=list)
    sent: int = 0

    def send(self, topic: str, event: str, payload: Any, *, join_ref: str | None = "1") -> str:
        """Sends a frame and returns its reference."""
        self.sent += 1
        ref = str(self.sent)
        if self.version == 2:
            self.connection.send(json.dumps([join_ref, ref, topic, event, payload]))
        else:
            frame = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
            self.connection.send(json.dumps(frame))
        return ref

    def ask(self, topic: str, event: str, payload: Any) -> Json:
        """Sends a frame and returns the payload of its reply."""
        ref = self.send(topic, event, payload)
        return self.take(lambda frame: frame[0] == ref and frame[2] == "phx_reply")

    def join(self, name: str, *, private: bool = False, token: str | None = None, **config: Any) -> Json:
        """Joins a channel and returns the reply's payload."""
        payload: Json = {"config": {"private": private} | config}
        if token or self.token:
            payload["access_token"] = token or self.token
        return self.ask(f"realtime:{name}", "phx_join", payload)

    def subscribe(self, name: str, *wanted: Json, **config: Any) -> Json:
        """Joins for Postgres Changes and returns the `system` message with the outcome."""
        assert self.join(name, postgres_changes=list(wanted), **config)["status"] == "ok"
        return self.event("system", name)

    def event(self, event: str, name: str) -> Any:
        """The payload of the next such event on the channel."""
        return self.take(lambda frame: frame[1] == f"realtime:{name}" and frame[2] == event)

    def broadcast(self, name: str) -> Json:
        """The next broadcast on the channel."""
        payload: Json = self.event("broadcast", name)
        return payload

    def change(self, name: str) -> Json:
        """The `data` of the next change."""
        data: Json = self.event("postgres_changes", name)["data"]
        return data

    def take(self, wanted: Callable[[tuple[str | None, str, str, Any]], bool]) -> Any:
        """The payload of the first frame for which `wanted` returns true. Other frames are kept in `waiting`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for frame in self.waiting:
                if wanted(frame):
                    self.waiting.remove(frame)
                    return frame[3]
            self.waiting.append(self.receive(deadline - time.monotonic()))

    def receive(self, patience: float) -> tuple[str | None, str, str, Any]:
        """The next frame as (ref, topic, event, payload)."""
        try:
            return parse_frame(self.connection.recv(timeout=max(0.0, patience)))
        except TimeoutError:
            pytest.fail(f"No further frame arrived. Kept: {[(topic, event) for _, topic, event, _ in self.waiting]}")

    def unread(self, event: str) -> list[Any]:
        """The payloads of received events of this name that no test has taken."""
        return [payload for _, _, each, payload in self.waiting if each == event]


def parse_frame(frame: str | bytes) -> tuple[str | None, str, str, Any]:
    if isinstance(frame, bytes):
        assert frame[0] == 4
        bounds, start = [], 5
        for length in frame[1:4]:
            bounds.append(frame[start : start + length].decode())
            start += length
        topic, event, meta = bounds
        body: Any = json.loads(frame[start:]) if frame[4] else frame[start:]
        return (
            None,
            topic,
            "broadcast",
            {"event": event, "payload": body} | ({"meta": json.loads(meta)} if meta else {}),
        )
    given = json.loads(frame)
    if isinstance(given, list):
        _, ref, topic, event, payload = given
        return ref, topic, event, payload
    assert given.keys() == {"topic", "event", "payload", "ref"}
    return given["ref"], given["topic"], given["event"], given["payload"]


async def serve(server: Server) -> list[web.AppRunner]:
    application = web.Application(client_max_size=MAX_FRAME_BYTES)
    server.realtime.add_to(application)
    places = ((application, server.stack.ports.gateway), (server.clerk.application(), server.stack.ports.clerk))
    runners = []
    for application, port in places:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        runners.append(runner)
    return runners


@contextlib.contextmanager
def running_server(home: Path) -> Iterator[Server]:
    """Runs a server in `home`, on free ports, with the product's schema and TABLES."""
    stack = Stack(home, free_port_block(), Secrets.of(home))
    process = stack.postgres.start(fsync="off")
    clerk = ClerkStandIn(home, stack.environment()["CLERK_ISSUER"], [""], svix.Endpoint("", "whsec_"), "sk_test_")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = Server(stack, Realtime(stack), clerk, process, loop)
    try:
        migrate(stack.postgres.url())
        server.sql(TABLES)
        runners = asyncio.run_coroutine_threadsafe(serve(server), loop).result(PATIENCE)
        yield server
        server.close_clients()
        for runner in runners:
            server.run(runner.cleanup())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        stop(server.process)


@pytest.fixture(scope="session")
def shared_server(home: Path) -> Iterator[Server]:
    with running_server(home / "realtime") as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The server, without clients and rows of the previous test."""
    yield shared_server
    shared_server.close_clients()
    shared_server.sql("truncate probe.notes, probe.open, probe.keyless, probe.unreadable_key, probe.full_identity")


@pytest.fixture(params=VERSIONS, ids="version {}".format)
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number
