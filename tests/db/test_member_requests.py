"""Requests to invite or remove people: the audit trail names the caller, and an impersonator may make none."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.conftest import Claims, Database
from tests.people import ADA, BEN, CLEO

INVITE = "select public.prepare_invitation(%s, 'member')"
REMOVE = "select public.prepare_removal(%s, %s)"


@pytest.fixture
def acme(world: Database) -> str:
    return str(world.value("select id from public.organizations where name = 'Acme'"))


def profile_id(world: Database, user_id: str) -> str:
    return str(world.value("select id from public.profiles where clerk_user_id = %s", user_id))


def call_as(world: Database, user_id: str, statement: str, *values: object, **claims: Any) -> Any:
    token: Claims = {"sub": user_id, "role": "authenticated", "fva": [0, 0]} | claims
    headers = {"x-forwarded-for": "203.0.113.50", "user-agent": "Firefox", "x-request-id": "req-5"}
    with world.acting("authenticated", token):
        world.execute("select set_config('request.headers', %s, true)", json.dumps(headers))
        return world.value(statement, *values)


def read_requests(world: Database) -> list[dict[str, Any]]:
    rows = world.rows("select to_jsonb(a) from public.audit_logs as a where action like '%%requested' order by action")
    return [entry for (entry,) in rows]


def test_a_request_is_recorded_with_its_caller_and_their_address(world: Database, acme: str) -> None:
    cleo = profile_id(world, CLEO)
    membership = world.value(
        "select id from public.organization_memberships where user_id = %s and organization_id = %s", cleo, acme
    )
    call_as(world, ADA, INVITE, acme)
    call_as(world, ADA, REMOVE, acme, cleo)
    invitation, removal = read_requests(world)
    for entry in (invitation, removal):
        assert (entry["organization_id"], entry["user_id"], entry["actor"], entry["impersonator"]) == (
            acme, profile_id(world, ADA), None, None,
        )  # fmt: skip
        assert (entry["ip_address"], entry["user_agent"], entry["request_id"]) == ("203.0.113.50", "Firefox", "req-5")
    assert (invitation["action"], invitation["resource_type"], invitation["metadata"]) == (
        "invitation.requested", "invitation", {"role": "member"},
    )  # fmt: skip
    assert (removal["action"], removal["resource_type"], removal["resource_id"]) == (
        "member.removal_requested", "member", str(membership),
    )  # fmt: skip
    assert removal["metadata"] == {"user_id": cleo, "role": "member"}
    assert removal["subject_ids"] == [cleo]


@pytest.mark.parametrize("act", [{"sub": BEN}, {}, True, "user_x"])
def test_an_impersonator_may_neither_invite_nor_remove(world: Database, acme: str, act: object) -> None:
    for statement, values in ((INVITE, [acme]), (REMOVE, [acme, profile_id(world, CLEO)])):
        with pytest.raises(psycopg.DatabaseError) as refused, world.connection.transaction():
            call_as(world, ADA, statement, *values, act=act)
        assert refused.value.sqlstate == "PT403"
    assert read_requests(world) == []


def test_a_refused_request_is_not_recorded(world: Database, acme: str) -> None:
    for user_id, statement, values in (
        (CLEO, INVITE, [acme]),
        (CLEO, REMOVE, [acme, profile_id(world, BEN)]),
        (ADA, REMOVE, [acme, "00000000-0000-4000-8000-000000000000"]),
        (ADA, "select public.prepare_invitation(%s, 'owner')", [acme]),
    ):
        with pytest.raises(psycopg.DatabaseError), world.connection.transaction():
            call_as(world, user_id, statement, *values)
    assert read_requests(world) == []


def test_requests_count_against_the_limit_of_audit_events(world: Database, acme: str) -> None:
    for _ in range(100):
        call_as(world, ADA, INVITE, acme)
    for statement, values in ((INVITE, [acme]), (REMOVE, [acme, profile_id(world, CLEO)])):
        with pytest.raises(psycopg.DatabaseError) as refused, world.connection.transaction():
            call_as(world, ADA, statement, *values)
        assert refused.value.sqlstate == "PT429"
    assert len(read_requests(world)) == 100
