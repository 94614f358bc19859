"""How Clerk's events change the rows, a promise per test. tests/properties/test_convergence.py tries arbitrary orders."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import events
from tests.conftest import Claims, Database, wait_until_blocked
from tests.events import MINUTE, SECOND, START, Json
from tests.people import finish_erasures

Connection = psycopg.Connection[Any]
LATER = START + MINUTE
MUCH_LATER = LATER + MINUTE
numbers = itertools.count()


@pytest.fixture
def clerk(database: Database) -> Clerk:
    return Clerk(database)


class Clerk:
    """Sends events like the service and reads the resulting rows."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def deliver(self, event: Any, message_id: str | None = None) -> str:
        """Returns the outcome. Without a message id it is a new message."""
        message = message_id or f"msg_{next(numbers)}"
        with self.database.acting("service_role"):
            answer = self.database.value("select public.receive_clerk_event(%s, %s)", message, json.dumps(event))
        assert isinstance(answer["outcome"], str)
        return answer["outcome"]

    def send(self, kind: str, data: Json, timestamp: int | None = None) -> str:
        return self.deliver(events.event(kind, data, timestamp))

    def delete(self, kind: str, clerk_id: str, timestamp: int = LATER) -> str:
        """Sends a deletion. A person is then erased, as the service does after its answer."""
        outcome = self.deliver(events.deletion_event(kind, clerk_id, timestamp))
        finish_erasures(self.database)
        return outcome

    def profile(self, clerk_user_id: str = "user_ada") -> Any:
        return self.database.value(
            "select to_jsonb(p) - 'id' from public.profiles as p where clerk_user_id = %s", clerk_user_id
        )

    def organization(self, clerk_org_id: str = "org_acme") -> Any:
        return self.database.value(
            "select to_jsonb(o) - 'id' from public.organizations as o where clerk_org_id = %s", clerk_org_id
        )

    def members(self) -> list[tuple[Any, ...]]:
        """(Clerk user id, role, Clerk membership id) of Acme's members."""
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
        """A value that changes with any update of the table's rows, even one that changes no column."""
        return self.database.rows(f"select ctid, xmin from {table} order by 1")


ADA = events.user("user_ada")
BEN = events.user("user_ben", email="ben@example.com", first_name="Ben")
ACME = events.organization("org_acme")
INVITATION = events.invitation("orginv_1", "org_acme")


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


def test_the_answer_contains_message_id_type_and_outcome(clerk: Clerk) -> None:
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
    """Profiles with Ada's address cannot be stored until repair() is called."""
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


def test_an_event_with_a_transient_error_is_not_stored_so_that_clerk_redelivers_it(clerk: Clerk) -> None:
    clerk.database.execute(
        "create function public.test_trouble() returns trigger language plpgsql "
        "as $$ begin raise sqlstate '40P01' using message = 'deadlock detected'; end $$"
    )
    clerk.database.execute(
        "create trigger trouble before insert on public.profiles for each row execute function public.test_trouble()"
    )
    with pytest.raises(psycopg.errors.DeadlockDetected):
        clerk.deliver(events.event("user.created", ADA), "msg_a")
    assert clerk.database.value("select count(*) from app.webhook_events") == 0
    clerk.database.execute("drop trigger trouble on public.profiles")
    assert clerk.deliver(events.event("user.created", ADA), "msg_a") == "processed"


def test_a_failed_event_leaves_no_partial_changes(clerk: Clerk, broken_profiles: None) -> None:
    clerk.send("user.created", ADA)
    assert clerk.database.rows("select * from app.clerk_records") == []


def test_a_failed_event_is_applied_when_it_is_redelivered(clerk: Clerk, broken_profiles: None) -> None:
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


def test_a_late_retry_does_not_undo_newer_events(clerk: Clerk, broken_profiles: None) -> None:
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


def test_retrying_an_event_that_did_not_fail_changes_nothing(clerk: Clerk) -> None:
    clerk.deliver(events.event("user.created", ADA), "msg_a")
    assert clerk.database.value("select app.retry_clerk_event('msg_a')") == "processed"
    assert clerk.inbox("msg_a")["attempts"] == 1
    assert clerk.database.value("select app.retry_clerk_event('msg_unknown')") is None


@pytest.mark.parametrize(
    "kind",
    [
        "session.created", "email.created", "user.createdAtEdge", "organizationDomain.created", "organizationInvitation.deleted",
        "subscription.deleted", "subscriptionItem.deleted", "x",
    ],
)  # fmt: skip
def test_an_event_of_an_unhandled_type_is_stored_as_ignored(clerk: Clerk, kind: str) -> None:
    assert clerk.deliver(events.event(kind, {"id": "any", "updated_at": START}), "msg_a") == "ignored"
    assert clerk.inbox("msg_a")["outcome"] == "ignored"


@pytest.mark.parametrize("message_id", [None, "", "m" * 257])
def test_an_invalid_message_id_is_refused(clerk: Clerk, message_id: str | None) -> None:
    with pytest.raises(psycopg.DatabaseError), clerk.database.acting("service_role"):
        clerk.database.execute(
            "select public.receive_clerk_event(%s, %s)", message_id, json.dumps(events.event("user.created", ADA))
        )
    assert clerk.database.value("select count(*) from public.profiles where clerk_user_id = 'user_ada'") == 0


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_browsers_cannot_deliver_events(clerk: Clerk, role: str) -> None:
    claims: Claims = {"sub": "user_ada", "role": role}
    event = json.dumps(events.event("user.created", ADA))
    with pytest.raises(psycopg.errors.InsufficientPrivilege), clerk.database.acting(role, claims):
        clerk.database.execute("select public.receive_clerk_event('msg_a', %s)", event)


def test_the_service_cannot_bypass_receive_clerk_event(clerk: Clerk) -> None:
    for statement in ("select * from app.webhook_events", "select app.record_deletion('user', 'user_ada', now())"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), clerk.database.acting("service_role"):
            clerk.database.execute(statement)


@pytest.mark.parametrize(
    "instance",
    [
        {"instance_id": "ins_development"},
        {"instance_id": ""},
        {"instance_id": None},
        {"instance_id": ["ins_production"]},
        {},
    ],
)
def test_only_events_of_the_pinned_instance_change_rows(clerk: Clerk, instance: Json) -> None:
    clerk.database.execute("update app.settings set clerk_instance_id = 'ins_production'")
    event = events.event("user.created", ADA)
    del event["instance_id"]
    assert clerk.deliver(event | instance, "msg_a") == "ignored"
    assert clerk.profile() is None
    assert "instance_id" in clerk.inbox("msg_a")["error"]
    assert clerk.deliver(event | {"instance_id": "ins_production"}) == "processed"


@pytest.mark.parametrize("instance", [{"instance_id": "ins_any"}, {"instance_id": None}, {}])
def test_without_a_pinned_instance_any_event_is_applied(clerk: Clerk, instance: Json) -> None:
    event = events.event("user.created", ADA)
    del event["instance_id"]
    assert clerk.deliver(event | instance) == "processed"


# Shapes --------------------------------------------------------------------------------------------------------------

LONG = "x" * 10_000
RANDOM_LONG = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(10_000))  # does not compress
ODD_VALUES: list[Any] = [
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
    """Replaces each value of the event, at any depth, by each odd value in turn; an everyday run tries every third."""
    event = events.event(kind, SENDABLE[kind])
    step = 1 if request.config.getoption("--thorough") else 3
    for number, path in enumerate(paths(event)[1:]):
        if path in {("type",), ("data",)}:  # without these it is not an event: tests/db/test_clerk_inbox.py
            continue
        for value in ODD_VALUES[number % step :: step]:
            with clerk.database.connection.transaction(force_rollback=True):
                outcome = clerk.deliver(replace_value(event, path, value), "msg_odd")
                stored = clerk.inbox("msg_odd")
            assert outcome == stored["outcome"], path
            assert outcome in {"processed", "stale", "ignored", "failed"}, path
            assert len(stored["error"] or "") < 200, path


@pytest.mark.parametrize("kind", SENDABLE)
def test_an_event_without_an_object_id_fails_or_is_ignored(clerk: Clerk, kind: str) -> None:
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
def test_any_json_value_in_any_place_is_stored_and_never_raises(clerk: Clerk, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(SENDABLE)))
    event = events.event(kind, SENDABLE[kind])
    for path in data.draw(st.lists(st.sampled_from(paths(event["data"])[1:]), min_size=1, max_size=3)):
        changed = data.draw(json_values)
        try:
            event = replace_value(event, ("data", *path), changed)
        except (TypeError, KeyError, IndexError):
            continue  # an earlier replacement removed this place
    with clerk.database.connection.transaction(force_rollback=True):
        assert clerk.deliver(event, "msg_odd") == clerk.inbox("msg_odd")["outcome"]


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "ftp://example.com", "//example.com", "", 7, None]
)
def test_a_picture_without_a_web_address_is_not_stored(clerk: Clerk, url: Any) -> None:
    clerk.send("user.created", ADA | {"image_url": url})
    assert clerk.profile()["avatar_url"] is None


def test_errors_contain_no_values_of_the_payload(clerk: Clerk, broken_profiles: None) -> None:
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


def test_a_profile_has_the_values_of_the_clerk_user(clerk: Clerk) -> None:
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
        {"primary_email_address_id": "idn_unknown"},
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


def test_two_people_may_have_the_same_address(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    assert clerk.send("user.created", events.user("user_ada_again")) == "processed"


def test_a_change_of_volatile_fields_does_not_update_the_row(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    before = clerk.row_version("public.profiles")
    clerk.send(
        "user.updated", ADA | {"updated_at": LATER, "last_active_at": LATER, "last_sign_in_at": LATER, "locked": True}
    )
    assert clerk.row_version("public.profiles") == before


def test_a_change_of_counts_or_metadata_does_not_update_the_rows(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.send("organizationMembership.created", member(ADA))
    before = clerk.row_version("public.organizations"), clerk.row_version("public.organization_memberships")
    clerk.send("organization.updated", ACME | {"updated_at": LATER, "members_count": 7})
    clerk.send("organizationMembership.updated", member(ADA, at=LATER) | {"public_metadata": {"team": "x"}})
    assert (clerk.row_version("public.organizations"), clerk.row_version("public.organization_memberships")) == before


def test_a_profile_edited_here_lasts_until_the_value_changes_in_clerk(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    with clerk.database.acting("authenticated", {"sub": "user_ada"}):
        clerk.database.execute("update public.profiles set full_name = 'Countess', avatar_url = 'https://ada.example'")
    clerk.send("user.updated", ADA | {"updated_at": LATER, "primary_email_address_id": None})
    shown = clerk.profile()
    assert (shown["full_name"], shown["avatar_url"], shown["email"]) == ("Countess", "https://ada.example", None)
    clerk.send("user.updated", ADA | {"updated_at": MUCH_LATER, "first_name": "Augusta"})
    shown = clerk.profile()
    assert (shown["full_name"], shown["avatar_url"]) == ("Augusta Winter", "https://ada.example")


def test_an_organization_renamed_here_keeps_its_name_until_it_changes_in_clerk(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    with clerk.database.acting("authenticated", {"sub": "user_ada", "fva": [0, 0]}):
        clerk.database.execute("update public.organizations set name = 'Acme Ltd'")
    clerk.send("organization.updated", ACME | {"updated_at": LATER, "slug": "acme-ltd"})
    assert (clerk.organization()["name"], clerk.organization()["slug"]) == ("Acme Ltd", "acme-ltd")
    clerk.send("organization.updated", ACME | {"updated_at": MUCH_LATER, "name": "Acme Inc"})
    assert clerk.organization()["name"] == "Acme Inc"


@pytest.mark.parametrize("unit", [1, SECOND])
def test_the_time_of_a_deletion_may_be_in_seconds_or_milliseconds(clerk: Clerk, unit: int) -> None:
    clerk.delete("user", "user_ada", LATER // unit)
    assert clerk.database.value("select extract(epoch from deleted_at) * 1000 from app.clerk_tombstones") == LATER


def test_an_older_event_changes_nothing(clerk: Clerk) -> None:
    clerk.send("user.updated", ADA | {"updated_at": LATER, "first_name": "Augusta"})
    assert clerk.send("user.created", ADA) == "stale"
    assert clerk.profile()["full_name"] == "Augusta Winter"


@pytest.mark.parametrize(("flip", "outcomes"), [(True, ["processed", "stale"]), (False, ["processed", "processed"])])
def test_the_worked_example_in_records_sql_is_true(clerk: Clerk, flip: bool, outcomes: list[str]) -> None:
    ten = 1_760_090_400 * SECOND
    first_name = events.user("user_ada", ten, last_name=None)
    created = events.event("user.created", first_name, ten + SECOND)
    updated = events.event(
        "user.updated", events.user("user_ada", ten + 4 * SECOND, last_name="Lovelace"), ten + 5 * SECOND
    )
    assert [clerk.deliver(event) for event in ((updated, created) if flip else (created, updated))] == outcomes
    membership = member(first_name, at=ten + 8 * SECOND)
    clerk.deliver(events.event("organizationMembership.created", membership, ten + 9 * SECOND))
    stamp = """
        select (stamp).is_real, to_char((stamp).source_updated_at at time zone 'UTC', 'HH24:MI:SS'), (stamp).is_own,
          to_char((stamp).event_at at time zone 'UTC', 'HH24:MI:SS')
        from app.clerk_records where clerk_id = 'user_ada'"""
    assert clerk.database.rows(stamp) == [(True, "10:00:04", True, "10:00:05")]
    assert clerk.profile()["full_name"] == "Ada Lovelace"


@pytest.mark.parametrize("flip", [False, True])
def test_of_two_events_with_the_same_updated_at_the_one_sent_later_counts(clerk: Clerk, flip: bool) -> None:
    for name in "BA" if flip else "AB":
        clerk.send("user.updated", ADA | {"first_name": name}, START + ord(name))
    assert clerk.profile()["full_name"] == "B Winter"


def test_events_with_equal_times_end_in_the_same_row_in_any_order(clerk: Clerk) -> None:
    ends = set()
    for order in itertools.permutations(("Anna", "Bea", "Cleo")):
        with clerk.database.connection.transaction(force_rollback=True):
            for name in order:
                clerk.send("user.updated", ADA | {"first_name": name})
            ends.add(clerk.profile()["full_name"])
    assert len(ends) == 1


def test_deleting_a_person_deletes_their_memberships(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    assert clerk.delete("user", "user_ada") == "processed"
    assert clerk.profile() is None
    assert clerk.members() == []


def test_later_events_do_not_restore_a_deleted_person(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    clerk.delete("user", "user_ada")
    assert clerk.send("user.updated", ADA | {"updated_at": MUCH_LATER}) == "stale"
    clerk.send("organizationMembership.created", member(ADA, at=MUCH_LATER))
    assert clerk.profile() is None
    assert clerk.members() == []


def test_a_person_whose_deletion_arrives_first_never_appears(clerk: Clerk) -> None:
    clerk.delete("user", "user_ada")
    clerk.send("user.created", ADA)
    assert clerk.profile() is None


def test_the_rows_that_a_deleted_person_created_stay(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.database.execute(
        "insert into public.specimens (organization_id, created_by, title)"
        " select o.id, p.id, 'Apollo' from public.organizations as o, public.profiles as p"
    )
    clerk.delete("user", "user_ada")
    assert clerk.database.rows("select title, created_by from public.specimens") == [("Apollo", None)]


@pytest.mark.parametrize("field", ["banned", "deprovisioned"])
def test_the_token_of_a_person_whose_access_ended_shows_no_rows(clerk: Clerk, field: str) -> None:
    """Directory sync (SCIM) sets deprovisioned in a user.updated event."""
    clerk.send("organizationMembership.created", member(ADA))
    clerk.send("user.updated", ADA | {"updated_at": LATER, field: True})
    assert clerk.profile()["banned"] is True
    with clerk.database.acting("authenticated", {"sub": "user_ada"}):
        assert clerk.database.value("select count(*) from public.organizations") == 0
        assert clerk.database.value("select count(*) from public.profiles") == 0
    clerk.send("user.updated", ADA | {"updated_at": MUCH_LATER})
    with clerk.database.acting("authenticated", {"sub": "user_ada"}):
        assert clerk.database.value("select count(*) from public.organizations") == 1


def test_a_locked_person_keeps_access(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.send("user.updated", ADA | {"updated_at": LATER, "locked": True})
    with clerk.database.acting("authenticated", {"sub": "user_ada"}):
        assert clerk.database.value("select count(*) from public.organizations") == 1


@pytest.mark.parametrize("field", ["banned", "deprovisioned"])
def test_access_may_have_ended_before_the_persons_own_event_arrives(clerk: Clerk, field: str) -> None:
    membership = member(ADA)
    membership["public_user_data"][field] = True
    clerk.send("organizationMembership.created", membership)
    assert clerk.profile()["banned"] is True


@pytest.mark.parametrize("field", ["banned", "deprovisioned"])
def test_reconcile_finds_and_repairs_access_that_ended_unnoticed(clerk: Clerk, field: str) -> None:
    clerk.send("user.created", ADA)
    page = json.dumps([ADA | {field: True, "updated_at": LATER}])
    differences = "select columns from app.clerk_differences('user', %s, to_timestamp(%s / 1000.0))"
    assert clerk.database.rows(differences, page, MUCH_LATER) == [(["banned"],)]
    clerk.database.execute(
        "select app.repair_clerk_objects('user', %s, to_timestamp(%s / 1000.0), 'reconcile')", page, MUCH_LATER
    )
    assert clerk.profile()["banned"] is True


@pytest.mark.parametrize("status", ["unverified", "failed", "expired", None])
def test_an_unverified_primary_address_is_not_the_persons_email(clerk: Clerk, status: str | None) -> None:
    claimed = events.email_address("idn_primary", "ben@example.com", status)
    clerk.send("user.created", ADA | {"email_addresses": [claimed]})
    assert clerk.profile()["email"] is None
    claimed = events.email_address("idn_primary", "ben@example.com")
    clerk.send("user.updated", ADA | {"email_addresses": [claimed], "updated_at": LATER})
    assert clerk.profile()["email"] == "ben@example.com"


# Memberships ---------------------------------------------------------------------------------------------------------


def test_a_membership_that_arrives_first_creates_the_person_and_the_organization(clerk: Clerk) -> None:
    assert clerk.send("organizationMembership.created", member(ADA)) == "processed"
    assert clerk.members() == [("user_ada", "member", "orgmem_1")]
    assert (clerk.profile()["full_name"], clerk.profile()["email"]) == ("Ada Winter", None)
    assert clerk.organization()["name"] == "Acme"


def test_the_identifier_in_a_membership_is_not_used_as_an_email_address(clerk: Clerk) -> None:
    """It may be a username or a telephone number."""
    clerk.send("organizationMembership.created", member(ADA))
    assert clerk.profile()["email"] is None


def test_a_user_event_replaces_a_partial_copy_even_if_it_is_older(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA | {"first_name": "Partial"}, at=LATER))
    clerk.send("user.created", ADA)
    assert (clerk.profile()["full_name"], clerk.profile()["email"]) == ("Ada Winter", "ada@example.com")


def test_a_partial_copy_never_replaces_a_user(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    clerk.send("organizationMembership.created", member(ADA | {"first_name": "Partial"}, at=LATER))
    assert (clerk.profile()["full_name"], clerk.profile()["email"]) == ("Ada Winter", "ada@example.com")


def test_the_newest_copy_of_an_organization_counts_in_whichever_event_it_arrives(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.send("organizationMembership.created", member(ADA, at=LATER, name="Newer", updated_at=LATER))
    assert clerk.organization()["name"] == "Newer"
    clerk.send("organizationMembership.created", member(BEN, at=MUCH_LATER, clerk_id="orgmem_2", name="Older"))
    assert clerk.organization()["name"] == "Newer"


def test_an_organizations_own_event_wins_over_a_copy_with_the_same_time(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.send("organizationMembership.created", member(ADA, at=LATER, name="Copy"))
    assert clerk.organization()["name"] == "Acme"


def test_a_copy_without_updated_at_is_a_partial_one(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.send("organizationMembership.created", member(ADA, at=LATER, name="Partial", updated_at=None))
    assert clerk.organization()["name"] == "Acme"


def test_a_late_deletion_of_a_former_membership_keeps_the_new_one(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.send("organizationMembership.created", member(ADA, "org:admin", MUCH_LATER, "orgmem_2", created_by=None))
    clerk.send("organizationMembership.deleted", member(ADA), LATER)
    assert clerk.members() == [("user_ada", "admin", "orgmem_2")]


def test_a_late_creation_of_a_former_membership_keeps_the_new_one(clerk: Clerk) -> None:
    clerk.send("organizationMembership.deleted", member(ADA), LATER)
    clerk.send("organizationMembership.created", member(ADA, at=MUCH_LATER, clerk_id="orgmem_2"))
    assert clerk.send("organizationMembership.created", member(ADA)) == "stale"
    assert clerk.members() == [("user_ada", "member", "orgmem_2")]


@pytest.mark.parametrize("flip", [False, True])
def test_of_two_memberships_with_equal_times_the_same_one_counts_in_both_orders(clerk: Clerk, flip: bool) -> None:
    clerk_ids = ["orgmem_1", "orgmem_2"]
    for clerk_id in reversed(clerk_ids) if flip else clerk_ids:
        clerk.send("organizationMembership.created", member(ADA, clerk_id=clerk_id))
    assert clerk.members() == [("user_ada", "member", "orgmem_2")]


def test_a_deleted_membership_does_not_return(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA))
    clerk.send("organizationMembership.deleted", member(ADA), LATER)
    assert clerk.members() == []
    clerk.send("organizationMembership.updated", member(ADA, at=MUCH_LATER))
    assert clerk.members() == []


def test_a_removed_person_does_not_regain_an_older_role_before_its_deletion_arrives(clerk: Clerk) -> None:
    former, later = member(ADA, "org:admin"), member(ADA, "org:viewer", LATER, "orgmem_2") | {"created_at": LATER}
    clerk.send("organizationMembership.created", former)
    clerk.send("organizationMembership.created", later)
    clerk.send("organizationMembership.deleted", later, MUCH_LATER)
    assert clerk.members() == []
    clerk.send("organizationMembership.deleted", former, MUCH_LATER)
    assert clerk.members() == []


@pytest.mark.parametrize("flip", [False, True])
def test_two_deletions_of_a_membership_add_up_in_both_orders(clerk: Clerk, flip: bool) -> None:
    later = member(ADA, "org:viewer", LATER, "orgmem_2")
    deletions = [(later | {"created_at": None}, MUCH_LATER), (later | {"created_at": LATER}, LATER)]
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    for data, timestamp in reversed(deletions) if flip else deletions:
        assert clerk.send("organizationMembership.deleted", data, timestamp) == "processed"
    assert clerk.members() == []
    known = "select began_at, deleted_at from app.clerk_tombstones where clerk_id = 'orgmem_2'"
    expected = "select to_timestamp(%s / 1000.0), to_timestamp(%s / 1000.0)"
    assert clerk.database.rows(known) == clerk.database.rows(expected, LATER, MUCH_LATER)


def test_a_copy_of_an_organization_without_all_fields_is_a_partial_one(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME | {"max_allowed_memberships": 50})
    membership = member(ADA, at=LATER, updated_at=LATER)
    del membership["organization"]["max_allowed_memberships"]
    clerk.send("organizationMembership.created", membership)
    assert clerk.organization()["max_seats"] == 50


def test_leaving_an_organization_clears_it_as_the_current_one(clerk: Clerk) -> None:
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


def test_an_admin_becomes_owner_once_an_event_names_them_as_the_creator(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin", created_by=None))
    assert clerk.members() == [("user_ada", "admin", "orgmem_1")]
    clerk.send("organization.updated", ACME | {"updated_at": LATER})
    assert clerk.members() == [("user_ada", "owner", "orgmem_1")]


def test_a_new_creator_becomes_owner_in_place_of_the_former_one(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    clerk.send("organizationMembership.created", member(BEN, "org:admin", clerk_id="orgmem_2"))
    clerk.send("organization.updated", ACME | {"updated_at": LATER, "created_by": "user_ben"})
    assert clerk.members() == [("user_ada", "admin", "orgmem_1"), ("user_ben", "owner", "orgmem_2")]


def test_a_creator_is_owner_only_while_they_are_admin(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    clerk.send("organizationMembership.updated", member(ADA, "org:member", LATER))
    assert clerk.members() == [("user_ada", "member", "orgmem_1")]
    clerk.send("organizationMembership.updated", member(ADA, "org:admin", MUCH_LATER))
    assert clerk.members() == [("user_ada", "owner", "orgmem_1")]


@pytest.mark.parametrize("key", ["org:billing_manager", "anything", None])
def test_an_unknown_role_maps_to_viewer_and_keeps_its_key(clerk: Clerk, key: str | None) -> None:
    clerk.send("organizationMembership.created", member(ADA) | {"role": key})
    assert clerk.members() == [("user_ada", "viewer", "orgmem_1")]
    assert clerk.database.value("select clerk_role from public.organization_memberships") == key


def test_a_changed_role_mapping_applies_to_members_at_once(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:captain"))
    clerk.send("organizationMembership.created", member(BEN, "org:captain", clerk_id="orgmem_2"))
    clerk.database.execute("insert into app.clerk_roles (key, role) values ('org:captain', 'admin')")
    assert clerk.members() == [("user_ada", "owner", "orgmem_1"), ("user_ben", "admin", "orgmem_2")]
    clerk.database.execute("delete from app.clerk_roles where key = 'org:captain'")
    assert clerk.members() == [("user_ada", "viewer", "orgmem_1"), ("user_ben", "viewer", "orgmem_2")]


def test_a_changed_role_mapping_applies_to_invitations_at_once(clerk: Clerk) -> None:
    clerk.send("organizationInvitation.created", events.invitation("orginv_1", "org_acme", role="org:captain"))
    clerk.database.execute("insert into app.clerk_roles (key, role) values ('org:captain', 'admin')")
    assert clerk.invitations() == [("orginv_1", "cleo@example.com", "admin")]


def test_clerk_roles_are_listed_with_the_role_that_they_map_to(clerk: Clerk) -> None:
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


def test_late_events_do_not_restore_a_deleted_organization(clerk: Clerk) -> None:
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


def test_a_slug_may_be_missing_or_not_unique(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    assert clerk.send("organization.created", events.organization("org_other")) == "processed"
    clerk.send("organization.updated", ACME | {"slug": None, "updated_at": LATER})
    assert clerk.organization()["slug"] is None


@pytest.mark.parametrize(
    ("sent", "kept"), [(0, None), (1, 1), (500, 500), (None, None), (-3, None), (1e12, None), ("9", None)]
)
def test_the_seat_limit_comes_from_clerk(clerk: Clerk, sent: Any, kept: int | None) -> None:
    clerk.send("organization.created", ACME | {"max_allowed_memberships": sent})
    assert clerk.organization()["max_seats"] == kept


def test_without_a_limit_from_clerk_an_organization_has_none(clerk: Clerk) -> None:
    unlimited = dict(ACME)
    del unlimited["max_allowed_memberships"]
    clerk.send("organization.created", unlimited)
    assert clerk.organization()["max_seats"] is None
    clerk.send("subscription.created", events.subscription("csub_9", events.payer("org_unknown")))
    assert clerk.organization("org_unknown")["max_seats"] is None


def test_an_organization_without_a_name_is_named_by_its_slug_or_id(clerk: Clerk) -> None:
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
def test_an_answered_invitation_is_deleted_in_any_order(
    clerk: Clerk, answer: str, answered_at: int, flip: bool
) -> None:
    """Even if the creation and the answer have the same time."""
    sent = [("created", "pending", START), (answer, answer, answered_at)]
    for action, status, at in reversed(sent) if flip else sent:
        clerk.send(f"organizationInvitation.{action}", events.invitation("orginv_1", "org_acme", status, at))
    assert clerk.invitations() == []
    assert "cleo@example.com" not in str(clerk.database.rows("select * from app.clerk_records"))


# Times ---------------------------------------------------------------------------------------------------------------

# Each means "unknown": no timestamp at all, a text, a moment before Clerk existed, the year 2096.
UNUSABLE: list[Any] = [None, "soon", 1, 4_000_000_000_000]


def without_time(event: Json, timestamp: Any) -> Json:
    """The event with an unusable timestamp."""
    return {key: value for key, value in event.items() if key != "timestamp"} | (
        {} if timestamp is None else {"timestamp": timestamp}
    )


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (1_760_000_000, "2025-10-09T08:53:20+00:00"),
        (1_760_000_000_123, "2025-10-09T08:53:20.123+00:00"),
        ("1760000000123", "2025-10-09T08:53:20.123+00:00"),
        ("1760000000", "2025-10-09T08:53:20+00:00"),
        ("2025-10-09T08:53:20Z", "2025-10-09T08:53:20+00:00"),
        ("2025-10-09T08:53:20.123Z", "2025-10-09T08:53:20.123+00:00"),
        ("2025-10-09T08:53:20.123456789Z", "2025-10-09T08:53:20.123456+00:00"),
        ("2025-10-09T10:23:20+01:30", "2025-10-09T08:53:20+00:00"),
        ("2025-10-09T04:23:20-04:30", "2025-10-09T08:53:20+00:00"),
        ("2025-02-30T00:00:00Z", "2025-03-02T00:00:00+00:00"),
        ("2025-10-09T08:53:20", None),
        ("2025-10-09 08:53:20Z", None),
        ("2025-10-09", None),
        ("0000-01-01T00:00:00Z", None),
        ("2025-13-01T00:00:00Z", None),
        ("1.76e9", None),
        ("-1760000000", None),
        ("now", None),
        ("infinity", None),
        (0, None),
        (-1, None),
        (1e300, None),
        (True, None),
        ([1_760_000_000], None),
        (None, None),
    ],
)
def test_a_time_is_read_from_a_number_its_digits_or_iso_8601(clerk: Clerk, given: Any, read: str | None) -> None:
    found = clerk.database.value("select app.clerk_time(%s::jsonb) = %s::timestamptz", json.dumps(given), read)
    assert found is (None if read is None else True)


@pytest.mark.parametrize("given", [*UNUSABLE, "", True, {}, 0, -1, 10**15, "2026-02-30", "10/11/2026", "infinity"])
def test_a_time_that_cannot_be_true_orders_nothing(clerk: Clerk, given: Any) -> None:
    assert clerk.database.value("select app.clerk_event_time(%s::jsonb)", json.dumps(given)) is None


@pytest.mark.parametrize("form", ["text", "iso", "seconds"])
def test_events_with_textual_times_are_ordered_like_others(clerk: Clerk, form: str) -> None:
    def write(milliseconds: int) -> Any:
        iso = clerk.database.value("select to_char(to_timestamp(%s / 1000.0) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')", milliseconds)  # fmt: skip
        return {"text": str(milliseconds), "iso": iso, "seconds": milliseconds // SECOND}[form]

    newer = ADA | {"updated_at": write(LATER), "created_at": write(START), "first_name": "Augusta"}
    clerk.deliver(events.event("user.updated", newer, write(LATER)))
    clerk.send("user.updated", ADA | {"updated_at": LATER - SECOND})
    assert clerk.profile()["full_name"] == "Augusta Winter"
    assert clerk.database.value("select extract(epoch from created_at) * 1000 from public.profiles") == START
    clerk.send("user.updated", ADA | {"updated_at": LATER + SECOND})
    assert clerk.profile()["full_name"] == "Ada Winter"


@pytest.mark.parametrize("timestamp", UNUSABLE)
def test_an_organization_deleted_without_a_usable_time_is_hidden_but_not_purged(clerk: Clerk, timestamp: Any) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    assert clerk.deliver(without_time(events.deletion_event("organization", "org_acme", LATER), timestamp)) == "processed"  # fmt: skip
    assert clerk.members() == []
    assert clerk.database.value("select deleted_at = now() from public.organizations")
    run_retention(clerk)
    assert clerk.organization() is not None


def test_a_deletion_that_arrives_a_month_late_begins_the_grace_period(clerk: Clerk) -> None:
    month_ago = clerk.database.value("select (extract(epoch from now() - interval '31 days') * 1000)::bigint")
    for early in (True, False):
        with clerk.database.connection.transaction(force_rollback=True):
            for event in (
                events.event("organization.created", ACME),
                events.deletion_event("organization", "org_acme", month_ago),
            )[:: 1 if early else -1]:
                clerk.deliver(event)
            run_retention(clerk)
            assert clerk.database.value("select deleted_at = now() from public.organizations")
            clerk.database.execute("update public.organizations set deleted_at = now() - interval '31 days'")
            run_retention(clerk)
            assert clerk.organization() is None


def test_a_repeated_deletion_does_not_extend_the_grace_period(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.delete("organization", "org_acme", LATER)
    clerk.database.execute("update public.organizations set deleted_at = now() - interval '7 days'")
    clerk.delete("organization", "org_acme", MUCH_LATER)
    clerk.send("organization.updated", ACME | {"updated_at": MUCH_LATER, "name": "Acme, renamed"})
    assert clerk.database.value("select deleted_at = now() - interval '7 days' from public.organizations")


def run_retention(clerk: Clerk) -> None:
    with clerk.database.acting("service_role"):
        while not clerk.database.value("select public.run_retention() -> 'done'"):
            pass


@pytest.mark.parametrize("timestamp", UNUSABLE)
@pytest.mark.parametrize("flip", [False, True])
def test_an_admin_removed_without_a_usable_time_does_not_return_with_a_token(
    clerk: Clerk, timestamp: Any, flip: bool
) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    removal = without_time(events.event("organizationMembership.deleted", member(ADA, "org:admin")), timestamp)
    claims = {"sub": "user_ada", "iat": LATER // SECOND, "o": {"id": "org_acme", "rol": "admin"}, "fva": [0, 0]}
    for step in (1, 0) if flip else (0, 1):
        if step == 0:
            clerk.deliver(removal)
        else:
            with clerk.database.acting("authenticated", claims):
                clerk.database.execute("select public.start_session()")
    assert clerk.members() == []


@pytest.mark.parametrize("timestamp", UNUSABLE)
@pytest.mark.parametrize("flip", [False, True])
def test_a_person_deleted_without_a_usable_time_never_returns(clerk: Clerk, timestamp: Any, flip: bool) -> None:
    deletion = without_time(events.deletion_event("user", "user_ada", LATER), timestamp)
    for event in (events.event("user.updated", ADA), deletion)[:: -1 if flip else 1]:
        assert clerk.deliver(event) in {"processed", "stale"}
    clerk.send("user.updated", ADA | {"updated_at": MUCH_LATER})
    hidden = clerk.profile() or {"banned": True, "full_name": None}
    assert (hidden["banned"], hidden["full_name"]) == (True, None)
    finish_erasures(clerk.database)
    assert clerk.profile() is None


@pytest.mark.parametrize("action", ["accepted", "revoked"])
@pytest.mark.parametrize("flip", [False, True])
def test_an_answer_without_a_time_and_with_only_an_id_ends_the_invitation(
    clerk: Clerk, action: str, flip: bool
) -> None:
    answer = without_time(events.event(f"organizationInvitation.{action}", {"id": "orginv_1"}, LATER), None)
    created = events.event("organizationInvitation.created", events.invitation("orginv_1", "org_acme"))
    for event in (created, answer)[:: -1 if flip else 1]:
        assert clerk.deliver(event) in {"processed", "stale"}
    assert clerk.invitations() == []


@pytest.mark.parametrize("updated_at", UNUSABLE)
def test_without_a_usable_updated_at_the_time_of_the_event_counts(clerk: Clerk, updated_at: Any) -> None:
    clerk.send("user.created", ADA)
    clerk.send("user.updated", ADA | {"updated_at": updated_at, "first_name": "Augusta"}, LATER)
    assert clerk.profile()["full_name"] == "Augusta Winter"
    clerk.send("user.updated", ADA | {"updated_at": LATER - SECOND})
    assert clerk.profile()["full_name"] == "Augusta Winter"
    clerk.send("user.updated", ADA | {"updated_at": LATER + SECOND})
    assert clerk.profile()["full_name"] == "Ada Winter"


@pytest.mark.parametrize("flip", [False, True])
def test_an_update_without_any_usable_time_never_replaces_data_and_is_not_lost(clerk: Clerk, flip: bool) -> None:
    undated = without_time(events.event("user.updated", ADA | {"updated_at": None, "banned": True}, START), None)
    sent = (events.event("user.updated", ADA | {"first_name": "Augusta"}), undated)
    outcomes = [clerk.deliver(event, f"msg_{event['type']}_{number}") for number, event in enumerate(sent[:: -1 if flip else 1])]  # fmt: skip
    assert outcomes == (["processed", "processed"] if flip else ["processed", "failed"])
    assert (clerk.profile()["full_name"], clerk.profile()["banned"]) == ("Augusta Winter", False)
    if not flip:
        assert "no usable time" in clerk.inbox("msg_user.updated_1")["error"]
        clerk.send("user.updated", ADA | {"updated_at": LATER, "banned": True})
        assert clerk.database.value("select app.retry_clerk_event('msg_user.updated_1')") == "stale"


def test_an_undated_copy_of_an_organization_whose_founder_is_erased_loses_nothing(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    clerk.deliver(events.deletion_event("user", ADA["id"], LATER), "msg_deleted")
    organization = events.organization("org_acme", created_by=ADA["id"])
    clerk.send("organization.created", organization)
    undated = without_time(events.event("organization.updated", organization | {"updated_at": None}, START), None)
    assert clerk.deliver(undated, "msg_undated") == "stale"


def test_a_creation_without_other_times_counts_from_created_at(clerk: Clerk) -> None:
    clerk.send("user.updated", ADA | {"updated_at": LATER, "first_name": "Augusta"})
    assert clerk.deliver(without_time(events.event("user.created", ADA | {"updated_at": None}, START), None)) == "stale"
    assert clerk.profile()["full_name"] == "Augusta Winter"


def test_a_membership_without_created_at_keeps_the_day_it_was_first_seen(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA) | {"created_at": None})
    clerk.database.execute("update public.organization_memberships set joined_at = '2026-01-01 00:00:00+00'")
    clerk.send("organizationMembership.updated", member(ADA, "org:admin", LATER) | {"created_at": "?"})
    assert clerk.database.rows("select role, joined_at = '2026-01-01 00:00:00+00' from public.organization_memberships") == [("owner", True)]  # fmt: skip


@pytest.mark.parametrize("deletion", [{}, {"created_at": START + 5 * SECOND}])
def test_an_event_without_created_at_never_hides_when_a_membership_began(clerk: Clerk, deletion: Json) -> None:
    """Deleted, it ends an older membership of the same person, too."""
    began = START + 5 * SECOND
    second = member(ADA, "org:viewer", began, "orgmem_2") | {"created_at": began}
    for order in each_order(
        events.event("organizationMembership.created", second),
        events.event("organizationMembership.updated", second | {"created_at": None, "updated_at": LATER}),
        events.event("organizationMembership.deleted", SHORT | {"id": "orgmem_2"} | deletion, MUCH_LATER),
    ):
        with clerk.database.connection.transaction(force_rollback=True):
            clerk.send("organizationMembership.created", member(ADA, "org:admin"))
            for event in order:
                assert clerk.deliver(event) in {"processed", "stale"}
            assert clerk.members() == []


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("user", "select created_at from public.profiles"),
        ("organization", "select created_at from public.organizations"),
        ("organizationMembership", "select joined_at from public.organization_memberships"),
        ("organizationInvitation", "select created_at from public.organization_invitations"),
    ],
)
def test_an_event_without_created_at_leaves_it_as_it_was_in_any_order(clerk: Clerk, kind: str, column: str) -> None:
    data = {
        "user": ADA, "organization": ACME, "organizationMembership": member(ADA), "organizationInvitation": INVITATION,
    }[kind]  # fmt: skip
    for order in each_order(
        events.event(f"{kind}.created", data),
        events.event(f"{kind}.updated", data | {"created_at": None, "updated_at": LATER}),
        events.event(f"{kind}.updated", data | {"created_at": "?", "updated_at": MUCH_LATER}),
    ):
        with clerk.database.connection.transaction(force_rollback=True):
            for event in order:
                assert clerk.deliver(event) in {"processed", "stale"}
            assert clerk.database.value(f"select extract(epoch from ({column})) * 1000") == START


def test_an_invitation_predates_an_erasure_if_any_event_shows_it(clerk: Clerk) -> None:
    person = events.user("user_cleo", email="cleo@example.com")
    for order in each_order(
        events.event("organizationInvitation.created", INVITATION),
        events.event("organizationInvitation.updated", INVITATION | {"created_at": None, "updated_at": MUCH_LATER}),
        events.deletion_event("user", "user_cleo", LATER),
    ):
        with clerk.database.connection.transaction(force_rollback=True):
            clerk.send("user.created", person)
            for event in order:
                clerk.deliver(event)
                finish_erasures(clerk.database)
            assert clerk.invitations() == []


def test_an_event_without_any_time_or_created_at_loses_nothing_if_all_else_is_equal(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    undated = events.event("user.updated", ADA | {"created_at": None, "updated_at": None}, START) | {"timestamp": None}
    assert clerk.deliver(undated) == "stale"


# Deletions with only an id -------------------------------------------------------------------------------------------

SHORT = {"object": "organization_membership", "id": "orgmem_1", "deleted": True}


@pytest.mark.parametrize(
    "data",
    [
        SHORT,
        SHORT | {"organization": ACME},
        SHORT | {"public_user_data": {"user_id": "user_ada"}},
        SHORT | {"organization": None, "public_user_data": {}},
    ],
)
@pytest.mark.parametrize("timestamp", [LATER, None])
@pytest.mark.parametrize("flip", [False, True])
def test_a_membership_is_deleted_by_its_id_in_any_order(
    clerk: Clerk, data: Json, timestamp: int | None, flip: bool
) -> None:
    deletion = without_time(events.event("organizationMembership.deleted", data, LATER), timestamp)
    created = events.event("organizationMembership.created", member(ADA, "org:admin"))
    for event in (created, deletion)[:: -1 if flip else 1]:
        assert clerk.deliver(event) == "processed"
    assert clerk.members() == []
    clerk.send("organizationMembership.updated", member(ADA, "org:admin", MUCH_LATER))
    assert clerk.members() == []
    claims = {"sub": "user_ada", "iat": START // SECOND, "o": {"id": "org_acme", "rol": "admin"}, "fva": [0, 0]}
    with clerk.database.acting("authenticated", claims):
        clerk.database.execute("select public.start_session()")
    assert clerk.members() == []


def test_the_answer_to_a_short_deletion_names_the_person_and_the_organization(clerk: Clerk) -> None:
    """The service then forgets what it cached about them."""
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    deletion = json.dumps(events.event("organizationMembership.deleted", SHORT, LATER))
    with clerk.database.acting("service_role"):
        answer = clerk.database.value("select public.receive_clerk_event('msg_short', %s)", deletion)
    assert (answer["users"], answer["organizations"]) == (["user_ada"], ["org_acme"])


def test_a_short_deletion_ends_the_same_in_any_order_when_a_person_rejoins(clerk: Clerk) -> None:
    first = member(ADA, "org:admin")
    second = member(ADA, "org:viewer", LATER, "orgmem_2") | {"created_at": LATER}
    for order in each_order(
        events.event("organizationMembership.created", first),
        events.event("organizationMembership.deleted", SHORT, LATER),
        events.event("organizationMembership.created", second),
        events.event("organizationMembership.deleted", SHORT | {"id": "orgmem_2"}, MUCH_LATER),
    ):
        with clerk.database.connection.transaction(force_rollback=True):
            for event in order:
                assert clerk.deliver(event) in {"processed", "stale"}
            assert clerk.members() == []


def test_a_short_deletion_of_a_former_membership_keeps_the_new_one(clerk: Clerk) -> None:
    for order in each_order(
        events.event("organizationMembership.created", member(ADA, "org:admin")),
        events.event("organizationMembership.deleted", SHORT, LATER),
        events.event("organizationMembership.created", member(ADA, "org:viewer", LATER, "orgmem_2") | {"created_at": LATER}),
    ):  # fmt: skip
        with clerk.database.connection.transaction(force_rollback=True):
            for event in order:
                clerk.deliver(event)
            assert clerk.members() == [("user_ada", "viewer", "orgmem_2")]


def test_a_short_deletion_of_an_erased_persons_membership_reveals_nothing(clerk: Clerk) -> None:
    clerk.send("organizationMembership.deleted", SHORT, LATER)
    clerk.delete("user", "user_ada")
    assert clerk.send("organizationMembership.created", member(ADA)) != "failed"
    assert clerk.database.rows("select user_id from app.clerk_tombstones where kind = 'membership'") == [(None,)]


def test_an_update_without_the_person_is_resolved_from_what_is_known(clerk: Clerk) -> None:
    update = {"id": "orgmem_1", "role": "org:viewer", "updated_at": LATER}
    assert clerk.deliver(events.event("organizationMembership.updated", update), "msg_early") == "failed"
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    assert clerk.database.value("select app.retry_clerk_event('msg_early')") == "processed"
    assert clerk.members() == [("user_ada", "viewer", "orgmem_1")]


def test_an_update_without_the_person_is_stale_once_the_membership_is_deleted(clerk: Clerk) -> None:
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    clerk.send("organizationMembership.deleted", SHORT, LATER)
    update = {"id": "orgmem_1", "role": "org:viewer", "updated_at": MUCH_LATER}
    assert clerk.deliver(events.event("organizationMembership.updated", update)) == "stale"
    assert clerk.members() == []


def test_a_short_deletion_ends_a_membership_from_a_token_once_its_owner_is_named(clerk: Clerk) -> None:
    claims = {"sub": "user_ada", "iat": START // SECOND, "o": {"id": "org_acme", "rol": "admin"}, "fva": [0, 0]}
    with clerk.database.acting("authenticated", claims):
        clerk.database.execute("select public.start_session()")
    clerk.send("organizationMembership.deleted", SHORT, LATER)
    assert clerk.members() == [("user_ada", "admin", None)]
    clerk.send("organizationMembership.created", member(ADA, "org:admin"))
    assert clerk.members() == []


def without_payer(data: Json) -> Json:
    return {key: value for key, value in data.items() if key != "payer"}


@pytest.mark.parametrize("timestamp", [LATER, None])
@pytest.mark.parametrize("only_id", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_a_subscription_item_ends_without_its_payer_in_any_order(
    clerk: Clerk, timestamp: int | None, only_id: bool, flip: bool
) -> None:
    data = {"id": "csub_item_1"} if only_id else without_payer(item("pro", "ended", LATER)) | {"updated_at": timestamp}
    ended = without_time(events.event("subscriptionItem.ended", data, LATER), timestamp)
    for event in (events.event("subscriptionItem.active", item("pro")), ended)[:: -1 if flip else 1]:
        assert clerk.deliver(event) in {"processed", "stale"}
    assert clerk.billing() == ("free", "active")


@pytest.mark.parametrize("flip", [False, True])
def test_the_payer_of_an_item_is_taken_from_any_event_that_names_it(clerk: Clerk, flip: bool) -> None:
    nameless = events.event("subscriptionItem.updated", without_payer(item("enterprise", at=LATER)))
    for event in (nameless, events.event("subscription.created", subscription(item("pro"))))[:: -1 if flip else 1]:
        assert clerk.deliver(event) == "processed"
    assert clerk.billing() == ("enterprise", "active")


# Billing -------------------------------------------------------------------------------------------------------------


def item(plan: str, status: str = "active", at: int = START, clerk_id: str = "csub_item_1") -> Json:
    return events.subscription_item(clerk_id, plan, status, at) | {"payer": events.payer("org_acme")}


def subscription(*items: Json, status: str = "active", at: int = START) -> Json:
    return events.subscription("csub_1", events.payer("org_acme"), items, status, at)


@pytest.mark.parametrize("plan", ["pro", "pro-plan", "pro_plan", "pro_org"])
def test_the_item_in_force_determines_the_tier(clerk: Clerk, plan: str) -> None:
    clerk.send("subscriptionItem.active", item(plan))
    assert clerk.billing() == ("pro", "active")


def test_the_items_in_a_subscription_count_too(clerk: Clerk) -> None:
    clerk.send("subscription.created", subscription(item("enterprise")))
    assert clerk.billing() == ("enterprise", "active")


def test_a_subscription_may_arrive_before_its_organization(clerk: Clerk) -> None:
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
def test_the_subscription_determines_the_status(clerk: Clerk, status: str, shown: str) -> None:
    clerk.send("subscription.updated", subscription(item("pro"), status=status))
    assert clerk.billing()[1] == shown


@pytest.mark.parametrize("status", ["active", "past_due", "canceled"])
def test_a_plan_counts_until_it_ends(clerk: Clerk, status: str) -> None:
    clerk.send("subscriptionItem.updated", item("pro", status))
    assert clerk.billing()[0] == "pro"


@pytest.mark.parametrize("status", ["ended", "upcoming", "incomplete", "abandoned"])
def test_a_plan_that_has_ended_or_not_begun_does_not_count(clerk: Clerk, status: str) -> None:
    clerk.send("subscriptionItem.updated", item("pro", status))
    assert clerk.billing()[0] == "free"


def test_a_new_plan_replaces_the_ended_one_in_any_order(clerk: Clerk) -> None:
    for order in each_order(
        events.event("subscriptionItem.active", item("pro")),
        events.event("subscriptionItem.ended", item("pro", "ended", LATER)),
        events.event("subscriptionItem.active", item("enterprise", "active", LATER, "csub_item_2")),
    ):
        with clerk.database.connection.transaction(force_rollback=True):
            for event in order:
                clerk.deliver(event)
            assert clerk.billing() == ("enterprise", "active")


def test_the_worked_example_of_ranks_in_rows_sql_is_true(clerk: Clerk) -> None:
    now, day = clerk.database.value("select (extract(epoch from now()) * 1000)::bigint"), 24 * 60 * MINUTE
    for order in each_order(
        item("starter", "active", START, "a") | {"period_end": now + day},
        item("enterprise", "canceled", START + MINUTE, "b") | {"period_end": now + day},
        item("pro", "canceled", START + 2 * MINUTE, "c") | {"period_end": now - day},
        item("made_up", "active", START + 3 * MINUTE, "d") | {"period_end": now + day},
    ):
        with clerk.database.connection.transaction(force_rollback=True):
            for each in order:
                clerk.send("subscriptionItem.updated", each)
            assert clerk.billing() == ("starter", "active")
            clerk.send("subscriptionItem.ended", {"id": "a"}, START + 4 * MINUTE)
            assert clerk.billing() == ("free", "active")
            assert clerk.database.rows("select plan, tier, mapped, organizations, status from ops.clerk_plans") == [
                ("made_up", "free", False, 1, "yellow"), ("enterprise", "enterprise", True, 1, "green"),
            ]  # fmt: skip


@pytest.mark.parametrize("better", ["active", "past_due"])
def test_a_cancelled_item_never_outranks_one_that_is_paid_for(clerk: Clerk, better: str) -> None:
    clerk.send("subscriptionItem.updated", item("pro", better))
    clerk.send("subscriptionItem.canceled", item("enterprise", "canceled", LATER, "csub_item_2"))
    assert clerk.billing()[0] == "pro"


def test_a_cancelled_plan_ends_with_its_period_even_if_the_event_is_lost(clerk: Clerk) -> None:
    soon = clerk.database.value("select (extract(epoch from now() + interval '1 day') * 1000)::bigint")
    clerk.send("subscriptionItem.canceled", item("pro", "canceled") | {"period_end": soon})
    run_retention(clerk)
    assert clerk.billing()[0] == "pro"
    clerk.database.execute(
        "update app.clerk_records set fields = fields || jsonb_build_object('period_end', %s) where kind = 'subscription_item'",
        START,
    )
    run_retention(clerk)
    assert clerk.billing()[0] == "free"


def test_a_tier_that_was_set_without_clerk_stays(clerk: Clerk) -> None:
    clerk.send("organization.created", ACME)
    clerk.database.execute("update public.organizations set subscription_tier = 'enterprise'")
    run_retention(clerk)
    assert clerk.billing()[0] == "enterprise"


def test_a_changed_plan_mapping_applies_at_once(clerk: Clerk) -> None:
    clerk.send("subscription.created", subscription(item("gold")))
    assert clerk.billing() == ("free", "active")
    clerk.database.execute("insert into app.clerk_plans (slug, tier) values ('gold', 'enterprise')")
    assert clerk.billing() == ("enterprise", "active")


def test_a_persons_own_subscription_is_ignored(clerk: Clerk) -> None:
    own = (events.subscription_item("csub_item_2", "pro"),)
    paid = events.subscription("csub_2", events.payer(user_id="user_ada"), own)
    assert clerk.send("subscription.created", paid) == "ignored"
    assert clerk.database.value("select count(*) from public.organizations") == 0


def test_a_plan_that_is_paid_for_without_a_mapping_shows_as_yellow(clerk: Clerk) -> None:
    plans = "select plan, tier, mapped, organizations, status from ops.clerk_plans"
    health = "select status from ops.health where subject = 'plan'"
    assert clerk.database.rows(health) == [("green",)]
    clerk.send("subscriptionItem.active", item("made_to_measure"))
    assert clerk.billing() == ("free", "active")
    assert clerk.database.rows(plans) == [("made_to_measure", "free", False, 1, "yellow")]
    assert clerk.database.rows(health) == [("yellow",)]
    assert clerk.database.rows("select unmapped, on_free_tier from ops.plan_health") == [(1, 1)]
    clerk.database.execute("insert into app.clerk_plans (slug, tier) values ('made_to_measure', 'enterprise')")
    assert clerk.billing() == ("enterprise", "active")
    assert clerk.database.rows(plans) == [("made_to_measure", "enterprise", True, 1, "green")]
    assert clerk.database.rows(health) == [("green",)]


def test_a_plan_of_a_deleted_organization_or_one_not_in_force_is_no_concern(clerk: Clerk) -> None:
    clerk.send("subscriptionItem.ended", item("made_to_measure", "ended"))
    assert clerk.database.rows("select * from ops.clerk_plans") == []
    clerk.send("subscriptionItem.active", item("made_to_measure", "active", clerk_id="csub_item_2"))
    clerk.delete("organization", "org_acme")
    assert clerk.database.rows("select * from ops.clerk_plans") == []
    assert clerk.database.rows("select status from ops.health where subject = 'plan'") == [("green",)]


# Concurrency ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def connections(connect: Callable[[], Connection]) -> Iterator[list[Connection]]:
    """Three connections that commit. The tables are truncated afterwards."""
    with connect() as one, connect() as two, connect() as three:
        yield [one, two, three]
        one.execute("truncate public.profiles, public.organizations cascade")
        one.execute(
            "truncate app.webhook_events, app.clerk_records, app.clerk_tombstones, app.known_addresses, app.erasure_log, app.erasure_failures"
        )


def test_an_organization_and_a_person_working_in_it_may_be_deleted_concurrently(connections: list[Connection]) -> None:
    """One connection locks the profile, both deletions wait for it in turn, then it commits: neither may fail."""
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
            wait_until_blocked(holder, connection)
    outcomes = holder.execute("select outcome, error from app.webhook_events").fetchall()
    assert outcomes == [("processed", None)] * 3


def test_a_changed_role_mapping_applies_to_a_membership_of_an_uncommitted_event(connections: list[Connection]) -> None:
    sync, administrator, observer = connections
    event = json.dumps(events.event("organizationMembership.created", member(ADA, "org:member")))
    with ThreadPoolExecutor(1) as threads:
        with sync.transaction():
            sync.execute("select public.receive_clerk_event('msg_0', %s)", (event,))
            change = "update app.clerk_roles set role = 'viewer' where key = 'org:member'"
            changed = threads.submit(administrator.execute, change)
            wait_until_blocked(observer, administrator)
        changed.result()
    try:
        assert observer.execute("select role from public.organization_memberships").fetchall() == [("viewer",)]
    finally:
        observer.execute("update app.clerk_roles set role = 'member' where key = 'org:member'")


def test_a_short_deletion_waits_for_a_rejoining_that_is_not_committed(connections: list[Connection]) -> None:
    """It names neither the person nor the organization, but must lock both: otherwise it would delete the new row."""
    rejoining, deleting, observer = connections
    receive = "select public.receive_clerk_event(%s, %s)"
    rejoin = events.event("organizationMembership.created", member(ADA, "org:viewer", LATER, "orgmem_2"))
    observer.execute(receive, ("msg_0", member_event("created", START)))
    with ThreadPoolExecutor(1) as threads:
        with rejoining.transaction():
            rejoining.execute(receive, ("msg_1", json.dumps(rejoin)))
            short = json.dumps(events.event("organizationMembership.deleted", SHORT, LATER))
            deletion = threads.submit(deleting.execute, receive, ("msg_2", short))
            wait_until_blocked(observer, deleting)
        deletion.result()
    rows = "select clerk_membership_id, role from public.organization_memberships"
    assert observer.execute(rows).fetchall() == [("orgmem_2", "viewer")]


def test_a_short_deletion_that_waits_for_the_membership_does_not_deadlock(connections: list[Connection]) -> None:
    """While it waits, its person and organization become known. It must not lock them after the membership."""
    creating, deleting, updating = connections
    receive = "select public.receive_clerk_event(%s, %s)"
    last = "select 'orgmem_' || n from generate_series(1, 100) as n order by hashtextextended('orgmem_' || n, 0) desc limit 1"
    (clerk_id,) = creating.execute(last).fetchone() or ("",)
    created, updated = (
        events.event(f"organizationMembership.{action}", member(ADA, role, at, clerk_id))
        for action, role, at in (("created", "org:admin", START), ("updated", "org:viewer", LATER))
    )
    short = events.event("organizationMembership.deleted", SHORT | {"id": clerk_id}, MUCH_LATER)
    with ThreadPoolExecutor(2) as threads:
        with creating.transaction():
            creating.execute(receive, ("msg_0", json.dumps(created)))
            running = []
            for number, (connection, event) in enumerate(((deleting, short), (updating, updated)), 1):
                running.append(threads.submit(connection.execute, receive, (f"msg_{number}", json.dumps(event))))
                wait_until_blocked(creating, connection)
        for each in running:
            each.result()
    assert creating.execute("select count(*) from public.organization_memberships").fetchone() == (0,)


def test_a_person_removed_while_selecting_the_organization_does_not_keep_it_as_current(
    connections: list[Connection],
) -> None:
    client, sync, observer = connections
    observer.execute("select public.receive_clerk_event('msg_0', %s)", (member_event("created", START),))
    with ThreadPoolExecutor(1) as threads:
        with client.transaction():
            client.execute("update public.profiles set current_organization_id = (select id from public.organizations)")
            removal = threads.submit(
                sync.execute, "select public.receive_clerk_event('msg_1', %s)", (member_event("deleted", LATER),)
            )
            wait_until_blocked(observer, sync)
        removal.result()
    assert observer.execute("select outcome from app.webhook_events where message_id = 'msg_1'").fetchone() == (
        "processed",
    )
    assert observer.execute("select current_organization_id from public.profiles").fetchone() == (None,)


def member_event(action: str, timestamp: int) -> str:
    return json.dumps(events.event(f"organizationMembership.{action}", member(ADA), timestamp))
