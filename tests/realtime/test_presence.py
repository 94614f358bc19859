"""Presence: the members of a room, and who may see them."""

from __future__ import annotations

from tests.realtime.conftest import Client, Json, Server


def join_with_key(
    server: Server, key: str, *, name: str = "room", private: bool = False, version: int = 2, sub: str = "user_ada"
) -> Client:
    client = server.client(server.project_token(sub=sub), version=version)
    assert client.join(name, private=private, presence={"key": key, "enabled": True})["status"] == "ok"
    return client


def track(client: Client, payload: object, name: str = "room") -> Json:
    return client.ask(f"realtime:{name}", "presence", {"type": "presence", "event": "track", "payload": payload})


def test_a_new_member_receives_the_present_members(server: Server, version: int) -> None:
    ada = join_with_key(server, "ada", version=version)
    assert ada.event("presence_state", "room") == {}
    assert track(ada, {"mood": "good"}) == {"status": "ok", "response": {}}
    ben = join_with_key(server, "ben", version=version)
    state = ben.event("presence_state", "room")
    assert state.keys() == {"ada"}
    [meta] = state["ada"]["metas"]
    assert meta.keys() == {"mood", "phx_ref"}


def test_tracking_changing_and_untracking_are_sent_to_all_members(server: Server, version: int) -> None:
    ada, ben = join_with_key(server, "ada", version=version), join_with_key(server, "ben", version=version)
    track(ada, {"mood": "good"})
    joined = ben.event("presence_diff", "room")
    assert (joined["joins"]["ada"]["metas"][0]["mood"], joined["leaves"]) == ("good", {})
    assert ada.event("presence_diff", "room") == joined

    track(ada, {"mood": "better"})
    changed = ben.event("presence_diff", "room")
    [old], [new] = changed["leaves"]["ada"]["metas"], changed["joins"]["ada"]["metas"]
    assert (old, new["mood"], new["phx_ref_prev"]) == (joined["joins"]["ada"]["metas"][0], "better", old["phx_ref"])

    assert ada.ask("realtime:room", "presence", {"event": "untrack"})["status"] == "ok"
    assert ben.event("presence_diff", "room") == {"joins": {}, "leaves": {"ada": {"metas": [new]}}}


def test_a_client_that_disconnects_leaves_the_room(server: Server) -> None:
    ada, ben = join_with_key(server, "ada"), join_with_key(server, "ben")
    track(ada, {})
    assert ben.event("presence_diff", "room")["joins"].keys() == {"ada"}
    ada.connection.close()
    assert ben.event("presence_diff", "room")["leaves"].keys() == {"ada"}


def test_one_person_in_two_windows_is_one_key_with_two_metas(server: Server) -> None:
    first, second, ben = join_with_key(server, "ada"), join_with_key(server, "ada"), join_with_key(server, "ben")
    track(first, {"window": 1})
    track(second, {"window": 2})
    ben.event("presence_diff", "room")
    ben.event("presence_diff", "room")
    third = join_with_key(server, "cleo")
    assert [meta["window"] for meta in third.event("presence_state", "room")["ada"]["metas"]] == [1, 2]
    first.ask("realtime:room", "phx_leave", {})
    assert ben.event("presence_diff", "room")["leaves"]["ada"]["metas"][0]["window"] == 1


def test_a_client_that_did_not_enable_presence_receives_it_once_it_tracks(server: Server) -> None:
    client = server.client()
    client.join("room")
    assert client.unread("presence_state") == []
    track(client, {})
    assert len(client.event("presence_state", "room")) == 1


def test_tracking_the_same_payload_again_sends_nothing(server: Server) -> None:
    ada, ben = join_with_key(server, "ada"), join_with_key(server, "ben")
    for mood in ("good", "good", "bad"):
        assert track(ada, {"mood": mood})["status"] == "ok"
    assert [ben.event("presence_diff", "room")["joins"]["ada"]["metas"][0]["mood"] for _ in range(2)] == ["good", "bad"]


def test_only_maps_are_tracked(server: Server) -> None:
    ada = join_with_key(server, "ada")
    assert track(ada, "text") == {"status": "error", "response": {"reason": "Presence track payload must be a map"}}
    assert ada.ask("realtime:room", "presence", {"event": "dance"})["status"] == "error"


def test_a_caller_who_may_not_write_cannot_track(server: Server) -> None:
    reader, writer = (
        join_with_key(server, "ada", name="read:1", private=True),
        join_with_key(server, "ada", name="write:1", private=True),
    )
    assert track(reader, {}, "read:1") == {"status": "error", "response": {}}
    assert track(writer, {}, "write:1") == {"status": "ok", "response": {}}


def test_a_caller_who_may_not_read_presence_receives_none(server: Server) -> None:
    server.sql(
        "create policy only_broadcast on realtime.messages as restrictive for select to authenticated using (extension = 'broadcast')"
    )
    try:
        ada, ben = (
            join_with_key(server, "ada", name="write:1", private=True),
            join_with_key(server, "ben", name="write:1", private=True),
        )
        track(ada, {}, "write:1")
        ben.ask("phoenix", "heartbeat", {})
        assert (ben.unread("presence_diff"), ben.unread("presence_state")) == ([], [])
    finally:
        server.sql("drop policy only_broadcast on realtime.messages")


def test_a_client_with_a_payload_nested_too_deeply_leaves_the_room(server: Server) -> None:
    watcher = join_with_key(server, "watcher")
    for depth in (900, 930, 950, 970, 976, 980, 985, 2_000):
        client = join_with_key(server, "ghost")
        assert track(client, {"depth": depth})["status"] == "ok"
        nested = "[" * depth + "]" * depth
        client.connection.send(f'["1","99","realtime:room","presence",{{"event":"track","payload":{{"a":{nested}}}}}]')
        client.connection.close()
    late = join_with_key(server, "late")
    while (state := late.event("presence_state", "room")) != {}:
        assert state.keys() <= {"ghost"}  # the server has not yet noticed that the last one disconnected
        late.ask("realtime:room", "phx_leave", {})
        late.join("room", presence={"key": "late", "enabled": True})
    assert watcher.ask("phoenix", "heartbeat", {})["status"] == "ok"


def test_a_member_may_announce_any_key(server: Server) -> None:
    """Presence is what a client claims: docs/realtime.md warns of that."""
    ben = join_with_key(server, "ben", sub="user_ben")
    ada = join_with_key(server, "ben", sub="user_ada")
    track(ada, {"name": "Ben"})
    assert ben.event("presence_diff", "room")["joins"]["ben"]["metas"][0]["name"] == "Ben"
