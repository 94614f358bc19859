"""What Clerk's events do to the rows, one promise a test. Any order at all: tests/properties/test_convergence.py."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import events
from tests.conftest import Claims, Database
from tests.events import MINUTE, SECOND, START, Json

Connection = psycopg.Connection[Any]
LATER = START + MINUTE
MUCH_LATER = LATER + MINUTE
numbers = itertools.count()


@pytest.fixture
def clerk(database: Database) -> Clerk:
    return Clerk(database)


class Clerk:
    """Sends events as the service does, and asks for what became of them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def deliver(self, event: Any, message_id: str | None = None) -> str:
        """The outcome. Without a message id it is a new message."""
        message = message_id or f"msg_{next(numbers)}"
        with self.database.acting("service_role"):
            answer = self.database.value("select public.receive_clerk_event(%s, %s)", message, json.dumps(event))
        assert isinstance(answer["outcome"], str)
        return answer["outcome"]

    def send(self, kind: str, data: Json, timestamp: int | None = None) -> str:
        return self.deliver(events.event(kind, data, timestamp))

    def delete(self, kind: str, clerk_id: str, timestamp: int = LATER) -> str:
        return self.deliver(events.deletion_event(kind, clerk_id, timestamp))

    def profile(self, clerk_user_id: str = "user_ada") -> Any:
        return self.database.value(
            "select to_jsonb(p) - 'id' from public.profiles as p where clerk_user_id = %s", clerk_user_id
        )

    def organization(self, clerk_org_id: str = "org_acme") -> Any:
        return self.database.value(
            "select to_jsonb(o) - 'id' from public.organizations as o where clerk_org_id = %s", clerk_org_id
        )

    def members(self) -> list[tuple[Any, ...]]:
        """(person, role, Clerk's membership id) of everybody in Acme."""
        return self.database.rows(
            "select p.clerk_user_id, m.role, m.clerk_membership_id from public.organization_memberships as m"
            " join public.profiles as p on p.id = m.user_id join public.organizations as o on o.id = m.organization_id"
            " where o.clerk_org_id = 'org_acme' order by 1"
        )

    def invitations(self) -> list[tuple[Any, ...]]:
        return self.database.rows(
            "select clerk_invitation_id, email, role from public.organization_invitations order by 1"
        )

    def billing(self) -> tuple[str, str]:
        organization = self.organization()
        return organization["subscription_tier"], organization["subscription_status"]

    def inbox(self, message_id: str) -> Any:
        return self.database.value("select to_jsonb(e) from app.webhook_events as e where message_id = %s", message_id)

    def row_version(self, table: str) -> Any:
        """Another value after any update of the table's rows, even one that changes nothing."""
        return self.database.rows(f"select ctid, xmin from {table} order by 1")


ADA = events.user("user_ada")
BEN = events.user("user_ben", email="ben@example.com", first_name="Ben")
ACME = events.organization("org_acme")


def member(person: Json, role: str = "org:member", at: int = START, clerk_id: str = "orgmem_1", **changes: Any) -> Json:
    return events.membership(clerk_id, ACME | changes, person, role, at)


def each_order(*sent: Json) -> list[tuple[Json, ...]]:
    return list(itertools.permutations(sent))


# The inbox -----------------------------------------------------------------------------------------------------------


def test_a_message_is_stored_with_its_outcome(clerk: Clerk) -> None:
    assert clerk.deliver(events.event("user.created", ADA), "msg_a") == "processed"
    stored = clerk.inbox("msg_a")
    assert (stored["type"], stored["outcome"], stored["error"], stored["attempts"]) == (
        "user.created", "processed", None, 1,
    )  # fmt: skip
    assert stored["event"]["data"] == ADA
    assert stored["applied_at"] is not None


def test_the_answer_names_message_type_and_outcome(clerk: Clerk) -> None:
    with clerk.database.acting("service_role"):
        answer = clerk.database.value(
            "select public.receive_clerk_event('msg_a', %s)", json.dumps(events.event("user.created", ADA))
        )
    assert {name: answer[name] for name in ("message_id", "type", "outcome")} == {
        "message_id": "msg_a", "type": "user.created", "outcome": "processed",
    }  # fmt: skip


def test_a_message_delivered_twice_is_applied_once(clerk: Clerk) -> None:
    clerk.deliver(events.event("user.created", ADA), "msg_a")
    assert clerk.deliver(events.event("user.created", ADA | {"first_name": "Eve"}), "msg_a") == "duplicate"
    assert clerk.profile()["full_name"] == "Ada Winter"
    assert clerk.inbox("msg_a")["attempts"] == 1


@pytest.fixture
def broken_profiles(database: Database) -> None:
    """For a while, nobody of Ada's address can be stored."""
    database.execute("alter table public.profiles add constraint broken check (email <> 'ada@example.com')")


def repair(database: Database) -> None:
    database.execute("alter table public.profiles drop constraint broken")


def test_a_failed_event_is_kept_with_its_error(clerk: Clerk, broken_profiles: None) -> None:
    assert clerk.deliver(events.event("user.created", ADA), "msg_a") == "failed"
    stored = clerk.inbox("msg_a")
    assert stored["error"] == '23514: new row for relation "profiles" violates check constraint "broken"'
    assert stored["next_attempt_at"] is not None
    assert stored["applied_at"] is None
    assert stored["event"]["data"] == ADA


def test_passing_trouble_is_not_stored_so_that_clerk_sends_the_event_again(clerk: Clerk) -> None:
    clerk.database.execute(
        "create function public.trouble() returns trigger language plpgsql "
        "as $$ begin raise sqlstate '40P01' using message = 'deadlock detected'; end $$"
    )
    clerk.database.execute(
        "create trigger trouble before insert on public.profiles for each row execute function public.trouble()"
    )
    with pytest.raises(psycopg.errors.DeadlockDetected):
        clerk.deliver(events.event("user.created", ADA), "msg_a")
    assert clerk.database.value("select count(*) from app.webhook_events") == 0
    clerk.database.execute("drop trigger trouble on public.profiles")
    assert clerk.deliver(events.event("user.created", ADA), "msg_a") == "processed"


def test_a_failed_event_leaves_nothing_half_done(clerk: Clerk, broken_profiles: None) -> None:
    clerk.send("user.created", ADA)
    assert clerk.database.rows("select * from app.clerk_records") == []


def test_a_failed_event_is_applied_when_it_is_delivered_again(clerk: Clerk, broken_profiles: None) -> None:
    clerk.deliver(events.event("user.created", ADA), "msg_a")
    repair(clerk.database)
    assert clerk.deliver(events.event("user.created", ADA), "msg_a") == "processed"
    assert clerk.profile()["email"] == "ada@example.com"
    stored = clerk.inbox("msg_a")
    assert (stored["outcome"], stored["error"], stored["attempts"]) == ("processed", None, 2)
    assert stored["next_attempt_at"] is None


def test_a_failed_event_is_applied_by_a_retry(clerk: Clerk, broken_profiles: None) -> None:
    clerk.deliver(events.event("user.created", ADA), "msg_a")
    assert clerk.database.value("select app.retry_clerk_event('msg_a')") == "failed"
    repair(clerk.database)
    assert clerk.database.value("select app.retry_clerk_event('msg_a')") == "processed"
    assert clerk.profile() is not None


def test_a_failed_event_retried_late_does_not_undo_what_came_after(clerk: Clerk, broken_profiles: None) -> None:
    clerk.deliver(events.event("user.created", ADA), "msg_a")
    repair(clerk.database)
    clerk.send("user.updated", events.user("user_ada", LATER, "new@example.com"))
    assert clerk.database.value("select app.retry_clerk_event('msg_a')") == "stale"
    assert clerk.profile()["email"] == "new@example.com"


def test_the_wait_before_the_next_attempt_grows(clerk: Clerk, broken_profiles: None) -> None:
    waits = []
    clerk.deliver(events.event("user.created", ADA), "msg_a")
    for _ in range(3):
        waits.append(
            clerk.database.value("select extract(epoch from next_attempt_at - now())::int from app.webhook_events")
        )
        clerk.database.execute("select app.retry_clerk_event('msg_a')")
    assert waits == [30, 60, 120]


def test_retrying_what_did_not_fail_changes_nothing(clerk: Clerk) -> None:
    clerk.deliver(events.event("user.created", ADA), "msg_a")
    assert clerk.database.value("select app.retry_clerk_event('msg_a')") == "processed"
    assert clerk.inbox("msg_a")["attempts"] == 1
    assert clerk.database.value("select app.retry_clerk_event('msg_unheard_of')") is None


@pytest.mark.parametrize(
    "kind",
    [
        "session.created", "email.created", "user.createdAtEdge", "organizationDomain.created", "organizationInvitation.deleted",
        "subscription.deleted", "subscriptionItem.deleted", "x",
    ],
)  # fmt: skip
def test_a_type_we_do_not_handle_is_stored_as_ignored(clerk: Clerk, kind: str) -> None:
    assert clerk.deliver(events.event(kind, {"id": "any", "updated_at": START}), "msg_a") == "ignored"
    assert clerk.inbox("msg_a")["outcome"] == "ignored"


@pytest.mark.parametrize("message_id", [None, "", "m" * 257])
def test_a_message_id_that_cannot_be_kept_is_refused(clerk: Clerk, message_id: str | None) -> None:
    with pytest.raises(psycopg.DatabaseError), clerk.database.acting("service_role"):
        clerk.database.execute(
            "select public.receive_clerk_event(%s, %s)", message_id, json.dumps(events.event("user.created", ADA))
        )
    assert clerk.database.value("select count(*) from public.profiles where clerk_user_id = 'user_ada'") == 0


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_a_browser_cannot_pretend_to_be_clerk(clerk: Clerk, role: str) -> None:
    claims: Claims = {"sub": "user_ada", "role": role}
    event = json.dumps(events.event("user.created", ADA))
    with pytest.raises(psycopg.errors.InsufficientPrivilege), clerk.database.acting(role, claims):
        clerk.database.execute("select public.receive_clerk_event('msg_a', %s)", event)


def test_the_service_cannot_reach_past_the_one_function(clerk: Clerk) -> None:
    for statement in ("select * from app.webhook_events", "select app.record_deletion('user', 'user_ada', now())"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), clerk.database.acting("service_role"):
            clerk.database.execute(statement)


def test_events_of_another_instance_are_ignored_once_one_is_pinned(clerk: Clerk) -> None:
    clerk.database.execute("update app.settings set clerk_instance_id = 'ins_production'")
    assert clerk.deliver(events.event("user.created", ADA), "msg_a") == "ignored"
    assert clerk.profile() is None
    assert "instance_id" in clerk.inbox("msg_a")["error"]


@pytest.mark.parametrize("instance", [{"instance_id": "ins_production"}, {"instance_id": None}, {}])
def test_events_of_the_pinned_instance_or_of_none_are_applied(clerk: Clerk, instance: Json) -> None:
    clerk.database.execute("update app.settings set clerk_instance_id = 'ins_production'")
    event = events.event("user.created", ADA)
    del event["instance_id"]
    assert clerk.deliver(event | instance) == "processed"


# Shapes --------------------------------------------------------------------------------------------------------------

LONG = "x" * 10_000
RANDOM_LONG = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(10_000))  # does not compress
ODD: list[Any] = [
    None, True, 0, -1, 1e300, 10**400, "", " ", LONG, RANDOM_LONG, "\u2028\ufffd", [], {}, [None], {"id": {}},
]  # fmt: skip
SENDABLE: dict[str, Json] = {
    "user.created": ADA,
    "user.deleted": {"object": "user", "id": "user_ada", "deleted": True, "updated_at": START},
    "organization.created": ACME,
    "organization.deleted": {"object": "organization", "id": "org_acme", "deleted": True, "updated_at": START},
    "organizationMembership.created": member(ADA),
    "organizationMembership.deleted": member(ADA),
    "organizationInvitation.created": events.invitation("orginv_1", "org_acme"),
    "role.created": events.role("role_1", "org:writer", permissions=("org:posts:create",)),
    "permission.created": events.permission("perm_1", "org:posts:create"),
    "subscription.created": events.subscription(
        "csub_1", events.payer("org_acme"), (events.subscription_item("csub_item_1", "pro"),)
    ),
    "subscriptionItem.active": events.subscription_item("csub_item_1", "pro") | {"payer": events.payer("org_acme")},
}  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *itertools.chain.from_iterable(paths(each, (*path, key)) for key, each in inner)]


def replace_value(event: Json, path: tuple[Any, ...], value: Any) -> Json:
    changed = copy.deepcopy(event)
    target = changed
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return changed


@pytest.mark.parametrize("kind", SENDABLE)
def test_a_wrong_shape_anywhere_is_stored_and_never_raises(
    clerk: Clerk, kind: str, request: pytest.FixtureRequest
) -> None:
    """Every value of the event, at every depth, is replaced by every odd value in turn; by every third in an everyday run."""
    event = events.event(kind, SENDABLE[kind])
    step = 1 if request.config.getoption("--thorough") else 3
    for number, path in enumerate(paths(event)[1:]):
        if path in {("type",), ("data",)}:  # without these it is not an event: tests/db/test_clerk_inbox.py
            continue
        for value in ODD[number % step :: step]:
            with clerk.database.connection.transaction(force_rollback=True):
                outcome = clerk.deliver(replace_value(event, path, value), "msg_odd")
                stored = clerk.inbox("msg_odd")
            assert outcome == stored["outcome"], path
            assert outcome in {"processed", "stale", "ignored", "failed"}, path
            assert len(stored["error"] or "") < 200, path


@pytest.mark.parametrize("kind", SENDABLE)
def test_an_event_about_no_object_fails_or_is_ignored(clerk: Clerk, kind: str) -> None:
    odd: list[Any] = [{}, {"id": None}, {"id": 7}, {"id": ""}, {"id": ["user_ada"]}]
    for number, data in enumerate(odd):
        outcome = clerk.deliver(events.event(kind, SENDABLE[kind]) | {"data": data}, f"msg_{number}")
        assert outcome == clerk.inbox(f"msg_{number}")["outcome"], data
        assert outcome in {"failed", "ignored"}, data
        assert clerk.database.value("select count(*) from app.clerk_records") == 0, data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_in_any_place_is_stored_and_never_raises(clerk: Clerk, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(SENDABLE)))
    event = events.event(kind, SENDABLE[kind])
    for path in data.draw(st.lists(st.sampled_from(paths(event["data"])[1:]), min_size=1, max_size=3)):
        changed = data.draw(json_values)
        try:
            event = replace_value(event, ("data", *path), changed)
        except (TypeError, KeyError, IndexError):
            continue  # an earlier replacement took the place away
    with clerk.database.connection.transaction(force_rollback=True):
        assert clerk.deliver(event, "msg_odd") == clerk.inbox("msg_odd")["outcome"]


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "ftp://example.com", "//example.com", "", 7, None]
)
def test_a_picture_that_is_no_web_address_is_left_out(clerk: Clerk, url: Any) -> None:
    clerk.send("user.created", ADA | {"image_url": url})
    assert clerk.profile()["avatar_url"] is None


def test_errors_hold_nothing_of_the_payload(clerk: Clerk, broken_profiles: None) -> None:
    marked: list[Json] = [
        events.event("user.created", ADA | {"first_name": "SECRET", "last_name": "SECRET"}),
        events.event("organizationMembership.created", {"id": "orgmem_1", "updated_at": START, "role": "SECRET"}),
        events.event(
            "organizationInvitation.created", {"id": "orginv_1", "updated_at": START, "email_address": "SECRET"}
        ),
        events.event("user.created", {"updated_at": START, "email": "SECRET"}),
    ]
    for number, event in enumerate(marked):
        assert clerk.deliver(event, f"msg_{number}_a") == "failed"
        error = clerk.inbox(f"msg_{number}_a")["error"]
        assert error
        assert "SECRET" not in error
        assert "ada@example.com" not in error


# People --------------------------------------------------------------------------------------------------------------


def test_a_person_is_shown_as_clerk_has_them(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    shown = clerk.profile()
    assert {key: shown[key] for key in ("email", "full_name", "avatar_url", "banned")} == {
        "email": "ada@example.com",
        "full_name": "Ada Winter",
        "avatar_url": "https://img.clerk.com/ada",
        "banned": False,
    }
    assert clerk.database.value("select extract(epoch from created_at) * 1000 from public.profiles") == START


def test_the_primary_email_is_found_by_its_id(clerk: Clerk) -> None:
    assert ADA["email_addresses"][0]["email_address"] != "ada@example.com"
    clerk.send("user.created", ADA)
    assert clerk.profile()["email"] == "ada@example.com"


@pytest.mark.parametrize(
    "change",
    [
        {"primary_email_address_id": None},
        {"primary_email_address_id": "idn_of_nobody"},
        {"email_addresses": []},
        {"email_addresses": None},
        {"email_addresses": [{"email_address": "ada@example.com"}], "primary_email_address_id": None},
    ],
)
def test_without_a_primary_address_there_is_no_email(clerk: Clerk, change: Json) -> None:
    clerk.send("user.created", ADA | change)
    assert clerk.profile()["email"] is None


def test_an_address_without_an_id_is_never_the_primary_one(clerk: Clerk) -> None:
    nameless = {"id": None, "email_address": "x@example.com"}
    clerk.send("user.created", ADA | {"email_addresses": [nameless], "primary_email_address_id": None})
    assert clerk.profile()["email"] is None


@pytest.mark.parametrize(
    ("first", "last", "full"),
    [(None, None, None), ("Ada", None, "Ada"), (None, "Winter", "Winter"), ("", " ", None)],
)
def test_names_may_be_missing(clerk: Clerk, first: str | None, last: str | None, full: str | None) -> None:
    clerk.send("user.created", ADA | {"first_name": first, "last_name": last})
    assert clerk.profile()["full_name"] == full


def test_two_people_may_have_one_address(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    assert clerk.send("user.created", events.user("user_ada_again")) == "processed"


def test_volatile_fields_alone_do_not_touch_the_row(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    before = clerk.row_version("public.profiles")
    clerk.send(
        "user.updated", ADA | {"updated_at": LATER, "last_active_at": LATER, "last_sign_in_at": LATER, "locked": True}
    )
    assert clerk.row_version("public.profiles") == before


def test_counts_inside_an_organization_alone_do_not_touch_the_row(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.send("organizationMembership.created", member(ADA))
    before = clerk.row_version("public.organizations"), clerk.row_version("public.organization_memberships")
    clerk.send("organization.updated", ACME | {"updated_at": LATER, "members_count": 7})
    clerk.send("organizationMembership.updated", member(ADA, at=LATER) | {"public_metadata": {"team": "x"}})
    assert (clerk.row_version("public.organizations"), clerk.row_version("public.organization_memberships")) == before


def test_a_name_changed_here_lasts_until_it_changes_in_clerk(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    with clerk.database.acting("authenticated", {"sub": "user_ada"}):
        clerk.database.execute("update public.profiles set full_name = 'Countess', avatar_url = 'https://ada.example'")
    clerk.send("user.updated", ADA | {"updated_at": LATER, "primary_email_address_id": None})
    shown = clerk.profile()
    assert (shown["full_name"], shown["avatar_url"], shown["email"]) == ("Countess", "https://ada.example", None)
    clerk.send("user.updated", ADA | {"updated_at": MUCH_LATER, "first_name": "Augusta"})
    shown = clerk.profile()
    assert (shown["full_name"], shown["avatar_url"]) == ("Augusta Winter", "https://ada.example")


def test_an_organizations_name_changed_here_lasts_until_it_changes_in_clerk(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    with clerk.database.acting("authenticated", {"sub": "user_ada", "fva": [0, 0]}):
        clerk.database.execute("update public.organizations set name = 'Acme Ltd'")
    clerk.send("organization.updated", ACME | {"updated_at": LATER, "slug": "acme-ltd"})
    assert (clerk.organization()["name"], clerk.organization()["slug"]) == ("Acme Ltd", "acme-ltd")
    clerk.send("organization.updated", ACME | {"updated_at": MUCH_LATER, "name": "Acme Inc"})
    assert clerk.organization()["name"] == "Acme Inc"


@pytest.mark.parametrize("unit", [1, SECOND])
def test_deletions_are_timed_in_seconds_or_milliseconds(clerk: Clerk, unit: int) -> None:
    clerk.delete("user", "user_ada", LATER // unit)
    assert clerk.database.value("select extract(epoch from deleted_at) * 1000 from app.clerk_tombstones") == LATER


def test_an_older_event_changes_nothing(clerk: Clerk) -> None:
    clerk.send("user.updated", ADA | {"updated_at": LATER, "first_name": "Augusta"})
    assert clerk.send("user.created", ADA) == "stale"
    assert clerk.profile()["full_name"] == "Augusta Winter"


@pytest.mark.parametrize("flip", [False, True])
def test_of_two_events_with_one_updated_at_the_later_sent_counts(clerk: Clerk, flip: bool) -> None:
    for name in "BA" if flip else "AB":
        clerk.send("user.updated", ADA | {"first_name": name}, START + ord(name))
    assert clerk.profile()["full_name"] == "B Winter"


def test_events_that_tie_in_every_time_end_the_same_in_both_orders(clerk: Clerk) -> None:
    ends = set()
    for order in itertools.permutations(("Anna", "Bea", "Cleo")):
        with clerk.database.connection.transaction(force_rollback=True):
            for name in order:
                clerk.send("user.updated", ADA | {"first_name": name})
            ends.add(clerk.profile()["full_name"])
    assert len(ends) == 1


def test_a_deleted_person_is_gone_with_their_memberships(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    assert clerk.delete("user", "user_ada") == "processed"
    assert clerk.profile() is None
    assert clerk.members() == []


def test_nothing_resurrects_a_deleted_person(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    clerk.delete("user", "user_ada")
    assert clerk.send("user.updated", ADA | {"updated_at": MUCH_LATER}) == "stale"
    clerk.send("organizationMembership.created", member(ADA, at=MUCH_LATER))
    assert clerk.profile() is None
    assert clerk.members() == []


def test_a_person_deleted_before_they_were_heard_of_never_appears(clerk: Clerk) -> None:
    clerk.delete("user", "user_ada")
    clerk.send("user.created", ADA)
    assert clerk.profile() is None


def test_what_a_deleted_person_made_stays(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.database.execute(
        "insert into public.specimens (organization_id, created_by, title)"
        " select o.id, p.id, 'Apollo' from public.organizations as o, public.profiles as p"
    )
    clerk.delete("user", "user_ada")
    assert clerk.database.rows("select title, created_by from public.specimens") == [("Apollo", None)]


def test_a_banned_persons_token_counts_for_nobody(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.send("user.updated", ADA | {"updated_at": LATER, "banned": True})
    assert clerk.profile()["banned"] is True
    with clerk.database.acting("authenticated", {"sub": "user_ada"}):
        assert clerk.database.value("select count(*) from public.organizations") == 0
        assert clerk.database.value("select count(*) from public.profiles") == 0
    clerk.send("user.updated", ADA | {"updated_at": MUCH_LATER})
    with clerk.database.acting("authenticated", {"sub": "user_ada"}):
        assert clerk.database.value("select count(*) from public.organizations") == 1


# Memberships ---------------------------------------------------------------------------------------------------------


def test_a_membership_that_comes_first_brings_the_person_and_the_organization(clerk: Clerk) -> None:
    assert clerk.send("organizationMembership.created", member(ADA)) == "processed"
    assert clerk.members() == [("user_ada", "member", "orgmem_1")]
    assert (clerk.profile()["full_name"], clerk.profile()["email"]) == ("Ada Winter", None)
    assert clerk.organization()["name"] == "Acme"


def test_the_identifier_inside_a_membership_is_not_taken_for_an_email(clerk: Clerk) -> None:
    """It may be a username or a telephone number."""
    clerk.send("organizationMembership.created", member(ADA))
    assert clerk.profile()["email"] is None


def test_the_real_person_replaces_the_stub_even_when_older(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA | {"first_name": "Sketch"}, at=LATER))
    clerk.send("user.created", ADA)
    assert (clerk.profile()["full_name"], clerk.profile()["email"]) == ("Ada Winter", "ada@example.com")


def test_a_stub_never_overwrites_the_real_person(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    clerk.send("organizationMembership.created", member(ADA | {"first_name": "Sketch"}, at=LATER))
    assert (clerk.profile()["full_name"], clerk.profile()["email"]) == ("Ada Winter", "ada@example.com")


def test_the_newest_copy_of_an_organization_counts_wherever_it_stands(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.send("organizationMembership.created", member(ADA, at=LATER, name="Newer", updated_at=LATER))
    assert clerk.organization()["name"] == "Newer"
    clerk.send("organizationMembership.created", member(BEN, at=MUCH_LATER, clerk_id="orgmem_2", name="Older"))
    assert clerk.organization()["name"] == "Newer"


def test_an_organizations_own_event_wins_over_a_copy_of_the_same_time(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.send("organizationMembership.created", member(ADA, at=LATER, name="Copy"))
    assert clerk.organization()["name"] == "Acme"


def test_a_copy_without_a_time_of_its_own_is_only_a_stub(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.send("organizationMembership.created", member(ADA, at=LATER, name="Sketch", updated_at=None))
    assert clerk.organization()["name"] == "Acme"


def test_the_late_deletion_of_a_former_membership_keeps_the_new_one(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.send("organizationMembership.created", member(ADA, "org:admin", MUCH_LATER, "orgmem_2", created_by=None))
    clerk.send("organizationMembership.deleted", member(ADA), LATER)
    assert clerk.members() == [("user_ada", "admin", "orgmem_2")]


def test_the_late_creation_of_a_former_membership_keeps_the_new_one(clerk: Clerk) -> None:
    clerk.send("organizationMembership.deleted", member(ADA), LATER)
    clerk.send("organizationMembership.created", member(ADA, at=MUCH_LATER, clerk_id="orgmem_2"))
    assert clerk.send("organizationMembership.created", member(ADA)) == "stale"
    assert clerk.members() == [("user_ada", "member", "orgmem_2")]


@pytest.mark.parametrize("flip", [False, True])
def test_of_two_memberships_that_tie_one_counts_in_both_orders(clerk: Clerk, flip: bool) -> None:
    clerk_ids = ["orgmem_1", "orgmem_2"]
    for clerk_id in reversed(clerk_ids) if flip else clerk_ids:
        clerk.send("organizationMembership.created", member(ADA, clerk_id=clerk_id))
    assert clerk.members() == [("user_ada", "member", "orgmem_2")]


def test_a_deleted_membership_is_gone_and_stays_gone(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.send("organizationMembership.deleted", member(ADA), LATER)
    assert clerk.members() == []
    clerk.send("organizationMembership.updated", member(ADA, at=MUCH_LATER))
    assert clerk.members() == []


def test_a_removed_person_does_not_get_an_older_role_back_while_its_deletion_is_late(clerk: Clerk) -> None:
    former, later = member(ADA, "org:admin"), member(ADA, "org:viewer", LATER, "orgmem_2") | {"created_at": LATER}
    clerk.send("organizationMembership.created", former)
    clerk.send("organizationMembership.created", later)
    clerk.send("organizationMembership.deleted", later, MUCH_LATER)
    assert clerk.members() == []
    clerk.send("organizationMembership.deleted", former, MUCH_LATER)
    assert clerk.members() == []


@pytest.mark.parametrize("flip", [False, True])
def test_of_two_deletions_of_a_membership_each_adds_what_it_knows_in_both_orders(clerk: Clerk, flip: bool) -> None:
    later = member(ADA, "org:viewer", LATER, "orgmem_2")
    deletions = [(later | {"created_at": None}, MUCH_LATER), (later | {"created_at": LATER}, LATER)]
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    for data, timestamp in reversed(deletions) if flip else deletions:
        assert clerk.send("organizationMembership.deleted", data, timestamp) == "processed"
    assert clerk.members() == []
    known = "select began_at, deleted_at from app.clerk_tombstones where clerk_id = 'orgmem_2'"
    expected = "select to_timestamp(%s / 1000.0), to_timestamp(%s / 1000.0)"
    assert clerk.database.rows(known) == clerk.database.rows(expected, LATER, MUCH_LATER)


def test_a_copy_of_an_organization_without_all_fields_is_a_sketch(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME | {"max_allowed_memberships": 50})
    membership = member(ADA, at=LATER, updated_at=LATER)
    del membership["organization"]["max_allowed_memberships"]
    clerk.send("organizationMembership.created", membership)
    assert clerk.organization()["max_seats"] == 50


def test_who_leaves_does_not_go_on_working_there(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.database.execute("update public.profiles set current_organization_id = (select id from public.organizations)")
    clerk.send("organizationMembership.deleted", member(ADA), LATER)
    assert clerk.profile()["current_organization_id"] is None


@pytest.mark.parametrize("order", range(6))
def test_the_creator_with_an_admin_role_is_owner_in_any_order(clerk: Clerk, order: int) -> None:
    sent = each_order(
        events.event("organization.created", ACME),
        events.event("organizationMembership.created", member(ADA, "org:admin")),
        events.event("organizationMembership.created", member(BEN, "org:admin", clerk_id="orgmem_2")),
    )[order]
    for event in sent:
        clerk.deliver(event)
    assert clerk.members() == [("user_ada", "owner", "orgmem_1"), ("user_ben", "admin", "orgmem_2")]


def test_a_creator_known_later_becomes_owner_then(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin", created_by=None))
    assert clerk.members() == [("user_ada", "admin", "orgmem_1")]
    clerk.send("organization.updated", ACME | {"updated_at": LATER})
    assert clerk.members() == [("user_ada", "owner", "orgmem_1")]


def test_who_is_no_longer_the_creator_is_no_longer_owner(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    clerk.send("organizationMembership.created", member(BEN, "org:admin", clerk_id="orgmem_2"))
    clerk.send("organization.updated", ACME | {"updated_at": LATER, "created_by": "user_ben"})
    assert clerk.members() == [("user_ada", "admin", "orgmem_1"), ("user_ben", "owner", "orgmem_2")]


def test_a_creator_who_is_no_admin_is_no_owner(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    clerk.send("organizationMembership.updated", member(ADA, "org:member", LATER))
    assert clerk.members() == [("user_ada", "member", "orgmem_1")]
    clerk.send("organizationMembership.updated", member(ADA, "org:admin", MUCH_LATER))
    assert clerk.members() == [("user_ada", "owner", "orgmem_1")]


@pytest.mark.parametrize("key", ["org:billing_manager", "anything", None])
def test_an_unknown_role_means_viewer_and_keeps_its_key(clerk: Clerk, key: str | None) -> None:
    clerk.send("organizationMembership.created", member(ADA) | {"role": key})
    assert clerk.members() == [("user_ada", "viewer", "orgmem_1")]
    assert clerk.database.value("select clerk_role from public.organization_memberships") == key


def test_a_new_meaning_of_a_role_holds_for_members_at_once(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:captain"))
    clerk.send("organizationMembership.created", member(BEN, "org:captain", clerk_id="orgmem_2"))
    clerk.database.execute("insert into app.clerk_roles (key, role) values ('org:captain', 'admin')")
    assert clerk.members() == [("user_ada", "owner", "orgmem_1"), ("user_ben", "admin", "orgmem_2")]
    clerk.database.execute("delete from app.clerk_roles where key = 'org:captain'")
    assert clerk.members() == [("user_ada", "viewer", "orgmem_1"), ("user_ben", "viewer", "orgmem_2")]


def test_a_new_meaning_of_a_role_holds_for_invitations_at_once(clerk: Clerk) -> None:
    clerk.send("organizationInvitation.created", events.invitation("orginv_1", "org_acme", role="org:captain"))
    clerk.database.execute("insert into app.clerk_roles (key, role) values ('org:captain', 'admin')")
    assert clerk.invitations() == [("orginv_1", "cleo@example.com", "admin")]


def test_roles_of_clerk_are_listed_with_what_they_mean_here(clerk: Clerk) -> None:
    clerk.send("role.created", events.role("role_1", "org:writer", permissions=("org:posts:create",)))
    clerk.send("role.created", events.role("role_2", "org:admin"))
    clerk.send("permission.created", events.permission("perm_1", "org:posts:create"))
    assert clerk.database.rows("select key, role, mapped, clerk_permissions from ops.clerk_roles") == [
        ("org:admin", "admin", True, []), ("org:writer", "viewer", False, ["org:posts:create"]),
    ]  # fmt: skip
    clerk.delete("role", "role_1")
    clerk.send("role.updated", events.role("role_1", "org:writer", MUCH_LATER))
    assert clerk.database.rows("select key from ops.clerk_roles") == [("org:admin",)]


# Organizations -------------------------------------------------------------------------------------------------------


def test_a_deleted_organization_is_hidden_from_its_members_at_once(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    clerk.database.execute(
        "insert into public.specimens (organization_id, title) select id, 'Apollo' from public.organizations"
    )
    clerk.delete("organization", "org_acme")
    with clerk.database.acting("authenticated", {"sub": "user_ada", "fva": [0, 0]}):
        for table in ("organizations", "organization_memberships", "specimens"):
            assert clerk.database.value(f"select count(*) from public.{table}") == 0
    assert clerk.organization()["deleted_at"] is not None


def test_late_events_do_not_bring_a_deleted_organization_back(clerk: Clerk) -> None:
    clerk.delete("organization", "org_acme")
    for kind, data in (
        ("organization.updated", ACME | {"updated_at": MUCH_LATER}),
        ("organizationMembership.created", member(ADA, "org:admin", MUCH_LATER)),
        ("organizationInvitation.created", events.invitation("orginv_1", "org_acme", updated_at=MUCH_LATER)),
    ):
        clerk.send(kind, data)
    assert clerk.organization()["deleted_at"] is not None
    assert clerk.members() == []
    assert clerk.invitations() == []


def test_a_slug_may_be_missing_or_taken(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    assert clerk.send("organization.created", events.organization("org_other")) == "processed"
    clerk.send("organization.updated", ACME | {"slug": None, "updated_at": LATER})
    assert clerk.organization()["slug"] is None


@pytest.mark.parametrize(
    ("sent", "kept"), [(0, None), (1, 1), (500, 500), (None, 5), (-3, None), (1e12, None), ("9", 5)]
)
def test_the_limit_of_seats_is_clerks_where_it_has_one(clerk: Clerk, sent: Any, kept: int | None) -> None:
    clerk.send("organization.created", ACME | {"max_allowed_memberships": sent})
    assert clerk.organization()["max_seats"] == kept


def test_a_nameless_organization_goes_by_its_slug_or_id(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME | {"name": None})
    assert clerk.organization()["name"] == "acme"
    clerk.send("organization.updated", ACME | {"name": "", "slug": None, "updated_at": LATER})
    assert clerk.organization()["name"] == "org_acme"


# Invitations ---------------------------------------------------------------------------------------------------------


def test_a_pending_invitation_is_listed(clerk: Clerk) -> None:
    assert clerk.send("organizationInvitation.created", events.invitation("orginv_1", "org_acme")) == "processed"
    assert clerk.invitations() == [("orginv_1", "cleo@example.com", "member")]


@pytest.mark.parametrize("answer", ["accepted", "revoked"])
@pytest.mark.parametrize("answered_at", [START, LATER])
@pytest.mark.parametrize("flip", [False, True])
def test_an_answered_invitation_is_gone_in_any_order(clerk: Clerk, answer: str, answered_at: int, flip: bool) -> None:
    """Even where no time tells which of the two came first."""
    sent = [("created", "pending", START), (answer, answer, answered_at)]
    for action, status, at in reversed(sent) if flip else sent:
        clerk.send(f"organizationInvitation.{action}", events.invitation("orginv_1", "org_acme", status, at))
    assert clerk.invitations() == []
    assert "cleo@example.com" not in str(clerk.database.rows("select * from app.clerk_records"))


# Billing -------------------------------------------------------------------------------------------------------------


def item(plan: str, status: str = "active", at: int = START, clerk_id: str = "csub_item_1") -> Json:
    return events.subscription_item(clerk_id, plan, status, at) | {"payer": events.payer("org_acme")}


def subscription(*items: Json, status: str = "active", at: int = START) -> Json:
    return events.subscription("csub_1", events.payer("org_acme"), items, status, at)


@pytest.mark.parametrize("plan", ["pro", "pro-plan", "pro_plan", "pro_org"])
def test_the_item_in_force_gives_the_tier(clerk: Clerk, plan: str) -> None:
    clerk.send("subscriptionItem.active", item(plan))
    assert clerk.billing() == ("pro", "active")


def test_items_inside_a_subscription_count_too(clerk: Clerk) -> None:
    clerk.send("subscription.created", subscription(item("enterprise")))
    assert clerk.billing() == ("enterprise", "active")


def test_a_subscription_may_come_before_its_organization(clerk: Clerk) -> None:
    clerk.send("subscription.created", subscription(item("pro")))
    clerk.send("organization.created", ACME | {"name": "Acme at last"})
    assert clerk.organization()["name"] == "Acme at last"
    assert clerk.billing() == ("pro", "active")


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("active", "active"),
        ("past_due", "past_due"),
        ("canceled", "cancelled"),
        ("ended", "cancelled"),
        ("x", "cancelled"),
    ],
)
def test_the_subscription_gives_the_status(clerk: Clerk, status: str, shown: str) -> None:
    clerk.send("subscription.updated", subscription(item("pro"), status=status))
    assert clerk.billing()[1] == shown


@pytest.mark.parametrize("status", ["active", "past_due", "canceled"])
def test_a_plan_counts_until_it_ends(clerk: Clerk, status: str) -> None:
    clerk.send("subscriptionItem.updated", item("pro", status))
    assert clerk.billing()[0] == "pro"


@pytest.mark.parametrize("status", ["ended", "upcoming", "incomplete", "abandoned"])
def test_a_plan_that_is_over_or_has_not_begun_does_not_count(clerk: Clerk, status: str) -> None:
    clerk.send("subscriptionItem.updated", item("pro", status))
    assert clerk.billing()[0] == "free"


def test_another_plan_takes_the_place_of_the_one_that_ended_in_any_order(clerk: Clerk) -> None:
    for order in each_order(
        events.event("subscriptionItem.active", item("pro")),
        events.event("subscriptionItem.ended", item("pro", "ended", LATER)),
        events.event("subscriptionItem.active", item("enterprise", "active", LATER, "csub_item_2")),
    ):
        with clerk.database.connection.transaction(force_rollback=True):
            for event in order:
                clerk.deliver(event)
            assert clerk.billing() == ("enterprise", "active")


def test_a_new_meaning_of_a_plan_holds_at_once(clerk: Clerk) -> None:
    clerk.send("subscription.created", subscription(item("gold")))
    assert clerk.billing() == ("free", "active")
    clerk.database.execute("insert into app.clerk_plans (slug, tier) values ('gold', 'enterprise')")
    assert clerk.billing() == ("enterprise", "active")


def test_a_persons_own_subscription_is_ignored(clerk: Clerk) -> None:
    own = (events.subscription_item("csub_item_2", "pro"),)
    paid = events.subscription("csub_2", events.payer(user_id="user_ada"), own)
    assert clerk.send("subscription.created", paid) == "ignored"
    assert clerk.database.value("select count(*) from public.organizations") == 0


def test_a_plan_we_do_not_know_leaves_the_organization_free(clerk: Clerk) -> None:
    clerk.send("subscriptionItem.active", item("made_to_measure"))
    assert clerk.billing() == ("free", "active")


# At once -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def connections(connect: Callable[[], Connection]) -> Iterator[list[Connection]]:
    """Three that really commit; the tables are emptied afterwards."""
    with connect() as one, connect() as two, connect() as three:
        yield [one, two, three]
        one.execute("truncate public.profiles, public.organizations cascade")
        one.execute(
            "truncate app.webhook_events, app.clerk_records, app.clerk_tombstones, app.known_addresses, app.erasure_log"
        )


def wait_until_it_waits(observer: Connection, connection: Connection) -> None:
    waiting = "select exists (select from pg_locks where not granted and pid = %s)"
    for _ in range(1000):
        if observer.execute(waiting, (connection.info.backend_pid,)).fetchone() == (True,):
            return
        time.sleep(0.01)
    raise TimeoutError("the connection never waited for a lock")


def test_an_organization_and_a_person_who_works_in_it_may_be_deleted_at_once(connections: list[Connection]) -> None:
    """Somebody holds the profile, both deletions wait for it in turn, then it is let go: neither may fail."""
    holder, *others = connections
    receive = "select public.receive_clerk_event(%s, %s)"
    holder.execute(receive, ("msg_0", json.dumps(events.event("organizationMembership.created", member(ADA)))))
    holder.execute("update public.profiles set current_organization_id = (select id from public.organizations)")
    deletions = [
        events.deletion_event("user", "user_ada", LATER),
        events.deletion_event("organization", "org_acme", LATER),
    ]
    with ThreadPoolExecutor(2) as threads, holder.transaction():
        holder.execute("select from public.profiles for update")
        for connection, event in zip(others, deletions, strict=True):
            threads.submit(connection.execute, receive, (event["type"], json.dumps(event)))
            wait_until_it_waits(holder, connection)
    outcomes = holder.execute("select outcome, error from app.webhook_events").fetchall()
    assert outcomes == [("processed", None)] * 3


def test_a_new_meaning_of_a_role_reaches_a_membership_under_way(connections: list[Connection]) -> None:
    sync, administrator, observer = connections
    event = json.dumps(events.event("organizationMembership.created", member(ADA, "org:member")))
    with ThreadPoolExecutor(1) as threads:
        with sync.transaction():
            sync.execute("select public.receive_clerk_event('msg_0', %s)", (event,))
            change = "update app.clerk_roles set role = 'viewer' where key = 'org:member'"
            changed = threads.submit(administrator.execute, change)
            wait_until_it_waits(observer, administrator)
        changed.result()
    try:
        assert observer.execute("select role from public.organization_memberships").fetchall() == [("viewer",)]
    finally:
        observer.execute("update app.clerk_roles set role = 'member' where key = 'org:member'")


def test_whoever_is_removed_while_choosing_the_organization_is_not_left_in_it(connections: list[Connection]) -> None:
    client, sync, observer = connections
    observer.execute("select public.receive_clerk_event('msg_0', %s)", (member_event("created", START),))
    with ThreadPoolExecutor(1) as threads:
        with client.transaction():
            client.execute("update public.profiles set current_organization_id = (select id from public.organizations)")
            removal = threads.submit(
                sync.execute, "select public.receive_clerk_event('msg_1', %s)", (member_event("deleted", LATER),)
            )
            wait_until_it_waits(observer, sync)
        removal.result()
    assert observer.execute("select outcome from app.webhook_events where message_id = 'msg_1'").fetchone() == (
        "processed",
    )
    assert observer.execute("select current_organization_id from public.profiles").fetchone() == (None,)


def member_event(action: str, timestamp: int) -> str:
    return json.dumps(events.event(f"organizationMembership.{action}", member(ADA), timestamp))
