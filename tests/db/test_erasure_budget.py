"""Nothing that others write about a person stops, delays or hides their erasure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.backup import checks
from tests import events
from tests.conftest import Database, OwnDatabase, ServerElsewhere, own_database
from tests.people import call, find_rows, finish_erasures

ADA, EMAIL = "user_2AdaAdaAda", "ada@example.com"
DELETED = json.dumps(events.event("user.deleted", {"object": "user", "id": ADA, "deleted": True}, events.START))


def sign_up(database: Database) -> str:
    """Ada's profile id."""
    event = json.dumps(events.event("user.created", events.user(ADA, email=EMAIL)))
    call(database, "receive_clerk_event", message_id="msg_ada", event=event)
    return str(database.value("select id from public.profiles where clerk_user_id = %s", ADA))


def log_entry(database: Database, metadata: object) -> None:
    """Writes an audit entry of another person, as the service does."""
    with database.acting("service_role", {"role": "service_role"}):
        database.execute("select public.log_audit_event(null, 'client.noted', 'note', null, %s)", json.dumps(metadata))


def request_erasure(database: Database) -> str:
    return str(call(database, "request_erasure", clerk_user_id=ADA, requested_by="person")["receipt"])


def fail_for(database: Database, condition: str, error: str = "raise 'no'") -> None:
    """Adds a trigger that refuses to erase the audit entries for which the condition holds."""
    database.execute(
        f"create or replace function public.test_refuse() returns trigger language plpgsql as $$ begin if {condition} then {error}; end if; return new; end $$"
    )
    database.execute(
        "create or replace trigger refuse before update on public.audit_logs for each row execute function public.test_refuse()"
    )


def count_entries(database: Database) -> int:
    """The entries that name Ada."""
    return len(find_rows(database, "public.audit_logs", ADA, EMAIL))


@pytest.fixture
def own(server: OwnDatabase | ServerElsewhere) -> Iterator[Database]:
    """An empty database, with a connection that commits."""
    if isinstance(server, ServerElsewhere):
        pytest.skip("a server elsewhere has only one database")
    with own_database(server) as database, psycopg.connect(database.url(), autocommit=True) as connection:
        yield Database(connection)


def test_a_thousand_entries_by_strangers_neither_delay_a_deletion_nor_exceed_a_step(own: Database) -> None:
    sign_up(own)
    filler = ["x" * 90, {"note": f"Ask {EMAIL}\n", ADA: [[["deep"]]]}] * 40
    for number in range(1000):
        log_entry(own, {"about": ADA, "number": number, "filler": filler})
    assert count_entries(own) > 1000
    own.execute("set role service_role")
    own.execute("set statement_timeout = '8s'")  # as Supabase sets it for the Data API
    stored = call(own, "receive_clerk_event", message_id="msg_deleted", event=DELETED)
    own.execute("set statement_timeout = '1s'")
    steps = 0
    while call(own, "continue_erasure", receipt=stored["erasure"])["state"] == "running":
        if steps == 0:
            own.execute("reset role")
            hidden = "select email, full_name, banned from public.profiles where clerk_user_id = %s"
            assert own.rows(hidden, ADA) == [(None, None, True)]
            own.execute("set role service_role")
        steps += 1
    own.execute("reset role")
    assert stored["outcome"] == "processed"
    assert count_entries(own) == 0
    assert own.value("select counts -> 'public.audit_logs' from app.erasure_log") >= 1000


def test_an_event_nested_two_thousand_levels_deep_is_redacted(database: Database) -> None:
    person = sign_up(database)
    deep = f'{"[" * 2000}"Ask {EMAIL}"{"]" * 2000}'
    redacted = database.value(
        "select app.redact_person(%s, (%s, %s, array[%s])::app.person)::text", deep, person, ADA, EMAIL
    )
    assert redacted == deep.replace(EMAIL, "erased")


def test_a_value_that_is_too_deep_to_be_read_back_is_kept_as_redacted_text(superuser: Database) -> None:
    superuser.execute("""
        do $$
        declare
          value jsonb := to_jsonb('Ask ada@example.com'::text);
        begin
          for level in 1 .. 5000 loop
            value := jsonb_build_array(value);
          end loop;
          create temporary table deep as select value;
        end $$
    """)
    superuser.execute("set local max_stack_depth = '500kB'")
    redacted = superuser.value(
        "select app.redact_person(d.value, (null, %s, array[%s])::app.person) from deep as d", ADA, EMAIL
    )
    assert redacted == {"text": f'{"[" * 5000}"Ask erased"{"]" * 5000}'}


# --- a batch that fails


def test_an_erasure_ends_although_others_never_stop_writing_about_the_person(own: Database) -> None:
    sign_up(own)
    log_entry(own, {"seen": EMAIL})
    receipt = request_erasure(own)
    states = ["running"]
    while states[-1] == "running" and len(states) < 50:
        states.append(call(own, "continue_erasure", receipt=receipt)["state"])
        log_entry(own, {"seen again": EMAIL})
    assert states[-1] == "erased"
    assert len(states) > 3, "others wrote during the erasure"
    assert count_entries(own) == 1, "only what was written after the last pass is left"


def test_an_entry_whose_plan_was_replaced_counts_once(database: Database) -> None:
    """The entry changes after its receipt was stored, so the erasure makes another plan and asks for another receipt."""
    sign_up(database)
    log_entry(database, {"about": ADA})
    receipt = request_erasure(database)

    def run_step() -> dict[str, Any]:
        step: dict[str, Any] = call(database, "continue_erasure", receipt=receipt, has_store=True)
        if step["receipt_to_store"]:
            call(database, "confirm_receipt", digest=step["receipt_to_store"]["digest"])
        return step

    first = run_step()
    assert "public.audit_logs" not in first["counts"], "nothing happened yet"
    database.execute("set app.audit_intervention = 'on'")
    database.execute(
        "update public.audit_logs set metadata = metadata || '{\"more\": 1}' where metadata ->> 'about' = %s", ADA
    )
    database.execute("set app.audit_intervention = ''")
    second = run_step()
    while (step := run_step())["state"] == "running":
        pass
    assert second["receipt_to_store"]["id"] != first["receipt_to_store"]["id"]
    assert count_entries(database) == 0
    changed = database.value(
        "select count(distinct (e.entry_id, e.entry_created_at)) from app.audit_erasures as e "
        "join app.audit_interventions as i on i.id = e.intervention_id where i.erasure = %s",
        receipt,
    )
    assert step["counts"]["public.audit_logs"] == changed


def test_rows_that_cannot_be_erased_are_reported_and_do_not_stop_others(database: Database) -> None:
    sign_up(database)
    for number in range(120):
        log_entry(database, {"about": ADA, "number": number})
    fail_for(database, "old.metadata -> 'number' in ('17', '93')")
    receipt = request_erasure(database)
    for _ in range(30):
        step = call(database, "continue_erasure", receipt=receipt)
    assert (step["state"], step["skipped"], step["is_blocked"]) == ("running", 2, True)
    assert count_entries(database) == 2
    assert database.value("select count(*) from public.profiles where clerk_user_id = %s", ADA) == 0
    keys = database.rows(
        "select jsonb_build_array(id, created_at)::text from public.audit_logs where metadata ->> 'about' = %s", ADA
    )
    failures = database.rows("select relation, key, error from ops.erasure_failures order by key")
    assert failures == [("public.audit_logs", key, "P0001") for (key,) in sorted(keys)]
    assert database.rows("select skipped, state from ops.erasures") == [(2, "running")]
    assert database.rows("select status, advice like %s from ops.erasure_health", "%%ops.erasure_failures%%") == [
        ("yellow", True)
    ]


def test_an_erasure_with_skipped_rows_is_complete_once_they_can_be_erased(database: Database) -> None:
    sign_up(database)
    log_entry(database, {"about": ADA})
    fail_for(database, "old.metadata ->> 'about' is not null")
    receipt = request_erasure(database)
    for _ in range(10):
        step = call(database, "continue_erasure", receipt=receipt)
    assert step["to_delete_at_clerk"] == ADA  # one bad row does not keep the account at Clerk
    assert call(database, "end_erasure", receipt=receipt, is_stored=True)["state"] == "running"
    assert database.value("select public.claim_due_erasure()") is None
    database.execute("drop trigger refuse on public.audit_logs")
    database.execute("update app.erasure_failures set next_attempt_at = now()")
    for _ in range(10):
        step = call(database, "continue_erasure", receipt=receipt)
    assert (step["state"], step["skipped"], step["to_delete_at_clerk"]) == ("erased", 0, None)
    assert count_entries(database) == 0


def test_a_skipped_row_that_was_deleted_meanwhile_does_not_keep_the_erasure_open(database: Database) -> None:
    sign_up(database)
    log_entry(database, {"about": ADA})
    fail_for(database, "old.metadata ->> 'about' is not null")
    receipt = request_erasure(database)
    for _ in range(10):
        call(database, "continue_erasure", receipt=receipt)
    database.execute("drop trigger refuse on public.audit_logs")
    database.execute("select set_config('app.audit_intervention', 'on', true)")
    database.execute("delete from public.audit_logs where metadata ->> 'about' = %s", ADA)
    database.execute("update app.erasure_failures set next_attempt_at = now()")
    for _ in range(10):
        step = call(database, "continue_erasure", receipt=receipt)
    assert (step["state"], step["skipped"]) == ("erased", 0)


def test_a_row_that_becomes_due_after_a_pass_has_skipped_it_keeps_the_erasure_open(database: Database) -> None:
    sign_up(database)
    log_entry(database, {"about": ADA})
    fail_for(database, "old.metadata ->> 'about' is not null")
    receipt = request_erasure(database)
    for _ in range(10):
        call(database, "continue_erasure", receipt=receipt)
    call(database, "postpone_erasure", receipt=receipt, error="ClerkCallFailed: 500")  # from now on a step is one rule
    last_rule = database.value("select position from app.personal_data where domain = 'profile'")
    while call(database, "continue_erasure", receipt=receipt)["next_rule"] != last_rule:
        pass
    database.execute("update app.erasure_failures set next_attempt_at = now()")
    states = [call(database, "continue_erasure", receipt=receipt)["state"] for _ in range(100)]
    assert states[-1] == "running"
    assert count_entries(database) == 1
    assert database.value("select count(*) from ops.erasure_failures") == 1


def batch_of(database: Database, rule: str) -> Any:
    return database.value("select batches -> %s from app.erasure_log", rule)


def test_a_step_that_times_out_is_tried_with_half_the_batch_and_recovers(database: Database) -> None:
    sign_up(database)
    for number in range(60):
        log_entry(database, {"about": ADA, "number": number})
    fail_for(database, "old.metadata ? 'number'", "raise sqlstate '57014'")
    receipt = request_erasure(database)
    sizes = []
    for _ in range(400):
        try:
            with database.connection.transaction():
                call(database, "continue_erasure", receipt=receipt)
        except psycopg.errors.QueryCanceled:
            call(database, "postpone_erasure", receipt=receipt, error="CallFailed: 57014", in_step=True)
            sizes.append(batch_of(database, "public.audit_logs.subject_ids"))
        if sizes[-1:] == [3]:
            break
    assert [size for size in sizes if size] == [25, 12, 6, 3]
    database.execute("drop trigger refuse on public.audit_logs")
    finish_erasures(database)
    assert batch_of(database, "public.audit_logs.subject_ids") > 25
    assert count_entries(database) == 0


def test_a_row_that_always_times_out_is_skipped_and_the_other_rows_and_tables_are_erased(database: Database) -> None:
    sign_up(database)
    for number in range(60):
        log_entry(database, {"about": ADA, "number": number})
    fail_for(database, "old.metadata -> 'number' = '17'", "raise sqlstate '57014'")
    receipt = request_erasure(database)
    step = {"is_blocked": False}
    for _ in range(1000):
        try:
            with database.connection.transaction():
                step = call(database, "continue_erasure", receipt=receipt)
        except psycopg.errors.QueryCanceled:
            call(database, "postpone_erasure", receipt=receipt, error="CallFailed: 57014", in_step=True)
        if step["is_blocked"]:
            break
    assert (step["skipped"], step["is_blocked"]) == (1, True)
    assert count_entries(database) == 1
    assert database.value("select count(*) from public.profiles where clerk_user_id = %s", ADA) == 0
    assert database.rows("select relation, error from ops.erasure_failures") == [
        ("public.audit_logs", "CallFailed: 57014")
    ]


def time_out_while_applying(database: Database, condition: str) -> None:
    """Adds a trigger that stops a stored plan for the audit trail, but not the planning, if its rows fulfill a condition."""
    database.execute(f"""
        create function public.test_stop() returns trigger language plpgsql security definer as $$ begin
          if {condition}
            and exists (select from app.audit_interventions where stored_at is not null and happened_at is null) then
            raise sqlstate '57014';
          end if;
          return null;
        end $$
    """)
    database.execute(
        "create trigger stop after update on public.audit_logs referencing new table as rows "
        "for each statement execute function public.test_stop()"
    )


def erase_with_store(database: Database, receipt: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Works on an erasure until it ends or is blocked. Returns the last step and the receipts that were stored."""
    step: dict[str, Any] = {}
    stored = []
    for _ in range(1000):
        try:
            with database.connection.transaction():
                step = call(database, "continue_erasure", receipt=receipt, has_store=True)
        except psycopg.errors.QueryCanceled:
            call(database, "postpone_erasure", receipt=receipt, error="CallFailed: 57014", in_step=True)
            continue
        if step["receipt_to_store"]:
            stored.append(step["receipt_to_store"])
            call(database, "confirm_receipt", digest=stored[-1]["digest"])
        if step["state"] != "running" or step["is_blocked"]:
            break
    return step, stored


def test_a_plan_that_times_out_when_it_is_carried_out_is_replaced_by_one_of_half_the_entries(
    database: Database,
) -> None:
    sign_up(database)
    for number in range(60):
        log_entry(database, {"about": ADA, "number": number})
    time_out_while_applying(database, "(select count(*) from rows) > 6")
    receipt = request_erasure(database)
    step, stored = erase_with_store(database, receipt)
    assert step["state"] == "erased"
    assert count_entries(database) == 0
    sizes = [each["entries"] for each in stored if each["entries"] > 1]  # another rule finds the entry of the request
    assert sizes[:4] == [50, 25, 12, 6]
    own = "from app.audit_interventions where erasure = %s"  # other tests leave theirs in the same database
    happened = database.rows(f"select id::text {own} and happened_at is not null", receipt)
    assert database.value(f"select count(*) {own}", receipt) == len(happened) < len(stored)
    assert {key for (key,) in happened} < {each["id"] for each in stored}


def test_an_entry_that_always_times_out_when_its_plan_is_carried_out_is_skipped(database: Database) -> None:
    sign_up(database)
    for number in range(20):
        log_entry(database, {"about": ADA, "number": number})
    time_out_while_applying(database, "exists (select from rows where metadata -> 'number' = '7')")
    step, _ = erase_with_store(database, request_erasure(database))
    assert (step["skipped"], step["is_blocked"]) == (1, True)
    assert count_entries(database) == 1
    assert database.rows("select relation, error from ops.erasure_failures") == [
        ("public.audit_logs", "CallFailed: 57014")
    ]


def test_a_restore_reports_a_row_that_cannot_be_erased_again_and_erases_the_others(own: Database) -> None:
    sign_up(own)
    for number in range(20):
        log_entry(own, {"about": ADA, "number": number})
    with own.connection.transaction(force_rollback=True):  # the rollback restores the state before the erasure
        entry = call(own, "continue_erasure", receipt=request_erasure(own))
    fail_for(own, "old.metadata -> 'number' = '17'", "raise sqlstate '57014'")
    check = checks.replay_erasures(own.connection, lambda: [entry], None)
    assert (check.passed, "1 of 1 erasures are unfinished" in check.detail) == (False, True)
    assert count_entries(own) == 1
    assert own.value("select count(*) from public.profiles where clerk_user_id = %s", ADA) == 0


# --- redaction against a reference

PIECES = st.sampled_from(
    [
        EMAIL,
        ADA,
        EMAIL.upper(),
        "a",
        "B",
        "7",
        " ",
        "\n",
        "\t",
        '"',
        "\\",
        "/",
        "\x01",
        "😀",
        "<",
        ".",
        "-",
        "_",
        "+",
        ",",
        "ada@",
        "n",
        "u0022",
    ]
)
TEXTS = st.lists(PIECES, max_size=7).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers(-9, 9) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)
MENTION = re.compile(rf"(?<![\w.+%-])(?:{re.escape(EMAIL)}|{ADA})(?![\w-]|\.\w)", re.IGNORECASE)


def redact(value: Any) -> Any:
    """The reference: recursive, and on the decoded strings. Of equal keys the last in PostgreSQL's order stays."""
    if isinstance(value, str):
        return MENTION.sub("erased", value)
    if isinstance(value, list):
        return [redact(each) for each in value]
    if isinstance(value, dict):
        ordered = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return {redact(key): redact(value[key]) for key in ordered}
    return value


@settings(database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_redaction_equals_the_reference(database: Database, value: object) -> None:
    redacted = database.value("select app.redact_matches(%s, %s)", json.dumps(value), [EMAIL, ADA])
    assert redacted == redact(value)


def test_an_address_in_unusual_letters_does_not_keep_an_erasure_running(database: Database) -> None:
    """The Kelvin sign is a k in lower case, but no regular expression for a k matches it."""
    sign_up(database)
    call(
        database, "receive_clerk_event", message_id="msg_kim",
        event=json.dumps(events.event("user.updated", events.user(ADA, events.START + 1, email="kim@example.com"))),
    )  # fmt: skip
    broken = {"id": None, "note": "\u212aim@example.com", "created_at": events.START, "updated_at": events.START}
    stored = call(
        database, "receive_clerk_event", message_id="msg_broken",
        event=json.dumps(events.event("organizationMembership.created", broken)),
    )  # fmt: skip
    assert stored["outcome"] == "failed"
    receipt = request_erasure(database)
    states = [call(database, "continue_erasure", receipt=receipt)["state"] for _ in range(20)]
    assert states[-1] != "running"
    assert database.value("select mentions from app.webhook_events where message_id = 'msg_broken'") == []


def test_many_addresses_of_a_person_fit_into_a_step(database: Database) -> None:
    sign_up(database)
    addresses = [f"a{number}@example.com" for number in range(1500)]
    person = json.dumps({"id": None, "clerk_user_id": ADA, "emails": addresses})
    database.execute("set local statement_timeout = '8s'")  # as Supabase sets it for the Data API
    redacted = database.value(
        "select app.redact_person(%s, jsonb_populate_record(null::app.person, %s))",
        json.dumps({"to": addresses, "kept": ["aa1@example.com", "a1@example.com.au"]}), person,
    )  # fmt: skip
    assert redacted == {"to": ["erased"] * 1500, "kept": ["aa1@example.com", "a1@example.com.au"]}


# --- hiding the person


def test_events_of_others_that_mention_the_person_are_not_read_to_hide_them(database: Database) -> None:
    sign_up(database)
    for number in range(3):
        bea = events.user(f"user_bea_{number}", email=f"bea{number}@example.com", unsafe_metadata={"about": ADA})
        call(
            database,
            "receive_clerk_event",
            message_id=f"msg_{number}",
            event=json.dumps(events.event("user.created", bea)),
        )
    database.execute("set local enable_seqscan = off")  # the table is small
    plan = database.rows(
        "explain (analyze, timing off, costs off, summary off) select from app.webhook_events as w "
        "where w.type like 'user.%%' and w.event -> 'data' ->> 'id' = %s",
        ADA,
    )
    assert "webhook_events_user_id_idx" in str(plan)
    assert re.search(r"rows=1(\.00)? ", str(plan))
    source = database.value("select prosrc from pg_proc where proname = 'find_addresses'")
    assert "w.type like 'user.%' and w.event -> 'data' ->> 'id' = find_addresses.clerk_user_id" in source


def test_an_event_that_mentions_many_erased_people_is_redacted_in_one_write(database: Database) -> None:
    people = [f"user_{number:04}" for number in range(300)]
    for person in people:
        deleted = events.event("user.deleted", {"object": "user", "id": person, "deleted": True}, events.START)
        call(database, "receive_clerk_event", message_id=f"msg_{person}", event=json.dumps(deleted))
    database.execute("alter table public.profiles add constraint broken check (full_name <> 'Broken') not valid")
    bea = events.user(
        "user_bea",
        email="bea@example.com",
        first_name="Broken",
        last_name=None,
        unsafe_metadata=dict(enumerate(people)),
    )
    event = json.dumps(events.event("user.created", bea))
    database.execute("create temporary sequence writes")
    database.execute(
        "create function public.test_count_write() returns trigger language plpgsql as "
        "$$ begin perform nextval('pg_temp.writes'); return new; end $$"
    )
    database.execute(
        "create trigger count_write before update on app.webhook_events for each row execute function public.test_count_write()"
    )
    answer = call(database, "receive_clerk_event", message_id="msg_bea", event=event)
    assert answer["outcome"] == "failed"
    stored = database.value("select event::text from app.webhook_events where message_id = 'msg_bea'")
    assert stored.count('"erased"') == 300
    assert not any(person in stored for person in people)
    assert "user_bea" in stored
    assert database.value("select last_value from pg_temp.writes") == 1
