"""Who owns an organization: Clerk's creator, until an administrator transfers the ownership. Nothing from Clerk takes it back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from tests import events
from tests.conftest import Database, wait_until_blocked
from tests.events import MINUTE, START, Json
from tests.people import ADA, BEN, CLEO, Sender, call, finish_erasures

GLOBEX = events.organization("org_globex", created_by=BEN, name="Globex", slug="globex")
TRANSFER = "select ops.transfer_ownership(%s, %s)"
LATER = START + 10 * MINUTE


def roles(world: Database, organization: str = "org_globex") -> dict[str, str]:
    rows = world.rows(
        "select p.clerk_user_id, m.role from public.organization_memberships as m join public.profiles as p on p.id = m.user_id"
        " join public.organizations as o on o.id = m.organization_id where o.clerk_org_id = %s",
        organization,
    )
    return dict(rows)


def member(user_id: str, role: str, at: int = START, clerk_id: str = "orgmem_3", **changes: Any) -> Json:
    return events.membership(clerk_id, GLOBEX | changes, events.user(user_id), role, at)


def light(world: Database) -> tuple[str, str]:
    [found] = world.rows("select status, advice from ops.owner_health")
    return found


def test_a_transfer_makes_the_member_owner_and_the_creator_what_clerk_says(world: Database) -> None:
    assert roles(world) == {ADA: "admin", BEN: "owner"}
    assert world.value(TRANSFER, "org_globex", ADA) == "Ada Summer owns Globex."
    assert roles(world) == {ADA: "owner", BEN: "admin"}
    world.execute(TRANSFER, "org_globex", ADA)
    assert world.value(TRANSFER, "globex", "ben@example.com") == "Ben Winter owns Globex."
    assert roles(world) == {ADA: "admin", BEN: "owner"}


def test_a_custom_clerk_role_owner_counts_as_well(world: Database) -> None:
    assert (
        world.value(TRANSFER, "org_acme", ADA) == "Ada Summer owns Acme. Also owners, by their Clerk role: Ben Winter."
    )
    assert (roles(world, "org_acme")[ADA], roles(world, "org_acme")[BEN]) == ("owner", "owner")


def test_a_transfer_is_audited(world: Database) -> None:
    world.execute(TRANSFER, "org_globex", ADA)
    ids = [world.value("select id from public.profiles where clerk_user_id = %s", each) for each in (BEN, ADA)]
    entry = (
        "select actor, metadata, subject_ids from public.audit_logs where action = 'organization.ownership_transferred'"
    )
    assert world.rows(f"{entry} and organization_id = ops.organization_id('globex')") == [
        ("administrator", {"from": str(ids[0]), "to": str(ids[1])}, ids)
    ]
    world.execute(TRANSFER, "org_globex", ADA)
    again = f"select subject_ids from ({entry} and metadata ->> 'from' = metadata ->> 'to') as a"
    assert world.value(again) == [ids[1]]


@pytest.mark.parametrize(
    ("organization", "person", "message", "hint"),
    [
        ("org_globex", CLEO, "Cle Winter is not a member of Globex", "invite the person"),
        ("org_acme", CLEO, "Cle Winter is member of Acme, and this role cannot own", "In Clerk, .*: org:admin, org:boss, org:owner"),
        ("org_globex", "user_missing", "No person or more than one matches user_missing", "ops.people"),
        ("org_missing", ADA, "No organization or more than one matches org_missing", "ops.tenants"),
    ],
)  # fmt: skip
def test_a_transfer_to_someone_who_cannot_own_it_is_refused(
    world: Database, organization: str, person: str, message: str, hint: str
) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match=message) as refused:
        world.execute(TRANSFER, organization, person)
    assert re.search(hint, refused.value.diag.message_hint or "")


def test_replays_late_events_and_changed_mappings_keep_the_new_owner(world: Database) -> None:
    world.execute(TRANSFER, "org_globex", ADA)
    sender = Sender(world, 100)
    sender.send("organization.created", GLOBEX)  # a replay
    sender.send("organization.updated", GLOBEX | {"updated_at": LATER, "name": "Globex 2"})
    sender.send("organizationMembership.updated", member(BEN, "org:admin", LATER, "orgmem_4"))
    sender.send("organizationMembership.updated", member(ADA, "org:admin", LATER))
    world.execute("insert into app.clerk_roles values ('org:captain', 'admin')")
    assert roles(world) == {ADA: "owner", BEN: "admin"}
    sender.send("organization.updated", GLOBEX | {"updated_at": LATER + 1, "created_by": CLEO})
    assert roles(world) == {ADA: "owner", BEN: "admin"}


def test_backfill_and_reconcile_keep_the_new_owner(world: Database) -> None:
    world.execute(TRANSFER, "org_globex", ADA)
    now = datetime.now(UTC)
    pages = {
        "organization": [GLOBEX],
        "membership": [member(ADA, "org:admin"), member(BEN, "org:admin", clerk_id="orgmem_4")],
    }
    for kind, page in pages.items():
        world.execute("select app.merge_clerk_page(%s, %s, %s, 'test')", kind, json.dumps(page), now)
        differing = world.rows("select columns from app.clerk_differences(%s, %s, %s)", kind, json.dumps(page), now)
        assert not any({"role", "created_by"} & set(columns) for (columns,) in differing)
        world.execute("select app.repair_clerk_objects(%s, %s, %s, 'test')", kind, json.dumps(page), now)
    assert roles(world) == {ADA: "owner", BEN: "admin"}


def test_a_backfill_inserts_the_new_owner_as_such(world: Database) -> None:
    """A bulk insert, which does not use the code for events."""
    world.execute(TRANSFER, "org_globex", ADA)
    world.execute("delete from public.organization_memberships where organization_id = ops.organization_id('globex')")
    world.execute("delete from app.clerk_records where kind = 'membership' and organization_id = 'org_globex'")
    page = [member(ADA, "org:admin"), member(BEN, "org:admin", clerk_id="orgmem_4")]
    world.execute("select app.merge_clerk_page('membership', %s, now(), 'test')", json.dumps(page))
    assert roles(world) == {ADA: "owner", BEN: "admin"}


def test_reconcile_repairs_a_role_that_was_changed_by_hand(world: Database) -> None:
    world.execute(TRANSFER, "org_globex", ADA)
    world.execute(
        "update public.organization_memberships set role = 'member' where organization_id = ops.organization_id('globex')"
    )
    page = json.dumps([member(ADA, "org:admin")])
    world.execute("select app.repair_clerk_objects('membership', %s, now(), 'test')", page)
    assert roles(world)[ADA] == "owner"


def test_an_owner_who_loses_the_admin_role_in_clerk_is_owner_again_with_it(world: Database) -> None:
    world.execute(TRANSFER, "org_globex", ADA)
    sender = Sender(world, 100)
    sender.send("organizationMembership.updated", member(ADA, "org:member", LATER))
    assert roles(world) == {ADA: "member", BEN: "admin"}
    sender.send("organizationMembership.updated", member(ADA, "org:admin", LATER + MINUTE))
    assert roles(world) == {ADA: "owner", BEN: "admin"}


def test_an_organization_whose_owner_leaves_or_is_erased_is_yellow_until_a_transfer(world: Database) -> None:
    world.execute("delete from public.organizations where clerk_org_id = 'org_initech'")
    assert light(world) == ("green", "OK.")
    world.execute(TRANSFER, "org_globex", ADA)
    sender = Sender(world, 100)
    sender.send("organizationMembership.deleted", member(ADA, "org:admin", LATER), LATER)
    assert light(world)[0] == "yellow"
    sender.send("organizationMembership.created", member(ADA, "org:admin", LATER + MINUTE, "orgmem_9"))
    assert (roles(world)[ADA], light(world)[0]) == ("owner", "green")

    sender.send("user.deleted", {"id": ADA, "object": "user", "deleted": True}, LATER + 2 * MINUTE)
    finish_erasures(world)
    assert roles(world) == {BEN: "admin"}  # the ownership does not return to the creator
    status, advice = light(world)
    assert (status, "ops.transfer_ownership('org_globex'" in advice) == ("yellow", True)
    assert world.value("select owner_status from ops.tenants where clerk_org_id = 'org_globex'") == "yellow"
    assert world.value("select status from ops.health where subject = 'owner'") == "yellow"
    world.execute(TRANSFER, "org_globex", BEN)
    assert (roles(world), light(world)[0]) == ({BEN: "owner"}, "green")


def test_a_founder_can_be_erased_after_a_transfer(world: Database) -> None:
    asked = call(world, "request_erasure", clerk_user_id=BEN, requested_by="person")
    assert [each["name"] for each in asked["sole_owner_of"]] == ["Globex"]
    world.execute(TRANSFER, "org_globex", ADA)
    assert "receipt" in call(world, "request_erasure", clerk_user_id=BEN, requested_by="person")
    finish_erasures(world)
    assert roles(world) == {ADA: "owner"}
    refused = call(world, "request_erasure", clerk_user_id=ADA, requested_by="person")
    assert [each["name"] for each in refused["sole_owner_of"]] == ["Acme", "Globex"]


def test_a_transfer_waits_for_an_erasure_of_the_successor(connect: Callable[[], psycopg.Connection[Any]]) -> None:
    organization = events.organization("org_race", created_by="user_race_1", name="Race", slug="race")
    with connect() as erasing, connect() as transferring, connect() as observer:
        sender = Sender(Database(observer), 5000)
        try:
            for number in (1, 2):
                user = events.user(f"user_race_{number}", email=f"race_{number}@example.com")
                sender.send(
                    "organizationMembership.created",
                    events.membership(f"orgmem_race_{number}", organization, user, "org:admin"),
                )
            with ThreadPoolExecutor(1) as threads:
                with erasing.transaction():
                    erasing.execute("select public.request_erasure('user_race_2')")
                    transfer = threads.submit(transferring.execute, TRANSFER, ("org_race", "user_race_2"))
                    wait_until_blocked(observer, transferring)
                with pytest.raises(psycopg.errors.RaiseException, match="is not a member"):
                    transfer.result()
        finally:
            observer.execute("truncate public.profiles, public.organizations cascade")
            observer.execute(
                "truncate app.webhook_events, app.clerk_records, app.clerk_tombstones, app.known_addresses, app.erasure_log cascade"
            )
