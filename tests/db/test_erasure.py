"""After an erasure, a scan of all tables finds nothing about the person, and the data of other people is unchanged."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import events, people
from tests.conftest import Database
from tests.people import ADA, ADA_EMAILS, BEN, CLEO, FAR_FUTURE, SIMILAR, call, find_rows, identifiers, scan

# Supabase deletes these itself after some days.
DELETED_BY_SUPABASE = {"realtime.messages"}


def finish_erasure(database: Database, receipt: str) -> dict[str, Any]:
    """Runs steps until the state is no longer running. The service runs each step in a separate transaction."""
    for _ in range(20):
        step: dict[str, Any] = call(database, "continue_erasure", receipt=receipt)
        if step["state"] != "running":
            return step
    raise AssertionError(step)


def erase(database: Database, user_id: str = ADA) -> dict[str, Any]:
    asked = call(database, "request_erasure", clerk_user_id=user_id, requested_by="person")
    step = finish_erasure(database, asked["receipt"])
    call(database, "end_erasure", receipt=asked["receipt"], is_stored=True)
    return step


def find_texts(database: Database, texts: list[str]) -> dict[str, int]:
    return {table: rows for table, rows in scan(database, *texts).items() if table not in DELETED_BY_SUPABASE}


def read_rows_of_others(database: Database) -> dict[str, set[str]]:
    """All rows that do not mention Ada, by table, for the tables that mention her."""
    hers = identifiers(database)
    return {
        table: {text for (text,) in database.rows(f"select t::text from {table} as t")} - set(find_rows(database, table, *hers))
        for table in scan(database, *hers)
    }  # fmt: skip


def test_no_table_mentions_an_erased_person(world: Database) -> None:
    texts = identifiers(world)
    assert len(scan(world, *texts)) >= 10
    counts = erase(world)["counts"]
    assert find_texts(world, texts) == {}
    assert counts.keys() >= {
        "public.profiles",
        "public.specimens",
        "public.audit_logs",
        "app.webhook_events",
        "app.clerk_records",
    }


def test_rows_that_do_not_mention_the_person_are_unchanged(world: Database) -> None:
    before = read_rows_of_others(world)
    assert {"public.profiles", "public.specimens", "public.audit_logs", "app.webhook_events"} <= before.keys()
    erase(world)
    gone = {
        table: rows - {text for (text,) in world.rows(f"select t::text from {table} as t")}
        for table, rows in before.items()
    }
    assert gone == {table: set() for table in before}


def test_similar_ids_and_addresses_of_other_people_are_unchanged(world: Database) -> None:
    def mentions() -> list[int]:
        return [
            world.value("select count(*) from public.audit_logs as a where position(%s in a::text) > 0", text)
            for text in (*SIMILAR, *SIMILAR.values())
        ]  # fmt: skip

    before = mentions()
    assert all(before)
    erase(world)
    assert mentions() == before


def test_audit_entries_stay_without_the_actor(world: Database) -> None:
    def acts() -> list[tuple[str, int]]:
        recorded = "action not like 'personal_data.%%' and action not in ('member.left', 'profile.deleted', 'invitation.deleted')"
        return world.rows(f"select action, count(*) from public.audit_logs where {recorded} group by 1 order by 1")  # type: ignore[return-value]

    before = acts()
    erase(world)
    assert acts() == before
    deleted = world.rows(
        "select user_id, changes -> 'before' ->> 'created_by' from public.audit_logs where action = 'specimen.deleted'"
    )
    assert deleted == [(world.value("select id from public.profiles where clerk_user_id = %s", BEN), "erased")]
    # An entry that the erased person made for another one still names the other, without the erased person's id and IP address.
    support = world.rows(
        "select impersonator, user_id is null, ip_address is null from public.audit_logs where metadata ->> 'title' = 'Ada as support'"
    )
    assert support == [(None, False, True)]


def test_the_seals_stay_valid(world: Database) -> None:
    erase(world)
    wrong = world.rows(
        "select e.entry_id from app.audit_erasures as e join public.audit_logs as a on a.id = e.entry_id and a.created_at = e.entry_created_at "
        "where e.remaining <> app.audit_hash(a)"
    )
    assert wrong == []


def test_a_request_hides_the_person_at_once(world: Database) -> None:
    asked = call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")
    assert asked["state"] == "running"
    assert world.rows(
        "select email, full_name, avatar_url, banned from public.profiles where clerk_user_id = %s", ADA
    ) == [(None, None, None, True)]
    with pytest.raises(psycopg.DatabaseError) as refused, world.connection.transaction():
        people.act(world, ADA, "select public.start_session()", iat=FAR_FUTURE // 1000)
    assert refused.value.sqlstate == "PT403"
    assert (
        world.value(
            "select count(*) from public.organization_memberships as m join public.profiles as p on p.id = m.user_id where p.clerk_user_id = %s",
            ADA,
        )
        == 0
    )


def test_a_repeated_request_returns_the_same_receipt_and_changes_nothing(world: Database) -> None:
    first = call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")["receipt"]
    assert call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")["receipt"] == first
    finish_erasure(world, first)
    call(world, "end_erasure", receipt=first, is_stored=False)
    again = call(world, "request_erasure", clerk_user_id=ADA, requested_by="administrator")
    assert (again["receipt"], again["state"]) == (first, "complete")
    assert finish_erasure(world, first)["state"] == "complete"


def test_the_receipt_shows_the_state_and_not_the_person(world: Database) -> None:
    receipt = erase(world)["receipt"]
    shown = call(world, "erasure_receipt", receipt=receipt)
    assert shown.keys() == {"receipt", "state", "requested_at", "erased_at", "clerk_deleted_at", "counts", "skipped"}
    assert shown["state"] == "complete"
    assert world.rows("select state, requested_by, stored_at is null from ops.erasures") == [
        ("complete", "person", False)
    ]


def test_a_sole_owner_gets_a_list_of_their_organizations_and_is_not_erased(world: Database) -> None:
    world.execute(
        "delete from public.organization_memberships where role = 'owner' and user_id <> (select id from public.profiles where clerk_user_id = %s)",
        ADA,
    )
    asked = call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")
    assert [each["name"] for each in asked["sole_owner_of"]] == ["Acme"]
    assert world.value("select count(*) from app.erasure_log") == 0
    world.execute("update public.organizations set deleted_at = now() where name = 'Acme'")
    assert "receipt" in call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")


def test_a_request_for_an_unknown_person_is_refused(database: Database) -> None:
    with pytest.raises(psycopg.DatabaseError) as refused:
        call(database, "request_erasure", clerk_user_id="user_unknown", requested_by="person")
    assert refused.value.sqlstate == "PT404"


# --- Clerk


def test_a_user_deleted_at_clerk_is_erased(world: Database) -> None:
    texts = identifiers(world)
    people.Sender(world, first=500).send(
        "user.deleted", {"object": "user", "id": ADA, "deleted": True}, FAR_FUTURE, expected="processed"
    )
    [(receipt, requested_by)] = world.rows("select receipt::text, requested_by from app.erasure_log")
    assert requested_by == "clerk"
    # Clerk has deleted the account already, so the service need not delete it there.
    assert finish_erasure(world, receipt)["to_delete_at_clerk"] is None
    call(world, "end_erasure", receipt=receipt, is_stored=True)
    assert find_texts(world, texts) == {}


def test_late_clerk_events_about_an_erased_person_leave_no_trace(world: Database) -> None:
    texts = identifiers(world)
    erase(world)
    late = people.Sender(world, first=500)
    user = events.user(ADA, email=ADA_EMAILS[0], updated_at=FAR_FUTURE)
    acme = events.organization("org_acme", created_by=ADA, updated_at=FAR_FUTURE, name="Acme after Ada")
    late.send("user.deleted", {"object": "user", "id": ADA, "deleted": True}, FAR_FUTURE)
    late.send("user.updated", user, expected="stale")
    late.send("organization.updated", acme, expected="processed")
    late.send(
        "organizationMembership.deleted", events.membership("orgmem_0", acme, user, "org:admin", updated_at=FAR_FUTURE)
    )
    late.send(
        "organizationMembership.created", events.membership("orgmem_99", acme, user, "org:admin", updated_at=FAR_FUTURE)
    )
    late.send("session.removed", {"id": "sess_1", "user_id": ADA}, FAR_FUTURE, expected="ignored")
    assert find_texts(world, texts) == {}
    # The rest of these events is applied.
    assert world.value("select name from public.organizations where clerk_org_id = 'org_acme'") == "Acme after Ada"
    assert world.value("select count(*) from public.profiles where clerk_user_id = %s", ADA) == 0


def test_a_failed_event_about_others_can_still_be_retried(world: Database) -> None:
    [[message_id]] = world.rows(
        "select message_id from app.webhook_events where outcome = 'failed' and type = 'organization.updated'"
    )
    erase(world)
    assert world.rows("select outcome from app.webhook_events where type = 'user.updated'") == [("ignored",)]
    assert world.value("select app.retry_clerk_event(%s)", message_id) == "processed"
    assert world.value("select name from public.organizations where clerk_org_id = 'org_acme'") == "Broken"


def pass_seconds(world: Database, seconds: int) -> None:
    world.execute("update app.erasure_log set next_attempt_at = next_attempt_at - make_interval(secs => %s)", seconds)


def test_due_erasures_take_turns_and_each_is_claimed_once(world: Database) -> None:
    receipts = [
        UUID(call(world, "request_erasure", clerk_user_id=person, requested_by="administrator")["receipt"])
        for person in SIMILAR
    ]
    for ago, receipt in enumerate(reversed(receipts)):
        world.execute(
            "update app.erasure_log set next_attempt_at = now() - make_interval(secs => %s) where receipt = %s",
            ago, receipt,
        )  # fmt: skip
    claim = "select public.claim_due_erasure()"
    assert [world.value(claim), world.value(claim), world.value(claim)] == [*receipts, None]
    # The first is large: its next step is due after the second, which has had no step yet.
    pass_seconds(world, 10)
    call(world, "continue_erasure", receipt=str(receipts[0]))
    pass_seconds(world, 60)
    assert [world.value(claim), world.value(claim)] == [receipts[1], receipts[0]]


def test_an_erasure_stays_pending_until_clerk_has_deleted_the_user(world: Database) -> None:
    receipt = call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")["receipt"]
    step = finish_erasure(world, receipt)
    assert (step["state"], step["to_delete_at_clerk"]) == ("erased", ADA)
    assert world.value("select public.claim_due_erasure()") is None  # its worker may still be calling Clerk
    pass_seconds(world, 10)
    assert world.value("select public.claim_due_erasure()") == UUID(receipt)
    call(world, "postpone_erasure", receipt=receipt, error="ClerkCallFailed: 503")
    pass_seconds(world, 10)
    assert world.value("select public.claim_due_erasure()") is None
    assert world.rows("select attempts, error, next_attempt_at > now() from ops.erasures") == [
        (1, "ClerkCallFailed: 503", True)
    ]
    assert call(world, "continue_erasure", receipt=receipt)["to_delete_at_clerk"] == ADA


# --- faults that an attack on erasures found


@pytest.mark.parametrize("primary", ["idn_x", None])
def test_an_unverified_address_does_not_identify_a_person(world: Database, primary: str | None) -> None:
    changes = {
        "email_addresses": [events.email_address("idn_x", "ben@example.net", "unverified")],
        "primary_email_address_id": primary,
    }
    people.Sender(world, first=500).send(
        "user.updated", events.user(ADA, email=ADA_EMAILS[0], updated_at=FAR_FUTURE) | changes
    )
    assert "ben@example.net" not in world.value("select (app.find_person(%s)).emails", ADA)
    erase(world)
    assert world.value("select count(*) from public.organization_invitations where email = 'ben@example.net'") == 1


def test_an_address_of_another_account_is_recognized_regardless_of_letter_case(world: Database) -> None:
    world.execute("update public.profiles set email = upper(%s) where clerk_user_id = %s", ADA_EMAILS[1], CLEO)
    assert ADA_EMAILS[1] not in world.value("select (app.find_person(%s)).emails", ADA)


def test_a_stranger_cannot_protect_data_from_an_erasure_by_entering_the_persons_address(world: Database) -> None:
    stranger = events.user(CLEO, FAR_FUTURE, email_addresses=[events.email_address("idn_primary", ADA_EMAILS[1], None)])
    people.Sender(world, first=500).send("user.updated", stranger)
    assert ADA_EMAILS[1] in world.value("select (app.find_person(%s)).emails", ADA)


def test_a_new_account_with_the_same_address_keeps_its_data(world: Database) -> None:
    receipt = call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")["receipt"]
    world.execute("insert into public.profiles (clerk_user_id, email) values ('user_2AdaAgain', %s)", ADA_EMAILS[1])
    invitation = events.invitation("orginv_again", "org_initech", email_address=ADA_EMAILS[1], created_at=FAR_FUTURE)
    message_id = people.Sender(world, first=500).send("organizationInvitation.created", invitation)
    finish_erasure(world, receipt)
    query = "select clerk_invitation_id from public.organization_invitations where lower(email) = lower(%s)"
    assert world.rows(query, ADA_EMAILS[1]) == [("orginv_again",)]
    assert world.value("select event ? 'erased' from app.webhook_events where message_id = %s", message_id) is False


@pytest.mark.parametrize("note", ["Contact:\n{}", "My ids:\t{}", "<{}>", "{}, {}.", '"{}"', "mailto:{}?x"])
def test_an_address_is_found_next_to_any_character(world: Database, note: str) -> None:
    text = note.replace("{}", ADA_EMAILS[0])
    people.act(world, BEN, "select public.log_audit_event(id, 'client.noted', 'note', null, %s) from public.organizations where name = 'Acme'",
               json.dumps({"about": ADA, "note": text, "list": [{"deep": [text]}]}))  # fmt: skip
    texts = identifiers(world)
    erase(world)
    assert find_texts(world, texts) == {}


@pytest.mark.parametrize(("address", "text"), [
    ("n@nina.dev", "Hello,\n@nina.dev"), ("cora@example.co", "cora@example.co.uk"), ("cora@example.co", "x.cora@example.co"),
])  # fmt: skip
def test_a_text_that_only_contains_a_part_of_the_address_is_unchanged(
    database: Database, address: str, text: str
) -> None:
    redacted = database.value(
        "select app.redact_person(%s, (null, 'user_x', array[%s])::app.person)",
        json.dumps({"a": text, "b": address}),
        address,
    )
    assert redacted == {"a": text, "b": "erased"}


def test_purging_keeps_the_rows_of_other_tenants_in_partitions(world: Database) -> None:
    world.execute(
        "create table public.test_events (id uuid default gen_random_uuid(), organization_id uuid not null references public.organizations on delete cascade) partition by list (organization_id)"
    )
    for (organization,) in world.rows("select id::text from public.organizations"):
        world.execute(
            f"create table public.{f'events_{organization[:8]}'} partition of public.test_events for values in ('{organization}')"
        )
    world.execute(
        "insert into public.test_events (organization_id) select id from public.organizations, generate_series(1, 10)"
    )
    world.execute("update public.organizations set deleted_at = now() - interval '31 days' where name = 'Acme'")
    call(world, "run_retention")
    assert world.value("select count(*) from public.test_events") == 20


def test_an_entry_written_after_the_erasure_does_not_name_the_erased_person(world: Database) -> None:
    texts = identifiers(world)
    erase(world)
    people.act(
        world,
        BEN,
        "insert into public.specimens (organization_id, title) select id, 'Late' from public.organizations where name = 'Acme'",
        act={"sub": ADA},
    )
    world.execute("""select set_config('request.jwt.claims', '{"role": "service_role"}', true)""")
    world.execute("select app.log_audit_event(null, %s, 'job.done', 'job', null, '{}')", texts[0])
    assert find_texts(world, texts) == {}


def test_a_failed_event_about_others_loses_only_the_persons_address(world: Database) -> None:
    world.execute("alter table public.organizations add constraint broken check (name <> 'Umbrella') not valid")
    umbrella = events.organization(
        "org_umbrella", created_by=BEN, name="Umbrella", public_metadata={"billing": ADA_EMAILS[0]}
    )
    message_id = people.Sender(world, first=500).send("organization.created", umbrella, expected="failed")
    world.execute("alter table public.organizations drop constraint broken")
    texts = identifiers(world)
    erase(world)
    assert find_texts(world, texts) == {}
    assert world.value("select app.retry_clerk_event(%s)", message_id) == "processed"
    assert world.value("select count(*) from public.organizations where name = 'Umbrella'") == 1


def test_a_locked_row_does_not_prevent_a_deletion_at_clerk_from_hiding_the_person(world: Database) -> None:
    world.execute(
        "create function public.test_fail() returns trigger language plpgsql as $$ begin raise lock_not_available; end $$"
    )
    world.execute(
        "create trigger fail before update on public.specimens for each row execute function public.test_fail()"
    )
    people.Sender(world, first=500).send(
        "user.deleted", {"object": "user", "id": ADA, "deleted": True}, FAR_FUTURE, expected="processed"
    )
    assert world.rows("select full_name, banned from public.profiles where clerk_user_id = %s", ADA) == [(None, True)]
    world.execute("drop trigger fail on public.specimens")
    [[receipt]] = world.rows("select receipt::text from app.erasure_log")
    assert finish_erasure(world, receipt)["state"] == "erased"


# --- backups


def test_replaying_the_ledger_erases_the_people_that_a_restore_brought_back(world: Database) -> None:
    texts = identifiers(world)
    ledger: list[dict[str, Any]] = []
    with world.connection.transaction(force_rollback=True):  # the rollback restores the state before the erasure
        ledger.append(erase(world))
    assert len(scan(world, *texts)) >= 10
    ledger += [
        ledger[0] | {"receipt": "00000000-0000-4000-8000-00000000000a", "subject_hash": "ab" * 32}
    ]  # a person who is not in this database
    replayed = world.rows("select app.replay_erasures(%s)::text", json.dumps(ledger))
    assert replayed == [(ledger[0]["receipt"],)]
    finish_erasure(world, ledger[0]["receipt"])
    call(world, "end_erasure", receipt=ledger[0]["receipt"], is_stored=True)
    assert find_texts(world, texts) == {}
    assert world.rows("select clerk_id from app.clerk_tombstones where clerk_id = %s", "ab" * 32) == [("ab" * 32,)]
    assert world.rows("select app.replay_erasures(%s)", json.dumps(ledger)) == []


def test_the_ledger_can_be_replayed_on_a_database_with_another_salt(world: Database) -> None:
    texts = identifiers(world)
    with world.connection.transaction(force_rollback=True):
        world.execute("update app.settings set erasure_salt = decode(repeat('ab', 32), 'hex')")
        entry = erase(world)
    [[receipt]] = world.rows("select app.replay_erasures(%s)::text", json.dumps([entry]))
    finish_erasure(world, receipt)
    call(world, "end_erasure", receipt=receipt, is_stored=True)
    assert find_texts(world, texts) == {}


# --- functions that the erasure relies on

LOCAL_PARTS = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1, max_size=12)


@settings(database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    local=LOCAL_PARTS,
    value=st.recursive(
        st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
)
def test_redaction_removes_any_address_and_returns_valid_json(database: Database, local: str, value: object) -> None:
    address = f"{local}@example.com".lower()
    document = json.dumps({"who": address, address: [f"to {address}, please"], "rest": value}).replace("\\u0000", "")
    person = "(%s::uuid, 'user_x', array[%s])::app.person"
    redacted = database.value(
        f"select app.redact_person(%s::jsonb, {person})",
        document, "00000000-0000-4000-8000-000000000001", address,
    )  # fmt: skip
    assert redacted["who"] == "erased"
    assert redacted["erased"] == ["to erased, please"]


def test_every_rule_of_the_registry_finds_rows_by_an_index(world: Database) -> None:
    world.execute("set local enable_seqscan = off")
    for relation, subject in world.rows("select relation, subject from app.personal_data where subject is not null"):
        plan = "\n".join(
            line for (line,) in world.rows(
                f"explain select t.* from {relation} as t cross join (select ($1).*) as person where {subject}".replace(
                    "($1).*", "(('00000000-0000-4000-8000-000000000001', 'user_x', '{a@example.com}')::app.person).*")
            )
        )  # fmt: skip
        assert "Seq Scan" not in plan, plan
