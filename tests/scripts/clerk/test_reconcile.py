"""`ballast clerk reconcile`: reports differences from Clerk, repairs them with --fix, and removes nothing by mistake."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from scripts.cli import ballast
from tests import events
from tests.clerk_server import ClerkServer, running_clerk
from tests.conftest import Database
from tests.events import MINUTE, START, Json
from tests.people import finish_erasures
from tests.scripts.clerk.test_backfill import (
    ACME,
    ADA,
    BEN,
    EVERYTHING,
    SHOWN_QUERY,
    hide_from_list,
    people,
    receive,
    subscribe,
)

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Reconcile:
    """A Clerk and a database with the same data, and the command on both."""

    url: str
    clerk: ClerkServer

    def ballast(self, *words: str) -> Result:
        environment = {"DATABASE_URL": self.url} | self.clerk.environment
        return CliRunner().invoke(ballast, ["clerk", *words], env=environment)

    def run(self, *words: str) -> Result:
        return self.ballast("reconcile", *words)

    def find(self, *words: str) -> set[Row]:
        """Returns (kind, Clerk id, difference) of each difference."""
        result = self.run("--json", *words)
        report = json.loads(result.stdout)
        assert result.exit_code == (1 if report["remaining"] else 0), result.output
        return {(each["kind"], each["clerk_id"], each["difference"]) for each in report["differences"]}

    def fix(self, *words: str) -> set[Row]:
        """Returns the same with --fix, after the erasures that it began, and asserts that no difference remains."""
        found = self.find("--fix", *words)
        with psycopg.connect(self.url, autocommit=True) as connection:
            finish_erasures(Database(connection))
        assert self.find() == set()
        return found

    def execute(self, statement: str, *values: object) -> list[Row]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def receive(self, event: Json) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            receive(connection, event)

    def ids(self) -> set[str]:
        return {row[1] for row in self.execute(SHOWN_QUERY)}


@pytest.fixture(scope="module")
def loaded_database(migrated_database: str, lasting_database: Callable[..., str]) -> str:
    """A database with all Clerk data. Copy it."""
    with running_clerk() as clerk:
        clerk.put(*EVERYTHING)
        both = Reconcile(lasting_database(migrated_database), clerk)
        result = both.ballast("backfill")
        assert result.exit_code == 0, result.output
        return both.url


@pytest.fixture
def reconcile(loaded_database: str, new_database: Callable[..., str]) -> Iterator[Reconcile]:
    with running_clerk() as clerk:
        clerk.put(*EVERYTHING)
        yield Reconcile(new_database(loaded_database), clerk)


def test_nothing_differs_after_a_backfill(reconcile: Reconcile) -> None:
    result = reconcile.run()
    assert result.exit_code == 0, result.output
    assert reconcile.find() == set()


def test_a_list_shorter_than_its_count_fails_the_run_and_removes_nothing(reconcile: Reconcile) -> None:
    reconcile.clerk.put(events.organization("org_new"))
    hide_from_list(reconcile.clerk, "/v1/organizations", "org_acme")
    result = reconcile.run("--fix")
    assert result.exit_code == 1
    assert "Clerk counts 2 organizations, but lists 1 of them: run this again." in result.stderr
    assert "organization org_acme is missing from the list." in result.stderr
    assert "org_acme" in reconcile.ids()
    [incomplete] = json.loads(reconcile.run("--json").stdout)["incomplete"]
    assert (incomplete["missing"], incomplete["unlisted"]) == (1, ["org_acme"])


def test_an_object_listed_twice_is_reported_once(reconcile: Reconcile) -> None:
    """Pages overlap."""
    reconcile.clerk.put(*(events.organization(f"org_{n}", created_at=START + n) for n in range(600)))
    differences = json.loads(reconcile.run("--json").stdout)["differences"]
    assert len(differences) == 600


# Found and repaired differences ----------------------------------------------------------------------------------------

NEW_ACME = events.organization("org_new", created_by="user_new")
NEW = events.user("user_new", email="new@example.com")


def test_an_object_without_an_event_is_missing(reconcile: Reconcile) -> None:
    reconcile.clerk.put(
        NEW,
        NEW_ACME,
        events.membership("orgmem_new", NEW_ACME, NEW, "org:admin"),
        events.invitation("orginv_new", "org_new"),
    )
    missing = {
        ("user", "user_new", "missing"),
        ("organization", "org_new", "missing"),
        ("membership", "orgmem_new", "missing"),
        ("invitation", "orginv_new", "missing"),
    }
    assert reconcile.find() == missing
    assert "user_new" not in reconcile.ids()
    reconcile.fix()
    assert {"user_new", "org_new", "orgmem_new", "orginv_new"} <= reconcile.ids()
    assert ("membership", "orgmem_new", "owner", "org:admin") in reconcile.execute(SHOWN_QUERY)


def test_roles_and_permissions_are_compared(reconcile: Reconcile) -> None:
    reconcile.clerk.put(events.role("role_captain", "org:captain", permissions=("org:ships:sail",)))
    reconcile.clerk.directory.roles["role_member"]["name"] = "Crew"
    reconcile.receive(events.event("role.created", events.role("role_gone", "org:gone")))
    assert reconcile.fix() == {
        ("role", "role_captain", "missing"),
        ("permission", "perm_0", "missing"),
        ("role", "role_member", "stale"),
        ("role", "role_gone", "orphaned"),
    }
    assert reconcile.execute("select key, name from ops.clerk_roles") == [
        ("org:admin", "Admin"),
        ("org:captain", "Captain"),
        ("org:member", "Crew"),
        ("org:viewer", "Viewer"),
    ]


def test_missed_billing_events_are_found(reconcile: Reconcile) -> None:
    """Four tenants: one subscribed, one was cancelled, one lost an item, and one no longer has a subscription."""
    tenants = [events.organization(f"org_{n}", created_at=START + n) for n in range(4)]
    reconcile.clerk.put(*tenants, *(subscribe(f"org_{n}", "pro") for n in (1, 2)))
    assert reconcile.ballast("backfill").exit_code == 0
    reconcile.receive(events.event("subscription.created", subscribe("org_3", "pro")))
    two_items = subscribe("org_2", "pro")
    two_items["items"].append(events.subscription_item("csub_item_lost", "enterprise", updated_at=START + 1))
    reconcile.receive(events.event("subscription.updated", two_items, LATER))
    reconcile.clerk.put(subscribe("org_0", "enterprise"), subscribe("org_1", "pro", "past_due", LATER))
    tiers = "select clerk_org_id, subscription_tier, subscription_status from public.organizations order by 1"
    assert reconcile.execute(tiers)[2:4] == [("org_2", "enterprise", "active"), ("org_3", "pro", "active")]
    found = {
        ("subscription", "csub_org_0", "missing"),
        ("subscription", "csub_org_1", "stale"),
        ("subscription", "csub_org_2", "stale"),
        ("subscription", "csub_org_3", "orphaned"),
    }
    assert reconcile.find() == found
    assert reconcile.fix() == found
    assert reconcile.execute(tiers) == [
        ("org_0", "enterprise", "active"),
        ("org_1", "pro", "past_due"),
        ("org_2", "pro", "active"),
        ("org_3", "free", "cancelled"),
        ("org_acme", "free", "active"),
    ]
    assert reconcile.ballast("backfill", "--json").exit_code == 0
    now = int(time.time() * 1000)
    reconcile.receive(events.event("subscription.created", subscribe("org_3", "pro", updated_at=now)))
    assert reconcile.execute(tiers)[3] == ("org_3", "pro", "active")


def test_no_subscription_ends_because_clerk_refuses_to_show_it(reconcile: Reconcile) -> None:
    reconcile.clerk.put(subscribe("org_acme", "pro"))
    assert reconcile.ballast("backfill").exit_code == 0
    reconcile.clerk.before = lambda request: web.Response(status=403) if "/billing/" in request.path else None
    for words in (("--fix",), ("--fix", "--yes-delete-many"), ("--sample", "10")):
        result = reconcile.run(*words)
        assert result.exit_code == 0, result.output
        assert "subscription: not compared. Subscriptions were not read: " in result.stderr
        assert "not compared" in result.stdout
        assert "orphaned" not in result.stdout
        report = reconcile.run(*words, "--json")
        assert "subscription: not compared" in report.stderr
        found = json.loads(report.stdout)
        assert (found["differences"], found["skipped"].keys()) == ([], {"subscription"})
        assert "subscription" not in found["compared"]
    assert reconcile.execute("select subscription_tier from public.organizations") == [("pro",)]


@pytest.mark.parametrize(
    ("loss", "missing"),
    [
        (
            "delete from public.organization_memberships where clerk_membership_id = 'orgmem_ben'",
            ("membership", "orgmem_ben"),
        ),
        ("delete from public.organization_invitations", ("invitation", "orginv_cleo")),
        ("delete from public.profiles where clerk_user_id = 'user_ben'", ("user", "user_ben")),
        ("delete from public.organizations", ("organization", "org_acme")),
    ],
)
def test_a_row_that_was_lost_is_missing(reconcile: Reconcile, loss: str, missing: Row) -> None:
    """The records are complete but the row is lost: a merge alone would change nothing."""
    before = reconcile.execute(SHOWN_QUERY)
    reconcile.execute(loss)
    assert (*missing, "missing") in reconcile.find()
    assert (*missing, "missing") in reconcile.fix()
    assert reconcile.execute(SHOWN_QUERY) == before


LATER = START + MINUTE


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"first_name": "Augusta"}, "full_name"),
        ({"image_url": "https://img.clerk.com/new"}, "avatar_url"),
        ({"primary_email_address_id": "idn_other"}, "email"),
        ({"banned": True}, "banned"),
        ({"deprovisioned": True}, "banned"),
    ],
)
@pytest.mark.parametrize("updated_at", [START, LATER], ids=["in silence", "later"])
def test_a_person_who_changed_in_clerk_is_stale(
    reconcile: Reconcile, change: Json, column: str, updated_at: int
) -> None:
    reconcile.clerk.put(ADA | change | {"updated_at": updated_at})
    report = json.loads(reconcile.run("--json").stdout)
    [difference] = report["differences"]
    assert (difference["clerk_id"], difference["difference"], difference["columns"]) == ("user_ada", "stale", [column])
    assert reconcile.fix() == {("user", "user_ada", "stale")}


@pytest.mark.parametrize("change", [{"name": "Acme & Co"}, {"slug": "co"}, {"max_allowed_memberships": 0}])
def test_an_organization_that_changed_in_clerk_is_stale(reconcile: Reconcile, change: Json) -> None:
    reconcile.clerk.put(ACME | change | {"updated_at": LATER})
    assert reconcile.fix() == {("organization", "org_acme", "stale")}


@pytest.mark.parametrize(
    ("meddling", "found"),
    [
        (
            "update public.profiles set email = 'x@example.com' where clerk_user_id = 'user_ben'",
            ("user", "user_ben", "stale"),
        ),
        ("update public.profiles set banned = true where clerk_user_id = 'user_ben'", ("user", "user_ben", "stale")),
        ("update public.organizations set slug = 'x'", ("organization", "org_acme", "stale")),
        (
            "update public.organization_memberships set role = 'owner' where clerk_membership_id = 'orgmem_ben'",
            ("membership", "orgmem_ben", "wrong role"),
        ),
        (
            "update public.organization_memberships set clerk_role = 'org:x' where clerk_membership_id = 'orgmem_ben'",
            ("membership", "orgmem_ben", "wrong role"),
        ),
        ("update public.organization_invitations set role = 'owner'", ("invitation", "orginv_cleo", "stale")),
    ],
)
def test_a_manually_changed_row_differs(reconcile: Reconcile, meddling: str, found: Row) -> None:
    before = reconcile.execute(SHOWN_QUERY)
    reconcile.execute(meddling)
    assert reconcile.fix() == {found}
    assert reconcile.execute(SHOWN_QUERY) == before


def test_a_role_that_changed_in_clerk_is_wrong(reconcile: Reconcile) -> None:
    known = reconcile.clerk.directory.memberships["orgmem_ben"]
    reconcile.clerk.put(known | {"role": "org:admin", "updated_at": LATER})
    assert reconcile.fix() == {("membership", "orgmem_ben", "wrong role")}
    assert ("membership", "orgmem_ben", "admin", "org:admin") in reconcile.execute(SHOWN_QUERY)


def test_a_member_who_left_and_returned_is_stale(reconcile: Reconcile) -> None:
    known = reconcile.clerk.directory.memberships.pop("orgmem_ben")
    reconcile.clerk.put(known | {"id": "orgmem_again", "created_at": LATER, "updated_at": LATER})
    assert reconcile.fix() == {("membership", "orgmem_again", "stale")}
    assert "orgmem_ben" not in reconcile.ids()


def test_values_that_people_may_edit_here_do_not_differ(reconcile: Reconcile) -> None:
    reconcile.execute(
        "update public.profiles set full_name = 'Ada of Acme', avatar_url = null, preferences = '{\"a\": 1}'"
    )
    reconcile.execute("update public.organizations set name = 'Our Acme', settings = '{\"a\": 1}'")
    before = reconcile.execute(SHOWN_QUERY)
    assert reconcile.find("--fix") == set()
    reconcile.clerk.put(ADA | {"banned": True, "updated_at": LATER}, ACME | {"slug": "new", "updated_at": LATER})
    reconcile.fix()
    assert [row[2] for row in reconcile.execute(SHOWN_QUERY)] == [row[2] for row in before]


def test_a_newer_webhook_is_not_a_difference(reconcile: Reconcile) -> None:
    """Clerk's list is older than the event: the row is right, and must not be reverted."""
    reconcile.receive(events.event("user.updated", ADA | {"first_name": "Augusta", "updated_at": LATER}))
    assert reconcile.find("--fix") == set()
    assert ("profile", "user_ada", "ada@example.com", "Augusta Winter") in reconcile.execute(SHOWN_QUERY)


# Orphans ---------------------------------------------------------------------------------------------------------------


def test_an_orphaned_person_is_erased_as_by_a_deletion_event(reconcile: Reconcile) -> None:
    reconcile.clerk.forget("user_ben")
    orphans = {("user", "user_ben", "orphaned"), ("membership", "orgmem_ben", "orphaned")}
    assert reconcile.find() == orphans
    assert "user_ben" in reconcile.ids()
    assert reconcile.fix() == {("user", "user_ben", "orphaned")}
    assert not {"user_ben", "orgmem_ben"} & reconcile.ids()
    assert reconcile.execute("select requested_by, clerk_deleted_at is not null from app.erasure_log") == [
        ("clerk", True)
    ]
    assert reconcile.execute(
        "select count(*) from app.clerk_records where user_id = 'user_ben' or clerk_id = 'user_ben'"
    ) == [(0,)]
    reconcile.receive(events.event("user.updated", BEN | {"updated_at": LATER}))
    assert "user_ben" not in reconcile.ids()


def test_an_orphaned_organization_is_hidden(reconcile: Reconcile) -> None:
    other = events.organization("org_other")
    reconcile.clerk.put(other)
    reconcile.receive(events.event("organization.created", other))
    reconcile.clerk.forget("org_acme")
    assert ("organization", "org_acme", "orphaned") in reconcile.find()
    reconcile.fix("--yes-delete-many")
    assert reconcile.execute("select clerk_org_id from public.organizations where deleted_at is null") == [
        ("org_other",)
    ]
    assert not {"orgmem_ada", "orgmem_ben", "orginv_cleo"} & reconcile.ids()


def test_an_orphaned_membership_ends(reconcile: Reconcile) -> None:
    reconcile.clerk.forget("orgmem_ben")
    assert reconcile.fix() == {("membership", "orgmem_ben", "orphaned")}
    assert "orgmem_ben" not in reconcile.ids()
    assert "user_ben" in reconcile.ids()
    again = events.membership("orgmem_again", ACME, BEN, "org:member", LATER, created_at=LATER)
    reconcile.receive(events.event("organizationMembership.created", again))
    assert "orgmem_again" in reconcile.ids()


@pytest.mark.parametrize("status", [None, "revoked", "accepted", "expired"])
def test_an_invitation_that_is_no_longer_pending_ends(reconcile: Reconcile, status: str | None) -> None:
    other = events.invitation("orginv_other", "org_acme")
    reconcile.clerk.put(other)
    reconcile.receive(events.event("organizationInvitation.created", other))
    if status:
        reconcile.clerk.directory.invitations["orginv_cleo"]["status"] = status
    else:
        reconcile.clerk.forget("orginv_cleo")
    assert reconcile.fix() == {("invitation", "orginv_cleo", "orphaned")}
    assert "orginv_cleo" not in reconcile.ids()


def start_session(reconcile: Reconcile, person: str, seconds: int) -> None:
    claims = {"sub": person, "iat": seconds, "v": 2, "o": {"id": "org_acme", "rol": "member", "slg": "acme"}}
    with psycopg.connect(reconcile.url) as connection:
        connection.execute("set local role authenticated")
        connection.execute("select set_config('request.jwt.claims', %s, true)", [json.dumps(claims)])
        connection.execute("select public.start_session()")


def test_a_membership_known_only_from_a_token_ends_too(reconcile: Reconcile) -> None:
    dee = events.user("user_dee", email="dee@example.com")
    reconcile.clerk.put(dee)
    start_session(reconcile, "user_dee", START // 1000)
    assert reconcile.fix() == {("user", "user_dee", "stale"), ("membership", None, "orphaned")}
    assert reconcile.execute("select count(*) from public.organization_memberships") == [(2,)]
    start_session(reconcile, "user_dee", START // 1000)
    assert reconcile.execute("select count(*) from public.organization_memberships") == [(2,)]
    start_session(reconcile, "user_dee", int(time.time()) + 3600)
    assert reconcile.execute("select count(*) from public.organization_memberships") == [(3,)]


# Nothing is removed by mistake ---------------------------------------------------------------------------------------


def hide(clerk: ClerkServer, *hidden: str) -> None:
    """Makes Clerk leave users out of its list and count, as if they were created later."""

    def before(request: web.Request) -> web.Response | None:
        users = [each for each in clerk.directory.users.values() if each["id"] not in hidden]
        if request.path == "/v1/users/count":
            return web.json_response({"object": "total_count", "total_count": len(users)})
        if request.path != "/v1/users":
            return None
        offset, limit = int(request.query["offset"]), int(request.query["limit"])
        return web.json_response(users[offset : offset + limit])

    clerk.before = before


def test_a_user_created_during_the_comparison_is_not_an_orphan(reconcile: Reconcile) -> None:
    hide(reconcile.clerk, "user_ben")
    assert reconcile.find("--fix") == set()
    assert "user_ben" in reconcile.ids()


@pytest.mark.parametrize("answer", [(404, "nginx"), (404, "{}"), (400, "{}"), (500, ""), (410, "{}")])
def test_only_a_not_found_error_of_clerk_removes_a_person(
    reconcile: Reconcile, answer: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.clerk.listing.FIRST_WAIT_SECONDS", 0)
    reconcile.clerk.forget("user_ben")

    def before(request: web.Request) -> web.Response | None:
        return web.Response(status=answer[0], text=answer[1]) if request.path == "/v1/users/user_ben" else None

    reconcile.clerk.before = before
    result = reconcile.run("--fix")
    assert result.exit_code == 1
    assert re.search("Clerk (rejects the request|failed 8 times) at", result.stderr)
    assert "user_ben" in reconcile.ids()


def test_nothing_is_removed_when_clerk_is_down(reconcile: Reconcile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.clerk.listing.FIRST_WAIT_SECONDS", 0)
    reconcile.clerk.before = lambda _: web.Response(status=503)
    before = reconcile.execute(SHOWN_QUERY)
    result = reconcile.run("--fix", "--yes-delete-many")
    assert result.exit_code == 1
    assert "Clerk failed 8 times at" in result.stderr
    assert reconcile.execute(SHOWN_QUERY) == before


def test_nothing_is_removed_when_clerk_is_empty(reconcile: Reconcile) -> None:
    reconcile.clerk.directory = type(reconcile.clerk.directory)()
    before = reconcile.execute(SHOWN_QUERY)
    result = reconcile.run("--fix", "--yes-delete-many")
    assert result.exit_code == 1
    assert "Clerk has no users" in result.stderr
    assert reconcile.execute(SHOWN_QUERY) == before


def test_nothing_is_removed_when_clerk_has_only_other_users(reconcile: Reconcile) -> None:
    """Another instance, with so few users that few would be removed."""
    reconcile.clerk.directory = type(reconcile.clerk.directory)()
    reconcile.clerk.put(*people(3))
    before = reconcile.ids()
    result = reconcile.run("--fix")
    assert result.exit_code == 1
    assert "2 of 2 are not in Clerk" in result.stderr
    assert before < reconcile.ids()


def with_people(reconcile: Reconcile, count: int) -> None:
    reconcile.clerk.put(*people(count))
    assert reconcile.ballast("backfill").exit_code == 0


def test_many_are_removed_only_with_the_option(reconcile: Reconcile) -> None:
    with_people(reconcile, 98)  # and two
    for number in range(11):
        reconcile.clerk.forget(f"user_{number:05}")
    refused = reconcile.run("--fix")
    assert refused.exit_code == 1
    assert "11 of 100 are not in Clerk" in refused.stderr
    assert "--yes-delete-many" in refused.stderr
    assert reconcile.execute("select count(*) from public.profiles") == [(100,)]
    assert len(reconcile.fix("--yes-delete-many")) == 11
    assert reconcile.execute("select count(*) from public.profiles") == [(89,)]


@pytest.mark.parametrize(("count", "gone"), [(98, 10), (298, 15)])
def test_a_few_are_removed_without_the_option(reconcile: Reconcile, count: int, gone: int) -> None:
    with_people(reconcile, count)
    for number in range(gone):
        reconcile.clerk.forget(f"user_{number:05}")
    assert len(reconcile.fix()) == gone


def test_a_person_with_a_newer_event_is_not_removed(reconcile: Reconcile) -> None:
    """Clerk's list may lag behind its events."""
    far = (int(time.time()) + 3600) * 1000
    reconcile.receive(events.event("user.created", events.user("user_zoe", email="zoe@example.com"), far))
    assert reconcile.find("--fix") == {("user", "user_zoe", "orphaned")}
    assert "user_zoe" in reconcile.ids()
    assert "Clerk has sent an event about it since" in reconcile.run("--fix").stderr


def test_an_erased_person_stays_erased_although_clerk_lists_them(reconcile: Reconcile) -> None:
    """The deletion at Clerk is still pending."""
    reconcile.execute("select app.begin_erasure('user_ben', 'person')")
    assert reconcile.find("--fix") == set()
    assert reconcile.execute("select email from public.profiles where clerk_user_id = 'user_ben'") in ([], [(None,)])


# Samples and reports ---------------------------------------------------------------------------------------------------


def test_a_sample_reports_its_objects_and_removes_nothing(reconcile: Reconcile) -> None:
    reconcile.clerk.put(ADA | {"banned": True, "updated_at": LATER}, NEW)
    reconcile.clerk.forget("user_ben")
    found = reconcile.find("--sample", "50")
    assert found == {
        ("user", "user_ada", "stale"),
        ("user", "user_new", "missing"),
        ("user", "user_ben", "orphaned"),
        ("membership", "orgmem_ben", "orphaned"),
    }
    assert reconcile.find("--sample", "50", "--fix") == found
    assert reconcile.find() == {("user", "user_ben", "orphaned"), ("membership", "orgmem_ben", "orphaned")}


def test_a_sample_skips_recent_changes(reconcile: Reconcile) -> None:
    reconcile.clerk.put(ADA | {"banned": True, "updated_at": int(time.time() * 1000)})
    assert reconcile.find("--sample", "50") == set()
    assert reconcile.find() == {("user", "user_ada", "stale")}


def test_a_sample_makes_few_requests(reconcile: Reconcile) -> None:
    with_people(reconcile, 800)
    reconcile.clerk.requests.clear()
    assert reconcile.find("--sample", "5") == set()
    assert len(reconcile.clerk.requests) <= 4 * 2 + 3 * 5


def test_the_report_has_counts_ids_and_columns_only(reconcile: Reconcile) -> None:
    reconcile.clerk.put(ADA | {"first_name": "Augusta", "updated_at": LATER}, NEW)
    reconcile.clerk.forget("orgmem_ben")
    for words in ((), ("--json",), ("--fix",)):
        output = reconcile.run(*words).output
        assert "user_ada" in output
        assert not any(secret in output for secret in ("Augusta", "Winter", "example.com"))
    result = reconcile.run()
    assert (result.exit_code, result.output.count("user_")) == (0, 0)


def test_the_table_counts_each_difference(reconcile: Reconcile) -> None:
    reconcile.clerk.put(ADA | {"first_name": "Augusta", "updated_at": LATER}, NEW)
    output = reconcile.run().stdout
    [users] = [line for line in output.splitlines() if line.startswith("│ user")]
    assert [cell.strip() for cell in users.strip("│").split("│")] == ["user", "3", "1", "1", "0", "0"]
    assert "user user_ada: stale (full_name)" in output
    assert "user user_new: missing" in output


def test_an_object_that_the_database_refuses_remains_a_difference(reconcile: Reconcile) -> None:
    reconcile.execute("alter table public.profiles add constraint broken check (email <> 'new@example.com')")
    reconcile.clerk.put(NEW, ADA | {"banned": True, "updated_at": LATER})
    result = reconcile.run("--fix")
    assert result.exit_code == 1
    assert "user: 23514" in result.stderr
    assert "new@example.com" not in result.output
    assert reconcile.find() == {("user", "user_new", "missing")}
