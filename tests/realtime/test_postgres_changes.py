"""Postgres Changes: which subscribers receive a change, and its exact content."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.realtime.conftest import Client, Json, Server

NOTES = {"event": "*", "schema": "probe", "table": "notes"}
OPEN = {"event": "*", "schema": "probe", "table": "open"}
COLUMNS = [
    {"name": "id", "type": "int4"}, {"name": "owner", "type": "text"}, {"name": "title", "type": "text"},
    {"name": "amount", "type": "numeric"}, {"name": "at", "type": "timestamptz"}, {"name": "day", "type": "date"},
    {"name": "tags", "type": "_text"}, {"name": "doc", "type": "jsonb"}, {"name": "raw", "type": "bytea"},
    {"name": "done", "type": "bool"}, {"name": "filled", "type": "text"},
]  # fmt: skip
EMPTY = dict.fromkeys(column["name"] for column in COLUMNS)


def reader(server: Server, sub: str = "user_ada", *wanted: Json, version: int = 2) -> Client:
    """The client of a user, subscribed on the channel `db`."""
    client = server.client(server.project_token(sub=sub), version=version)
    assert client.subscribe("db", *(wanted or (NOTES,)))["status"] == "ok"
    return client


def test_the_reply_repeats_each_subscription_with_its_id(server: Server, version: int) -> None:
    client = server.client(server.project_token(sub="user_ada"), version=version)
    wanted = [NOTES, {"event": "INSERT", "schema": "probe", "table": "open", "filter": "id=eq.1"}]
    reply = client.join("db", postgres_changes=wanted)
    answered = reply["response"]["postgres_changes"]
    assert [{key: value for key, value in each.items() if key != "id"} for each in answered] == wanted
    assert all(type(each["id"]) is int for each in answered)
    assert client.event("system", "db") == {
        "extension": "postgres_changes", "status": "ok", "message": "Subscribed to PostgreSQL", "channel": "db",
    }  # fmt: skip


def test_an_insert_has_a_record_an_update_both_rows_and_a_deletion_the_key(server: Server, version: int) -> None:
    client = reader(server, version=version)
    server.sql("insert into probe.notes (id, owner, title, secret) values (1, 'user_ada', 'One', 'hidden')")
    insert = client.change("db")
    server.sql("update probe.notes set title = 'Two'")
    update = client.change("db")
    server.sql("delete from probe.notes")
    delete = client.change("db")
    times = [change.pop("commit_timestamp") for change in (insert, update, delete)]
    head = {"schema": "probe", "table": "notes", "columns": COLUMNS, "errors": None}
    record = EMPTY | {"id": 1, "owner": "user_ada", "title": "One"}
    assert insert == head | {"type": "INSERT", "record": record}
    assert update == head | {"type": "UPDATE", "record": record | {"title": "Two"}, "old_record": {"id": 1}}
    assert delete == head | {"type": "DELETE", "old_record": {"id": 1}}
    assert all(len(time) == len("2026-01-01T00:00:00.000Z") and time.endswith("Z") for time in times)
    assert times == sorted(times)


def test_values_have_the_format_of_the_data_api(server: Server) -> None:
    client = reader(server)
    server.sql(
        "insert into probe.notes (id, owner, amount, at, day, tags, doc, raw, done) values (1, 'user_ada', 12345678901234567890.5, "
        "'2026-03-29 01:30:00+01', '2026-02-28', '{a,\"b,c\",null}', '{\"deep\": [1, null, \"é\"]}', '\\x00ff', true)"
    )
    record = client.change("db")["record"]
    assert record == EMPTY | {
        "id": 1, "owner": "user_ada", "amount": 12345678901234567890.5, "at": "2026-03-29T00:30:00+00:00", "day": "2026-02-28",
        "tags": ["a", "b,c", None], "doc": {"deep": [1, None, "é"]}, "raw": "\\x00ff", "done": True,
    }  # fmt: skip


def test_row_level_security_decides_who_is_notified(server: Server) -> None:
    ada, ben = reader(server, "user_ada"), reader(server, "user_ben")
    for number, owner in enumerate(("user_ben", "user_ada", "user_ben", "user_ada")):
        server.sql("insert into probe.notes (id, owner) values (%s, %s)", number, owner)
    assert [ada.change("db")["record"]["id"] for _ in range(2)] == [1, 3]
    assert [ben.change("db")["record"]["id"] for _ in range(2)] == [0, 2]


def test_an_update_is_sent_to_the_user_who_may_now_read_the_row_and_not_to_the_previous_one(server: Server) -> None:
    ada, ben = reader(server, "user_ada"), reader(server, "user_ben")
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    assert ada.change("db")["record"]["id"] == 1
    server.sql("update probe.notes set owner = 'user_ben'")
    server.sql("insert into probe.notes (id, owner) values (2, 'user_ada')")
    assert ada.change("db")["record"]["id"] == 2
    assert ben.change("db")["type"] == "UPDATE"


def test_a_row_that_is_deleted_before_the_check_is_only_sent_as_deleted(server: Server) -> None:
    """Policies check the current row. Here it is inserted and deleted before the check."""
    client = reader(server)
    server.sql(
        "with written as (insert into probe.notes (id, owner) values (1, 'user_ada') returning id) select from written; delete from probe.notes"
    )
    assert client.change("db")["type"] == "DELETE"


def test_a_deletion_is_sent_to_all_subscribers_with_only_its_key(server: Server) -> None:
    """No policy can be checked for a deleted row. docs/realtime.md describes the consequences."""
    full = {"event": "*", "schema": "probe", "table": "full_identity"}
    ben = reader(server, "user_ben", NOTES, full)
    server.sql("insert into probe.notes (id, owner, title) values (1, 'user_ada', 'secret')")
    server.sql("delete from probe.notes")
    assert ben.change("db")["old_record"] == {"id": 1}
    server.sql("insert into probe.full_identity values (2, 'secret')")
    assert ben.change("db")["record"] == {"id": 2, "title": "secret"}
    server.sql("delete from probe.full_identity")
    assert ben.change("db")["old_record"] == {"id": 2}


def test_without_row_level_security_the_whole_replica_identity_is_sent(server: Server) -> None:
    client = server.client()
    client.subscribe("db", OPEN)
    server.sql("insert into probe.open values (1, 'One', 'hidden')")
    server.sql("update probe.open set title = 'Two'")
    server.sql("delete from probe.open")
    changes = [client.change("db") for _ in range(3)]
    assert [(change.get("old_record"), change.get("record")) for change in changes] == [
        (None, {"id": 1, "title": "One"}), ({"id": 1, "title": "One"}, {"id": 1, "title": "Two"}), ({"id": 1, "title": "Two"}, None),
    ]  # fmt: skip


def test_only_granted_columns_are_sent(server: Server) -> None:
    client = server.client()
    client.subscribe("db", OPEN)
    server.sql("insert into probe.open values (1, 'One', 'hidden')")
    change = client.change("db")
    assert change["record"] == {"id": 1, "title": "One"}
    assert [column["name"] for column in change["columns"]] == ["id", "title"]


def test_selected_columns_are_sent_with_the_key(server: Server) -> None:
    client = reader(server, "user_ada", NOTES | {"select": ["title", "secret"]})
    server.sql("insert into probe.notes (id, owner, title, secret) values (1, 'user_ada', 'One', 'hidden')")
    change = client.change("db")
    assert change["record"] == {"id": 1, "title": "One"}
    assert [column["name"] for column in change["columns"]] == ["id", "title"]


@pytest.mark.parametrize(
    ("table", "error"),
    [("keyless", "Error 400: Bad Request, no primary key"), ("unreadable_key", "Error 401: Unauthorized")],
)
def test_changes_of_a_table_without_a_readable_key_have_an_error_and_no_values(
    server: Server, table: str, error: str
) -> None:
    client = reader(server, "user_ada", {"event": "*", "schema": "probe", "table": table})
    server.sql(
        f"insert into probe.{table} (title) values ('One')"
        if table == "keyless"
        else f"insert into probe.{table} values (1, 'One')"
    )
    change = client.change("db")
    assert change["errors"] == [error]
    assert "One" not in str(change)


def test_a_change_larger_than_a_mebibyte_is_sent_without_large_values(server: Server) -> None:
    client = reader(server)
    server.sql(
        "insert into probe.notes (id, owner, title, filled) values (1, 'user_ada', 'Small', repeat('x', 1100000))"
    )
    change = client.change("db")
    assert change["errors"] == ["Error 413: Payload Too Large"]
    assert change["record"] == {
        name: value
        for name, value in (EMPTY | {"id": 1, "owner": "user_ada", "title": "Small"}).items()
        if name != "filled"
    }


def test_a_large_unchanged_value_is_not_sent(server: Server) -> None:
    client = reader(server)
    server.sql(
        "insert into probe.notes (id, owner, filled) select 1, 'user_ada', string_agg(md5(i::text), '') from generate_series(1, 3000) as i"
    )
    assert len(client.change("db")["record"]["filled"]) == 96_000
    server.sql("update probe.notes set title = 'New'")
    record = client.change("db")["record"]
    assert (record["title"], "filled" in record) == ("New", False)


@pytest.mark.parametrize(
    ("condition", "ids"),
    [
        ("id=eq.2", [2]), ("id=neq.2", [1, 3, 4]), ("id=lt.2", [1]), ("id=lte.2", [1, 2]), ("id=gt.3", [4]), ("id=gte.3", [3, 4]),
        ("id=in.(1,4)", [1, 4]), ('title=in.("a,b",plain)', [1, 2]), ("title=like.%lai%", [2]), ("title=ilike.%LAI%", [2]),
        ("title=match.^p", [2]), ("title=imatch.^P", [2]), ("title=is.null", [4]), ("done=is.true", [1]), ("done=is.unknown", [3, 4]),
        ("title=isdistinct.plain", [1, 3, 4]), ("title=not.eq.plain", [1, 3]), ("id=not.in.(1,2)", [3, 4]), ("title=not.is.null", [1, 2, 3]),
        ("id=gt.1,done=eq.false", [2]), ('title=eq."a,b"', [1]), ("title=eq.x=y", [3]), ("id=eq.999", []), ("", [1, 2, 3, 4]),
        ("day=gte.2026-01-02", [2]),
    ],
)  # fmt: skip
def test_a_filter_selects_the_rows_of_its_operator(server: Server, condition: str, ids: list[int]) -> None:
    client = reader(server, "user_ada", NOTES | {"filter": condition, "event": "INSERT"}, NOTES | {"event": "UPDATE"})
    server.sql(
        "insert into probe.notes (id, owner, title, done, day) values (1, 'user_ada', 'a,b', true, '2026-01-01'), "
        "(2, 'user_ada', 'plain', false, '2026-01-02'), (3, 'user_ada', 'x=y', null, null), (4, 'user_ada', null, null, null)"
    )
    server.sql("update probe.notes set filled = 'end' where id = 1")
    received = []
    while (change := client.change("db"))["type"] == "INSERT":
        received.append(change["record"]["id"])
    assert received == ids


def test_only_filters_on_the_key_match_a_deletion(server: Server) -> None:
    client = reader(
        server,
        "user_ada",
        NOTES | {"event": "DELETE", "filter": "title=eq.One"},
        NOTES | {"event": "DELETE", "filter": "id=eq.2"},
    )
    server.sql("insert into probe.notes (id, owner, title) values (1, 'user_ada', 'One'), (2, 'user_ada', 'Two')")
    server.sql("delete from probe.notes where id = 1")
    server.sql("delete from probe.notes where id = 2")
    assert client.change("db")["old_record"] == {"id": 2}


def test_a_filter_on_a_table_with_full_identity_reveals_deleted_rows(server: Server) -> None:
    """Ben may not read the row. docs/realtime.md therefore warns of this replica identity."""
    server.sql("alter table probe.notes replica identity full")
    try:
        deleted = NOTES | {"event": "DELETE"}
        ben = reader(
            server, "user_ben", deleted | {"filter": "title=eq.Guess"}, deleted | {"filter": "title=eq.Merger"}
        )
        server.sql("insert into probe.notes (id, owner, title) values (1, 'user_ada', 'Merger')")
        server.sql("delete from probe.notes")
        assert ben.change("db")["old_record"] == {"id": 1}
    finally:
        server.sql("alter table probe.notes replica identity default")


def test_an_update_omits_large_values_that_it_does_not_change(server: Server) -> None:
    client = reader(server, "user_ada", NOTES | {"event": "UPDATE"})
    large = "select string_agg(md5(n::text), '') from generate_series(1, 1000) as n"
    server.sql(f"insert into probe.notes (id, owner, title, filled) values (1, 'user_ada', 'One', ({large}))")
    server.sql("update probe.notes set title = 'Two'")
    omitted = client.change("db")["record"]
    assert (omitted["title"], "filled" in omitted) == ("Two", False)
    server.sql("update probe.notes set filled = filled || 'x'")
    assert client.change("db")["record"]["filled"].endswith("x")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"event": "*"}, "No subscription params provided"),
        ({"event": "*", "schema": "probe", "table": "unpublished"}, "Please check Realtime is enabled"),
        ({"event": "*", "schema": "probe", "table": "no'such"}, "Please check Realtime is enabled"),
        (NOTES | {"filter": "nonsense"}, "Error parsing `filter` params"),
        (NOTES | {"filter": "id=contains.1"}, "Error parsing `filter` params"),
        (NOTES | {"filter": "id=in.1,2"}, "must be wrapped by parentheses"),
        (NOTES | {"filter": f"id=in.({','.join(map(str, range(101)))})"}, "Maximum 100"),
        (NOTES | {"filter": "done=is.maybe"}, "invalid value for is filter"),
        (NOTES | {"filter": "secret=eq.x"}, "invalid column for filter secret"),
        (NOTES | {"filter": "absent=eq.x"}, "invalid column for filter absent"),
        (NOTES | {"filter": "id=eq.one"}, "invalid value for filter id"),
        (NOTES | {"filter": "id=eq.1'; drop table probe.notes; --"}, "invalid value for filter id"),
    ],
)
def test_an_invalid_subscription_is_reported(server: Server, wanted: Json, message: str) -> None:
    client = server.client(server.project_token(sub="user_ada"))
    system = client.subscribe("db", wanted)
    assert (system["extension"], system["status"]) == ("postgres_changes", "error")
    assert message in system["message"]


def test_a_whole_schema_can_be_subscribed_to(server: Server) -> None:
    client = reader(server, "user_ada", {"event": "INSERT", "schema": "probe"})
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    server.sql("insert into probe.open values (1, 'One')")
    assert [client.change("db")["table"] for _ in range(2)] == ["notes", "open"]


def test_a_change_is_sent_once_to_a_channel_with_all_matching_ids(server: Server) -> None:
    client = server.client(server.project_token(sub="user_ada"))
    reply = client.join("db", postgres_changes=[NOTES, NOTES | {"event": "INSERT"}, NOTES | {"event": "DELETE"}])
    numbers = [each["id"] for each in reply["response"]["postgres_changes"]]
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    assert sorted(client.event("postgres_changes", "db")["ids"]) == sorted(numbers[:2])


def test_a_raising_policy_excludes_only_its_own_subscriber_and_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    ada, odd = reader(server), server.client(server.project_token(sub="user_ada", divisor="not a number"))
    odd.subscribe("db", NOTES)
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    assert ada.change("db")["record"]["id"] == 1
    server.sql("delete from probe.notes")
    assert odd.change("db")["type"] == "DELETE"
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "A POLICY RAISES" in record.message
    assert "probe.notes" in record.message
    assert "22P02" in record.message
    assert "not a number" not in caplog.text


def test_a_raising_filter_excludes_only_its_own_subscriber(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    ada, odd = (
        reader(server),
        reader(server, "user_ada", NOTES | {"filter": "title=match.("}, NOTES | {"event": "DELETE"}),
    )
    server.sql("insert into probe.notes (id, owner, title) values (1, 'user_ada', 'One')")
    assert ada.change("db")["record"]["id"] == 1
    server.sql("delete from probe.notes")
    assert odd.change("db")["type"] == "DELETE"
    assert "2201B" in caplog.text


def test_a_rolled_back_change_is_not_sent(server: Server) -> None:
    client = reader(server)
    with psycopg.connect(server.stack.postgres.url()) as connection:
        connection.execute("insert into probe.notes (id, owner) values (1, 'user_ada')")
        connection.rollback()
    server.sql("insert into probe.notes (id, owner) values (2, 'user_ada')")
    assert client.change("db")["record"]["id"] == 2


def test_a_truncate_is_not_sent_and_later_changes_are(server: Server) -> None:
    client = reader(server)
    server.sql("truncate probe.notes")
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    assert client.change("db")["record"]["id"] == 1


def test_a_subscribed_table_may_get_and_lose_columns(server: Server) -> None:
    client = reader(server)
    server.sql(
        "alter table probe.notes add column later text default 'new'; grant select (later) on probe.notes to authenticated"
    )
    try:
        server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
        assert client.change("db")["record"]["later"] == "new"
    finally:
        server.sql("alter table probe.notes drop column later")
    server.sql("update probe.notes set title = 'x'")
    assert "later" not in client.change("db")["record"]


def test_commits_are_sent_once_they_are_visible_and_none_is_lost(server: Server) -> None:
    """Four concurrent writers. Each policy is checked on a new snapshot, so a commit sent too early would be lost."""
    client = reader(server)
    number = 500

    def write(first: int) -> None:
        with psycopg.connect(server.stack.postgres.url(), autocommit=True) as connection:
            for row in range(first, number, 4):
                connection.execute("insert into probe.notes (id, owner) values (%s, 'user_ada')", [row])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    received = [client.change("db")["record"]["id"] for _ in range(number)]
    assert sorted(received) == list(range(number))
    assert all([row for row in received if row % 4 == writer] == list(range(writer, number, 4)) for writer in range(4))


def test_each_of_many_users_receives_their_own_rows(server: Server) -> None:
    """There are more subscribers than changes.GROUP."""
    people = [reader(server, f"user_{number}") for number in range(60)]
    server.sql("insert into probe.notes (id, owner) select i, 'user_' || i from generate_series(0, 59) as i")
    assert [person.change("db")["record"]["id"] for person in people] == list(range(60))


def test_tokens_of_the_project_receive_what_their_roles_may_see(server: Server) -> None:
    anonymous, service = (
        server.client(server.project_token("anon")),
        server.client(server.project_token("service_role")),
    )
    for client in (anonymous, service):
        client.subscribe("db", OPEN, NOTES)
    server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
    server.sql("insert into probe.open values (1, 'One')")
    seen: list[Any] = [client.change("db")["errors"] for client in (anonymous, service)]
    assert seen == [["Error 401: Unauthorized"], ["Error 401: Unauthorized"]]
    assert anonymous.change("db")["record"] == {"id": 1, "title": "One"}
    assert service.change("db")["errors"] == ["Error 401: Unauthorized"]


def test_a_role_change_during_a_check_does_not_affect_other_subscribers(server: Server) -> None:
    ada, other = reader(server), reader(server)
    server.sql(
        "create policy slow on probe.notes as restrictive for select to authenticated using (pg_sleep(0.5)::text is not null)"
    )
    try:
        server.sql("insert into probe.notes (id, owner) values (1, 'user_ada')")
        other.send("realtime:db", "access_token", {"access_token": server.project_token("anon")})
        assert ada.change("db")["record"]["id"] == 1
    finally:
        server.sql("drop policy slow on probe.notes")


def test_a_refused_subscription_stays_refused_after_a_token_renewal(server: Server) -> None:
    client = server.client(server.project_token(sub="user_ada"))
    assert client.subscribe("db", NOTES | {"filter": "absent=eq.1"})["status"] == "error"
    client.send("realtime:db", "access_token", {"access_token": server.project_token(sub="user_ada", lifetime=601)})
    assert client.event("system", "db")["status"] == "error"


def test_changes_of_a_table_with_many_columns_are_sent(server: Server) -> None:
    names = ", ".join(f"c{number} integer default {number}" for number in range(120))
    server.sql(
        f"create table probe.wide (id integer primary key, {names}); grant select on probe.wide to authenticated"
    )
    server.sql("alter publication supabase_realtime add table probe.wide")
    try:
        client = reader(server, "user_ada", {"event": "*", "schema": "probe", "table": "wide"})
        server.sql("insert into probe.wide (id) values (1)")
        assert client.change("db")["record"] == {"id": 1} | {f"c{number}": number for number in range(120)}
    finally:
        server.sql("drop table probe.wide")


def test_a_number_that_python_cannot_parse_is_sent(server: Server) -> None:
    client = reader(server)
    server.sql(
        "insert into probe.notes (id, owner, doc) values (1, 'user_ada', '{\"n\": ' || repeat('9', 5000)::text || '}')".replace(
            "'{", "('{", 1
        ).replace("'}')", "'}')::jsonb)")
    )
    text = ""
    while '"postgres_changes"' not in text:
        text = str(client.connection.recv(timeout=5))
    assert "9" * 5000 in text


def test_a_long_filter_is_refused_before_it_is_parsed(server: Server) -> None:
    client = server.client(server.project_token(sub="user_ada"))
    for condition in (" " * 1_000_000, "id=eq." + " " * 1_000_000 + "x", "(" * 1_000_000):
        assert "at most" in client.subscribe("db", NOTES | {"filter": condition})["message"]


@pytest.mark.parametrize(
    "wanted",
    [{"schema": "a\0"}, {"schema": "a\ud800"}, {"schema": "probe", "table": "\0"}, NOTES | {"filter": "title=eq.\0"}],
)
def test_a_name_that_postgres_cannot_hold_is_refused_and_the_connection_stays(server: Server, wanted: Json) -> None:
    client = server.client(server.project_token(sub="user_ada"))
    client.join("room")
    assert client.subscribe("db", {"event": "*"} | wanted)["status"] == "error"
    assert client.ask("phoenix", "heartbeat", {})["status"] == "ok"
