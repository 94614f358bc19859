"""Connections: API keys, protocol versions, heartbeats, and invalid frames."""

from __future__ import annotations

import json

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.realtime.conftest import Server


def refusal(server: Server, query: str, **headers: str) -> tuple[int, str]:
    """The status and the error of a refused connection."""
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{server.url.replace('http', 'ws')}/realtime/v1/websocket{query}", additional_headers=headers)
    response = refused.value.response
    return response.status_code, json.loads(response.body)["error"]


def test_a_connection_needs_a_key(server: Server) -> None:
    assert refusal(server, "") == (401, "API key is missing")


@pytest.mark.parametrize(
    "key", ["sb_publishable_unknown", "nonsense", "a.b.c", "eyJhbGciOiJIUzI1NiJ9.e30.x", "\ud83d.\u00e9."]
)
def test_an_unknown_key_is_refused(server: Server, key: str) -> None:
    status, error = refusal(server, f"?apikey={key.encode('utf-8', 'replace').decode()}")
    assert (status, error) in {
        (401, "The token provided is not a valid JWT"), (401, "Failed to validate JWT signature"),
    }  # fmt: skip


def test_an_expired_token_is_refused_as_a_key(server: Server) -> None:
    refused = refusal(server, f"?apikey={server.project_token(lifetime=-10)}")
    assert refused in {(401, f"Token has expired {age}") for age in (9, 10, 11)}


def test_a_token_without_a_role_or_an_expiry_is_refused_as_a_key(server: Server) -> None:
    needs = "Fields `role` and `exp` are required in JWT"
    for missing in ({"role": None}, {"exp": None}, {"role": "postgres"}, {"role": "supabase_admin"}):
        assert refusal(server, f"?apikey={server.project_token(**missing)}") == (401, needs)  # type: ignore[arg-type]


def test_a_token_with_a_wrong_signature_is_refused_as_a_key(server: Server) -> None:
    token = server.project_token()
    forged = token[:-6] + ("AAAAAA" if not token.endswith("AAAAAA") else "BBBBBB")
    assert refusal(server, f"?apikey={forged}") == (401, "Failed to validate JWT signature")


def test_the_header_takes_precedence_over_the_query(server: Server) -> None:
    assert refusal(server, f"?apikey={server.key}", **{"x-api-key": "nonsense"})[0] == 401
    with connect(
        f"{server.url.replace('http', 'ws')}/realtime/v1/websocket", additional_headers={"x-api-key": server.key}
    ):
        pass


@pytest.mark.parametrize("role", ["anon", "service_role"])
def test_a_token_of_the_project_is_accepted_as_a_key(server: Server, role: str) -> None:
    with connect(f"{server.url.replace('http', 'ws')}/realtime/v1/websocket?apikey={server.project_token(role)}"):
        pass


def test_a_heartbeat_is_answered(server: Server, version: int) -> None:
    assert server.client(version=version).ask("phoenix", "heartbeat", {}) == {"status": "ok", "response": {}}


def test_every_frame_of_version_1_has_a_reference(server: Server) -> None:
    """Python clients need it. `parse_frame` checks the keys of each frame; a broadcast is not a reply."""
    client = server.client(version=1)
    client.join("room", broadcast={"self": True})
    client.send("realtime:room", "broadcast", {"type": "broadcast", "event": "x", "payload": {}})
    assert client.receive(5)[0] is None


@pytest.mark.parametrize(
    "frame",
    ["nonsense", "[]", "[1,2]", '{"topic": 1}', '["1","1",null,"phx_join",{}]', "[" * 50_000, b"", b"\x03", b"\x09abcdefghi",
     b"\x03\x01\x01\x01\x01\x00\x00\xff\xff\xff\xff", b"\x03\x01\x01\x01\x01\x00\x011abc{"],
    ids=str,
)  # fmt: skip
def test_an_invalid_frame_ends_only_its_own_connection(server: Server, frame: str | bytes) -> None:
    client, other = server.client(), server.client()
    client.connection.send(frame)
    with pytest.raises(ConnectionClosed):
        client.connection.recv(timeout=5)
    assert other.ask("phoenix", "heartbeat", {})["status"] == "ok"


@pytest.mark.parametrize(
    "payload",
    [None, [], "text", {"config": []}, {"config": {"broadcast": None, "presence": 3, "postgres_changes": "x"}}],
)
def test_a_join_with_a_malformed_configuration_subscribes_to_nothing(server: Server, payload: object) -> None:
    assert server.client().ask("realtime:room", "phx_join", payload) == {
        "status": "ok",
        "response": {"postgres_changes": []},
    }


def test_a_frame_may_have_at_most_five_million_bytes(server: Server) -> None:
    client = server.client()
    client.join("room")
    client.ask("realtime:room", "presence", {"event": "untrack", "filler": "x" * 4_900_000})
    with pytest.raises(ConnectionClosed):  # while the frame is sent, or afterwards
        client.ask("realtime:room", "presence", {"event": "untrack", "filler": "x" * 5_000_000})


def test_a_message_to_a_channel_that_was_not_joined_is_unmatched(server: Server, version: int) -> None:
    client = server.client(version=version)
    unmatched = {"status": "error", "response": {"reason": "unmatched topic"}}
    assert client.ask("realtime:room", "broadcast", {"event": "x", "payload": {}}) == unmatched
    assert client.ask("elsewhere", "phx_join", {}) == unmatched
    assert client.ask("realtime:room", "phx_leave", {})["status"] == "ok"


def test_a_channel_needs_a_name(server: Server) -> None:
    reply = server.client().join("")
    assert reply == {"status": "error", "response": {"reason": "TopicNameRequired: You must provide a topic name"}}


def test_leaving_is_answered_and_closes_the_channel(server: Server, version: int) -> None:
    client = server.client(version=version)
    client.join("room")
    assert client.ask("realtime:room", "phx_leave", {})["status"] == "ok"
    assert client.event("phx_close", "room") == {}
    client.send("realtime:room", "broadcast", {"event": "x", "payload": {}})
    assert client.event("phx_reply", "room")["status"] == "error"


def test_a_second_join_closes_the_first(server: Server) -> None:
    client = server.client()
    client.send("realtime:room", "phx_join", {}, join_ref="first")
    client.send("realtime:room", "phx_join", {}, join_ref="second")
    frames = [json.loads(client.connection.recv(timeout=5)) for _ in range(3)]
    assert [(join_ref, event) for join_ref, _, _, event, _ in frames] == [
        ("first", "phx_reply"), ("first", "phx_close"), ("second", "phx_reply"),
    ]  # fmt: skip


def test_health_reports_both_streams(server: Server) -> None:
    answer = httpx.get(f"{server.url}/realtime/v1/health")
    assert (answer.status_code, answer.json()) == (200, {"down": []})
