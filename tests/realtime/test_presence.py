"""Presence: who is in a room, told to those who may know."""

from __future__ import annotations

from tests.realtime.conftest import Client, Json, Server


def present(
    server: Server, key: str, *, name: str = "room", private: bool = False, version: int = 2, sub: str = "user_ada"
) -> Client:
    client = server.client(server.project_token(sub=sub), version=version)
    assert client.join(name, private=private, presence={"key": key, "enabled": True})["status"] == "ok"
    return client


def track(client: Client, payload: object, name: str = "room") -> Json:
    return client.ask(f"realtime:{name}", "presence", {"type": "presence", "event": "track", "payload": payload})


def test_who_joins_sees_who_is_there(server: Server, version: int) -> None:
    ada = present(server, "ada", version=version)
    assert ada.event("presence_state", "room") == {}
    assert track(ada, {"mood": "good"}) == {"status": "ok", "response": {}}
    ben = present(server, "ben", version=version)
    state = ben.event("presence_state", "room")
    assert state.keys() == {"ada"}
    [meta] = state["ada"]["metas"]
    assert meta.keys() == {"mood", "phx_ref"}


def test_coming_changing_and_going_are_told_to_all(server: Server, version: int) -> None:
    ada, ben = present(server, "ada", version=version), present(server, "ben", version=version)
    track(ada, {"mood": "good"})
    came = ben.event("presence_diff", "room")
    assert (came["joins"]["ada"]["metas"][0]["mood"], came["leaves"]) == ("good", {})
    assert ada.event("presence_diff", "room") == came

    track(ada, {"mood": "better"})
    changed = ben.event("presence_diff", "room")
    [old], [new] = changed["leaves"]["ada"]["metas"], changed["joins"]["ada"]["metas"]
    assert (old, new["mood"], new["phx_ref_prev"]) == (came["joins"]["ada"]["metas"][0], "better", old["phx_ref"])

    assert ada.ask("realtime:room", "presence", {"event": "untrack"})["status"] == "ok"
    assert ben.event("presence_diff", "room") == {"joins": {}, "leaves": {"ada": {"metas": [new]}}}


def test_who_hangs_up_has_left(server: Server) -> None:
    ada, ben = present(server, "ada"), present(server, "ben")
    track(ada, {})
    assert ben.event("presence_diff", "room")["joins"].keys() == {"ada"}
    ada.connection.close()
    assert ben.event("presence_diff", "room")["leaves"].keys() == {"ada"}


def test_one_person_in_two_windows_is_one_key_with_two_metas(server: Server) -> None:
    first, second, ben = present(server, "ada"), present(server, "ada"), present(server, "ben")
    track(first, {"window": 1})
    track(second, {"window": 2})
    ben.event("presence_diff", "room")
    ben.event("presence_diff", "room")
    third = present(server, "cleo")
    assert [meta["window"] for meta in third.event("presence_state", "room")["ada"]["metas"]] == [1, 2]
    first.ask("realtime:room", "phx_leave", {})
    assert ben.event("presence_diff", "room")["leaves"]["ada"]["metas"][0]["window"] == 1


def test_presence_that_was_not_asked_for_begins_with_tracking(server: Server) -> None:
    client = server.client()
    client.join("room")
    assert client.unread("presence_state") == []
    track(client, {})
    assert len(client.event("presence_state", "room")) == 1


def test_tracking_the_same_again_tells_nobody(server: Server) -> None:
    ada, ben = present(server, "ada"), present(server, "ben")
    for mood in ("good", "good", "bad"):
        assert track(ada, {"mood": mood})["status"] == "ok"
    assert [ben.event("presence_diff", "room")["joins"]["ada"]["metas"][0]["mood"] for _ in range(2)] == ["good", "bad"]


def test_only_maps_are_tracked(server: Server) -> None:
    ada = present(server, "ada")
    assert track(ada, "text") == {"status": "error", "response": {"reason": "Presence track payload must be a map"}}
    assert ada.ask("realtime:room", "presence", {"event": "dance"})["status"] == "error"


def test_who_may_not_write_is_not_present(server: Server) -> None:
    reader, writer = (
        present(server, "ada", name="read:1", private=True),
        present(server, "ada", name="write:1", private=True),
    )
    assert track(reader, {}, "read:1") == {"status": "error", "response": {}}
    assert track(writer, {}, "write:1") == {"status": "ok", "response": {}}


def test_who_may_not_read_presence_sees_nobody(server: Server) -> None:
    server.sql(
        "create policy only_broadcast on realtime.messages as restrictive for select to authenticated using (extension = 'broadcast')"
    )
    try:
        ada, ben = (
            present(server, "ada", name="write:1", private=True),
            present(server, "ben", name="write:1", private=True),
        )
        track(ada, {}, "write:1")
        ben.ask("phoenix", "heartbeat", {})
        assert (ben.unread("presence_diff"), ben.unread("presence_state")) == ([], [])
    finally:
        server.sql("drop policy only_broadcast on realtime.messages")


def test_a_payload_nested_too_deeply_leaves_nobody_behind(server: Server) -> None:
    watcher = present(server, "watcher")
    for depth in (900, 930, 950, 970, 976, 980, 985, 2_000):
        client = present(server, "ghost")
        assert track(client, {"depth": depth})["status"] == "ok"
        nested = "[" * depth + "]" * depth
        client.connection.send(f'["1","99","realtime:room","presence",{{"event":"track","payload":{{"a":{nested}}}}}]')
        client.connection.close()
    late = present(server, "late")
    while (state := late.event("presence_state", "room")) != {}:
        assert state.keys() <= {"ghost"}  # the last one's hanging up has not been noticed yet
        late.ask("realtime:room", "phx_leave", {})
        late.join("room", presence={"key": "late", "enabled": True})
    assert watcher.ask("phoenix", "heartbeat", {})["status"] == "ok"
