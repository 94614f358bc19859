"""`ballast clerk backfill`: merges what Clerk lists, as if its webhooks had arrived, despite concurrent changes and failures."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from scripts.clerk.listing import (
    LIST_START,
    MAX_PAGE_SIZE,
    ORGANIZATIONS,
    USERS,
    ClerkListing,
    ClerkUnavailable,
    KeyRefused,
    Kind,
    ListIncomplete,
    Page,
    RequestRefused,
    open_listing,
)
from scripts.cli import ballast
from scripts.local.clerk.directory import Directory
from scripts.local.clerk.limits import Limit
from scripts.local.clerk.roles import PROJECTS
from tests import events
from tests.clerk_server import INSTANCE, SECRET_KEY, ClerkServer, list_objects, running_clerk
from tests.conftest import ROOT, Database, Stack
from tests.events import MINUTE, START, Json
from tests.people import finish_erasures
from tests.properties.test_convergence import OFTEN, PAUSES, QUERIES
from tests.service.outside import HANG_UP, Outside, OutsideHandler, rest_answer, running_outside
from tests.simulated_clerk import PREFIX, Clerk, Message, Rows, in_order

Connection = psycopg.Connection[Any]
Row = tuple[Any, ...]
numbers = itertools.count()
# Without transfers of ownership: Clerk does not list them.
DELETIONS = (Clerk.delete_user, Clerk.delete_organization)


@pytest.fixture
def clerk() -> Iterator[ClerkServer]:
    with running_clerk() as server:
        yield server


@dataclass(frozen=True)
class Backfill:
    """Runs the command on a separate migrated database."""

    url: str

    def run(self, clerk: ClerkServer | dict[str, str], *words: str) -> Result:
        environment = clerk if isinstance(clerk, dict) else clerk.environment
        return CliRunner().invoke(ballast, ["clerk", "backfill", *words], env={"DATABASE_URL": self.url} | environment)

    def run_to_end(self, clerk: ClerkServer) -> dict[str, tuple[int, int]]:
        """Runs the command; returns, by kind, how many objects Clerk listed and how many changed something."""
        result = self.run(clerk, "--json")
        assert result.exit_code == 0, result.output
        return {each["kind"]: (each["listed"], each["changed"]) for each in json.loads(result.stdout)["kinds"]}

    def connect(self) -> Connection:
        return psycopg.connect(self.url, autocommit=True)

    def rows(self, query: str, *values: object) -> list[Row]:
        with self.connect() as connection:
            return connection.execute(query.encode(), values or None).fetchall()

    def receive(self, *events_sent: Json) -> None:
        with self.connect() as connection:
            for each in events_sent:
                receive(connection, each)
            finish_erasures(Database(connection))


def receive(connection: Connection, event: Json) -> str:
    row = connection.execute(
        "select public.receive_clerk_event(%s, %s) ->> 'outcome'", [f"msg_{next(numbers)}", json.dumps(event)]
    ).fetchone()
    assert row
    return str(row[0])


@pytest.fixture
def backfill(migrated_database: str, new_database: Callable[..., str]) -> Backfill:
    return Backfill(new_database(migrated_database))


ADA, BEN = events.user("user_ada"), events.user("user_ben", email="ben@example.com", first_name="Ben")
ACME = events.organization("org_acme")
ADA_IN_ACME = events.membership("orgmem_ada", ACME, ADA, "org:admin")
BEN_IN_ACME = events.membership("orgmem_ben", ACME, BEN, "org:member")
CLEOS_INVITATION = events.invitation("orginv_cleo", "org_acme")
EVERYTHING = (ADA, BEN, ACME, ADA_IN_ACME, BEN_IN_ACME, CLEOS_INVITATION)
SHOWN_QUERY = """
    select 'profile', clerk_user_id, email, full_name from public.profiles
    union all select 'organization', clerk_org_id, name, slug from public.organizations
    union all select 'membership', clerk_membership_id, role, clerk_role from public.organization_memberships
    union all select 'invitation', clerk_invitation_id, email, role from public.organization_invitations
    order by 1, 2"""
EXPECTED_ROWS = [
    ("invitation", "orginv_cleo", "cleo@example.com", "member"),
    ("membership", "orgmem_ada", "owner", "org:admin"),
    ("membership", "orgmem_ben", "member", "org:member"),
    ("organization", "org_acme", "Acme", "acme"),
    ("profile", "user_ada", "ada@example.com", "Ada Winter"),
    ("profile", "user_ben", "ben@example.com", "Ben Winter"),
]


def people(count: int) -> list[Json]:
    return [events.user(f"user_{n:05}", email=f"{n}@example.com", created_at=START + n) for n in range(count)]


# Import ----------------------------------------------------------------------------------------------------------------


def test_all_clerk_data_is_imported(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*EVERYTHING)
    result = backfill.run(clerk)
    assert result.exit_code == 0, result.output
    assert backfill.rows(SHOWN_QUERY) == EXPECTED_ROWS


def test_a_backfilled_database_equals_one_that_received_the_events(
    migrated_database: str, new_database: Callable[..., str], clerk: ClerkServer
) -> None:
    """One database receives a history as webhooks; the other one lists Clerk at its end."""
    simulated = Clerk()
    chance = random.Random(7)  # noqa: S311 - a history, no secret
    operations = (
        *OFTEN * 3,
        Clerk.sign_up,
        Clerk.found_organization,
        Clerk.remove_member,
        Clerk.accept_invitation,
        *DELETIONS,
    )
    for _ in range(20):
        simulated.sign_up(chance.randrange(99), chance.randrange(99))
    for _ in range(300):
        simulated.now += chance.choice(PAUSES)
        chance.choice(operations)(simulated, chance.randrange(99), chance.randrange(99))
    received, loaded = Backfill(new_database(migrated_database)), Backfill(new_database(migrated_database))
    received.receive(*(json.loads(json.dumps(message.event).replace(PREFIX, "x")) for message in simulated.messages))
    clerk.become(simulated, "x")
    loaded.run_to_end(clerk)
    [expected, found] = [end(each, simulated, "x") for each in (received, loaded)]
    assert len(expected["profiles"]) > 8
    assert len(expected["memberships"]) > 8
    assert found == expected
    assert [found[name] for name in simulated.visible()] == [
        in_order(
            tuple(value.replace(PREFIX, "x") if isinstance(value, str) else value for value in row) for row in rows
        )
        for rows in simulated.visible().values()
    ]


def end(backfill: Backfill, simulated: Clerk, prefix: str) -> Rows:
    """Returns what the convergence test compares, of people who still exist, and their records.

    A deleted founder is redacted in a database that had their record, and was never known in the other.
    """
    ids = {
        "everyone": [each.replace(PREFIX, prefix) for each in simulated.users],
        "everywhere": [each.replace(PREFIX, prefix) for each in simulated.organizations],
        "messages": [],
    }
    with backfill.connect() as connection:
        rows = {name: in_order(connection.execute(query, ids)) for name, query in QUERIES.items() if name != "failures"}
    gone = {each.replace(PREFIX, prefix) for each in simulated.everyone} - set(ids["everyone"])
    rows["records"] = [(*row[:-1], json.loads(row[-1])) for row in rows["records"]]
    for row in rows["records"]:
        if row[-1].get("created_by") in gone:
            row[-1]["created_by"] = None
    return rows


def test_a_large_directory_is_loaded_over_many_pages(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*people(1234), ACME)
    assert backfill.run_to_end(clerk)["user"] == (1234, 1234)
    assert backfill.rows("select count(*) from public.profiles") == [(1234,)]


def test_the_audit_trail_records_backfill_as_the_actor(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*EVERYTHING)
    backfill.run_to_end(clerk)
    assert backfill.rows("select distinct actor from public.audit_logs") == [("backfill",)]
    assert backfill.rows("select count(*) from public.audit_logs where action = 'member.joined'") == [(2,)]


def test_a_backfill_sends_no_mail(backfill: Backfill, clerk: ClerkServer) -> None:
    with backfill.connect() as connection:
        connection.execute("update app.settings set mail_enabled = true")
    today = {"created_at": int(time.time() * 1000)}
    clerk.put(ADA | today, BEN | today, ACME, ADA_IN_ACME | today, BEN_IN_ACME | today)
    backfill.run_to_end(clerk)
    assert backfill.rows("select template from app.email_outbox") == []
    backfill.receive(events.event("user.created", events.user("user_dee", email="dee@example.com", **today)))
    assert backfill.rows("select template from app.email_outbox") == [("welcome",)]


def test_the_local_stack_is_imported_from_its_stand_in(stack: Stack) -> None:
    # Other tests send events about people that the stack's Clerk does not have.
    assert stack.ballast("clerk", "reconcile", "--fix", "--yes-delete-many").returncode == 0
    loaded = stack.ballast("clerk", "backfill", "--json")
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout)["kinds"][0]["listed"] > 3
    compared = stack.ballast("clerk", "reconcile")
    assert (compared.returncode, compared.stderr) == (0, ""), compared.stdout


def test_roles_and_their_permissions_are_imported(backfill: Backfill, clerk: ClerkServer) -> None:
    """Also a role that has no row in app.clerk_roles yet: an administrator has to see it to map it."""
    clerk.put(events.role("role_captain", "org:captain", permissions=("org:ships:sail",)))
    assert backfill.run_to_end(clerk)["role"] == (4, 4)
    assert backfill.rows("select key, role, mapped, clerk_permissions from ops.clerk_roles where key > 'org:b'") == [
        ("org:captain", "viewer", False, ["org:ships:sail"]),
        ("org:member", "member", True, ["org:sys_memberships:read", "org:sys_billing:read", *PROJECTS]),
        ("org:viewer", "viewer", True, ["org:projects:read"]),
    ]
    assert ("org:ships:sail",) in backfill.rows(
        "select fields ->> 'key' from app.clerk_records where kind = 'permission'"
    )


# Billing ---------------------------------------------------------------------------------------------------------------

BILLING_QUERY = "select clerk_org_id, subscription_tier, subscription_status from public.organizations order by 1"


def subscribe(organization: str, plan: str, status: str = "active", updated_at: int = START) -> Json:
    item = events.subscription_item(f"csub_item_{organization}", plan, status, updated_at)
    return events.subscription(f"csub_{organization}", events.payer(organization), (item,), status, updated_at)


def test_a_paying_tenant_is_not_free_after_an_import(backfill: Backfill, clerk: ClerkServer) -> None:
    tenants = [events.organization(f"org_{name}", created_at=START + n) for n, name in enumerate(("a", "b", "c"))]
    clerk.put(ADA, *tenants, subscribe("org_a", "pro"), subscribe("org_b", "enterprise", "past_due"))
    assert backfill.run_to_end(clerk)["subscription"] == (2, 2)
    imported = backfill.rows(BILLING_QUERY)
    assert imported == [
        ("org_a", "pro", "active"), ("org_b", "enterprise", "past_due"), ("org_c", "free", "active"),
    ]  # fmt: skip
    assert backfill.run_to_end(clerk)["subscription"] == (2, 0)


def test_an_imported_subscription_is_as_old_as_its_updated_at(backfill: Backfill, clerk: ClerkServer) -> None:
    """A newer event has arrived, another one arrives late, and a third one changes an item alone."""
    clerk.put(ADA, ACME, subscribe("org_acme", "pro", updated_at=START + MINUTE))
    newer = subscribe("org_acme", "enterprise", updated_at=START + 2 * MINUTE)
    backfill.receive(events.event("subscription.updated", newer))
    backfill.run_to_end(clerk)
    assert backfill.rows(BILLING_QUERY) == [("org_acme", "enterprise", "active")]
    backfill.receive(events.event("subscription.updated", subscribe("org_acme", "pro")))
    assert backfill.rows(BILLING_QUERY) == [("org_acme", "enterprise", "active")]
    newer["items"][0] |= {"status": "ended", "updated_at": START + 3 * MINUTE}
    clerk.put(newer)
    assert backfill.run_to_end(clerk)["subscription"] == (1, 1)
    assert backfill.rows(BILLING_QUERY) == [("org_acme", "free", "active")]


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_an_instance_without_billing_is_imported_and_the_gap_is_reported(
    backfill: Backfill, clerk: ClerkServer, status: int
) -> None:
    clerk.put(*EVERYTHING)
    clerk.before = lambda request: web.Response(status=status) if "/billing/" in request.path else None
    result = backfill.run(clerk)
    assert result.exit_code == 0, result.output
    assert "Subscriptions were not read: " in result.stderr
    assert len(backfill.rows(SHOWN_QUERY)) == len(EVERYTHING)


def test_without_plans_no_organization_is_asked_about(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*EVERYTHING)
    assert backfill.run_to_end(clerk)["subscription"] == (0, 0)
    assert [each for each in clerk.requests if "/billing/subscription" in each] == []


def test_a_subscription_that_cannot_be_read_fails_the_run(
    backfill: Backfill, clerk: ClerkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.clerk.listing.FIRST_WAIT_SECONDS", 0)
    clerk.put(ADA, ACME, subscribe("org_acme", "pro"))
    clerk.before = lambda request: web.Response(status=500) if "/billing/subscription" in request.path else None
    result = backfill.run(clerk)
    assert (result.exit_code, "Clerk failed 8 times" in result.stderr) == (1, True)


# Repeated runs and concurrent changes ----------------------------------------------------------------------------------


def test_a_second_run_writes_nothing(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*EVERYTHING, *people(300))
    backfill.run_to_end(clerk)
    versions = """
        select xmin::text, ctid::text from app.clerk_records union all select xmin::text, ctid::text from public.profiles
        union all select xmin::text, ctid::text from public.organization_memberships order by 1, 2"""
    before = backfill.rows(versions), backfill.rows("select count(*) from public.audit_logs")
    assert {changed for _, changed in backfill.run_to_end(clerk).values()} == {0}
    assert (backfill.rows(versions), backfill.rows("select count(*) from public.audit_logs")) == before


def test_a_second_run_finds_changes(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*EVERYTHING)
    backfill.run_to_end(clerk)
    clerk.put(BEN | {"first_name": "Benjamin", "updated_at": START + MINUTE})
    assert backfill.run_to_end(clerk) == {
        "user": (2, 1),
        "organization": (1, 0),
        "membership": (2, 0),
        "invitation": (1, 0),
        "role": (3, 0),
        "permission": (10, 0),
        "subscription": (0, 0),
    }
    assert ("profile", "user_ben", "ben@example.com", "Benjamin Winter") in backfill.rows(SHOWN_QUERY)


def test_a_change_that_did_not_update_updated_at_is_found_too(backfill: Backfill, clerk: ClerkServer) -> None:
    backfill.receive(events.event("user.created", ADA))
    clerk.put(ADA | {"banned": True})
    backfill.run_to_end(clerk)
    assert backfill.rows("select banned from public.profiles") == [(True,)]


def test_a_page_that_is_older_than_a_webhook_changes_nothing(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*EVERYTHING)
    newer = ADA | {"first_name": "Augusta", "updated_at": START + MINUTE}
    backfill.receive(
        events.event("user.updated", newer),
        events.event("organization.updated", ACME | {"name": "Acme & Co", "updated_at": START + MINUTE}),
        events.event(
            "organizationMembership.updated", ADA_IN_ACME | {"role": "org:member", "updated_at": START + MINUTE}
        ),
    )
    shown = backfill.rows(SHOWN_QUERY)
    backfill.run_to_end(clerk)
    for row in shown:
        assert row in backfill.rows(SHOWN_QUERY)


@pytest.mark.parametrize(
    ("deletion", "gone"),
    [
        (events.deletion_event("user", "user_ben", START + MINUTE), {"user_ben", "orgmem_ben"}),
        (
            events.deletion_event("organization", "org_acme", START + MINUTE),
            {"orgmem_ada", "orgmem_ben", "orginv_cleo"},
        ),
        (events.event("organizationMembership.deleted", BEN_IN_ACME, START + MINUTE), {"orgmem_ben"}),
        (events.event("organizationInvitation.revoked", CLEOS_INVITATION | {"status": "revoked"}), {"orginv_cleo"}),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_an_older_page_does_not_restore_a_deleted_object(
    backfill: Backfill, clerk: ClerkServer, deletion: Json, gone: set[str], known: bool
) -> None:
    clerk.put(*EVERYTHING)
    if known:
        backfill.run_to_end(clerk)
    backfill.receive(deletion)
    backfill.run_to_end(clerk)
    shown = {row[1] for row in backfill.rows(SHOWN_QUERY)}
    assert not gone & shown
    assert "user_ada" in shown


def test_the_founder_of_an_organization_may_be_deleted(backfill: Backfill, clerk: ClerkServer) -> None:
    backfill.receive(events.deletion_event("user", "user_ada", START + MINUTE))
    clerk.put(BEN, ACME, BEN_IN_ACME)
    backfill.run_to_end(clerk)
    assert backfill.rows("select count(*) from app.clerk_records where fields::text like '%%user_ada%%'") == [(0,)]
    assert backfill.run_to_end(clerk)["organization"] == (1, 0)


def test_a_user_deleted_during_the_listing_hides_no_other(backfill: Backfill, clerk: ClerkServer) -> None:
    """A deletion shifts later users forward, onto a page that was already read."""
    clerk.put(*people(1600))
    pages = itertools.count()

    def delete(request: web.Request) -> None:
        if request.path == "/v1/users" and request.query["limit"] == "500" and next(pages) == 2:
            for number in range(700):
                clerk.forget(f"user_{number:05}")

    clerk.before = delete
    backfill.run_to_end(clerk)
    assert backfill.rows("select count(*) from public.profiles where clerk_user_id >= 'user_00700'") == [(900,)]


def test_an_organization_deleted_during_the_listing_hides_no_other(backfill: Backfill, clerk: ClerkServer) -> None:
    """Organizations have no cursor, and some of these were created in the same millisecond."""
    clerk.put(*(events.organization(f"org_{n:04}", created_at=START + n // 7) for n in range(1300)))
    pages = itertools.count()

    def delete(request: web.Request) -> None:
        if request.path == "/v1/organizations" and request.query["limit"] == "500" and next(pages) == 2:
            for number in range(600):
                clerk.forget(f"org_{number:04}")

    clerk.before = delete
    backfill.run_to_end(clerk)
    assert backfill.rows("select count(*) from public.organizations where clerk_org_id >= 'org_0600'") == [(700,)]


def test_the_user_of_the_cursor_may_be_deleted(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*people(1600))

    def delete(request: web.Request) -> None:
        if request.query.get("starting_after") == "user_00999":
            for number in range(600, 1000):
                clerk.forget(f"user_{number:05}")

    clerk.before = delete
    backfill.run_to_end(clerk)
    assert backfill.rows("select count(*) from public.profiles where clerk_user_id >= 'user_01000'") == [(600,)]


def test_without_cursors_clerk_is_read_by_offsets(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*people(1600))

    def ignore(request: web.Request) -> web.Response | None:
        if "starting_after" not in request.query:
            return None
        oldest = sorted(clerk.directory.users.values(), key=lambda each: int(each["created_at"]))
        return web.json_response(oldest[:500])

    clerk.before = ignore
    assert backfill.run_to_end(clerk)["user"] == (1600, 1600)


def test_thousands_of_users_created_in_one_millisecond_are_all_listed(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*(each | {"created_at": START} for each in people(1600)))
    assert backfill.run_to_end(clerk)["user"] == (1600, 1600)


LISTS = {"organizations": "organizations", "organization_memberships": "memberships", "memberships": "memberships"}


def hide_from_list(clerk: ClerkServer, path: str, *hidden: str) -> None:
    """Makes Clerk leave objects out of the lists with this path, but not out of their counts."""

    def answer(request: web.Request) -> web.Response | None:
        if re.fullmatch(path, request.path) is None:
            return None
        objects = getattr(clerk.directory, LISTS[request.path.rpartition("/")[2]]).values()
        of = request.path.split("/")[3] if request.path.count("/") > 2 else None
        here = [each for each in objects if of in (None, (each.get("organization") or {}).get("id"))]
        kept = sorted((each for each in here if each["id"] not in hidden), key=lambda each: int(each["created_at"]))
        if request.query["order_by"].startswith("-"):
            kept.reverse()
        first, size = int(request.query["offset"]), int(request.query["limit"])
        return web.json_response({"data": kept[first : first + size], "total_count": len(here)})

    clerk.before = answer


def test_a_list_shorter_than_its_count_fails_the_run(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(ADA, ACME, events.organization("org_hidden"), ADA_IN_ACME)
    hide_from_list(clerk, "/v1/organizations", "org_hidden")
    result = backfill.run(clerk)
    assert result.exit_code == 1
    assert "Clerk counts 2 organizations, but lists 1 of them: run this again." in result.stderr
    assert "The database does not know the other 1." in result.stderr
    assert len([each for each in clerk.requests if each.startswith("/v1/organizations?")]) > 3
    assert backfill.rows("select clerk_org_id from public.organizations") == [("org_acme",)]
    assert backfill.rows("select count(*) from public.organization_memberships") == [(1,)]
    assert backfill.rows(PLACES) == []


def test_what_clerk_does_not_list_is_named_if_the_database_knows_it(backfill: Backfill, clerk: ClerkServer) -> None:
    """The database knows org_hidden from a webhook, but not org_secret. Clerk has deleted org_gone."""
    for known in ("org_hidden", "org_gone"):
        backfill.receive(events.event("organization.created", events.organization(known)))
    clerk.put(ADA, ACME, events.organization("org_hidden"), events.organization("org_secret"))
    hide_from_list(clerk, "/v1/organizations", "org_hidden", "org_secret")
    result = backfill.run(clerk)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Clerk counts 3 organizations, but lists 1 of them: run this again.",
        "organization org_hidden is missing from the list.",
        "The database does not know the other 1.",
    ]
    report = next(each for each in json.loads(backfill.run(clerk, "--json").stdout)["kinds"] if each["incomplete"])
    assert (report["kind"], report["incomplete"]["missing"], report["incomplete"]["unlisted"]) == (
        "organization", 2, ["org_hidden"],
    )  # fmt: skip


def test_memberships_that_the_whole_list_lacks_are_read_by_organization(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(ADA, BEN, ACME, ADA_IN_ACME, BEN_IN_ACME)
    hide_from_list(clerk, "/v1/organization_memberships", "orgmem_ben")
    assert backfill.run_to_end(clerk)["membership"] == (2, 2)
    assert backfill.rows("select count(*) from public.organization_memberships") == [(2,)]


def test_an_organization_that_lacks_members_is_named(backfill: Backfill, clerk: ClerkServer) -> None:
    other = events.organization("org_other", created_at=START + 1)
    clerk.put(ADA, BEN, ACME, other, ADA_IN_ACME, BEN_IN_ACME, events.membership("orgmem_o", other, ADA))
    hide_from_list(clerk, "/v1/.*memberships", "orgmem_ben")
    result = backfill.run(clerk)
    assert result.exit_code == 1
    assert "Clerk counts 3 memberships, but lists 2 of them: run this again." in result.stderr
    assert "org_acme has 2 memberships, but Clerk lists 1." in result.stderr
    assert "org_other has" not in result.stderr


def test_a_large_import_of_one_millisecond_is_read_by_organization(backfill: Backfill, clerk: ClerkServer) -> None:
    """Pages of 500 cannot overlap by a millisecond with more memberships and invitations, in an unstable order."""
    everyone = people(1200)
    tenants = [events.organization(f"org_{n:02}", created_at=START + n) for n in range(12)]
    clerk.put(
        *everyone, *tenants,
        *(events.membership(f"orgmem_{n}", tenants[n % 12], each) for n, each in enumerate(everyone)),
        *(events.invitation(f"orginv_{n}", f"org_{n % 12:02}", email_address=f"i{n}@example.com") for n in range(700)),
    )  # fmt: skip
    loaded = backfill.run_to_end(clerk)
    assert (loaded["membership"][1], loaded["invitation"][1]) == (1200, 700)
    assert backfill.rows(
        "select count(*), (select count(*) from public.organization_invitations) from public.organization_memberships"
    ) == [(1200, 700)]


def test_a_large_import_of_organizations_in_one_millisecond_is_read_by_name(
    backfill: Backfill, clerk: ClerkServer
) -> None:
    clerk.put(*(events.organization(f"org_{n:04}", name=f"Tenant {n:04}") for n in range(1300)))
    assert backfill.run_to_end(clerk)["organization"] == (1300, 1300)


@pytest.mark.parametrize("respects_status", [True, False])
def test_it_does_not_matter_whether_the_count_of_invitations_follows_a_status(
    backfill: Backfill, clerk: ClerkServer, respects_status: bool
) -> None:
    clerk.put(ADA, ACME, CLEOS_INVITATION)
    for number, status in enumerate(("accepted", "revoked", "expired")):
        clerk.put(events.invitation(f"orginv_{number}", "org_acme", status))

    def answer(request: web.Request) -> web.Response | None:
        if request.path != "/v1/organization_invitations":
            return None
        every = list(clerk.directory.invitations.values())
        kept = [each for each in every if each["status"] in request.query.getall("status")]
        return web.json_response({"data": kept, "total_count": len(kept if respects_status else every)})

    clerk.before = answer
    assert backfill.run_to_end(clerk)["invitation"] == (4, 1)
    assert backfill.rows("select clerk_invitation_id from public.organization_invitations") == [("orginv_cleo",)]


def on_page(clerk: ClerkServer, path: str, number: int, change: Callable[[], None]) -> None:
    """Makes Clerk change before it answers a request for the page of 500 with this number."""
    pages = itertools.count()

    def before(request: web.Request) -> None:
        if request.path == path and request.query.get("limit") == "500" and next(pages) == number:
            change()

    clerk.before = before


@pytest.mark.parametrize("kind", [USERS, ORGANIZATIONS], ids=lambda kind: kind.plural)
def test_objects_created_during_the_listing_neither_alarm_nor_hide_a_missing_one(
    backfill: Backfill, clerk: ClerkServer, kind: Kind
) -> None:
    """Ten are created while the list is read, and one that was there before is never listed."""
    of_kind: Callable[..., Json] = events.user if kind is USERS else events.organization
    old = [of_kind(f"x_{n:04}", created_at=START + n) for n in range(1200)]
    new = [of_kind(f"x_new_{n}", created_at=START + MINUTE + n) for n in range(10)]
    clerk.put(*old)
    on_page(clerk, kind.path, 1, lambda: clerk.put(*new))
    result = backfill.run(clerk)
    assert result.exit_code == 0, result.output
    for each in new:
        clerk.forget(each["id"])
    on_page(clerk, kind.path, 1, lambda: clerk.put(*new))
    create = clerk.before

    def hide(request: web.Request) -> web.Response | None:
        create(request)
        if request.path != kind.path or request.query["limit"] != "500":
            return None
        there = clerk.directory.users if kind is USERS else clerk.directory.organizations
        kept = sorted((each for each in there.values() if each["id"] != "x_0003"), key=lambda each: each["created_at"])
        if request.query["order_by"].startswith("-"):
            kept.reverse()
        after = request.query.get("starting_after")
        first = [each["id"] for each in kept].index(after) + 1 if after else int(request.query["offset"])
        page = kept[first : first + 500]
        return web.json_response(page if kind is USERS else {"data": page, "total_count": len(there)})

    clerk.before = hide
    result = backfill.run(clerk)
    assert result.exit_code == 1
    assert f"{kind.name} x_0003 is missing from the list." in result.stderr


@pytest.mark.parametrize("kind", [USERS, ORGANIZATIONS], ids=lambda kind: kind.plural)
def test_objects_deleted_before_they_are_read_raise_no_alarm(
    backfill: Backfill, clerk: ClerkServer, kind: Kind
) -> None:
    of_kind: Callable[..., Json] = events.user if kind is USERS else events.organization
    clerk.put(*(of_kind(f"x_{n:04}", created_at=START + n) for n in range(1200)))
    on_page(clerk, kind.path, 1, lambda: [clerk.forget(f"x_{n:04}") for n in range(1100, 1150)] and None)
    assert backfill.run_to_end(clerk)[kind.name] == (1150, 1150)
    assert len(list_page_starts(clerk, kind.path)) <= 5, "one reading, and the count at its end"


@pytest.mark.parametrize("answer", [web.Response, None])
def test_an_interrupted_list_is_not_done_and_resumes(
    backfill: Backfill, clerk: ClerkServer, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clerk limits the rate for an hour, or answers with errors only, in the middle of the memberships."""
    monkeypatch.setattr("scripts.clerk.listing.FIRST_WAIT_SECONDS", 0)
    everyone = people(1200)
    clerk.put(
        *everyone, ACME,
        *(events.membership(f"orgmem_{n:04}", ACME, each, created_at=START + n) for n, each in enumerate(everyone)),
    )  # fmt: skip

    def refuse(request: web.Request) -> web.Response | None:
        if not request.path.endswith("memberships") or request.query["offset"] == "0":
            return None
        return web.Response(status=429, headers={"Retry-After": "3600"}) if answer else web.Response(status=502)

    clerk.before = refuse
    result = backfill.run(clerk)
    assert result.exit_code == 1
    assert "3600 s: run this again" in result.stderr or "Clerk failed 8 times" in result.stderr
    assert backfill.rows("select kind, next_offset from app.clerk_backfills where kind = 'membership'") == [
        ("membership", 500)
    ]
    clerk.before = lambda _: None
    assert backfill.run_to_end(clerk)["membership"] == (1200, 700)


@dataclass(frozen=True)
class Listed:
    """A page that Clerk returned at some moment of a history, to be merged at any later moment."""

    kind: str
    objects: list[Json]
    asked_at: int

    def __str__(self) -> str:
        return f"page of {self.kind} at {self.asked_at}: {[each['id'] for each in self.objects]}"


def invite(clerk: Clerk, a: int, b: int) -> None:
    """Invites an address without a user: an erasure also deletes invitations to the user's address."""
    clerk.invite(a, b + 12)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Clerk, Sequence[Message | Listed]]:
    """A history with pages that were read during it, and all its messages and pages in any order."""
    clerk = Clerk(sketchy=draw(st.booleans()))
    clerk.sign_up(0, 1)
    clerk.sign_up(1, 1)
    clerk.found_organization(0, 0)
    clerk.add_member(0, 1)
    pages: list[Listed] = []
    often = [each for each in OFTEN if each is not Clerk.invite] * 3
    operations = (
        *often,
        invite,
        Clerk.sign_up,
        Clerk.found_organization,
        Clerk.remove_member,
        Clerk.accept_invitation,
        *DELETIONS,
    )
    steps = st.tuples(
        st.sampled_from(operations), st.integers(0, 11), st.integers(0, 11), st.sampled_from(PAUSES), st.booleans()
    )
    for operation, a, b, pause, is_read in draw(st.lists(steps, min_size=3, max_size=12)):
        clerk.now += pause
        operation(clerk, a, b)
        if is_read:
            now = json.loads(json.dumps(list_objects(clerk)))
            pages += [Listed(kind, objects, clerk.sent_at) for kind, objects in now.items() if objects]
    everything: list[Message | Listed] = [*clerk.messages, *pages]
    return clerk, draw(st.permutations(everything))


def test_pages_and_webhooks_in_any_order_end_in_the_same_rows(
    backfill: Backfill, request: pytest.FixtureRequest
) -> None:
    with backfill.connect() as connection:

        def check(history: tuple[Clerk, Sequence[Message | Listed]]) -> None:
            clerk, delivery = history
            note("\n".join(map(str, delivery)))
            ids = {"everyone": clerk.everyone, "everywhere": clerk.everywhere, "messages": []}
            with connection.transaction(force_rollback=True):
                for each in delivery:
                    if isinstance(each, Message):
                        assert receive(connection, each.event) in {"processed", "stale"}
                    else:
                        connection.execute(
                            "select app.merge_clerk_page(%s, %s, to_timestamp(%s / 1000.0), 'backfill')",
                            [each.kind, Jsonb(each.objects), each.asked_at],
                        )
                finish_erasures(Database(connection))
                found = {name: in_order(connection.execute(QUERIES[name], ids)) for name in clerk.visible()}
            expected = clerk.visible()
            differing = {name: set(found[name]) ^ set(expected[name]) for name in found}
            assert not any(differing.values()), differing
            assert found == expected

        thoroughly = settings(
            max_examples=max(20, request.config.getoption("--histories") // 3), deadline=None, database=None,
            suppress_health_check=[HealthCheck.too_slow],
        )  # fmt: skip
        thoroughly(given(histories())(check))()


# Resumed runs ----------------------------------------------------------------------------------------------------------


PLACES = "select kind, next_offset, last_created_ms from app.clerk_backfills order by next_offset desc"


def list_page_starts(clerk: ClerkServer, path: str = "/v1/users") -> list[str]:
    """Returns the cursors or offsets of the requested pages of 500, in order."""
    urls = [httpx.URL(each) for each in clerk.requests]
    return [start(each.params) for each in urls if each.path == path and each.params.get("limit") == "500"]


def start(query: Mapping[str, str]) -> str:
    return query.get("starting_after") or query["offset"]


def run_until(backfill: Backfill, clerk: ClerkServer, place: str, path: str = "/v1/users") -> None:
    """Runs until the page at this place is requested: Clerk refuses this and all later requests."""

    def refuse(request: web.Request) -> web.Response | None:
        is_page = request.path == path and request.query.get("limit") == "500"
        return web.Response(status=403) if is_page and start(request.query) == place else None

    clerk.before = refuse
    result = backfill.run(clerk)
    assert "Clerk rejects the key" in result.stderr, result.output
    clerk.before = lambda _: None
    clerk.requests.clear()


def test_a_killed_run_is_resumed_and_ends_like_an_undisturbed_one(
    backfill: Backfill, clerk: ClerkServer, migrated_database: str, new_database: Callable[..., str]
) -> None:
    clerk.put(*EVERYTHING, *people(3000))

    def kill(request: web.Request) -> None:
        if request.query.get("starting_after") == "user_01497":
            process.send_signal(signal.SIGKILL)

    clerk.before = kill
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", "clerk", "backfill"],
        cwd=ROOT, env=os.environ | clerk.environment | {"DATABASE_URL": backfill.url}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.wait() == -signal.SIGKILL
    clerk.before = lambda _: None
    clerk.requests.clear()
    [(_, place, _)] = backfill.rows(PLACES)
    assert place in {1000, 1500}
    assert backfill.rows("select count(*) from public.profiles") >= [(place,)]

    result = backfill.run(clerk, "--json")

    users = json.loads(result.stdout)["kinds"][0]
    # Two others are older than user_00001.
    assert list_page_starts(clerk) == [str(place - 500), *(f"user_{end - 3:05}" for end in range(place, 3003, 500))]
    assert (users["listed"], users["resumed_at"]) == (3002, place - 500)
    assert result.stderr == f"Resuming users at {place - 500:,} of 3,002.\n"
    undisturbed = Backfill(new_database(migrated_database))
    undisturbed.run_to_end(clerk)
    kept = "select kind, clerk_id, fields::text from app.clerk_records order by 1, 2"
    assert backfill.rows(SHOWN_QUERY) == undisturbed.rows(SHOWN_QUERY)
    assert backfill.rows(kept) == undisturbed.rows(kept)


def test_a_resumed_run_reads_the_end_of_finished_lists_again(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*people(1600), ACME)
    run_until(backfill, clerk, "0", "/v1/organizations")
    clerk.put(events.user("user_late", email="late@example.com", created_at=START + MINUTE))
    assert backfill.run_to_end(clerk) == {
        "user": (1601, 1),
        "organization": (1, 1),
        "membership": (0, 0),
        "invitation": (0, 0),
        "role": (3, 3),
        "permission": (10, 10),
        "subscription": (0, 0),
    }
    assert list_page_starts(clerk) == ["1100", "user_01599"]


def test_after_a_finished_run_the_next_one_reads_everything(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*people(1200), ACME)
    run_until(backfill, clerk, "0", "/v1/organization_memberships")
    assert backfill.rows(PLACES) == [("user", 1200, START + 1199), ("organization", 1, START)]
    backfill.run_to_end(clerk)
    assert backfill.rows(PLACES) == []
    clerk.requests.clear()
    backfill.run_to_end(clerk)
    assert list_page_starts(clerk) == ["0", "user_00499", "user_00999"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("select 1", ["--restart"]),
        ("update app.clerk_backfills set updated_at = updated_at - interval '25 hours'", []),
        ("update app.clerk_backfills set instance_id = 'ins_another'", []),
        ("update app.clerk_backfills set instance_id = null", []),
    ],
)
def test_a_run_restarts_on_request_or_if_the_checkpoint_is_old_or_of_another_instance(
    backfill: Backfill, clerk: ClerkServer, change: str, words: list[str]
) -> None:
    clerk.put(*people(1200))
    run_until(backfill, clerk, "user_00999")
    with backfill.connect() as connection:
        connection.execute(change.encode())
    result = backfill.run(clerk, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert list_page_starts(clerk) == ["0", "user_00499", "user_00999"]
    assert backfill.rows("select count(*) from public.profiles") == [(1200,)]


@pytest.mark.parametrize("gone", [range(999, 1000), range(600, 1400), range(700), range(1000), range(999, 1600)])
def test_users_deleted_between_two_runs_hide_no_other(backfill: Backfill, clerk: ClerkServer, gone: range) -> None:
    """Deletes the last merged user, whole pages before and after, all merged users, or all others."""
    clerk.put(*people(1600))
    run_until(backfill, clerk, "user_00999")
    assert backfill.rows(PLACES) == [("user", 1000, START + 999)]
    for number in gone:
        clerk.forget(f"user_{number:05}")
    backfill.run_to_end(clerk)
    shown = {clerk_id for (clerk_id,) in backfill.rows("select clerk_user_id from public.profiles")}
    assert clerk.directory.users.keys() - shown == set()


@pytest.mark.parametrize("kind", [USERS, ORGANIZATIONS], ids=lambda kind: kind.plural)
def test_two_runs_together_list_everything_despite_changes_between_them(clerk: ClerkServer, kind: Kind) -> None:
    """Many objects share a millisecond, and any are deleted. If the order does not reveal a gap, the count does."""
    of_kind: Callable[..., Json] = events.user if kind is USERS else events.organization
    with open_listing(clerk.environment) as listing:

        def check(lives: list[tuple[int, bool]], pages: int, newcomers: int, size: int) -> None:
            clerk.directory = Directory()
            clerk.put(*(of_kind(f"x_{n:02}", created_at=START + age) for n, (age, _) in enumerate(lives)))
            first = until_incomplete(itertools.islice(listing.list_pages(kind, size=size), pages))[0]
            for number, (_, is_deleted) in enumerate(lives):
                if is_deleted:
                    clerk.forget(f"x_{number:02}")
            clerk.put(*(of_kind(f"x_new_{n}", created_at=START + 9) for n in range(newcomers)))
            gapless = [page for page in first if page.objects and page.is_gapless]
            second, is_complete = until_incomplete(
                listing.list_pages(kind, gapless[-1].end if gapless else LIST_START, size)
            )
            found = {each["id"] for page in (*first, *second) for each in page.objects}
            there = clerk.directory.users if kind is USERS else clerk.directory.organizations
            at_once = max(Counter(each["created_at"] for each in there.values()).values(), default=0)
            assert is_complete or (kind is not USERS and at_once > size - 2)
            assert not is_complete or there.keys() - found == set()

        any_lives = st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=30)
        thoroughly = settings(database=None, deadline=None)
        thoroughly(given(any_lives, st.integers(1, 8), st.integers(0, 4), st.integers(2, 6))(check))()


def until_incomplete(pages: Iterable[Page]) -> tuple[list[Page], bool]:
    """Returns the pages, and whether the listing ended without ListIncomplete."""
    found = []
    try:
        found.extend(pages)
    except ListIncomplete:
        return found, False
    return found, True


def test_a_resumed_run_retries_and_reports_a_refused_user(backfill: Backfill, clerk: ClerkServer) -> None:
    with backfill.connect() as connection:
        connection.execute("alter table public.profiles add constraint broken check (email <> '600@example.com')")
    clerk.put(*people(2100))
    run_until(backfill, clerk, "user_01499")
    assert backfill.rows(PLACES) == [("user", 500, START + 499)]
    result = backfill.run(clerk)
    assert result.exit_code == 1
    assert "user user_00600: 23514" in result.stderr
    assert backfill.rows("select count(*) from public.profiles") == [(2099,)]
    assert backfill.rows(PLACES) == []


def test_a_checkpoint_has_no_personal_data(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*people(600))
    run_until(backfill, clerk, "user_00499")
    assert backfill.rows(
        "select count(*), count(*) filter (where t::text ~ 'user_|@') from app.clerk_backfills as t"
    ) == [(1, 0)]


# Failures of Clerk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def outside() -> Iterator[Outside]:
    with running_outside() as server:
        yield server


def listing(outside: Outside, waits: list[float]) -> ClerkListing:
    return ClerkListing(outside.url, SECRET_KEY, waits.append)


def answers(outside: Outside, *given_answers: Any) -> None:
    """Makes the server return these answers in order, then the last one forever."""
    left = list(given_answers)
    outside.answer = lambda *_: left.pop(0) if len(left) > 1 else left[0]


GOOD = rest_answer([{"id": "user_ada"}])
HALF_A_PAGE = (200, {"Content-Length": "1000"}, b'[{"id": "user_')


@pytest.mark.parametrize(
    "failure",
    [
        (500, {}, b""),
        (502, {}, b"<html>"),
        (503, {}, b"{}"),
        HANG_UP,
        HALF_A_PAGE,
        (200, {}, b"<html>it works</html>"),
        (200, {}, b"[1, 2]"),
        (200, {}, b'{"users": []}'),
        (200, {}, b'[{"id": null}]'),
    ],
)
def test_an_invalid_response_is_retried(outside: Outside, failure: Any) -> None:
    waits: list[float] = []
    if failure == HALF_A_PAGE:
        connections = itertools.count()

        def half(*_: object) -> Any:
            return HALF_A_PAGE if next(connections) < 1 else GOOD

        outside.answer = half
        # Closes after each answer, so that the half page ends.
        outside.RequestHandlerClass = type("Closing", (OutsideHandler,), {"protocol_version": "HTTP/1.0"})
    else:
        answers(outside, failure, failure, GOOD)
    assert listing(outside, waits).fetch_page(USERS, 0, 500).objects == [{"id": "user_ada"}]
    assert waits in ([0.5, 1.0], [0.5])


@pytest.mark.parametrize("levels", [60, 900, 990, 1_500, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"]\\"{": ', "}")])
def test_deep_metadata_of_a_user_does_not_hide_the_others(
    outside: Outside, levels: int, opening: str, closing: str
) -> None:
    deep = f"{opening * levels}1{closing * levels}"
    body = f'[{{"id": "user_ada", "unsafe_metadata": {deep}}}, {{"id": "user_ben", "new": [[[{deep}, "x"]]]}}]'
    answers(outside, (200, {"Content-Type": "application/json"}, body.encode()))
    ada, ben = listing(outside, []).fetch_page(USERS, 0, 500).objects
    assert (ada, ben["id"], ben["new"][0][0][1]) == ({"id": "user_ada"}, "user_ben", "x")


def test_it_gives_up_after_a_limited_number_of_retries(outside: Outside) -> None:
    waits: list[float] = []
    answers(outside, (500, {}, b""))
    with pytest.raises(ClerkUnavailable, match="run this again"):
        listing(outside, waits).fetch_page(USERS, 0, 500)
    assert len(outside.requests) == 8
    assert waits == [0.5, 1, 2, 4, 8, 16, 30]


def test_a_refused_connection_is_reported() -> None:
    with pytest.raises(ClerkUnavailable, match="ConnectError"):
        ClerkListing("http://127.0.0.1:9", SECRET_KEY, lambda _: None).count(USERS)


@pytest.mark.parametrize(("retry_after", "seconds"), [("7", 7.0), ("0", 0.0), ("", 0.5), ("soon", 0.5)])
def test_the_wait_follows_retry_after(outside: Outside, retry_after: str, seconds: float) -> None:
    waits: list[float] = []
    answers(outside, (429, {"Retry-After": retry_after} if retry_after else {}, b"{}"), GOOD)
    listing(outside, waits).fetch_page(USERS, 0, 500)
    assert waits == [seconds]


def test_a_retry_after_of_an_hour_ends_the_run(outside: Outside) -> None:
    answers(outside, (429, {"Retry-After": "3600"}, b"{}"))
    with pytest.raises(ClerkUnavailable, match="3600 s:"):
        listing(outside, []).fetch_page(USERS, 0, 500)


def test_a_rate_limit_only_slows_a_backfill_down(backfill: Backfill) -> None:
    with running_clerk(Limit(4, 1.0)) as clerk:
        clerk.put(*EVERYTHING, *people(600))
        assert backfill.run_to_end(clerk)["user"] == (602, 602)
        assert len(clerk.requests) > 9  # eight successful ones, and some rejected ones
    assert len(backfill.rows(SHOWN_QUERY)) == len(EVERYTHING) + 600


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (rest_answer({"errors": [{"code": "clerk_key_invalid"}]}, 401), KeyRefused),
        ((403, {}, b""), KeyRefused),
        (rest_answer({"errors": [{"code": "resource_not_found"}]}, 404), RequestRefused),
        ((404, {}, b"nginx"), RequestRefused),
        ((302, {"Location": "/elsewhere"}, b""), RequestRefused),
        ((422, {}, b"{}"), RequestRefused),
    ],
)
def test_a_refusal_is_final(outside: Outside, answer: Any, failure: type[Exception]) -> None:
    answers(outside, answer)
    with pytest.raises(failure):
        listing(outside, []).fetch_page(USERS, 0, 500)
    assert len(outside.requests) == 1


def test_requests_pin_the_api_version_and_use_the_largest_page(outside: Outside) -> None:
    seen: list[Any] = []

    def answer(path: str, headers: Any, _: bytes) -> Any:
        seen.append((path, headers["Clerk-API-Version"], headers["Authorization"]))
        return GOOD

    outside.answer = answer
    listing(outside, []).fetch_page(USERS, 0, MAX_PAGE_SIZE)
    assert seen == [("/v1/users?order_by=%2Bcreated_at&limit=500&offset=0", "2025-11-10", f"Bearer {SECRET_KEY}")]


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("sk_test_AnotherKey", "Clerk rejects the key in CLERK_SECRET_KEY (401 clerk_key_invalid)"),
        ("pk_test_Publishable", "CLERK_SECRET_KEY is malformed"),
        ("sk_test_with\nbreak", "CLERK_SECRET_KEY is malformed"),
        ("", "CLERK_SECRET_KEY is not set: set it in the environment."),
    ],
)
def test_a_wrong_key_is_reported_but_not_shown(
    backfill: Backfill, clerk: ClerkServer, key: str, complaint: str
) -> None:
    result = backfill.run({"CLERK_API_URL": clerk.url, "CLERK_SECRET_KEY": key})
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert not key or key not in result.output
    assert result.stderr.count("\n") == 1


# Failures of the database ----------------------------------------------------------------------------------------------


def test_a_refused_object_is_reported_and_the_others_are_imported(backfill: Backfill, clerk: ClerkServer) -> None:
    with backfill.connect() as connection:
        connection.execute("alter table public.profiles add constraint broken check (email <> 'ben@example.com')")
    clerk.put(ADA, BEN, *people(40), ACME, ADA_IN_ACME)
    result = backfill.run(clerk)
    assert result.exit_code == 1
    assert "user user_ben: 23514" in result.stderr
    assert "ben@example.com" not in result.output
    assert backfill.rows("select count(*) from public.profiles") == [(41,)]
    assert backfill.rows("select count(*) from public.organization_memberships") == [(1,)]


def test_metadata_that_postgres_cannot_represent_stops_no_import(backfill: Backfill, clerk: ClerkServer) -> None:
    """A user's browser may write any JSON into unsafe_metadata."""
    clerk.put(ADA | {"unsafe_metadata": {"a": "\0", "b": "\ud800", "c": {"\0": 1}}}, BEN, ACME, ADA_IN_ACME)
    assert backfill.run_to_end(clerk)["user"] == (2, 2)
    assert backfill.rows("select count(*) from public.profiles") == [(2,)]


def test_a_killed_run_leaves_whole_batches_and_the_next_one_finishes(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*EVERYTHING, *people(3000))
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", "clerk", "backfill"],
        cwd=ROOT, env=os.environ | clerk.environment | {"DATABASE_URL": backfill.url}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    loaded = 0
    until = time.monotonic() + 60
    while not loaded and time.monotonic() < until:
        [(loaded,)] = backfill.rows("select count(*) from public.profiles")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert loaded > 0
    [(records, profiles)] = backfill.rows(
        "select (select count(*) from app.clerk_records), (select count(*) from public.profiles)"
    )
    assert records == profiles < 3002
    assert backfill.run_to_end(clerk)["user"][0] == 3002
    assert len(backfill.rows(SHOWN_QUERY)) == len(EVERYTHING) + 3000


def test_webhooks_during_a_backfill_wait_and_do_not_deadlock(backfill: Backfill, clerk: ClerkServer) -> None:
    """Webhooks about the same people arrive one after another while their pages are merged."""
    users = people(2000)
    clerk.put(*users, ACME)
    sent = 0
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", "clerk", "backfill"],
        cwd=ROOT, env=os.environ | clerk.environment | {"DATABASE_URL": backfill.url}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with backfill.connect() as connection:
        while process.poll() is None:
            person = users[(sent * 37) % 2000] | {"first_name": "New", "updated_at": START + MINUTE}
            assert receive(connection, events.event("user.updated", person)) in {"processed", "stale"}
            sent += 1
    assert process.returncode == 0
    assert sent
    expected = min(sent, 2000)
    assert backfill.rows("select count(*) from public.profiles where full_name = 'New Winter'") == [(expected,)]


def test_another_instance_is_refused(backfill: Backfill, clerk: ClerkServer) -> None:
    clerk.put(*EVERYTHING)
    with backfill.connect() as connection:
        connection.execute("update app.settings set clerk_instance_id = 'ins_production'")
    result = backfill.run(clerk)
    assert result.exit_code == 1
    assert f"instance ins_production (app.settings), but CLERK_SECRET_KEY belongs to {INSTANCE}:" in result.stderr
    assert backfill.rows(SHOWN_QUERY) == []
    with backfill.connect() as connection:
        connection.execute("update app.settings set clerk_instance_id = %s", [INSTANCE])
    assert backfill.run_to_end(clerk)["user"] == (2, 2)


def test_a_database_that_was_never_migrated_gets_advice(new_database: Callable[..., str], clerk: ClerkServer) -> None:
    result = Backfill(new_database()).run(clerk)
    assert result.exit_code == 1
    assert "ballast migrate up" in result.stderr
