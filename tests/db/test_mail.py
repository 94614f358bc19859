"""Mail is queued in the transaction of the change that it reports, once, and only for recipients who may receive it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests import events
from tests.conftest import ROOT, Database
from tests.events import Json
from tests.people import Sender

Connect = Callable[[], psycopg.Connection[Any]]

ADA, BEN = "user_2MailAda", "user_2MailBen"
EMAILS = {ADA: "ada@mail.example", BEN: "ben@mail.example"}
OPERATOR = "operator@mail.example"


def call_service(database: Database, function: str, **arguments: object) -> Any:
    """Calls a function as the service does."""
    named = ", ".join(f"{name} => %s" for name in arguments)
    with database.acting("service_role", {"role": "service_role"}):
        return database.value(f"select public.{function}({named})", *arguments.values())


def now(database: Database, ago: str = "0 s") -> int:
    return int(database.value("select extract(epoch from now() - %s::interval) * 1000", ago))


def user(database: Database, user_id: str, ago: str = "0 s", **changes: object) -> Json:
    made = now(database, ago)
    emails = [events.email_address("idn_primary", EMAILS[user_id])]
    return events.user(user_id, email_addresses=emails, created_at=made, updated_at=made) | changes


def person(database: Database, user_id: str) -> UUID:
    return database.value("select id from public.profiles where clerk_user_id = %s", user_id)  # type: ignore[no-any-return]


def outbox(database: Database, columns: str = "template") -> list[tuple[Any, ...]]:
    return database.rows(f"select {columns} from app.email_outbox order by created_at, template")


def state(database: Database, mail_id: object) -> Any:
    return database.value("select state from app.email_outbox where id = %s", mail_id)


def claim(database: Database, batch: int = 10) -> list[dict[str, Any]]:
    return call_service(database, "claim_mail", batch=batch)  # type: ignore[no-any-return]


def make_due(database: Database) -> None:
    database.execute("update app.email_outbox set next_attempt_at = now() where next_attempt_at < 'infinity'")


@pytest.fixture
def mail(database: Database) -> Database:
    """Ada has owned Acme for weeks, and Ben has been a member. Mail is switched on, and the outbox is empty."""
    sender = Sender(database, first=1000)
    acme = events.organization("org_mail", created_by=ADA, name="Acme", slug="mail-acme")
    for number, (user_id, role) in enumerate({ADA: "org:admin", BEN: "org:member"}.items()):
        sender.send("user.created", user(database, user_id, "30 days"))
        made = {"created_at": now(database, "20 days"), "updated_at": now(database, "20 days")}
        membership = events.membership(f"orgmem_mail_{number}", acme, user(database, user_id, "30 days"), role) | made
        sender.send("organizationMembership.created", membership)
    database.execute("update app.settings set mail_enabled = true, operator_email = %s", OPERATOR)
    assert outbox(database) == []
    return database


def acme(database: Database) -> UUID:
    return database.value("select id from public.organizations where clerk_org_id = 'org_mail'")  # type: ignore[no-any-return]


def join_acme(database: Database, user_id: str, **row: object) -> None:
    database.execute(
        "insert into public.organization_memberships (organization_id, user_id, role) values (%s, %s, 'member')",
        acme(database),
        person(database, user_id),
    )


NEW = "user_2MailNew"
EMAILS[NEW] = "new@mail.example"


def sign_up(database: Database, ago: str = "0 s", **changes: object) -> None:
    Sender(database, first=2000).send("user.created", user(database, NEW, ago, **changes))


def begin_backup(database: Database) -> UUID:
    made = uuid4()
    call_service(database, "begin_backup", id=made, filename=f"database/{made}", backup_type="automated")
    return made


def fail_webhook(database: Database, number: int = 1) -> None:
    message = json.dumps({"type": "organizationMembership.created", "data": {"id": f"orgmem_bad_{number}"}})
    outcome = call_service(database, "receive_clerk_event", message_id=f"msg_bad_{number}", event=message)
    assert outcome["outcome"] == "failed"


# --- kinds


REMINDER = """
create function app.reminder_data(mail app.email_outbox) returns table (amount numeric, due_on date, lines jsonb)
language sql stable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select nullif(mail.data ->> 'amount', 'paid')::numeric, date '2026-02-01', '[]'::jsonb
  where mail.data ->> 'amount' is distinct from 'paid'
$$;
select app.register_mail_kind('reminder', 'app.reminder_data', example => '{"lines": ["a"]}', repeat_after => '1 day');
"""


def remind(database: Database, amount: str, user_id: str = BEN) -> Any:
    data = json.dumps({"amount": amount})
    return database.value(
        "select app.enqueue_mail('reminder', %s, organization_id => %s, data => %s)", person(database, user_id), acme(database), data
    )  # fmt: skip


def test_the_data_of_a_kind_is_the_row_that_its_function_returns(mail: Database) -> None:
    mail.execute(REMINDER)
    assert remind(mail, "119.50") is not None
    assert remind(mail, "119.50") is None
    (claimed,) = claim(mail)
    assert (claimed["is_essential"], claimed["to"]) == (False, EMAILS[BEN])
    assert claimed["context"] == {
        "amount": 119.5, "due_on": "2026-02-01", "lines": [], "organization": "Acme",
        "name": mail.value("select full_name from public.profiles where id = %s", person(mail, BEN)),
    }  # fmt: skip
    assert call_service(mail, "list_mail_kinds")["reminder"] == {
        "is_essential": False,
        "example": {"amount": 42, "due_on": "2026-01-31", "lines": ["a"], "name": "Ada Winter", "organization": "Acme"},
    }


def test_a_mail_is_dropped_if_the_function_of_its_kind_returns_no_row(mail: Database) -> None:
    mail.execute(REMINDER)
    remind(mail, "paid")
    assert claim(mail) == []
    assert outbox(mail, "template, state, error") == [("reminder", "dropped", "outdated")]


def test_a_mail_whose_data_cannot_be_read_is_retried_and_stops_no_other(mail: Database) -> None:
    mail.execute(REMINDER)
    broken = remind(mail, "a lot")
    sign_up(mail)
    assert [each["template"] for each in claim(mail)] == ["welcome"]
    assert mail.rows("select state, attempts, error from app.email_outbox where id = %s", broken) == [
        ("queued", 1, "data_22P02")
    ]


@pytest.mark.parametrize("condition", ["assert_failure", "division_by_zero"])
def test_whatever_the_data_of_a_mail_raises_the_others_are_sent(mail: Database, condition: str) -> None:
    replace_reminder_data(mail, condition)
    remind(mail, "1")
    sign_up(mail)
    assert [each["template"] for each in claim(mail)] == ["welcome"]


def test_a_kind_whose_data_times_out_waits_and_stops_no_other(mail: Database) -> None:
    replace_reminder_data(mail, "query_canceled")
    slow, other, later = (remind(mail, amount) for amount in "123")
    mail.execute("update app.email_outbox set next_attempt_at = now() - interval '1 s' where id = %s", slow)
    mail.execute("update app.email_outbox set next_attempt_at = now() + interval '1 day' where id = %s", later)
    sign_up(mail)
    assert claim(mail) == []
    columns = "state, attempts, error, extract(epoch from next_attempt_at - now())::integer"
    assert [mail.rows(f"select {columns} from app.email_outbox where id = %s", each)[0] for each in (slow, other, later)] == [
        ("queued", 1, "data_57014", 30), ("queued", 0, None, 300), ("queued", 0, None, 86400),
    ]  # fmt: skip
    assert [each["template"] for each in claim(mail)] == ["welcome"]


def replace_reminder_data(database: Database, condition: str) -> None:
    """Registers the kind `reminder`, and lets its data raise `condition`."""
    database.execute(REMINDER)
    database.execute(
        "create or replace function app.reminder_data(mail app.email_outbox) returns table (amount numeric, due_on date, lines jsonb) "
        f"language plpgsql stable parallel safe as $$ begin raise {condition}; end $$"
    )


def test_mail_waits_for_a_service_that_has_templates_for_it(mail: Database) -> None:
    mail.execute(REMINDER)
    remind(mail, "1")
    sign_up(mail)
    older = call_service(mail, "claim_mail", batch=10, kinds=["welcome", "role_changed"])
    assert [each["template"] for each in older] == ["welcome"]
    newer = call_service(mail, "claim_mail", batch=10, kinds=["welcome", "reminder"])
    assert [each["template"] for each in newer] == ["reminder"]


def test_people_switch_off_a_kind_unless_it_is_essential(mail: Database) -> None:
    mail.execute(REMINDER)
    ben = person(mail, BEN)
    assert call_service(mail, "unsubscribe_from_mail", person_id=ben, template="reminder") is True
    assert remind(mail, "1") is None
    mail.execute(
        "select app.register_mail_kind('reminder', 'app.reminder_data', is_essential => true, example => '{\"lines\": []}')"
    )
    assert remind(mail, "1") is not None
    assert call_service(mail, "unsubscribe_from_mail", person_id=ben, template="reminder") is False
    assert call_service(mail, "unsubscribe_from_mail", person_id=ben, template="unknown") is False


def test_registering_a_kind_again_changes_its_row_only_if_it_differs(mail: Database) -> None:
    before = mail.rows("select xmin::text, k.* from app.mail_kinds as k order by kind")
    mail.execute((ROOT / "functions/6_mail/kinds.sql").read_text())
    assert mail.rows("select xmin::text, k.* from app.mail_kinds as k order by kind") == before
    mail.execute("select app.register_mail_kind('welcome', is_essential => true)")
    assert mail.value("select is_essential from app.mail_kinds where kind = 'welcome'")


@pytest.mark.parametrize("kind", ["welcom", "backup_failed", "erasure_done", "", None])
@pytest.mark.parametrize("is_enabled", [True, False])
def test_queuing_mail_of_an_unknown_kind_or_to_the_wrong_audience_raises(
    mail: Database, kind: str | None, is_enabled: bool
) -> None:
    mail.execute("update app.settings set mail_enabled = %s", is_enabled)
    with (
        pytest.raises(psycopg.Error, match=f"no mail kind|Mail of the kind {kind} goes to: "),
        mail.connection.transaction(),
    ):
        mail.value("select app.enqueue_mail(%s, %s)", kind, person(mail, BEN))
    with pytest.raises(psycopg.Error, match="Mail of the kind welcome goes to: person"), mail.connection.transaction():
        mail.value("select app.enqueue_mail('welcome')")


@pytest.mark.parametrize(
    ("function", "declaration", "message"),
    [
        ("", "'Reminder'", "invalid name"),
        ("", "null", "invalid name"),
        ("", "'layout'", "invalid name"),
        ("", "'reminder', audience => 'people'", "must be person, operator or erased"),
        ("", "'reminder', audience => null", "must be person, operator or erased"),
        ("", "'reminder', audience => 'operator'", "must be essential"),
        ("", "'reminder', 'app.nowhere'", r"no function app.nowhere\(app.email_outbox\)"),
        ("", "'reminder', 'app.mail_address'", "must return a table"),
        ("returns table (amount numeric) volatile as 'select 1'", "'reminder', 'app.d'", "must return a table and be stable"),
        ("returns table (amount numeric) stable as 'select 1 / (mail.id is not null)::integer'", "'reminder', 'app.d'", "fails for a mail without values: division by zero"),
        ("returns table (name text) stable as 'select null::text'", "'reminder', 'app.d'", "every mail has a value of this name"),
        ("returns table (lines jsonb) stable as 'select null::jsonb'", "'reminder', 'app.d'", "column lines of app.d needs an example"),
        ("returns table (amount numeric) stable as 'select 1'", "'reminder', 'app.d', example => '{\"total\": 1}'", "not among its data: .*total"),
        ("", "'reminder', example => '{\"total\": 1}'", "not among its data: .*total"),
        ("", "'reminder', repeat_after => '-1 day'", "repeat_after"),
    ],
)  # fmt: skip
def test_an_invalid_declaration_of_a_kind_raises(
    database: Database, function: str, declaration: str, message: str
) -> None:
    if function:
        database.execute(f"create function app.d(mail app.email_outbox) {function} language sql")
    with pytest.raises(psycopg.Error, match=message), database.connection.transaction():
        database.execute(f"select app.register_mail_kind({declaration})")
    assert database.value("select count(*) from app.mail_kinds where kind = 'reminder'") == 0


# --- which mail is queued, and its recipients


def test_a_new_user_gets_one_welcome_mail(mail: Database) -> None:
    sign_up(mail)
    assert outbox(mail, "template, audience, person_id, state") == [("welcome", "person", person(mail, NEW), "queued")]
    sender = Sender(mail, first=3000)
    for minutes in (1, 2):  # the address is removed and restored
        changed = {"updated_at": now(mail) + minutes * 60_000}
        sender.send(
            "user.updated",
            user(mail, NEW) | changed | {"primary_email_address_id": "x" if minutes == 1 else "idn_primary"},
        )
    assert mail.value("select email from public.profiles where clerk_user_id = %s", NEW) == EMAILS[NEW]
    assert outbox(mail) == [("welcome",)]


def test_an_imported_user_gets_no_welcome_mail(mail: Database) -> None:
    sign_up(mail, "3 days")
    assert outbox(mail) == []


def test_an_unverified_address_gets_no_mail_until_it_is_verified(mail: Database) -> None:
    sign_up(mail, email_addresses=[events.email_address("idn_primary", EMAILS[NEW], "unverified")])
    assert call_service(mail, "claim_mail", batch=10) == []
    Sender(mail, first=3000).send("user.updated", user(mail, NEW) | {"updated_at": now(mail, "-1 s")})
    assert [each["to"] for each in claim(mail)] == [EMAILS[NEW]]


def test_a_person_whom_a_directory_deprovisioned_gets_no_mail(mail: Database) -> None:
    sign_up(mail)
    Sender(mail, first=3000).send(
        "user.updated", user(mail, NEW, deprovisioned=True) | {"updated_at": now(mail, "-1 s")}
    )
    assert claim(mail) == []
    assert outbox(mail, "template, state, error") == [("welcome", "dropped", "banned")]


def test_members_who_may_invite_people_are_notified_of_a_new_member(mail: Database) -> None:
    mail.execute("insert into public.role_permissions (role, permission) values ('viewer', 'members:invite')")
    mail.execute("update public.organization_memberships set role = 'viewer' where user_id = %s", person(mail, BEN))
    mail.execute("delete from app.email_outbox")
    sign_up(mail)
    join_acme(mail, NEW)
    queued = mail.rows(
        "select person_id, about_id, organization_id from app.email_outbox where template = 'member_joined'"
    )
    assert sorted(queued) == sorted((person(mail, each), person(mail, NEW), acme(mail)) for each in (ADA, BEN))
    mail.execute("delete from public.role_permissions where (role, permission) = ('viewer', 'members:invite')")
    notified = [each["person_id"] for each in claim(mail) if each["template"] == "member_joined"]
    assert notified == [str(person(mail, ADA))]


def test_a_member_is_notified_of_a_new_role(mail: Database) -> None:
    mail.execute("update public.organization_memberships set role = 'viewer' where user_id = %s", person(mail, BEN))
    mail.execute("update public.organization_memberships set role = 'admin' where user_id = %s", person(mail, BEN))
    assert outbox(mail, "template, person_id") == [("role_changed", person(mail, BEN))]
    (claimed,) = claim(mail)
    assert (claimed["to"], claimed["context"]["role"], claimed["context"]["organization"]) == (
        EMAILS[BEN],
        "admin",
        "Acme",
    )
    # A change while the mail is being sent queues another one.
    mail.execute("update public.organization_memberships set role = 'member' where user_id = %s", person(mail, BEN))
    assert outbox(mail) == [("role_changed",)] * 2


def test_a_role_change_in_the_first_minutes_sends_no_mail(mail: Database) -> None:
    sign_up(mail)
    join_acme(mail, NEW)
    mail.execute("update public.organization_memberships set role = 'owner' where user_id = %s", person(mail, NEW))
    assert ("role_changed",) not in outbox(mail)


@pytest.mark.parametrize("requested_by", ["person", "administrator"])
def test_the_person_is_notified_of_a_finished_export(mail: Database, requested_by: str) -> None:
    begun = mail.value("select public.begin_export(%s, %s)", ADA, requested_by)
    assert outbox(mail) == []
    call_service(mail, "end_export", export_id=begun["export_id"], failed=False)
    call_service(mail, "end_export", export_id=begun["export_id"], failed=False)
    assert outbox(mail, "template, person_id") == [("export_ready", person(mail, ADA))]
    assert claim(mail)[0]["context"]["requested_by"] == requested_by


def test_a_failed_export_sends_no_mail(mail: Database) -> None:
    begun = mail.value("select public.begin_export(%s, 'person')", ADA)
    call_service(mail, "end_export", export_id=begun["export_id"], failed=True)
    assert outbox(mail) == []


def test_the_operator_is_notified_once_of_a_failed_or_interrupted_backup(mail: Database) -> None:
    first, second = begin_backup(mail), begin_backup(mail)
    call_service(mail, "end_backup", id=second, status="failed", error_message="no space")
    call_service(mail, "end_backup", id=second, status="failed", error_message="no space")
    assert outbox(mail, "template, audience, data ->> 'backup_id'") in [
        [("backup_failed", "operator", str(a)), ("backup_failed", "operator", str(b))] for a, b in ((first, second), (second, first))
    ]  # fmt: skip
    recipients = {each["context"]["error"]: each["to"] for each in claim(mail)}
    assert recipients == {"no space": OPERATOR, "The backup process exited without reporting a result.": OPERATOR}


def test_a_successful_backup_sends_no_mail(mail: Database) -> None:
    call_service(mail, "end_backup", id=begin_backup(mail), status="completed")
    assert outbox(mail) == []


def test_the_operator_is_notified_once_of_each_failed_drill(mail: Database) -> None:
    made = begin_backup(mail)
    call_service(mail, "end_backup", id=made, status="completed")
    described = json.dumps(
        {
            "id": str(made),
            "filename": f"database/{made}",
            "backup_type": "automated",
            "created_at": "2026-11-24T02:00:00Z",
        }
    )
    for passed in (True, False):
        call_service(mail, "record_drill", backup=described, report=json.dumps({"passed": passed}))
    assert outbox(mail) == [("drill_failed",)]


def test_the_operator_is_notified_of_failed_webhooks_once_a_day_unless_they_were_resolved(mail: Database) -> None:
    fail_webhook(mail, 1)
    fail_webhook(mail, 2)
    assert outbox(mail, "template, next_attempt_at > now()") == [("webhook_failures", True)]
    make_due(mail)
    assert claim(mail)[0]["context"]["failures"] == 2
    mail.execute("update app.email_outbox set state = 'sent', created_at = now() - interval '25 hours'")
    fail_webhook(mail, 3)
    assert outbox(mail) == [("webhook_failures",)] * 2
    mail.execute("update app.webhook_events set outcome = 'processed', applied_at = now() where outcome = 'failed'")
    make_due(mail)
    assert claim(mail) == []
    assert outbox(mail, "state, error")[-1] == ("dropped", "outdated")


def test_without_an_operator_address_a_failed_backup_sends_no_mail(mail: Database) -> None:
    mail.execute("update app.settings set operator_email = null")
    call_service(mail, "end_backup", id=begin_backup(mail), status="failed")
    assert outbox(mail) == []


def test_mail_is_rolled_back_with_the_change_it_reports(mail: Database) -> None:
    with mail.connection.transaction(force_rollback=True):
        sign_up(mail)
        join_acme(mail, NEW)
        assert len(outbox(mail)) == 2
    assert outbox(mail) == []


# --- who gets no mail


@pytest.mark.parametrize("switch", ["update app.settings set mail_enabled = false", "set local app.no_mail = 'on'"])
def test_no_mail_is_queued_while_mail_is_switched_off(mail: Database, switch: str) -> None:
    mail.execute(switch)
    sign_up(mail)
    join_acme(mail, NEW)
    call_service(mail, "end_backup", id=begin_backup(mail), status="failed")
    mail.value("select public.request_erasure(%s, 'person')", NEW)
    assert outbox(mail) == []


def test_mail_is_off_until_it_is_switched_on(database: Database) -> None:
    assert database.value("select mail_enabled from app.settings") is False
    sign_up(database)
    assert outbox(database) == []


def test_queued_mail_stays_queued_while_mail_is_switched_off(mail: Database) -> None:
    sign_up(mail)
    mail.execute("update app.settings set mail_enabled = false")
    assert claim(mail) == []
    assert mail.value("select status from ops.mail_health") == "yellow"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("update public.profiles set banned = true", "banned"),
        ("update public.profiles set email = null", "no_address"),
        ('update public.profiles set preferences = \'{"mail": {"welcome": false, "member_joined": false}}\'', "unsubscribed"),
        ("insert into app.mail_suppressions select id, lower(email), 'bounced' from public.profiles", "suppressed"),
    ],
)  # fmt: skip
def test_recipients_who_cannot_or_do_not_want_to_receive_mail_get_none(
    mail: Database, change: str, reason: str
) -> None:
    sign_up(mail)
    join_acme(mail, NEW)
    queued = len(outbox(mail))
    mail.execute(change)
    assert mail.value("select app.enqueue_mail('welcome', %s)", person(mail, BEN)) is None  # checked when queued
    assert claim(mail) == []  # and when claimed
    assert outbox(mail, "state, error") == [("dropped", reason)] * queued


def test_essential_mail_ignores_preferences_and_suppressions(mail: Database) -> None:
    mail.execute('update public.profiles set preferences = \'{"mail": {"role_changed": false}}\'')
    mail.execute("insert into app.mail_suppressions select id, lower(email), 'complained' from public.profiles")
    mail.execute("update public.organization_memberships set role = 'viewer' where user_id = %s", person(mail, BEN))
    assert [each["to"] for each in claim(mail)] == [EMAILS[BEN]]


@pytest.mark.parametrize(
    "preferences", ['{"mail": "no"}', '{"mail": [false]}', '{"mail": {"welcome": "false"}}', '{"mail": null}']
)
def test_preferences_of_any_shape_are_tolerated(mail: Database, preferences: str) -> None:
    mail.execute("update public.profiles set preferences = %s", preferences)
    assert mail.value("select app.enqueue_mail('welcome', %s)", person(mail, ADA)) is not None
    assert call_service(mail, "unsubscribe_from_mail", person_id=person(mail, ADA), template="welcome")
    assert claim(mail) == []


def test_mail_that_is_no_longer_true_is_dropped(mail: Database) -> None:
    sign_up(mail)
    join_acme(mail, NEW)
    mail.execute("update public.organization_memberships set role = 'viewer' where user_id = %s", person(mail, BEN))
    mail.execute("delete from public.organization_memberships where organization_id = %s", acme(mail))
    assert [each["template"] for each in claim(mail)] == ["welcome"]
    assert sorted(outbox(mail, "template, error"), key=str)[:2] == [
        ("member_joined", "outdated"),
        ("role_changed", "outdated"),
    ]


def test_the_same_mail_is_not_queued_twice_within_an_hour(mail: Database) -> None:
    arguments = (person(mail, ADA), person(mail, BEN), acme(mail))
    enqueue = "select app.enqueue_mail('member_joined', %s, %s, %s)"
    assert mail.value(enqueue, *arguments) is not None
    assert mail.value(enqueue, *arguments) is None
    mail.execute("update app.email_outbox set state = 'sent'")
    assert mail.value(enqueue, *arguments) is None
    mail.execute("update app.email_outbox set created_at = now() - interval '61 minutes'")
    assert mail.value(enqueue, *arguments) is not None


# --- sending


@pytest.fixture
def two_senders(server: Any, connect: Connect) -> Iterator[tuple[Database, Database]]:
    """Two connections that commit, and three queued mails."""
    with connect() as first, connect() as second:
        one = Database(first)
        one.execute("update app.settings set mail_enabled = true, operator_email = %s", OPERATOR)
        try:
            for number in range(3):
                one.value("select app.enqueue_mail('backup_failed', data => %s)", json.dumps({"backup_id": number}))
            yield one, Database(second)
        finally:
            one.execute("delete from app.email_outbox")
            one.execute("update app.settings set mail_enabled = false, operator_email = null")


def test_concurrent_claims_get_different_mail_without_waiting(two_senders: tuple[Database, Database]) -> None:
    first, second = two_senders
    second.execute("set lock_timeout = '500ms'")
    with first.connection.transaction():
        claimed_by_first = claim(first, 2)
        claimed_by_second = claim(second, 10)
    assert (len(claimed_by_first), len(claimed_by_second)) == (2, 1)
    assert not {each["id"] for each in claimed_by_first} & {each["id"] for each in claimed_by_second}
    assert claim(first) == []


def test_mail_claimed_by_a_killed_sender_can_be_claimed_again_with_the_same_id(mail: Database) -> None:
    sign_up(mail)
    (claimed,) = claim(mail)
    assert claim(mail) == []
    lease = mail.value("select next_attempt_at - now() from app.email_outbox")
    assert 60 < lease.total_seconds() < 600
    make_due(mail)
    assert [each["id"] for each in claim(mail)] == [claimed["id"]]


def test_failed_mail_is_retried_with_backoff_and_fails_for_good_after_a_day(mail: Database) -> None:
    sign_up(mail)
    waits = []
    while True:
        (claimed,) = claim(mail)
        if call_service(mail, "end_mail", id=claimed["id"], state="queued", error="503") == "failed":
            break
        waits.append(mail.value("select extract(epoch from next_attempt_at - now()) from app.email_outbox"))
        # Skip the wait.
        mail.execute(
            "update app.email_outbox set give_up_at = give_up_at - (next_attempt_at - now()), next_attempt_at = now()"
        )
    assert waits[:4] == [30, 60, 120, 240]
    assert all(later in {earlier * 2, earlier} for earlier, later in pairwise(waits))
    assert 20 * 3600 < sum(waits) < 24 * 3600
    assert mail.rows("select template, state, error from ops.mail_failures") == [("welcome", "failed", "503")]
    assert mail.value("select status from ops.mail_health") == "red"
    assert claim(mail) == []
    assert mail.value("select ops.retry_mail(id) from app.email_outbox") == "The next run of the mail job sends it."
    assert len(claim(mail)) == 1


def test_a_retry_waits_at_least_as_long_as_resend_asks(mail: Database) -> None:
    sign_up(mail)
    (claimed,) = claim(mail)
    call_service(mail, "end_mail", id=claimed["id"], state="queued", error="429", retry_after=3600)
    assert mail.value("select next_attempt_at - now() = interval '1 hour' from app.email_outbox")


def test_mail_that_is_too_late_fails_without_an_attempt(mail: Database) -> None:
    sign_up(mail)
    mail.execute("update app.email_outbox set give_up_at = now()")  # as after a restore or a stopped scheduler
    assert claim(mail) == []
    assert outbox(mail, "state, error") == [("failed", "too_late")]


def test_a_late_failure_does_not_undo_a_success(mail: Database) -> None:
    sign_up(mail)
    (claimed,) = claim(mail)
    assert call_service(mail, "end_mail", id=claimed["id"], state="sent", provider_id="re_1") == "sent"
    assert call_service(mail, "end_mail", id=claimed["id"], state="queued", error="timeout") == "sent"
    assert call_service(mail, "end_mail", id=claimed["id"], state="failed", error="422") == "sent"
    assert outbox(mail, "provider_id, error") == [("re_1", None)]


@pytest.mark.parametrize("wrong", ["delivered", "sending", None, ""])
def test_the_state_of_an_ended_mail_must_be_valid(mail: Database, wrong: str | None) -> None:
    with pytest.raises(psycopg.DatabaseError) as refused, mail.connection.transaction():
        call_service(mail, "end_mail", id=uuid4(), state=wrong)
    assert refused.value.sqlstate == "PT400"


# --- delivery events


def send_welcome(database: Database) -> str:
    sign_up(database)
    (claimed,) = claim(database)
    call_service(database, "end_mail", id=claimed["id"], state="sent", provider_id="re_1")
    return claimed["id"]  # type: ignore[no-any-return]


def test_delivery_events_may_arrive_in_any_order(mail: Database) -> None:
    mail_id = send_welcome(mail)
    for kind, expected in (
        ("delivered", "delivered"),
        ("complained", "complained"),
        ("delivered", "complained"),
        ("bounced", "complained"),
    ):
        assert call_service(mail, "record_mail_event", mail_id=None, provider_id="re_1", kind=kind, address=EMAILS[NEW])
        assert state(mail, mail_id) == expected
    assert not call_service(mail, "record_mail_event", mail_id=uuid4(), provider_id="re_other", kind="delivered")


def test_an_address_that_bounces_or_complains_gets_essential_mail_only(mail: Database) -> None:
    send_welcome(mail)
    call_service(
        mail, "record_mail_event", mail_id=None, provider_id="re_1", kind="bounced", address=EMAILS[NEW].upper()
    )
    assert mail.rows("select person_id, address, reason from app.mail_suppressions") == [
        (person(mail, NEW), EMAILS[NEW], "bounced")
    ]
    mail.execute("update app.email_outbox set created_at = now() - interval '2 hours'")
    assert mail.value("select app.enqueue_mail('welcome', %s)", person(mail, NEW)) is None
    mail.execute("update public.profiles set email = 'another@mail.example' where id = %s", person(mail, NEW))
    assert mail.value("select app.enqueue_mail('welcome', %s)", person(mail, NEW)) is not None


@pytest.mark.parametrize(
    ("address", "is_permanent"), [(EMAILS[NEW], False), ("another@mail.example", True), (None, True)]
)
def test_a_temporary_bounce_or_one_from_another_address_suppresses_nothing(
    mail: Database, address: str | None, is_permanent: bool
) -> None:
    mail_id = send_welcome(mail)
    call_service(
        mail,
        "record_mail_event",
        mail_id=None,
        provider_id="re_1",
        kind="bounced",
        address=address,
        is_permanent=is_permanent,
    )
    assert state(mail, mail_id) == "bounced"
    assert mail.rows("select * from app.mail_suppressions") == []


def test_a_delivery_event_ends_mail_whose_sender_was_killed(mail: Database) -> None:
    sign_up(mail)
    (claimed,) = claim(mail)
    assert call_service(mail, "record_mail_event", mail_id=claimed["id"], provider_id="re_1", kind="delivered")
    make_due(mail)
    assert claim(mail) == []
    assert outbox(mail, "state, provider_id, sent_at is not null") == [("delivered", "re_1", True)]


def test_a_claim_examines_a_limited_number_of_mails(mail: Database) -> None:
    mail.execute(
        "insert into app.email_outbox (template, audience, data, give_up_at) "
        "select 'backup_failed', 'operator', jsonb_build_object('number', n), now() - interval '1 hour' from generate_series(1, 1500) as n"
    )
    assert claim(mail, batch=1) == []
    waiting = "select count(*) from app.email_outbox where state = 'queued'"
    assert mail.value(waiting) == 1500 - 1001
    assert claim(mail, batch=1) == []
    assert mail.value(waiting) == 0


# --- erasure and retention


def erase(database: Database, user_id: str) -> Any:
    receipt = database.value("select public.request_erasure(%s, 'person')", user_id)["receipt"]
    for _ in range(10):
        if database.value("select public.continue_erasure(%s) ->> 'state'", receipt) != "running":
            break
    return receipt


def test_an_erased_person_is_notified_and_the_address_is_deleted_with_the_mail(mail: Database) -> None:
    receipt = mail.value("select public.request_erasure(%s, 'person')", BEN)["receipt"]
    assert outbox(mail, "id::text, audience, recipient, person_id") == [(receipt, "erased", EMAILS[BEN], None)]
    assert claim(mail) == []  # held until the erasure completes
    assert erase(mail, BEN) == receipt
    (claimed,) = claim(mail)
    known = {name: value for name, value in claimed["context"].items() if value is not None}
    assert (claimed["template"], claimed["to"], known) == (
        "erasure_done",
        EMAILS[BEN],
        {"receipt": receipt},
    )
    call_service(mail, "end_mail", id=claimed["id"], state="sent", provider_id="re_2")
    assert outbox(mail) == []


def test_the_address_of_an_erased_person_is_deleted_if_the_mail_fails(mail: Database) -> None:
    erase(mail, BEN)
    (claimed,) = claim(mail)
    call_service(mail, "end_mail", id=claimed["id"], state="failed", error="422")
    assert outbox(mail, "state, recipient") == [("failed", None)]


def test_an_erasure_replayed_after_a_restore_sends_no_mail(mail: Database) -> None:
    mail.value("select app.begin_erasure(%s, 'restore')", BEN)
    assert outbox(mail) == []


def test_an_erasure_deletes_the_mail_to_and_about_the_person(mail: Database) -> None:
    sign_up(mail)
    join_acme(mail, NEW)
    mail.execute(
        "insert into app.mail_suppressions select id, lower(email), 'bounced' from public.profiles where clerk_user_id = %s",
        NEW,
    )
    assert outbox(mail) == [("member_joined",), ("welcome",)]
    erase(mail, NEW)
    assert outbox(mail) == [("erasure_done",)]
    assert mail.rows("select * from app.mail_suppressions") == []


def test_retention_deletes_only_finished_mail_older_than_30_days(mail: Database) -> None:
    for number, (current, age) in enumerate(
        [("delivered", 31), ("failed", 31), ("dropped", 31), ("queued", 31), ("sent", 29)]
    ):
        mail.execute(
            "insert into app.email_outbox (template, audience, person_id, state, data, created_at) "
            "values ('welcome', 'person', %s, %s, %s, now() - make_interval(days => %s))",
            person(mail, ADA), current, json.dumps({"n": number}), age,
        )  # fmt: skip
    assert call_service(mail, "run_retention")["purged"]["app.email_outbox"] == 3
    assert sorted(outbox(mail, "state")) == [("queued",), ("sent",)]


# --- privileges


@pytest.mark.parametrize("function", [
    "claim_mail(1)", "end_mail(gen_random_uuid(), 'sent')", "record_mail_event(gen_random_uuid(), 'x', 'delivered')",
    "unsubscribe_from_mail(gen_random_uuid(), 'welcome')",
])  # fmt: skip
@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_only_the_service_can_send_mail(mail: Database, role: str, function: str) -> None:
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        mail.connection.transaction(),
        mail.acting(role, {"sub": ADA, "role": role}),
    ):
        mail.execute(f"select public.{function}")


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
@pytest.mark.parametrize("statement", [
    "select * from app.email_outbox", "select * from app.mail_suppressions", "delete from app.email_outbox",
    "select app.enqueue_mail('welcome', gen_random_uuid())", "select * from ops.mail_health",
])  # fmt: skip
def test_no_api_role_can_read_or_write_the_outbox(mail: Database, role: str, statement: str) -> None:
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        mail.connection.transaction(),
        mail.acting(role, {"sub": ADA, "role": role}),
    ):
        mail.execute(statement)


def test_essential_mail_cannot_be_switched_off(mail: Database) -> None:
    ada = person(mail, ADA)
    assert call_service(mail, "unsubscribe_from_mail", person_id=ada, template="member_joined") is True
    assert call_service(mail, "unsubscribe_from_mail", person_id=ada, template="member_joined") is True
    assert call_service(mail, "unsubscribe_from_mail", person_id=ada, template="role_changed") is False
    assert mail.value("select preferences from public.profiles where id = %s", ada) == {
        "mail": {"member_joined": False}
    }


# --- health


def test_mail_health_reports_overdue_mail_and_a_missing_operator_address(mail: Database) -> None:
    def health() -> tuple[Any, ...]:
        (found,) = mail.rows("select status, queued, advice from ops.mail_health")
        return found

    assert health()[:2] == ("green", 0)
    sign_up(mail)
    assert health()[:2] == ("green", 1)
    mail.execute(
        "update app.email_outbox set created_at = now() - interval '2 hours', next_attempt_at = now() - interval '2 hours'"
    )
    assert health()[0] == "red"
    mail.execute("delete from app.email_outbox")
    mail.execute("update app.settings set operator_email = null")
    assert (health()[0], "operator_email" in health()[2]) == ("yellow", True)
    mail.execute("update app.settings set mail_enabled = false")
    assert health()[0] == "green"


def mail_light(mail: Database) -> tuple[Any, ...]:
    (found,) = mail.rows("select status, advice from ops.mail_health")
    return found


def test_mail_that_fails_again_and_again_is_reported_with_its_error_within_minutes(mail: Database) -> None:
    """As with a wrong key, which Resend refuses with 401: the mail stays queued for a day."""
    sign_up(mail)
    [queued] = claim(mail)
    assert call_service(mail, "end_mail", id=queued["id"], state="queued", error="invalid_api_key") == "queued"
    assert mail_light(mail)[0] == "green"
    mail.execute("update app.email_outbox set created_at = now() - interval '11 minutes'")
    status, advice = mail_light(mail)
    assert (status, "invalid_api_key" in advice, "Resend the API key" in advice) == ("yellow", True, True)


def test_mail_that_is_on_without_a_key_is_reported_before_any_mail_is_due(mail: Database) -> None:
    report = '{"unconfigured": ["RESEND_API_KEY"]}'
    mail.execute("insert into app.job_runs (name, duration_ms, report) values ('mail', 1, %s)", report)
    status, advice = mail_light(mail)
    assert (status, "RESEND_API_KEY" in advice) == ("yellow", True)


def test_an_operator_address_without_mail_is_reported(mail: Database) -> None:
    mail.execute("update app.settings set mail_enabled = false, operator_email = 'ops@example.com'")
    status, advice = mail_light(mail)
    assert (status, "operator address gets no reports" in advice) == ("yellow", True)


def test_refused_reports_of_resend_are_reported_until_one_is_accepted(mail: Database) -> None:
    call_service(mail, "record_refused_deliveries", sender="resend", reason="signature", deliveries=2)
    status, advice = mail_light(mail)
    assert (status, "RESEND_WEBHOOK_SECRET" in advice) == ("yellow", True)
    sign_up(mail)
    [queued] = claim(mail)
    call_service(mail, "end_mail", id=queued["id"], state="sent", provider_id="re_1")
    call_service(mail, "record_mail_event", mail_id=queued["id"], provider_id="re_1", kind="delivered")
    assert mail_light(mail) == ("green", "OK.")
