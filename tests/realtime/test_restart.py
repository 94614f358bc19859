"""Realtime recovers from restarts of the database, from broken streams and from slow clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from scripts.scratch.postgres import stop
from tests.realtime.conftest import PATIENCE, Client, Server, running_server

NOTES = {"event": "*", "schema": "probe", "table": "notes"}


@pytest.fixture(scope="module")
def own_server(home: Path) -> Iterator[Server]:
    """A server whose Postgres may be stopped by tests."""
    with running_server(home / "restarted") as server:
        yield server


def wait_for_health(server: Server, status: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while httpx.get(f"{server.url}/realtime/v1/health").status_code != status:
        assert time.monotonic() < deadline, f"health is not {status}"
        time.sleep(0.02)


def member(server: Server) -> Client:
    client = server.client(server.project_token(sub="user_ada"))
    client.subscribe("db", NOTES)
    client.join("write:1", private=True)
    return client


def test_clients_stay_connected_and_receive_changes_again_after_a_restart(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.local.realtime.channels.STREAM_SECONDS", 1)
    server, client = own_server, member(own_server)
    stop(server.process)
    wait_for_health(server, 503)
    assert client.ask("phoenix", "heartbeat", {})["status"] == "ok"
    refused = client.join("read:1", private=True)
    assert refused["response"]["reason"] == "Realtime was unable to connect to the project database"
    late = server.client(server.project_token(sub="user_ada"))
    system = late.subscribe("db", NOTES)
    assert (system["status"], system["message"]) == ("error", "Realtime was unable to connect to the project database")
    public, other = server.client(), server.client()
    for each in (public, other):
        each.join("room")
    public.send("realtime:room", "broadcast", {"event": "said", "payload": {}})
    assert other.broadcast("room")["event"] == "said"  # needs no database

    server.process = server.stack.postgres.start(fsync="off")
    for each in (client, late):  # notifies clients that they must read again
        assert each.event("system", "db")["message"] == "Subscribed to PostgreSQL"
    client.event(
        "phx_error", "write:1"
    )  # a private channel may have missed broadcasts, so clients rejoin and read again
    wait_for_health(server, 200)
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    assert client.change("db")["record"]["id"] == late.change("db")["record"]["id"] == 1
    assert client.join("write:1", private=True)["status"] == "ok"
    server.sql("select realtime.send('{}', 'said', 'write:1')")
    assert client.broadcast("write:1")["event"] == "said"
    assert client.join("read:1", private=True)["status"] == "ok"


def test_a_terminated_stream_restarts(own_server: Server) -> None:
    client = member(own_server)
    own_server.sql("select pg_terminate_backend(pid) from pg_stat_replication", user="supabase_admin")
    assert client.event("system", "db")["message"] == "Subscribed to PostgreSQL"
    client.event("phx_error", "write:1")
    own_server.sql("insert into probe.notes (id, owner) values (2, 'user_ada')")
    assert client.change("db")["record"]["id"] == 2


def test_a_change_of_a_dropped_table_is_sent_with_an_error(own_server: Server) -> None:
    client = member(own_server)
    own_server.sql(
        "create table probe.gone (id integer primary key); alter publication supabase_realtime add table probe.gone"
    )
    client.subscribe("gone", {"event": "*", "schema": "probe", "table": "gone"})
    own_server.sql("insert into probe.gone values (1); drop table probe.gone")
    assert client.change("gone")["errors"] == ["Error 400: Bad Request, no primary key"]


def test_a_change_that_cannot_be_delivered_is_logged_and_does_not_block_the_next(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    client = member(own_server)
    own_server.sql("alter function realtime.row_as_json(oid, jsonb) rename to away", user="supabase_admin")
    own_server.sql("insert into probe.notes (id, owner) values (3, 'user_ada')")
    own_server.sql("select realtime.send('{}', 'marker', 'write:1')")
    client.broadcast("write:1")
    deadline = time.monotonic() + PATIENCE
    while "A change of probe.notes could not be delivered: UndefinedFunction." not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    own_server.sql("alter function realtime.away(oid, jsonb) rename to row_as_json", user="supabase_admin")
    own_server.sql("insert into probe.notes (id, owner) values (4, 'user_ada')")
    assert client.change("db")["record"]["id"] == 4


def test_a_client_that_reads_nothing_is_disconnected_and_others_are_served(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.local.realtime.channels.MAX_BACKLOG", 10_000_000)
    slow, other, sender = own_server.client(), own_server.client(), own_server.client()
    for each in (slow, other):
        each.join("room")
    sender.join("room", broadcast={"ack": True})
    filler = {"event": "said", "payload": {"filler": "x" * 500_000}}
    for _ in range(100):
        assert sender.ask("realtime:room", "broadcast", filler)["status"] == "ok"
        assert other.broadcast("room")["event"] == "said"
    with pytest.raises(ConnectionClosed):
        list(slow.connection)
