"""How the inbox reads the signed text of a message: it accepts any event and refuses only text that is not an event."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scripts.clerk.backfill import MERGE_BATCH
from service.data_api import TIMEOUT
from tests import events
from tests.conftest import Database
from tests.events import Json
from tests.people import call

ANY_CHARACTER = st.characters(exclude_categories=())  # with unpaired surrogates
NUMBERS = st.integers(-(10**30), 10**30) | st.floats(-1e15, 1e15)
Connection = psycopg.Connection[Any]
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(ANY_CHARACTER, max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(ANY_CHARACTER, max_size=8), inner, max_size=4),
    max_leaves=12,
)
same_database = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def receive(database: Database, text: str, message_id: str = "msg_odd") -> Any:
    """Returns the answer that the service gets."""
    with database.acting("service_role"):
        return database.value("select public.receive_clerk_event(%s, %s)", message_id, text)


def read(database: Database, text: str) -> Any:
    return database.value("select app.read_clerk_event(%s)", text)


def with_data(inner: str) -> str:
    return f'{{"type": "a", "data": {{"x": {inner}, "y": 1}}}}'


@pytest.mark.parametrize(
    ("inner", "stored"),
    [
        (r'"a\u0000b"', "a\ufffdb"),
        (r'"\ud800"', "\ufffd"),
        (r'"\udc00\ud800"', "\ufffd\ufffd"),
        (r'"\ud800\ud800\udc00\udc00"', "\ufffd\U00010000\ufffd"),
        (r'"\uD83D\uDE00 \ud83d"', "\U0001f600 \ufffd"),
        (r'"\\u0000 \\\u0000 \\\\u0000"', "\\u0000 \\\ufffd \\\\u0000"),
        (r'"\\ud800 \"\ud800"', '\\ud800 "\ufffd'),
        (r'{"\u0000": "\n"}', {"\ufffd": "\n"}),
        ("[1, 1.5, true, null]", [1, 1.5, True, None]),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("1e999", 10**999),
        ("1e9999", None),
        ("-1E+99999", None),
        ("1e-99999", None),
        ("[1, " + "9" * 5000 + ", -2]", [1, None, -2]),
        ("9" * 200_000, None),
        (f'"{"9" * 5000} 1e99999 [[ {{"', f"{'9' * 5000} 1e99999 [[ {{"),
        (r'["1e99999\u0000", 1e99999]', ["1e99999\ufffd", None]),
        ('"\U0001f600 \u2028 \x7f"', "\U0001f600 \u2028 \x7f"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_only_values_that_jsonb_cannot_represent_are_replaced(database: Database, inner: str, stored: object) -> None:
    assert read(database, with_data(inner)) == {"type": "a", "data": {"x": stored, "y": 1}}


def test_an_event_full_of_unpaired_surrogates_is_read_in_time(database: Database) -> None:
    database.execute("set local statement_timeout = '8s'")  # as Supabase sets it for the Data API
    surrogates = r"\udc00" * 80_000
    assert read(database, with_data(f'"{surrogates}"'))["data"]["x"] == "\ufffd" * 80_000


def test_invalid_characters_in_the_type_are_replaced_too(database: Database) -> None:
    assert receive(database, r'{"type": "a\u0000", "data": {}}')["type"] == "a\ufffd"


def test_the_last_of_two_equal_keys_counts(database: Database) -> None:
    assert read(database, '{"type": "a", "type": "b", "data": {}}')["type"] == "b"


@pytest.mark.parametrize("levels", [61, 62, 300, 5_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"]": ', "}")])
def test_deeply_nested_metadata_does_not_prevent_a_ban(
    database: Database, levels: int, opening: str, closing: str
) -> None:
    user = json.dumps(events.user("user_deep", banned=True))
    nested = f"{opening * levels}1{closing * levels}"
    text = (
        f'{{"type": "user.updated", "data": {user[:-1]}, "unsafe_metadata": {nested}}}, "timestamp": {events.START}}}'
    )
    assert receive(database, text)["outcome"] == "processed"
    assert database.value("select banned from public.profiles where clerk_user_id = 'user_deep'") is True


def test_only_values_below_level_64_become_null(database: Database) -> None:
    def nested(levels: int, inner: str) -> str:  # the event and its data are two levels
        return "[" * (levels - 2) + inner + "]" * (levels - 2)

    for kept in (nested(62, "[1], 2"), nested(63, "1, 2")):
        assert read(database, with_data(kept))["data"]["x"] == json.loads(kept)
    assert read(database, with_data(nested(63, '[1, {"a": []}], 2')))["data"]["x"] == json.loads(nested(63, "null, 2"))


def test_deep_metadata_leaves_the_ids_and_times_of_an_event_as_they_are(database: Database) -> None:
    event = {
        "type": "user.updated",
        "timestamp": events.START,
        "instance_id": "ins_1",
        "data": events.user("user_deep"),
    }
    deep = f"{'[' * 5_000}{']' * 5_000}"
    text = json.dumps(event | {"data": {"unsafe_metadata": None} | event["data"] | {"unsafe_metadata": "HERE"}})
    stored = read(database, text.replace('"HERE"', deep))
    assert stored["data"].pop("unsafe_metadata") == json.loads("[" * 61 + "null" + "]" * 61)
    event["data"].pop("unsafe_metadata", None)
    assert stored == event


@pytest.mark.parametrize(
    "text",
    [
        "", "no json", "null", "[]", '"text"', "1", "{}",
        '\ufeff{"type": "a", "data": {}}',
        '{"type": "a", "data": {}} {}',
        '{"type": "a", "data": {}}"',
        '{"type": "a", "data": {"n": NaN}}',
        '{"type": "a", "data": {"n": -Infinity}}',
        '{"type": "a", "data": {"n": 01}}',
        '{"type": "a", "data": {"s": "\\x"}}',
        '{"type": "a", "data": {"s": "\\u12"}}',
        '{"type": "a", "data": {"s": "\n"}}',
        '{"type": "a", "data": ' + "[" * 100_000,
        "]" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"type": "a"}', '{"data": {}}',
        '{"type": "", "data": {}}', '{"type": 1, "data": {}}', '{"type": null, "data": {}}', '{"type": ["a"], "data": {}}',
        '{"type": "a", "data": null}', '{"type": "a", "data": []}', '{"type": "a", "data": "text"}',
    ],
    ids=lambda text: repr(text[:48]),
)  # fmt: skip
def test_text_that_is_not_an_event_is_refused(database: Database, text: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as refused:
        receive(database, text)
    assert refused.value.sqlstate == "PT400"


@pytest.mark.parametrize("text", ['"\\' * 250_000, '"' * 500_000, "[" * 500_000, '["' * 250_000, "-" * 500_000])
def test_hostile_text_is_refused_before_the_data_api_times_out(database: Database, text: str) -> None:
    database.execute("set local statement_timeout = '8s'")
    with pytest.raises(psycopg.DatabaseError) as refused:
        receive(database, text)
    assert refused.value.sqlstate == "PT400"


@same_database
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200))
@example('{"type": "a", "data": "')
def test_any_text_that_is_not_an_event_is_refused(database: Database, text: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as refused:
        receive(database, text)
    assert refused.value.sqlstate == "PT400"


@same_database
@given(data=st.dictionaries(st.text(ANY_CHARACTER, max_size=8), JSON, max_size=5))
def test_any_event_is_read_with_replacements_where_jsonb_needs_them(
    database: Database, data: dict[str, object]
) -> None:
    text = json.dumps({"type": "a", "data": data})
    assert read(database, text)["data"] == repair(json.loads(text))["data"]
    assert json.loads(database.value("select app.repair_json(%s)", text)) == repair(json.loads(text))


def repair(value: Any) -> Any:
    """The expected value: U+FFFD replaces the null character and unpaired surrogates."""
    match value:
        case str():
            return "".join("\ufffd" if each == "\0" or "\ud800" <= each <= "\udfff" else each for each in value)
        case list():
            return [repair(item) for item in value]
        case dict():
            return {repair(key): repair(item) for key, item in value.items()}
        case _:
            return value


# The answer to the service --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "users", "organizations"),
    [
        ("user.updated", {"id": "user_ada"}, ["user_ada"], []),
        ("user.deleted", {"id": "user_ada"}, ["user_ada"], []),
        ("organization.updated", {"id": "org_acme"}, [], ["org_acme"]),
        ("organization.deleted", {"id": "org_acme"}, [], ["org_acme"]),
        ("organizationMembership.deleted", {"id": "m", "public_user_data": {"user_id": "user_ada"}, "organization": {"id": "org_acme"}},
         ["user_ada"], ["org_acme"]),
        ("organizationInvitation.created", {"id": "i", "organization_id": "org_acme"}, [], ["org_acme"]),
        ("subscription.created", {"id": "s", "payer": {"organization_id": "org_acme"}}, [], ["org_acme"]),
        ("session.created", {"id": "sess_1", "user_id": "user_ada"}, [], []),
        ("user.updated", {"id": 1, "public_user_data": [], "organization": "org_acme", "payer": None}, [], []),
    ],
)  # fmt: skip
def test_the_answer_names_the_users_and_organizations_that_an_event_is_about(
    database: Database, kind: str, data: Json, users: list[str], organizations: list[str]
) -> None:
    text = json.dumps(events.event(kind, data, events.START))
    for _ in range(2):  # the second delivery is a duplicate; the first answer may have been lost
        answer = receive(database, text)
        assert (answer["users"], answer["organizations"]) == (users, organizations)


def test_a_retry_names_the_users_and_organizations_too(database: Database) -> None:
    member = {"id": "orgmem_1", "organization": {"id": "org_acme"}, "public_user_data": {}}
    assert (
        receive(database, json.dumps(events.event("organizationMembership.created", member, events.START)))["outcome"]
        == "failed"
    )
    database.execute("update app.webhook_events set next_attempt_at = now()")
    claimed = {"message_id": "msg_odd", "users": [], "organizations": ["org_acme"]}
    with database.acting("service_role"):
        assert database.value("select public.claim_due_event()") == claimed
        assert database.value("select public.retry_claimed_event('msg_odd')") == "failed"
        assert database.value("select public.claim_due_event()") is None


@pytest.mark.parametrize(
    ("timestamp", "lag"), [("now", True), (1_760_000_000, True), (0, False), ("soon", False), (None, False)]
)
def test_the_answer_contains_the_lag_between_the_event_and_its_storage(
    database: Database, timestamp: object, lag: bool
) -> None:
    now = database.value("select floor(extract(epoch from now()) * 1000)::bigint")
    text = json.dumps({"type": "a", "data": {}, "timestamp": now if timestamp == "now" else timestamp})
    found = receive(database, text)["lag_seconds"]
    assert (found is not None) == lag
    if timestamp == "now":
        assert 0 <= found < 1


# Attempts that end with their transaction ----------------------------------------------------------------------------

USER = json.dumps(events.event("user.created", events.user("user_ada")))
STORED = "select outcome, error, attempts, next_attempt_at > now() as waits from app.webhook_events"
STILL_FAILING = "the attempts to apply it ended with this error"


def break_profiles(database: Database, code: str) -> None:
    """From now on, writing a profile fails. plpgsql cannot catch 57014, like that of a real timeout."""
    database.execute(
        "create or replace function public.test_trouble() returns trigger language plpgsql "
        f"as $$ begin raise sqlstate '{code}' using message = 'trouble'; end $$"
    )
    database.execute(
        "create or replace trigger trouble before insert on public.profiles execute function public.test_trouble()"
    )


def fail_to_receive(database: Database, code: str, text: str = USER) -> None:
    """An attempt that fails, and what the service does after it."""
    with pytest.raises(psycopg.Error) as failure, database.connection.transaction():
        receive(database, text)
    assert failure.value.sqlstate == code
    record_failure(database, code)


def record_failure(database: Database, code: str) -> None:
    with database.acting("service_role"):
        database.execute("select public.record_event_failure('msg_odd', %s)", code)


@pytest.mark.parametrize("code", ["40P01", "40001", "53200", "55P03", "57014", "58030"])
def test_an_event_that_fails_twice_with_the_same_code_is_stored_unapplied(database: Database, code: str) -> None:
    break_profiles(database, code)
    for _ in range(2):
        fail_to_receive(database, code)
    assert receive(database, USER)["outcome"] == "failed"
    assert database.rows(STORED) == [("failed", f"{code}: {STILL_FAILING}", 1, False)]  # due at once
    assert receive(database, USER)["outcome"] == "failed"  # it is stored: no attempt, no 503
    database.execute("drop trigger trouble on public.profiles")
    assert database.value("select app.retry_clerk_event('msg_odd')") == "processed"
    assert database.value("select count(*) from app.event_failures") == 0
    assert receive(database, USER)["outcome"] == "duplicate"


def test_a_deletion_that_is_stored_unapplied_hides_the_person_with_the_next_retry(database: Database) -> None:
    receive(database, USER, "msg_ada")
    deleted = json.dumps(
        events.event("user.deleted", {"object": "user", "id": "user_ada", "deleted": True}, events.START)
    )
    for _ in range(2):
        record_failure(database, "57014")
    assert receive(database, deleted)["outcome"] == "failed"
    with database.acting("service_role"):
        assert database.value("select public.claim_due_event() ->> 'message_id'") == "msg_odd"
        assert database.value("select public.retry_claimed_event('msg_odd')") == "processed"
    assert database.rows("select banned, email from public.profiles where clerk_user_id = 'user_ada'") == [(True, None)]


def test_two_failures_with_different_codes_do_not_count_together(database: Database) -> None:
    for code in ("57014", "40P01", "57014"):
        record_failure(database, code)
    assert receive(database, USER)["outcome"] == "processed"
    assert database.value("select count(*) from app.event_failures") == 0


@pytest.mark.parametrize("code", ["57P01", "57P02", "57P03", "57P05", "08006", "08003"])
def test_the_end_of_the_server_or_the_connection_is_not_counted(database: Database, code: str) -> None:
    for _ in range(3):
        record_failure(database, code)
    assert receive(database, USER)["outcome"] == "processed"


def test_recorded_failures_expire(database: Database) -> None:
    for code in ("57014", "57014"):
        record_failure(database, code)
    expired = "select failed_at from app.event_failures"
    database.execute("update app.event_failures set failed_at = now() - interval '6 days'")
    call(database, "run_retention")
    assert len(database.rows(expired)) == 1
    database.execute("update app.event_failures set failed_at = now() - interval '8 days'")
    call(database, "run_retention")
    assert database.rows(expired) == []


def test_a_stored_event_that_ends_the_attempt_of_a_redelivery_is_answered_as_failed(database: Database) -> None:
    break_profiles(database, "XX000")
    assert receive(database, USER)["outcome"] == "failed"
    break_profiles(database, "57014")
    for _ in range(2):
        fail_to_receive(database, "57014")
    assert receive(database, USER)["outcome"] == "failed"
    assert database.rows(STORED)[0][1] == "57014: the attempt to apply it ended with this error"


def test_a_retry_keeps_transient_errors_as_its_outcome(database: Database) -> None:
    break_profiles(database, "XX000")
    receive(database, USER)
    break_profiles(database, "40P01")
    assert database.value("select app.retry_clerk_event('msg_odd')") == "failed"
    assert database.rows(STORED) == [("failed", "40P01: trouble", 2, True)]


def test_an_attempt_that_ends_with_a_crash_counts_and_lets_others_go_first(database: Database) -> None:
    database.execute(
        "insert into app.webhook_events (message_id, type, event, outcome, attempts, next_attempt_at) "
        "select 'msg_' || n, 'a', '{}', 'failed', 4 - n, now() - n * interval '1 minute' from generate_series(1, 3) as n"
    )
    claimed = []
    with database.acting("service_role"):
        while answer := database.value("select public.claim_due_event()"):  # and nothing more: the process crashed
            claimed.append(answer["message_id"])
    assert claimed == ["msg_3", "msg_2", "msg_1"]
    waits = "select attempts, extract(epoch from next_attempt_at - now())::integer from app.webhook_events order by 1"
    assert database.rows(waits) == [(2, 60), (3, 120), (4, 240)]


def test_a_real_timeout_ends_in_a_stored_event(connections: list[Database]) -> None:
    sync, other, _ = connections
    receive(sync, USER)
    update = json.dumps(
        events.event("user.updated", events.user("user_ada", first_name="Eda", updated_at=events.START + events.MINUTE))
    )
    with other.connection.transaction():
        other.execute("select from public.profiles for update")
        sync.execute("set statement_timeout = '200ms'")
        for _ in range(2):
            with pytest.raises(psycopg.errors.QueryCanceled):
                receive(sync, update, "msg_late")
            with sync.acting("service_role"):
                sync.execute("select public.record_event_failure('msg_late', '57014')")
        assert receive(sync, update, "msg_late")["outcome"] == "failed"
    assert sync.value("select app.retry_clerk_event('msg_late')") == "processed"


def test_an_event_waits_for_locks_no_longer_than_the_service_waits_for_it(connections: list[Database]) -> None:
    sync, other, _ = connections
    sync.execute("set lock_timeout = 0")
    receive(sync, USER)
    with other.connection.transaction():
        other.execute("select from public.profiles for update")
        began = time.monotonic()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            receive(
                sync,
                json.dumps(
                    events.event("user.updated", events.user("user_ada", first_name="Eda", updated_at=events.START + 1))
                ),
                "msg_late",
            )
        assert 5 < time.monotonic() - began < float(TIMEOUT.read or 0)


def test_a_killed_attempt_leaves_nothing_and_the_next_one_applies_the_event(connections: list[Database]) -> None:
    observer, other, _ = connections
    with psycopg.connect(other.connection.info.dsn, password=other.connection.info.password, autocommit=True) as victim:
        killed = Database(victim)
        with other.connection.transaction(), ThreadPoolExecutor(1) as thread:
            receive(other, USER, "msg_first")  # holds the locks until its end
            attempt = thread.submit(receive, killed, USER, "msg_killed")
            while not observer.value(
                "select count(*) from pg_locks where not granted and pid = %s", victim.info.backend_pid
            ):
                time.sleep(0.01)
            observer.execute("select pg_terminate_backend(%s)", victim.info.backend_pid)
            with pytest.raises(psycopg.errors.AdminShutdown):
                attempt.result(timeout=20)
    assert observer.value("select count(*) from app.webhook_events where message_id = 'msg_killed'") == 0
    assert receive(observer, USER, "msg_killed")["outcome"] == "stale"


@pytest.mark.parametrize("values", ["user_{}", "a{}@b", "\\u0000{}", "{}e9999"])
def test_storing_unapplied_is_quick_for_any_event_of_the_largest_size(database: Database, values: str) -> None:
    items = [values.format(number) for number in range(350_000 // 12)]
    quoted = [item if item.endswith("e9999") else f'"{item}"' for item in items]
    text = USER.replace('"unsafe_metadata": {}', f'"unsafe_metadata": {{"x": [{", ".join(quoted)}]}}')
    for _ in range(2):
        record_failure(database, "57014")
    database.execute("set local statement_timeout = '4s'")
    assert receive(database, text)["outcome"] == "failed"


def test_a_failed_event_that_mentions_hundreds_of_erased_people_is_stored_without_them(database: Database) -> None:
    database.execute(
        "insert into app.clerk_tombstones (kind, clerk_id, deleted_at) "
        "select 'user', app.person_hash('user_' || n), now() from generate_series(0, 739) as n"
    )
    erased = [f"user_{number}" for number in range(740)]
    kept = [f"user_{number} is not \\ erased, ask user-{number}" for number in range(1000, 8000)]
    texts = ["\nuser_7", '"user_8"', "user_9\\", "\u0001user_10", "(user_11, user_12)", "user_1234567", "a.user_14"]
    data = {"id": None, "metadata": [*erased, *kept, *texts], "keys": {"user_5": "user_6", 'a"user_5': 1}}
    database.execute("set local statement_timeout = '4s'")
    assert receive(database, json.dumps({"type": "organization.updated", "data": data}))["outcome"] == "failed"
    [[stored, mentions]] = database.rows("select event -> 'data', mentions from app.webhook_events")
    assert stored["keys"] == {"erased": "erased", 'a"erased': 1}
    assert stored["metadata"][:740] == ["erased"] * 740
    assert stored["metadata"][740:-7] == kept
    assert stored["metadata"][-7:] == [
        "\nerased", '"erased"', "erased\\", "\u0001erased", "(erased, erased)", "user_1234567", "a.erased",
    ]  # fmt: skip
    assert set(mentions) == {*kept, "user_1234567"}


# Locks, and erasures that run at the same time -------------------------------------------------------------------------

LOCKS = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"


def mentioning(*ids: str) -> str:
    """An event about an organization whose metadata mentions people."""
    acme = events.organization("org_acme", created_by="user_founder", public_metadata={"people": list(ids)})
    return json.dumps(events.event("organization.updated", acme))


@pytest.mark.parametrize("kind", ["organization.updated", "organization.deleted", "session.created"])
def test_ids_in_metadata_take_no_locks(database: Database, kind: str) -> None:
    event = json.loads(mentioning(*(f"user_{number}" for number in range(740))))
    receive(database, json.dumps(event | {"type": kind}))
    assert database.value("select cardinality(mentions) from app.webhook_events") == 741
    assert 3 <= database.value(LOCKS) <= 6


def test_the_locks_of_a_page_fit_three_times_into_the_smallest_lock_table(database: Database) -> None:
    page = [
        events.membership(
            f"orgmem_{n}", events.organization(f"org_{n}", created_by=f"user_founder_{n}"), events.user(f"user_{n}")
        )
        for n in range(MERGE_BATCH)
    ]
    database.value("select app.merge_clerk_page('membership', %s, now(), 'backfill')", json.dumps(page))
    smallest = 64 * 60  # max_locks_per_transaction * max_connections of Supabase's smallest compute
    assert 4 * MERGE_BATCH < database.value(LOCKS) < smallest / 3


@pytest.fixture
def connections(connect: Callable[[], Connection]) -> Iterator[list[Database]]:
    """Three connections that commit. The tables are emptied afterwards."""
    with connect() as one, connect() as two, connect() as three:
        for each in (one, two, three):
            each.execute("set lock_timeout = '20s'")
        yield [Database(one), Database(two), Database(three)]
        one.execute("truncate public.profiles, public.organizations cascade")
        one.execute(
            "truncate app.webhook_events, app.event_failures, app.clerk_records, app.clerk_tombstones, app.known_addresses, "
            "app.erasure_log, app.erasure_failures"
        )


def request_erasure(database: Database) -> str:
    return str(call(database, "request_erasure", clerk_user_id="user_ada", requested_by="person")["receipt"])


def continue_erasure(database: Database, receipt: str) -> str:
    return str(call(database, "continue_erasure", receipt=receipt)["state"])


def read_mentions(database: Database) -> int:
    return int(database.value("select count(*) from app.webhook_events as e where e::text like '%%user_ada%%'"))


def test_a_mention_in_an_uncommitted_event_is_erased_without_waiting(connections: list[Database]) -> None:
    sync, eraser, _ = connections
    receive(eraser, json.dumps(events.event("user.created", events.user("user_ada"))), "msg_0")
    with sync.connection.transaction():
        receive(sync, mentioning("user_ada"), "msg_1")
        receipt = request_erasure(eraser)
        states = {continue_erasure(eraser, receipt) for _ in range(5)}
    assert states == {"running"}  # it does not end before the event is visible
    assert read_mentions(sync) == 1
    for _ in range(5):
        states.add(continue_erasure(eraser, receipt))
    assert states == {"running", "erased"}
    assert read_mentions(sync) == 0


def test_a_mention_in_an_event_that_began_during_a_step_is_erased(connections: list[Database]) -> None:
    """The step's transaction begins before the event's, and the event looks for erased people before the erasure."""
    sync, eraser, requester = connections
    receive(requester, json.dumps(events.event("user.created", events.user("user_ada"))), "msg_0")
    with eraser.connection.transaction():
        eraser.execute("select now()")
        sync.execute("begin")
        receive(sync, mentioning("user_ada"), "msg_1")
        receipt = request_erasure(requester)
        for _ in range(3):
            continue_erasure(eraser, receipt)
    assert {continue_erasure(eraser, receipt) for _ in range(3)} == {"running"}
    sync.execute("commit")
    for _ in range(5):
        continue_erasure(eraser, receipt)
    assert read_mentions(sync) == 0


def test_an_event_that_begins_after_the_request_contains_no_mention(connections: list[Database]) -> None:
    sync, eraser, _ = connections
    receive(eraser, json.dumps(events.event("user.created", events.user("user_ada"))), "msg_0")
    with sync.connection.transaction():
        sync.execute("select now()")
        request_erasure(eraser)
        receive(sync, mentioning("user_ada"), "msg_1")
    assert sync.value("select event from app.webhook_events where message_id = 'msg_1'")["erased"] is True
