"""Schema ops: the views and functions for administrators, suspending an organization, and retrying an event."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scripts.schema import migrations
from scripts.scratch.postgres import Postgres, stop
from tests import events, people
from tests.conftest import Claims, Database, free_port_block
from tests.people import ADA, BEN, CLEO, SIMILAR
from tests.shipped_jobs import SHIPPED_JOBS

ROLES = ("owner", "admin", "member", "viewer")
GREEN = ("green", "OK.")
message_numbers = itertools.count()


def views(database: Database) -> list[str]:
    rows = database.rows(
        "select relname from pg_class where relnamespace = 'ops'::regnamespace and relkind = 'v' order by relname"
    )
    return [name for (name,) in rows]


def row(database: Database, query: str, *values: object) -> dict[str, Any]:
    """The only row of a query, as a dict by column."""
    cursor = database.execute(query, *values)
    (found,) = cursor.fetchall()
    return dict(zip([column.name for column in cursor.description or ()], found, strict=True))


def verdict(database: Database, view: str) -> tuple[str, str]:
    found = row(database, f"select status, advice from ops.{view}")
    return found["status"], found["advice"]


def tenant(database: Database, clerk_org_id: str) -> dict[str, Any]:
    return row(database, "select * from ops.tenants where clerk_org_id = %s", clerk_org_id)


def read_refusal(database: Database, statement: str, *values: object) -> str:
    """The server's error message and hint."""
    with pytest.raises(psycopg.DatabaseError) as refusal, database.connection.transaction():
        database.execute(statement, *values)
    return f"{refusal.value.diag.message_primary} {refusal.value.diag.message_hint or ''}"


# --- privileges ---


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_api_roles_cannot_use_ops(database: Database, role: str) -> None:
    with database.acting(role, {"sub": ADA, "role": role}):
        for view in views(database):
            assert "permission denied for schema ops" in read_refusal(database, f"select * from ops.{view}")
        for call in (
            "retry_webhook('m')", "dismiss_webhook('m', 'r')", "suspend_organization('o', 'r')", "resume_organization('o')", "explain_access('a', 'b')", "person_id('a')",
        ):  # fmt: skip
            assert "permission denied for schema ops" in read_refusal(database, f"select ops.{call}")
        assert "permission denied" in read_refusal(database, "select app.slow_queries()")


def test_no_view_or_function_of_ops_is_granted_to_any_role(database: Database) -> None:
    assert database.rows(
        "select c.relname, g.grantee::regrole::text from pg_class as c, aclexplode(c.relacl) as g "
        "where c.relnamespace = 'ops'::regnamespace and g.grantee <> c.relowner "
        "union all select p.proname, g.grantee::regrole::text from pg_proc as p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as g "
        "where p.pronamespace = 'ops'::regnamespace and g.grantee <> p.proowner"
    ) == []  # fmt: skip


def test_every_view_runs_with_the_callers_privileges(database: Database) -> None:
    as_owner = database.rows(
        "select relname from pg_class where relnamespace = 'ops'::regnamespace and relkind = 'v' "
        "and not coalesce(reloptions && '{security_invoker=true,security_invoker=on}', false)"
    )
    assert as_owner == []


def test_every_view_works_on_an_empty_and_on_a_full_database(database: Database) -> None:
    for full in (False, True):
        if full:
            people.fill_database(database)
        for view in views(database):
            count = database.value(f"select count(*) from ops.{view}")
            assert not view.endswith("_health") or count == 1, view


def test_health_lists_the_verdict_of_every_health_view_worst_first(database: Database) -> None:
    database.execute("create view ops.invoice_health as select 3 as overdue, 'red' as status, 'Remind them.' as advice")
    health = database.rows("select subject, status, advice from ops.health")
    assert ("invoice", "red", "Remind them.") in health
    found = {
        view.removesuffix("_health"): verdict(database, view) for view in views(database) if view.endswith("_health")
    }
    assert {subject: (status, advice) for subject, status, advice in health} == found
    lights = [status for _, status, _ in health]
    assert lights == sorted(lights, key=["red", "yellow", "green"].index)


# --- tenants and people ---


def test_tenants_shows_plan_seats_members_and_last_activity(world: Database) -> None:
    acme = tenant(world, "org_acme")
    assert {name: acme[name] for name in ("organization", "state", "plan", "plan_status", "seats_used", "seats")} == {
        "organization": "Acme", "state": "active", "plan": "free", "plan_status": "active", "seats_used": 5, "seats": 5,
    }  # fmt: skip
    assert (acme["owners"], acme["members_by_role"], acme["owner_status"]) == (
        "Ada Summer, Ben Winter", "2 owner, 3 member", "green",
    )  # fmt: skip
    assert acme["last_activity_at"] is not None
    assert (acme["state_since"], acme["purged_after"]) == (None, None)
    assert tenant(world, "org_initech")["invitations"] == 2


def test_a_deleted_tenant_shows_when_it_will_be_purged(world: Database) -> None:
    world.execute(
        "select public.receive_clerk_event('msg_gone', %s)",
        json.dumps(events.deletion_event("organization", "org_acme", events.START + events.MINUTE)),
    )
    acme = tenant(world, "org_acme")
    assert (acme["state"], acme["seats_used"]) == ("deleted", 0)
    assert (acme["purged_after"] - acme["state_since"]).days == 30


def test_people_shows_organizations_and_state(world: Database) -> None:
    ben = row(world, "select * from ops.people where clerk_user_id = %s", BEN)
    assert (ben["person"], ben["organizations"]) == ("Ben Winter", ["Acme (owner)", "Globex (owner)"])
    assert (ben["state"], ben["last_seen_at"]) == ("active", None)
    world.execute("update public.profiles set banned = true where clerk_user_id = %s", BEN)
    assert row(world, "select state from ops.people where clerk_user_id = %s", BEN) == {"state": "banned"}
    world.execute("select app.begin_erasure(%s, 'administrator')", ADA)
    ada = row(world, "select * from ops.people where clerk_user_id = %s", ADA)
    assert (ada["person"], ada["state"], ada["organizations"]) == (ADA, "being erased", [])


# --- webhooks ---


def store_event(
    database: Database, ago: str = "0", *, outcome: str = "processed", lag: str = "1 second", attempts: int = 1
) -> str:
    message_id = f"msg_ops_{next(message_numbers)}"
    database.execute(
        "insert into app.webhook_events (message_id, type, event, outcome, attempts, received_at, applied_at, next_attempt_at) "
        "values (%s, 'user.updated', jsonb_build_object('timestamp', "
        "floor(extract(epoch from now() - %s::interval - %s::interval) * 1000)), %s, %s, now() - %s::interval, now(), now() - %s::interval)",
        message_id, ago, lag, outcome, attempts, ago, ago,
    )  # fmt: skip
    return message_id


def test_without_any_event_the_advice_names_the_guide_for_the_endpoint(database: Database) -> None:
    status, advice = verdict(database, "webhook_health")
    assert (status, "deploy.md" in advice) == ("yellow", True)


def test_webhook_health_is_green_if_events_arrive_and_are_applied(database: Database) -> None:
    store_event(database, "2 days", lag="1 hour")
    store_event(database, "1 hour")
    found = row(database, "select * from ops.webhook_health")
    assert (found["received_24h"], found["failed"], found["oldest_failure_at"]) == (1, 0, None)
    assert 0.9 < found["lag"].total_seconds() < 1.1
    assert verdict(database, "webhook_health") == GREEN


@pytest.mark.parametrize(
    ("lag", "light"), [("4 minutes", "green"), ("6 minutes", "yellow"), ("1 day", "yellow"), ("30 days", "green")]
)
def test_webhook_health_reports_a_late_event_unless_it_was_replayed(database: Database, lag: str, light: str) -> None:
    store_event(database, lag=lag)
    assert verdict(database, "webhook_health")[0] == light


def test_an_event_from_the_future_is_clock_skew(database: Database) -> None:
    store_event(database, lag="-10 minutes")
    status, advice = verdict(database, "webhook_health")
    assert (status, advice.startswith("Clock skew: the database's clock is behind Clerk's")) == ("yellow", True)


def refuse_delivery(database: Database, reason: str, *, sender: str = "clerk", skew: float | None = None) -> None:
    with database.acting("service_role"):
        database.execute("select public.record_refused_deliveries(%s, %s, 3, %s)", sender, reason, skew)


def test_refused_deliveries_are_reported_until_one_is_accepted(database: Database) -> None:
    store_event(database, "2 hours")
    refuse_delivery(database, "signature")
    refuse_delivery(database, "signature")
    found = row(database, "select refused_24h, status, advice from ops.webhook_health")
    assert (found["refused_24h"], found["status"]) == (6, "yellow")
    assert "CLERK_WEBHOOK_SECRETS" in found["advice"]
    assert "Strangers can cause this" in found["advice"]
    store_event(database, "-1 second")
    assert verdict(database, "webhook_health") == GREEN
    assert database.value("select count(*) from app.refused_deliveries") == 1


def test_refusals_that_clerk_does_not_repeat_are_forgotten(database: Database) -> None:
    """Clerk repeats a delivery for a day. A stranger who tries once must not keep the light yellow for weeks."""
    store_event(database, "3 days")
    refuse_delivery(database, "signature")
    database.execute(
        "update app.refused_deliveries set hour = hour - interval '7 hours', last_at = last_at - interval '7 hours'"
    )
    assert verdict(database, "webhook_health") == GREEN
    database.execute(
        "insert into app.refused_deliveries (sender, reason, hour, deliveries, last_at) "
        "select sender, reason, hour - interval '3 hours', 1, last_at - interval '3 hours' from app.refused_deliveries"
    )
    assert verdict(database, "webhook_health")[0] == "yellow"


def test_deliveries_refused_for_their_time_are_called_clock_skew(database: Database) -> None:
    store_event(database, "2 hours")
    refuse_delivery(database, "signature")
    refuse_delivery(database, "timestamp", skew=-1800.5)
    found = row(database, "select clock_skew, status, advice from ops.webhook_health")
    assert (found["clock_skew"].total_seconds(), found["status"]) == (-1800.5, "red")
    assert found["advice"].startswith("Clock skew: the service refuses Clerk's deliveries")
    assert "NTP" in found["advice"]


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_only_the_service_can_count_refused_deliveries(database: Database, role: str) -> None:
    with database.acting(role):
        assert "permission denied" in read_refusal(
            database, "select public.record_refused_deliveries('clerk', 'signature', 1)"
        )


def sign_in(database: Database, person: str, ago: str) -> None:
    """Signs in with a token before any event about the person, and ages the profile."""
    claims = {"sub": person, "role": "authenticated", "iat": int(time.time())}
    with database.acting("authenticated", claims):
        database.execute("select public.start_session()")
    database.execute("select set_config('request.jwt.claims', '', true)")
    database.execute(
        "update public.profiles set created_at = now() - %s::interval where clerk_user_id = %s", ago, person
    )


@pytest.mark.parametrize(("ago", "event_ago", "light", "words"), [
    ("10 minutes", "2 days", "green", "OK."),
    ("2 hours", "2 days", "yellow", "`ballast clerk backfill`"),
    ("30 hours", "2 days", "red", "the webhook endpoint exists"),
    ("30 hours", "1 hour", "yellow", "`ballast clerk backfill`"),
])  # fmt: skip
def test_people_who_sign_in_without_any_event_are_reported(
    database: Database, ago: str, event_ago: str, light: str, words: str
) -> None:
    store_event(database, event_ago)
    sign_in(database, "user_2Silent", ago)
    status, advice = verdict(database, "webhook_health")
    assert (status, words in advice) == (light, True), advice
    people.Sender(database, 900).send("user.created", events.user("user_2Silent"))
    database.execute("update app.webhook_events set event = event - 'timestamp'")
    assert verdict(database, "webhook_health") == GREEN


def test_refused_deliveries_and_people_without_events_are_red(database: Database) -> None:
    sign_in(database, "user_2Silent", "30 hours")
    refuse_delivery(database, "signature")
    status, advice = verdict(database, "webhook_health")
    assert (status, "CLERK_WEBHOOK_SECRETS" in advice) == ("red", True)


@pytest.mark.parametrize(("people_seen", "light"), [(9, "green"), (10, "yellow")])
def test_three_days_without_an_event_are_silence_if_many_people_come(
    database: Database, people_seen: int, light: str
) -> None:
    sender = people.Sender(database, 900)
    for number in range(people_seen):
        sender.send("user.created", events.user(f"user_2Many{number}"))
    database.execute(
        "update app.webhook_events set event = event - 'timestamp', received_at = now() - interval '4 days'"
    )
    database.execute("update public.profiles set last_seen_at = now() where clerk_user_id like 'user\\_2Many%'")
    assert verdict(database, "webhook_health")[0] == light


def test_days_without_an_event_are_reported_only_if_people_use_the_product(database: Database) -> None:
    people.Sender(database, 900).send("user.created", events.user("user_2Known"))
    database.execute(
        "update app.webhook_events set event = event - 'timestamp', received_at = now() - interval '4 days'"
    )
    assert verdict(database, "webhook_health") == GREEN
    sign_in(database, "user_2Known", "10 days")
    assert verdict(database, "webhook_health") == GREEN  # one session lasts a week without an event
    database.execute("update app.webhook_events set received_at = now() - interval '9 days'")
    status, advice = verdict(database, "webhook_health")
    assert (status, advice.startswith("No Clerk event has arrived for days")) == ("yellow", True)
    store_event(database, "2 days")
    assert verdict(database, "webhook_health") == GREEN


def test_an_event_that_was_never_stored_is_reported(database: Database) -> None:
    message_id = store_event(database)
    for unstored in (message_id, "msg_unstored"):
        with database.acting("service_role"):
            database.execute("select public.record_event_failure(%s, '57014')", unstored)
    assert verdict(database, "webhook_health") == GREEN  # Clerk sends it again
    database.execute("update app.event_failures set failed_at = now() - interval '2 hours'")
    assert "app.event_failures" in verdict(database, "webhook_health")[1]
    database.execute("delete from app.event_failures where message_id = 'msg_unstored'")
    assert verdict(database, "webhook_health") == GREEN


def test_a_ping_of_the_doctor_does_not_count_as_a_clerk_event(database: Database) -> None:
    database.execute("update app.webhook_events set type = 'ballast.ping' where message_id = %s", store_event(database))
    assert row(database, "select received_24h, last_received_at from ops.webhook_health") == {
        "received_24h": 0, "last_received_at": None,
    }  # fmt: skip


@pytest.mark.parametrize(("ago", "light"), [("1 minute", "yellow"), ("7 hours", "red")])
def test_webhook_health_is_yellow_after_a_failure_and_red_after_hours(database: Database, ago: str, light: str) -> None:
    store_event(database, ago, outcome="failed")
    store_event(database)
    status, advice = verdict(database, "webhook_health")
    assert (status, "`ballast inbox retry --all-failed`" in advice) == (light, True)
    assert "ops.retry_webhook(message_id)" in advice


def test_retry_webhook_applies_a_failed_event_again(database: Database) -> None:
    sender = people.Sender(database, 900)
    database.execute("alter table public.organizations add constraint broken check (name <> 'Broken') not valid")
    message_id = sender.send("organization.created", events.organization("org_x", name="Broken"), expected="failed")
    outcome, error = database.rows("select * from ops.retry_webhook(%s)", message_id)[0]
    assert (outcome, error.startswith("23514")) == ("failed", True)
    database.execute("alter table public.organizations drop constraint broken")
    repeated = "select r.outcome, r.error from ops.webhook_failures as f cross join lateral ops.retry_webhook(f.message_id) as r"
    assert database.rows(repeated) == [("processed", None)]
    assert database.rows("select * from ops.retry_webhook(%s)", message_id) == [("processed", None)]
    assert "No message msg_none was received. ops.webhook_failures" in read_refusal(
        database, "select ops.retry_webhook('msg_none')"
    )


def test_a_dismissed_event_is_given_up_and_the_next_failure_shows_again(database: Database) -> None:
    message_id = store_event(database, "7 hours", outcome="failed")
    store_event(database)
    assert verdict(database, "webhook_health")[0] == "red"
    said = database.value("select ops.dismiss_webhook(%s, ' It has no id ')", message_id)
    assert said.startswith(f"{message_id} (user.updated) is dismissed.")
    assert verdict(database, "webhook_health") == GREEN
    assert database.rows("select * from ops.webhook_failures") == []
    assert row(
        database,
        "select outcome, dismissal_reason, dismissed_by, next_attempt_at, applied_at from app.webhook_events where message_id = %s",
        message_id,
    ) == {
        "outcome": "dismissed", "dismissal_reason": "It has no id", "dismissed_by": "postgres", "next_attempt_at": None,
        "applied_at": database.value("select now()"),
    }  # fmt: skip
    assert database.rows("select action, actor, resource_id, metadata from public.audit_logs where resource_type = 'webhook'") == [
        ("webhook.dismissed", "administrator", message_id,
         {"type": "user.updated", "reason": "It has no id", "dismissed_by": "postgres"})
    ]  # fmt: skip
    store_event(database, outcome="failed")
    assert verdict(database, "webhook_health")[0] == "yellow"


def test_a_dismissed_event_is_neither_retried_nor_applied_by_a_delivery_and_expires(database: Database) -> None:
    sender = people.Sender(database, 900)
    bad = {"object": "user", "first_name": "Eda"}
    message_id = sender.send("user.updated", bad, events.START, expected="failed")
    database.value("select ops.dismiss_webhook(%s, 'no id')", message_id)
    assert database.value("select app.retry_clerk_event(%s)", message_id) == "dismissed"
    database.execute("update app.webhook_events set applied_at = now() - interval '31 days'")
    assert (
        people.call(
            database, "receive_clerk_event", message_id=message_id, event=json.dumps({"type": "a", "data": {}})
        )["outcome"]
        == "duplicate"
    )
    with database.acting("service_role"):
        database.execute("select public.run_retention()")
    assert database.value("select count(*) from app.webhook_events where message_id = %s", message_id) == 0


def test_only_a_failed_event_is_dismissed_and_only_with_a_reason(database: Database) -> None:
    failed, applied = store_event(database, outcome="failed"), store_event(database)
    for arguments, refusal in [
        (f"'{failed}', ' '", "A dismissal needs a reason."),
        (f"'{failed}', null", "A dismissal needs a reason."),
        (f"'{applied}', 'why'", f"The outcome of {applied} is processed"),
        ("'msg_none', 'why'", "No message msg_none was received."),
    ]:
        assert refusal in read_refusal(database, f"select ops.dismiss_webhook({arguments})")
    assert database.value("select count(*) from app.webhook_events where outcome = 'failed'") == 1


def test_the_reason_of_a_dismissal_does_not_keep_an_erased_person(world: Database) -> None:
    event = {"type": "organization.updated", "data": {"public_metadata": {"owner": ADA}}}
    assert (
        people.call(world, "receive_clerk_event", message_id="msg_bad", event=json.dumps(event))["outcome"] == "failed"
    )
    world.value("select ops.dismiss_webhook('msg_bad', %s)", f"{ADA} has no organization")
    receipt = people.call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")["receipt"]
    for _ in range(20):
        people.call(world, "continue_erasure", receipt=receipt)
    stored = "select event, dismissal_reason from app.webhook_events where message_id = 'msg_bad'"
    [[event, reason]] = world.rows(stored)
    assert (event["data"], reason) == ({}, "erased has no organization")
    entry = "select metadata ->> 'reason' from public.audit_logs where action = 'webhook.dismissed'"
    assert world.value(entry) == "erased has no organization"


def test_the_reason_of_a_suspension_in_the_audit_trail_does_not_keep_an_erased_person(world: Database) -> None:
    """In capitals: the database finds addresses as people write them."""
    address = people.ADA_EMAILS[0].upper()
    world.value("select ops.suspend_organization('org_globex', %s)", f"Asked for by {address}")
    world.value("select ops.resume_organization('org_globex')")
    receipt = people.call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")["receipt"]
    for _ in range(20):
        people.call(world, "continue_erasure", receipt=receipt)
    reasons = "select action, metadata ->> 'reason' from public.audit_logs where metadata ? 'reason' order by action"
    assert world.rows(reasons) == [
        ("organization.resumed", "Asked for by erased"), ("organization.suspended", "Asked for by erased"),
    ]  # fmt: skip


def test_the_name_of_who_dismissed_an_event_does_not_keep_an_erased_person(world: Database) -> None:
    event = {"type": "organization.updated", "data": {}}
    people.call(world, "receive_clerk_event", message_id="msg_bad", event=json.dumps(event))
    world.value("select ops.dismiss_webhook('msg_bad', 'no id', %s)", people.ADA_EMAILS[0])
    receipt = people.call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")["receipt"]
    for _ in range(20):
        people.call(world, "continue_erasure", receipt=receipt)
    entry = "select metadata ->> 'dismissed_by' from public.audit_logs where action = 'webhook.dismissed'"
    assert world.value(entry) == "erased"


def test_an_example_of_years_ago_has_no_lag(database: Database) -> None:
    store_event(database, lag="330 days")
    assert row(database, "select lag, status from ops.webhook_health") == {"lag": None, "status": "green"}


# --- suspension ---


def count_readable(database: Database, user_id: str) -> tuple[int, ...]:
    """How many rows of each table the person can read, and how many organizations and topics their session has."""
    tables = ("organizations", "specimens", "organization_memberships", "audit_logs", "profiles")
    with database.acting("authenticated", {"sub": user_id, "role": "authenticated", "fva": [0, 0]}):
        counts = [database.value(f"select count(*) from public.{table}") for table in tables]
        session = database.value("select public.start_session()")
        topics = database.value("select cardinality(app.topics())")
    return (*counts, len(session["organizations"]), topics)


def test_members_cannot_reach_a_suspended_organization_until_it_is_resumed(world: Database) -> None:
    before = {person: count_readable(world, person) for person in (ADA, BEN, CLEO)}
    answer = world.value("select ops.suspend_organization('org_acme', '  does not pay  ')")
    assert answer.startswith("Acme is suspended")
    acme = tenant(world, "org_acme")
    assert (acme["state"], acme["suspension_reason"], acme["seats_used"]) == ("suspended", "does not pay", 5)
    assert row(world, "select suspended from ops.access_health") == {"suspended": 1}
    for person in (ADA, BEN, CLEO):
        with world.acting("authenticated", {"sub": person, "role": "authenticated", "fva": [0, 0]}):
            for table, column in (
                ("organizations", "id"), ("specimens", "organization_id"), ("organization_memberships", "organization_id"), ("audit_logs", "organization_id"),
            ):  # fmt: skip
                query = f"select count(*) from public.{table} where {column} = %s"
                assert world.value(query, acme["id"]) == 0, (person, table)
            assert not world.value("select public.has_permission(%s, 'specimens:read')", acme["id"])
            assert world.execute("update public.specimens set title = 'x'").rowcount == count_specimens_of_others(
                world, acme["id"]
            )
            session = world.value("select public.start_session()")
            assert "Acme" not in [each["name"] for each in session["organizations"]]
            assert not [topic for topic in world.value("select app.topics()") if str(acme["id"]) in topic]
            statement = "insert into public.specimens (organization_id, title) values (%s, 'x')"
            assert "row-level security" in read_refusal(world, statement, acme["id"])
    world.execute("select ops.resume_organization('org_acme')")
    after = {person: count_readable(world, person) for person in (ADA, BEN, CLEO)}
    # Audit entries (index 3) are left out: the updates above, the suspension and its end added some.
    assert {person: counts[:3] + counts[4:] for person, counts in after.items()} == {
        person: counts[:3] + counts[4:] for person, counts in before.items()
    }
    assert tenant(world, "org_acme")["state"] == "active"


def count_specimens_of_others(database: Database, organization: object) -> int:
    """How many specimens of other organizations the caller may read, and so update."""
    return int(database.value("select count(*) from public.specimens where organization_id <> %s", organization))


def test_the_trail_records_a_suspension_once_with_its_reason(world: Database) -> None:
    world.execute("select ops.suspend_organization('org_acme', 'fraud')")
    again = world.value("select ops.suspend_organization('org_acme', 'another reason')")
    assert again.startswith("Acme has already been suspended since")
    assert again.endswith(": fraud")
    world.execute("select ops.resume_organization('org_acme')")
    assert world.value("select ops.resume_organization('org_acme')") == "Acme is not suspended."
    entries = world.rows(
        "select action, actor, metadata ->> 'name', metadata ->> 'reason' from public.audit_logs "
        "where resource_type = 'organization' and action ~ '(suspended|resumed)$' order by action desc"
    )
    assert entries == [
        ("organization.suspended", "administrator", "Acme", "fraud"), ("organization.resumed", "administrator", "Acme", "fraud"),
    ]  # fmt: skip


def test_clerk_events_do_not_end_a_suspension(world: Database) -> None:
    world.execute("select ops.suspend_organization('org_acme', 'fraud')")
    sender = people.Sender(world, 500)
    later = events.START + 10 * events.MINUTE
    acme = events.organization("org_acme", created_by=ADA) | {"name": "Acme Two", "updated_at": later}
    sender.send("organization.updated", acme, expected="processed")
    sender.send("organizationMembership.created", events.membership("orgmem_new", acme, events.user("user_new")))
    found = tenant(world, "org_acme")
    assert (found["organization"], found["state"], found["seats_used"]) == ("Acme Two", "suspended", 6)


def test_a_suspension_needs_an_organization_and_a_reason(world: Database) -> None:
    for reason in ("", "  ", None):
        assert "A suspension needs a reason. Pass the reason" in read_refusal(
            world, "select ops.suspend_organization('org_acme', %s)", reason
        )
    for call in ("suspend_organization('org_none', 'x')", "resume_organization('org_none')"):
        assert "There is no organization org_none. Pass Clerk's id" in read_refusal(world, f"select ops.{call}")


# --- access ---


@pytest.mark.parametrize("suspended", [False, True], ids=["", "suspended"])
@pytest.mark.parametrize("banned", [False, True], ids=["", "banned"])
@pytest.mark.parametrize("mfa_required", [False, True], ids=["", "mfa"])
@pytest.mark.parametrize("role", [*ROLES, None])
def test_explain_access_agrees_with_the_policies(
    world: Database, role: str | None, mfa_required: bool, banned: bool, suspended: bool
) -> None:
    organization = world.value(
        "update public.organizations set mfa_required = %s where clerk_org_id = 'org_acme' returning id", mfa_required
    )
    world.execute("update public.profiles set banned = %s where clerk_user_id = %s", banned, CLEO)
    if role is None:
        world.execute(
            "delete from public.organization_memberships where organization_id = %s and user_id = ops.person_id(%s)",
            organization,
            CLEO,
        )
    else:
        world.execute("update public.organization_memberships set role = %s where organization_id = %s and user_id = ops.person_id(%s)", role, organization, CLEO)  # fmt: skip
    if suspended:
        world.execute("select ops.suspend_organization('org_acme', 'test')")
    explained = world.rows("select * from ops.explain_access(%s, 'org_acme')", CLEO)
    assert len(explained) == world.value("select count(distinct permission) from public.role_permissions") >= 11
    for permission, allowed, without, because in explained:
        for factor, explained_as in (([0, 0], allowed), ([0, -1], without)):
            claims: Claims = {"sub": CLEO, "role": "authenticated", "fva": factor}
            with world.acting("authenticated", claims):
                held = world.value("select public.has_permission(%s, %s)", organization, permission)
            assert explained_as == held, (permission, factor, because)
        expected = expected_reason(role, banned=banned, suspended=suspended, allowed=allowed, without=without)
        assert expected in because, because
        assert "not explained" not in because


def expected_reason(role: str | None, *, banned: bool, suspended: bool, allowed: bool, without: bool) -> str:
    if banned:
        return "is banned or deprovisioned in Clerk"
    if suspended:
        return "has been suspended since"
    if role is None:
        return "is not a member of Acme."
    if not allowed:
        return f"and the role {role} lacks this permission. Only "
    return "and the role has this permission." if without else "without one it acts as viewer"


@pytest.mark.parametrize("person", [ADA, "ada.winter@EXAMPLE.com", "our id"])
@pytest.mark.parametrize("organization", ["org_acme", "acme", "our id"])
def test_explain_access_accepts_any_identifier(world: Database, person: str, organization: str) -> None:
    if person == "our id":
        person = str(world.value("select id from public.profiles where clerk_user_id = %s", ADA)).upper()
    if organization == "our id":
        organization = str(world.value("select id from public.organizations where clerk_org_id = 'org_acme'"))
    assert all(
        "Acme" in because
        for (because,) in world.rows("select because from ops.explain_access(%s, %s)", person, organization)
    )


def test_explain_access_names_unknown_ambiguous_and_deleted_people_and_tenants(world: Database) -> None:
    def reasons(person: str, organization: str = "org_acme") -> set[tuple[Any, ...]]:
        return set(world.rows("select allowed, because from ops.explain_access(%s, %s)", person, organization))

    ((allowed, because),) = reasons("user_unknown")
    assert (allowed, "the webhook has not arrived" in because) == (False, True)
    ((allowed, because),) = reasons(ADA, "org_none")
    assert (allowed, "No organization or more than one matches org_none" in because) == (False, True)
    world.execute("update public.profiles set email = 'ben@example.com' where clerk_user_id = %s", next(iter(SIMILAR)))
    ((allowed, because),) = reasons("ben@example.com")
    assert (allowed, "or more than one matches" in because) == (False, True)
    world.execute("select app.begin_erasure(%s, 'administrator')", ADA)
    assert reasons(ADA) == {(False, "The person is being erased: their tokens are refused.")}
    world.execute(
        "select public.receive_clerk_event('msg_gone', %s)",
        json.dumps(events.deletion_event("organization", "org_globex", events.START + events.MINUTE)),
    )
    ((allowed, because),) = reasons(BEN, "org_globex")
    assert (allowed, "Globex was deleted in Clerk: it has been hidden since" in because) == (False, True)


def test_explain_access_restores_the_claims_of_the_session(world: Database) -> None:
    world.execute("select set_config('request.jwt.claims', '{\"sub\": \"x\"}', true)")
    world.rows("select * from ops.explain_access(%s, 'org_acme')", ADA)
    assert world.value("select current_setting('request.jwt.claims')") == '{"sub": "x"}'


# --- row level security ---


def coverage(database: Database, relation: str) -> dict[str, Any]:
    return row(database, "select * from ops.rls_coverage where schema || '.' || relation = %s", relation)


def test_no_table_has_a_gap(database: Database) -> None:
    assert database.rows("select schema, relation, gap from ops.rls_coverage where gap is not null") == []
    assert verdict(database, "access_health") == GREEN


def test_coverage_lists_policies_and_grants(database: Database) -> None:
    specimens = coverage(database, "public.specimens")
    assert (specimens["enabled"], specimens["forced"]) == (True, True)
    assert specimens["policies"] == [
        "select to authenticated: read with specimens:read", "insert to authenticated: create with specimens:create",
        "update to authenticated: update with specimens:update", "delete to authenticated: delete with specimens:delete",
    ]  # fmt: skip
    assert specimens["grants"] == [
        "select to authenticated", "insert to authenticated (description, metadata, organization_id, status, title)",
        "update to authenticated (description, metadata, status, title)", "delete to authenticated",
    ]  # fmt: skip
    assert coverage(database, "realtime.messages")["policies"]


@pytest.mark.parametrize(("breaking", "gap"), [
    ("alter table public.specimens disable row level security", "Row level security is off"),
    ("alter table public.specimens no force row level security", "not forced"),
    ("grant select on public.specimens to anon", "Granted to anon, which needs no access: revoke it."),
    ("grant select (title) on public.specimens to public", "Granted to public, which"),
    ("drop policy \"read with specimens:read\" on public.specimens", "no policy for select."),
    ("revoke delete on public.specimens from authenticated", "because the grant is missing: delete with specimens:delete (delete)."),
    ("alter policy \"read with specimens:read\" on public.specimens using (true)", "Open to every tenant: read with specimens:read."),
    ("alter policy \"create with specimens:create\" on public.specimens with check (true)", "Open to every tenant: create with"),
])  # fmt: skip
def test_rls_coverage_reports_each_kind_of_gap(database: Database, breaking: str, gap: str) -> None:
    database.execute(breaking)
    assert gap in coverage(database, "public.specimens")["gap"]
    found = row(database, "select * from ops.access_health")
    assert (found["gaps"], found["status"], found["first_gap"].startswith("public.specimens: ")) == (1, "red", True)


def test_rls_coverage_reports_a_grant_on_a_private_table(database: Database) -> None:
    database.execute("grant select on app.settings to service_role")
    assert "Granted to service_role" in coverage(database, "app.settings")["gap"]


# --- jobs ---


def job(database: Database, name: str) -> dict[str, Any]:
    return row(database, "select * from ops.jobs where name = %s", name)


def record_run(database: Database, name: str, *, ok: bool = True, ago: str = "0") -> None:
    with database.acting("service_role"):
        database.execute("select public.record_job(%s, %s, %s, 12)", name, json.dumps({"done": ok}), ok)
    database.execute("update app.job_runs set last_run_at = last_run_at - %s::interval where name = %s", ago, name)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_only_the_service_can_record_a_job(database: Database, role: str) -> None:
    with database.acting(role):
        assert "permission denied" in read_refusal(database, "select public.record_job('x', '{}', true, 1)")


def install(database: Database, ago: str = "0") -> None:
    """Declares Ballast's jobs, and no others, that long ago."""
    database.execute("delete from app.job_schedules where not shipped")
    database.execute("update app.job_schedules set added_at = now() - %s::interval", ago)


def test_in_a_fresh_database_only_the_first_backup_and_drill_are_late(database: Database) -> None:
    install(database)
    late = database.rows("select name, status from ops.jobs where is_late")
    assert sorted(late) == [("backup", "yellow"), ("drill", "yellow")]
    assert verdict(database, "job_health") == GREEN


FREQUENT_JOBS = {"mail", "retry-events", "erasures", "name-changes"}
JOBS = set(SHIPPED_JOBS)


@pytest.mark.parametrize(("ago", "light", "late"), [
    ("25 minutes", "green", set()),
    ("1 hour", "yellow", FREQUENT_JOBS),
    ("4 hours", "yellow", JOBS - {"partitions", "retention"}),
    ("4 days", "red", JOBS),
])  # fmt: skip
def test_a_scheduler_that_never_called_a_job_is_reported_within_the_first_hour(
    database: Database, ago: str, light: str, late: set[str]
) -> None:
    install(database, ago)
    reported = database.rows("select name, advice from ops.jobs where is_late and name not in ('backup', 'drill')")
    assert {name for name, _ in reported} == late
    assert all("No scheduler has called the job yet" in advice and "docs/jobs.md" in advice for _, advice in reported)
    found = row(database, "select late, status, advice from ops.job_health")
    assert (found["late"], found["status"]) == (len(late), light)
    assert light == "green" or "No scheduler has called the job yet" in found["advice"]


def test_a_job_of_a_new_release_is_not_late_at_once(database: Database) -> None:
    install(database, "400 days")
    for name in JOBS - {"retention"}:
        record_run(database, name)
    assert verdict(database, "job_health")[0] == "red"
    database.execute("update app.job_schedules set added_at = now() - interval '10 minutes' where name = 'retention'")
    assert verdict(database, "job_health") == GREEN


@pytest.mark.parametrize(
    ("skew", "light"), [("-10 minutes", "yellow"), ("10 minutes", "yellow"), ("5 seconds", "green")]
)
def test_a_service_whose_clock_differs_from_the_databases_is_reported(
    database: Database, skew: str, light: str
) -> None:
    install(database)
    with database.acting("service_role"):
        database.execute("select public.record_job('mail', '{}', true, 1, clock_timestamp() + %s::interval)", skew)
    assert job(database, "mail")["status"] == light
    status, advice = verdict(database, "job_health")
    assert (status, "Clock skew: the service's clock" in advice) == (light, light == "yellow")


def test_a_run_dated_in_the_future_is_not_taken_for_a_recent_one(database: Database) -> None:
    record_run(database, "erasures", ago="-2 days")
    found = job(database, "erasures")
    assert (found["status"], "clock" in found["advice"]) == ("yellow", True)


def test_a_run_is_recorded_with_its_report(database: Database) -> None:
    record_run(database, "erasures", ok=False)
    record_run(database, "erasures")
    found = job(database, "erasures")
    assert (found["failures"], found["last_report"], found["status"]) == (0, {"done": True}, "green")
    assert found["last_effect_at"] is not None
    assert database.value("select runs from app.job_runs where name = 'erasures'") == 2


def test_a_failing_job_is_yellow_and_red_after_three_failures(database: Database) -> None:
    install(database)
    for light in ("yellow", "yellow", "red"):
        record_run(database, "name-changes", ok=False)
        assert job(database, "name-changes")["status"] == light
    assert row(database, "select late, which, status from ops.job_health") == {
        "late": 1, "which": "name-changes", "status": "red",
    }  # fmt: skip


def test_a_job_that_the_scheduler_no_longer_calls_is_reported(database: Database) -> None:
    for ago, light in (("2 hours", "yellow"), ("2 days", "red")):
        record_run(database, "erasures", ago=ago)
        found = job(database, "erasures")
        assert (found["status"], "stopped calling" in found["advice"]) == (light, True)


WAITING = {
    "erasures": "insert into app.erasure_log (subject_hash, person, requested_by, next_attempt_at) "
    "values (repeat('a', 64), (null, 'user_x', null), 'person', now() - %s::interval)",
    "name-changes": "insert into app.name_changes (person_id, next_attempt_at) select id, now() - %s::interval from public.profiles limit 1",
    "retention": "insert into app.webhook_events (message_id, type, event, outcome, applied_at) "
    "values ('msg_old', 'x', '{}', 'ignored', now() - interval '30 days' - %s::interval)",
    "retry-events": "insert into app.webhook_events (message_id, type, event, outcome, next_attempt_at) "
    "values ('msg_bad', 'x', '{}', 'failed', now() - %s::interval)",
    "seals": "insert into app.audit_seals (sequence, range_start, range_end, entries, digest, interventions, retention, seal, sealed_at) "
    "select coalesce((select max(sequence) from app.audit_seals), 0) + 1, now() - interval '99 days', now() - a.age, 0, sha256('a'), sha256(''), '400 days', sha256('b'), now() - a.age from (select %s::interval as age) as a",
}  # fmt: skip


@pytest.mark.parametrize("name", WAITING)
@pytest.mark.parametrize(("ago", "light"), [("10 minutes", "green"), ("25 hours", None), ("4 days", "red")])
def test_overdue_work_is_reported_even_if_the_job_never_ran(
    database: Database, name: str, ago: str, light: str | None
) -> None:
    install(database)
    database.execute("insert into public.profiles (clerk_user_id) values ('user_x')")
    database.execute(WAITING[name], ago)
    found = job(database, name)
    assert found["status"] == (light or ("yellow" if name == "retention" else "red"))
    assert found["overdue_since"] is not None


def test_a_name_that_clerk_refused_for_good_is_not_overdue(database: Database) -> None:
    install(database)
    database.execute("insert into public.profiles (clerk_user_id) values ('user_x')")
    database.execute(
        "insert into app.name_changes (person_id, next_attempt_at) select id, 'infinity' from public.profiles"
    )
    assert job(database, "name-changes")["status"] == "green"


def test_a_missing_audit_partition_is_overdue(database: Database) -> None:
    month = database.value("select 'app.audit_logs_' || to_char(now() at time zone 'UTC', 'YYYY_MM')")
    database.execute(f"drop table {month}")
    assert job(database, "partitions")["overdue_since"] is not None


def test_backups_and_drills_are_among_the_jobs(database: Database) -> None:
    install(database)
    database.execute(
        "insert into public.backup_logs (filename, backup_type, status, created_at, finished_at, drilled_at, drill_passed) "
        "values ('database/x', 'automated', 'completed', now() - interval '5 days', now(), now() - interval '1 day', true)"
    )
    assert (job(database, "backup")["status"], job(database, "drill")["status"]) == ("red", "green")
    assert verdict(database, "job_health") == GREEN  # ops.backup_health reports backups


@pytest.mark.parametrize(("ago", "light"), [("50 minutes", "green"), ("70 minutes", "yellow"), ("15 days", "red")])
def test_erasure_health_reports_an_overdue_erasure(database: Database, ago: str, light: str) -> None:
    assert verdict(database, "erasure_health") == GREEN
    database.execute(
        "insert into app.erasure_log (subject_hash, person, requested_by, requested_at, error) "
        "values (repeat('a', 64), (null, 'user_x', null), 'person', now() - %s::interval, '503')", ago
    )  # fmt: skip
    found = row(database, "select running, waiting_for_clerk, error, status from ops.erasure_health")
    assert found == {"running": 1, "waiting_for_clerk": 0, "error": "503", "status": light}


def test_a_backlog_of_erasures_without_an_error_names_the_job(database: Database) -> None:
    database.execute(
        "insert into app.erasure_log (subject_hash, person, requested_by, requested_at) "
        "select repeat(n::text, 64), (null, 'user_' || n, null)::app.person, 'clerk', now() - interval '70 minutes' from generate_series(1, 9) as n"
    )
    status, advice = verdict(database, "erasure_health")
    assert (status, "the job erasures runs" in advice, "`ballast person resume`" in advice) == ("yellow", True, True)


# --- lost audit entries and broadcasts ---


@pytest.mark.parametrize(
    ("kind", "view", "light"), [("audit", "audit_health", "red"), ("broadcast", "realtime_health", "yellow")]
)
def test_losses_are_reported_for_a_week_or_until_they_are_acknowledged(
    database: Database, kind: str, view: str, light: str
) -> None:
    assert verdict(database, view) == GREEN
    database.execute(
        "insert into app.lost_records (kind, relation, error, day, backend, lost, last_at) select %s, t, e, current_date, b, 2, now() - b * interval '2 days' "
        "from (values ('public.projects', '23514', 1), ('public.profiles', '22003', 2), ('public.profiles', '22003', 4)) as v (t, e, b)",
        kind,
    )
    found = row(database, f"select lost, relation, error, status from ops.{view}")
    assert found == {"lost": 4, "relation": "public.projects", "error": "23514", "status": light}
    database.execute("update app.settings set losses_acknowledged_at = now() - interval '3 days'")
    assert row(database, f"select lost from ops.{view}") == {"lost": 2}
    database.execute("update app.settings set losses_acknowledged_at = now()")
    assert verdict(database, view) == GREEN


def test_audit_health_reports_a_receipt_that_cannot_be_stored(database: Database) -> None:
    for ago, light in (("1 hour", "green"), ("2 days", "yellow")):
        database.execute("delete from app.audit_interventions where happened_at is null")
        database.execute(
            "insert into app.audit_interventions (kind, range_start, range_end, entries, retention, contents, planned_at) "
            "values ('retention', now(), now(), 1, '400 days', sha256(''), now() - %s::interval)", ago
        )  # fmt: skip
        assert verdict(database, "audit_health")[0] == light


def add_entry(database: Database, ago: str) -> None:
    database.execute(
        "insert into public.audit_logs (action, resource_type, created_at) values ('client.x', 'x', now() - %s::interval)", ago
    )  # fmt: skip


def test_audit_health_reports_entries_that_were_never_sealed_for_a_day(database: Database) -> None:
    add_entry(database, "23 hours")
    assert verdict(database, "audit_health") == GREEN
    add_entry(database, "25 hours")
    assert row(database, "select sealed_until, status, advice from ops.audit_health") == {
        "sealed_until": None, "status": "yellow",
        "advice": "Audit entries older than a day are not sealed, so `ballast audit verify` cannot find changes of them. "
        "Run `ballast audit seal`, and check that the scheduler calls the job seals.",
    }  # fmt: skip
    database.execute("select app.seal_audit()")
    assert verdict(database, "audit_health") == GREEN


def test_audit_health_reports_seals_that_stopped_only_if_entries_wait_for_them(database: Database) -> None:
    add_entry(database, "5 days")
    database.execute("select app.seal_audit(now() - interval '4 days')")
    assert verdict(database, "audit_health") == GREEN
    add_entry(database, "3 days")
    assert verdict(database, "audit_health")[0] == "yellow"
    until = database.value("select sealed_until from ops.audit_health")
    assert until == database.value("select now() - interval '4 days'")


def test_audit_health_reports_a_seal_that_is_dated_in_the_future(database: Database) -> None:
    database.execute("select app.seal_audit()")
    database.execute(WAITING["seals"], "-2 days")
    status, advice = verdict(database, "audit_health")
    assert (status, advice.startswith("Clock skew: the newest seal")) == ("yellow", True)


def test_audit_health_does_not_search_the_trail_while_seals_are_recent(database: Database) -> None:
    add_entry(database, "5 days")
    database.execute("select app.seal_audit()")
    plan = [
        line for (line,) in database.rows("explain (analyze, costs off, timing off) select * from ops.audit_health")
    ]
    scans = [line for line in plan if "audit_logs" in line]
    assert scans
    assert all("never executed" in line for line in scans)


# --- sizes and queries ---


def test_table_sizes_include_indexes_and_partitions(database: Database) -> None:
    database.execute(
        "insert into public.audit_logs (action, resource_type, metadata) select 'client.x', 'x', jsonb_build_object('n', repeat('x', 500)) "
        "from generate_series(1, 2000)"
    )
    sizes = {f"{schema}.{name}": (total, parts) for schema, name, total, parts in database.rows(
        "select schema, relation, total_bytes, partitions from ops.table_sizes"
    )}  # fmt: skip
    assert sizes["public.audit_logs"][0] > 1_000_000
    assert sizes["public.audit_logs"][1] >= 5
    assert not [name for name in sizes if name.startswith("app.audit_logs_")]
    assert sizes["public.specimens"][1] is None
    assert "public.audit_logs" in row(database, "select largest from ops.storage_health")["largest"]


def test_storage_health_is_green_for_a_small_idle_database(database: Database) -> None:
    assert verdict(database, "storage_health") == GREEN


def test_without_pg_stat_statements_slow_queries_is_empty_and_its_comment_explains_how_to_install_it(
    superuser: Database,
) -> None:
    superuser.execute("drop extension if exists pg_stat_statements")
    superuser.execute("set local role postgres")
    cursor = superuser.execute("select * from ops.slow_queries")
    assert cursor.fetchall() == []
    assert [column.name for column in cursor.description or ()] == [
        "query", "calls", "total", "mean_ms", "max_ms", "rows_per_call", "cached_percent", "role",
    ]  # fmt: skip
    comment = superuser.value("select obj_description('ops.slow_queries'::regclass)")
    assert "install pg_stat_statements" in comment


@pytest.fixture
def statistics_server(home: Path, request: pytest.FixtureRequest, starts_servers: None) -> Iterator[Postgres]:
    """A server started for one test, with or without the library of pg_stat_statements."""
    postgres = Postgres(
        home / f"statistics-{request.param}", free_port_block(), "test", request.config.getoption("--postgres")
    )
    process = postgres.start(fsync="off", shared_preload_libraries=request.param)
    try:
        migrations.up(postgres.url())
        yield postgres
    finally:
        stop(process)


@pytest.mark.parametrize("statistics_server", [""], indirect=True)
def test_the_extension_without_its_library_is_not_an_error(statistics_server: Postgres) -> None:
    with psycopg.connect(statistics_server.url()) as connection:
        database = Database(connection)
        assert database.value("select count(*) from pg_extension where extname = 'pg_stat_statements'") == 1
        assert database.rows("select * from ops.slow_queries") == []


@pytest.mark.parametrize("statistics_server", ["pg_stat_statements"], indirect=True)
def test_slow_queries_lists_the_queries_of_this_database_slowest_first(statistics_server: Postgres) -> None:
    with psycopg.connect(statistics_server.url(), autocommit=True) as connection:
        database = Database(connection)
        database.execute("select pg_sleep(0.05), 'a secret'")
        found = database.rows("select query, calls, mean_ms, role from ops.slow_queries")
        slept = [each for each in found if each[0].startswith("select pg_sleep")]
        assert [(query, calls, role) for query, calls, _, role in slept] == [("select pg_sleep($1), $2", 1, "postgres")]
        assert slept[0][2] >= 50
        totals = [total for (total,) in database.rows("select total from ops.slow_queries")]
        assert totals == sorted(totals, reverse=True)
