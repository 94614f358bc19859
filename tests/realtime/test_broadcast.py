"""Broadcasts from clients, by REST and from the database, to public channels and to private ones with policies."""

from __future__ import annotations

import logging
import threading
from urllib.parse import quote

import httpx
import psycopg
import pytest

from tests.realtime.conftest import Client, Json, Server

PAYLOAD = {"text": "é \u2028", "deep": [1, None]}


def member(
    server: Server,
    name: str = "room",
    *,
    version: int = 2,
    private: bool = False,
    sub: str = "user_ada",
    **config: Json,
) -> Client:
    client = server.client(server.project_token(sub=sub), version=version)
    assert client.join(name, private=private, **config)["status"] == "ok"
    return client


def send(client: Client, name: str = "room", event: str = "said", payload: object = PAYLOAD) -> None:
    client.send(f"realtime:{name}", "broadcast", {"type": "broadcast", "event": event, "payload": payload})


def binary_push(name: str, event: str, body: bytes, *, is_json: bool) -> bytes:
    """A broadcast in the format of supabase-js: kind 3, five lengths, encoding, five texts, the body."""
    texts = [b"1", b"9", f"realtime:{name}".encode(), event.encode(), b""]
    return bytes([3, *map(len, texts), int(is_json)]) + b"".join(texts) + body


@pytest.mark.parametrize("receiving", [1, 2])
@pytest.mark.parametrize("sending", [1, 2])
def test_other_members_of_the_room_receive_a_broadcast_but_not_the_sender(
    server: Server, sending: int, receiving: int
) -> None:
    sender, receiver, elsewhere = (
        member(server, version=sending),
        member(server, version=receiving),
        member(server, "other"),
    )
    send(sender)
    assert {key: value for key, value in receiver.broadcast("room").items() if key != "type"} == {
        "event": "said",
        "payload": PAYLOAD,
    }
    assert sender.ask("phoenix", "heartbeat", {})["status"] == "ok"
    assert sender.unread("broadcast") == []
    elsewhere.ask("phoenix", "heartbeat", {})
    assert elsewhere.unread("broadcast") == []


def test_the_sender_receives_the_broadcast_and_a_reply_if_requested(server: Server, version: int) -> None:
    sender = member(server, version=version, broadcast={"self": "true", "ack": True})
    assert sender.ask("realtime:room", "broadcast", {"event": "said", "payload": PAYLOAD}) == {
        "status": "ok",
        "response": {},
    }
    assert sender.broadcast("room")["payload"] == PAYLOAD


@pytest.mark.parametrize("is_json", [True, False])
def test_binary_payloads_reach_version_2_but_version_1_receives_only_json(server: Server, is_json: bool) -> None:
    sender, new, old = member(server, broadcast={"ack": True}), member(server, version=2), member(server, version=1)
    body = b'{"a": 1}' if is_json else b"\x00\xff\x01"
    sender.connection.send(binary_push("room", "said", body, is_json=is_json))
    assert new.broadcast("room") == {"event": "said", "payload": {"a": 1} if is_json else body}
    send(sender, event="last")
    events = [old.broadcast("room")["event"]]
    if is_json:
        events.append(old.broadcast("room")["event"])
    assert events == (["said", "last"] if is_json else ["last"])


def test_names_too_long_for_a_binary_frame_are_delivered_as_json(server: Server) -> None:
    sender, receiver = member(server), member(server)
    send(sender, event="e" * 300)
    assert receiver.broadcast("room") == {"type": "broadcast", "event": "e" * 300, "payload": PAYLOAD}


def test_a_public_and_a_private_channel_of_one_name_are_two_rooms(server: Server) -> None:
    public, private = member(server, "write:1"), member(server, "write:1", private=True)
    other_public, other_private = member(server, "write:1"), member(server, "write:1", private=True)
    send(public, "write:1", "public")
    send(private, "write:1", "private")
    assert other_public.broadcast("write:1")["event"] == "public"
    assert other_private.broadcast("write:1")["event"] == "private"


# --- private channels


def test_only_callers_who_may_read_join_a_private_channel(server: Server) -> None:
    ben = server.client(server.project_token(sub="user_ben"))
    assert ben.join("own:user_ben", private=True)["status"] == "ok"
    assert ben.join("own:user_ada", private=True) == {
        "status": "error",
        "response": {
            "reason": "Unauthorized: You do not have permissions to read from this Channel topic: own:user_ada"
        },
    }
    assert server.client().join("read:1", private=True)["status"] == "error"  # anon


def test_a_broadcast_of_a_caller_who_may_only_read_is_dropped(server: Server) -> None:
    reader, other = (
        member(server, "read:1", private=True, broadcast={"ack": True}),
        member(server, "read:1", private=True),
    )
    send(reader, "read:1")
    server.sql("select realtime.send('{}', 'marker', 'read:1')")
    assert other.broadcast("read:1")["event"] == "marker"
    assert reader.broadcast("read:1")["event"] == "marker"
    assert reader.unread("phx_reply") == []


def test_a_broadcast_of_a_caller_who_may_write_is_delivered(server: Server) -> None:
    writer, other = (
        member(server, "write:1", private=True, broadcast={"ack": True}),
        member(server, "write:1", private=True),
    )
    assert writer.ask("realtime:write:1", "broadcast", {"event": "said", "payload": PAYLOAD})["status"] == "ok"
    assert other.broadcast("write:1")["payload"] == PAYLOAD


def test_access_checks_leave_no_message(server: Server) -> None:
    before = server.sql("select count(*) from realtime.messages")
    writer = member(server, "write:1", private=True, broadcast={"ack": True})
    assert writer.ask("realtime:write:1", "broadcast", {"event": "said", "payload": {}})["status"] == "ok"
    assert server.sql("select count(*) from realtime.messages") == before


def test_a_raising_policy_refuses_only_its_own_caller_and_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    odd = server.client(server.project_token(sub="not a number"))
    assert odd.join("odd:1", private=True)["status"] == "error"
    assert odd.join("read:odd", private=True)["status"] == "ok"
    odd.ask("realtime:read:odd", "presence", {"event": "track", "payload": {}})
    assert server.client(server.project_token(sub="1")).join("odd:1", private=True)["status"] == "ok"
    errors = {record.message for record in caplog.records if record.levelno == logging.ERROR}
    assert errors == {
        f"A POLICY RAISES: {command} on realtime.messages, SQLSTATE 22P02. The caller is refused."
        for command in ("select", "insert")
    }
    assert "not a number" not in caplog.text


# --- REST


def post(server: Server, path: str = "", token: str | None = None, **request: object) -> httpx.Response:
    headers = {"apikey": server.key} | ({"Authorization": f"Bearer {token}"} if token else {})
    headers |= request.pop("headers", {})  # type: ignore[arg-type]
    return httpx.post(f"{server.url}/realtime/v1/api/broadcast{path}", headers=headers, **request)  # type: ignore[arg-type]


def test_many_messages_are_sent_at_once(server: Server) -> None:
    room, private = member(server), member(server, "write:1", private=True)
    message = {"topic": "room", "event": "said", "payload": PAYLOAD}
    messages = [
        message,
        message | {"topic": "write:1", "private": True},
        message | {"topic": "read:1", "private": True},
    ]
    answer = post(server, token=server.project_token(sub="user_ada"), json={"messages": messages})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (202, "*")
    assert room.broadcast("room")["payload"] == PAYLOAD
    assert private.broadcast("write:1")["payload"] == PAYLOAD


@pytest.mark.parametrize(
    "body",
    ["", "x", "[]", "{}", '{"messages": []}', '{"messages": {}}', '{"messages": [1]}', '{"messages": [{"topic": "room", "event": "x"}]}',
     "[" * 100_000, '{"messages": [{"topic": "a\\u0000", "event": "x", "payload": {}}]}', '{"messages": [{"topic": "a", "event": "\\ud800", "payload": {}}]}',
     '{"messages": [{"topic": "a", "event": "x", "payload": {"n": NaN}}]}', '{"messages": [{"topic": "", "event": "x", "payload": {}}]}', '{"messages": [{"topic": "room", "event": 1, "payload": {}}]}'],
)  # fmt: skip
def test_invalid_messages_are_refused_as_a_whole(server: Server, body: str) -> None:
    assert post(server, content=body, headers={"Content-Type": "application/json"}).status_code == 422


def test_one_message_is_sent_as_json_or_in_binary(server: Server) -> None:
    room = member(server)
    assert post(server, "/room/events/said", json=PAYLOAD).status_code == 202
    binary = {"Content-Type": "application/octet-stream"}
    assert post(server, "/room/events/said", content=b"\x00\xff", headers=binary).status_code == 202
    assert (
        post(server, "/room/events/said", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    )
    assert [room.broadcast("room")["payload"] for _ in range(2)] == [PAYLOAD, b"\x00\xff"]


def test_a_private_topic_by_rest_follows_its_policies(server: Server) -> None:
    room, token = member(server, "write:1", private=True), server.project_token(sub="user_ada")
    for topic, status in (("write:1", 202), ("read:1", 403), ("closed", 403)):
        path = f"/{quote(topic)}/events/said?private=true"
        assert post(server, path, token=token, json=PAYLOAD).status_code == status
    assert post(server, "/write%3A1/events/said?private=true", json=PAYLOAD).status_code == 403  # anon
    assert room.broadcast("write:1")["payload"] == PAYLOAD


@pytest.mark.parametrize("token", ["nonsense", "a.b.c"])
def test_rest_needs_a_valid_token(server: Server, token: str) -> None:
    body = {"messages": [{"topic": "room", "event": "said", "payload": {}}]}
    assert post(server, token=token, json=body).status_code == 401
    assert httpx.post(f"{server.url}/realtime/v1/api/broadcast", json=body).status_code == 401


def test_pages_of_any_origin_may_call_the_rest_api(server: Server) -> None:
    for path in ("", "/room/events/said"):
        answer = httpx.options(f"{server.url}/realtime/v1/api/broadcast{path}")
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")


# --- from the database


def test_a_broadcast_from_sql_is_delivered_with_its_id(server: Server, version: int) -> None:
    listener = member(server, "read:1", private=True, version=version)
    server.sql("""select realtime.send('{"a": 1}', 'said', 'read:1')""")
    broadcast = listener.broadcast("read:1")
    assert (broadcast["event"], broadcast["payload"]["a"]) == ("said", 1)
    assert broadcast["meta"]["id"] == broadcast["payload"]["id"]


def test_a_public_broadcast_from_sql_reaches_only_public_channels(server: Server) -> None:
    public, private = member(server, "read:1"), member(server, "read:1", private=True)
    server.sql("select realtime.send('{}', 'open', 'read:1', false)")
    server.sql("select realtime.send('{}', 'closed', 'read:1', true)")
    assert public.broadcast("read:1")["event"] == "open"
    assert private.broadcast("read:1")["event"] == "closed"


def test_a_binary_payload_from_the_database_stays_binary(server: Server) -> None:
    listener = member(server, "read:1", private=True)
    server.sql(
        "insert into realtime.messages (topic, extension, event, private, binary_payload) values ('read:1', 'broadcast', 'said', true, '\\x00ff')"
    )
    assert listener.broadcast("read:1")["payload"] == b"\x00\xff"


def test_rows_that_are_not_broadcasts_are_not_delivered(server: Server) -> None:
    listener = member(server, "read:1", private=True)
    for values in (
        "'read:1', 'presence', 'x', '{}'",
        "'read:1', 'broadcast', null, '{}'",
        "'read:1', 'broadcast', 'x', null",
    ):
        server.sql(f"insert into realtime.messages (topic, extension, event, payload, private) values ({values}, true)")
    server.sql("update realtime.messages set event = 'changed' where topic = 'read:1'")
    server.sql("select realtime.send('{}', 'marker', 'read:1')")
    assert listener.broadcast("read:1")["event"] == "marker"


def test_a_failed_send_raises_only_a_warning(server: Server) -> None:
    with psycopg.connect(server.stack.postgres.url()) as connection:
        warnings: list[str] = []
        connection.add_notice_handler(lambda notice: warnings.append(notice.severity or ""))
        connection.execute("select realtime.send('{}', 'said', null)")
    assert warnings == ["WARNING"]


def test_row_triggers_can_send_both_rows_as_on_supabase(server: Server) -> None:
    listener = member(server, "read:1", private=True)
    server.sql(
        "create function probe.broadcast_row() returns trigger security definer language plpgsql as $$ begin perform realtime.broadcast_changes("
        "'read:1', tg_op, tg_op, tg_table_name, tg_table_schema, new, old); return null; end $$; "
        "create trigger broadcast_row after insert on probe.open for each row execute function probe.broadcast_row()"
    )
    try:
        server.sql("insert into probe.open values (1, 'One', 'two')")
        payload = listener.broadcast("read:1")["payload"]
        payload.pop("id")
        assert payload == {
            "schema": "probe", "table": "open", "operation": "INSERT", "old_record": None,
            "record": {"id": 1, "title": "One", "hidden": "two"},
        }  # fmt: skip
    finally:
        server.sql("drop function probe.broadcast_row() cascade")


def test_a_broadcast_from_the_database_is_delivered_after_its_commit_is_visible(server: Server) -> None:
    """The listener reads the row at each broadcast, like clients that fetch on every event."""
    listener, missing = member(server, "read:1", private=True), []
    number = 300

    def write(first: int) -> None:
        with psycopg.connect(server.stack.postgres.url(), autocommit=True) as connection:
            for row in range(first, number, 2):
                connection.execute(
                    "with written as (insert into probe.open values (%s, 'x') returning id) "
                    "select realtime.send(jsonb_build_object('row', id), 'said', 'read:1') from written", [row],
                )  # fmt: skip

    writers = [threading.Thread(target=write, args=[first]) for first in range(2)]
    for writer in writers:
        writer.start()
    with psycopg.connect(server.stack.postgres.url(), autocommit=True) as connection:
        for _ in range(number):
            row = listener.broadcast("read:1")["payload"]["row"]
            if not connection.execute("select from probe.open where id = %s", [row]).rowcount:
                missing.append(row)
    for writer in writers:
        writer.join()
    assert missing == []


def test_a_thousand_broadcasts_of_one_statement_are_delivered_in_order(server: Server) -> None:
    listener = member(server, "read:1", private=True)
    server.sql(
        "select realtime.send(jsonb_build_object('row', i), 'said', 'read:1') from generate_series(1, 1000) as i"
    )
    assert [listener.broadcast("read:1")["payload"]["row"] for _ in range(1000)] == list(range(1, 1001))


def test_old_messages_are_deleted(server: Server) -> None:
    server.sql(
        "insert into realtime.messages (topic, extension, inserted_at) values ('read:1', 'broadcast', now() - interval '4 days')"
    )
    server.run(server.realtime.delete_old_messages())
    assert server.sql("select count(*) from realtime.messages where inserted_at < now() - interval '3 days'") == [(0,)]


@pytest.mark.parametrize(
    ("path", "content", "content_type"),
    [
        ("/room/events/x", b"[" * 100_000, "application/json"), ("/room/events/x", b"{}\xff", "application/json; charset=bogus"),
        ("/room/events/x", b'"\xe9"', "application/json; charset=latin-1"), ("/room/events/x", '{"a":1}'.encode("utf-16"), "application/json"),
        ("/a%00/events/x?private=true", b"{}", "application/json"), ("/room/events/x", b'{"a":NaN}', "application/json"),
    ],
)  # fmt: skip
def test_a_body_or_a_name_that_clients_could_not_parse_is_refused(
    server: Server, path: str, content: bytes, content_type: str
) -> None:
    room = member(server)
    answer = post(
        server,
        path,
        token=server.project_token(sub="user_ada"),
        content=content,
        headers={"Content-Type": content_type},
    )
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (422, "*")
    assert post(server, "/room/events/marker", json={}).status_code == 202
    assert room.broadcast("room")["event"] == "marker"


def test_a_large_body_is_delivered(server: Server) -> None:
    room = member(server)
    assert post(server, "/room/events/said", json={"filler": "x" * 2_000_000}).status_code == 202
    assert len(room.broadcast("room")["payload"]["filler"]) == 2_000_000


def test_a_binary_frame_with_invalid_json_ends_the_senders_connection_and_is_not_delivered(server: Server) -> None:
    sender, old, new = member(server), member(server, version=1), member(server)
    sender.connection.send(binary_push("room", "said", '{"a":1}'.encode("utf-16"), is_json=True))
    send(old, event="marker")
    assert new.broadcast("room")["event"] == "marker"
