"""Permissions on an organization's routes: the service and the database agree for every caller."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from scripts.cli.clerk import send as send_event
from service.clerk_api import ClerkCallFailed
from service.components import components
from service.permissions import NotPermitted, require_permission
from service.routes.members import REASONS
from service.session import fetch_session
from tests.conftest import Stack
from tests.service.conftest import Growth, MakeApp
from tests.service.outside import HANG_UP, Answer, Issuer, Outside, rest_answer, running_outside

ROLES = {"owner": "user_ada", "admin": "user_ben", "member": "user_cleo", "viewer": "user_dee", "stranger": "user_eve"}
MFA = {
    "required and verified": (True, True),
    "required and not verified": (True, False),
    "not required but verified": (False, True),
    "neither": (False, False),
}


def as_caller(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def sql(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


def value(sql: psycopg.Connection[Any], query: str, *values: object) -> Any:
    row = sql.execute(query, values).fetchone()  # type: ignore[call-overload]
    return row[0] if row else None


@pytest.fixture
def acme(sql: psycopg.Connection[Any]) -> UUID:
    return UUID(str(value(sql, "select id from public.organizations where clerk_org_id = 'org_acme'")))


# --- one matrix ---


@pytest.fixture(params=MFA.values(), ids=MFA)
def second_factor(request: pytest.FixtureRequest, sql: psycopg.Connection[Any], online: FlaskClient) -> Iterator[bool]:
    """Whether sessions have a second factor. Acme requires one in half of the cases."""

    def set_mfa_required(required: bool) -> None:
        sql.execute("update public.organizations set mfa_required = %s where clerk_org_id = 'org_acme'", [required])
        with online.application.app_context():
            components().cache.invalidate(organizations=["org_acme"])

    required, verified = request.param
    set_mfa_required(required)
    yield verified
    set_mfa_required(True)


@pytest.mark.parametrize("role", ROLES)
def test_service_and_database_agree_on_every_permission(
    online: FlaskClient,
    stack: Stack,
    sql: psycopg.Connection[Any],
    acme: UUID,
    cache_growth: Growth,
    role: str,
    second_factor: bool,
) -> None:
    token = stack.token(ROLES[role], None, second_factor=second_factor)
    everything = {name for (name,) in sql.execute("select distinct permission from public.role_permissions")}
    with online.application.app_context():
        by_database = {
            name
            for name in everything
            if components().data_api.call_as(
                token, "has_permission", {"organization_id": str(acme), "permission": name}
            )
        }
        for _ in range(2):  # computed, then cached
            caller = components().session_tokens.authenticate(f"Bearer {token}")
            by_service = {name for name in everything if holds(fetch_session(caller), acme, name)}
            assert by_service == by_database
        assert cache_growth()["hits"] >= 1
    assert (by_database == set()) == (role == "stranger")
    if role == "owner" and second_factor:
        assert by_database == everything


def holds(session: dict[str, Any], organization_id: UUID, permission: str) -> bool:
    try:
        require_permission(session, organization_id, permission)
    except NotPermitted:
        return False
    return True


# --- invitations ---


def invite(client: FlaskClient, acme: UUID | str, token: str, body: object = None) -> TestResponse:
    body = {"email": f"{secrets.token_hex(6)}@example.com", "role": "member"} if body is None else body
    return client.post(f"/api/v1/organizations/{acme}/invitations", headers=as_caller(token), json=body)


@pytest.mark.parametrize("role", ["admin", "member", "viewer"])
def test_an_invitation_is_sent_to_clerk_and_returns_as_a_webhook(
    online: FlaskClient, stack: Stack, sql: psycopg.Connection[Any], acme: UUID, role: str
) -> None:
    email = f"{secrets.token_hex(6)}@example.com"
    answer = invite(online, acme, stack.token("user_ben"), {"email": email, "role": role})
    assert (answer.status_code, answer.json["role"]) == (202, role)
    query = "select role from public.organization_invitations where email = %s and clerk_invitation_id = %s"
    assert wait_for(lambda: value(sql, query, email, answer.json["clerk_invitation_id"])) == role


def wait_for(question: Callable[[], Any], seconds: float = 5) -> Any:
    ends = time.monotonic() + seconds
    while not (found := question()) and time.monotonic() < ends:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("role", ["member", "viewer", "stranger"])
def test_callers_without_the_permission_cannot_invite(online: FlaskClient, stack: Stack, acme: UUID, role: str) -> None:
    answer = invite(online, acme, stack.token(ROLES[role]))
    assert (answer.status_code, answer.json["type"]) == (403, "urn:problem:ballast:not-permitted")
    assert (answer.json["permission"], answer.json["limited_by"]) == ("members:invite", None)


def test_an_admin_without_the_second_factor_sees_that_it_is_missing(
    online: FlaskClient, stack: Stack, acme: UUID
) -> None:
    answer = invite(online, acme, stack.token("user_ben", None, second_factor=False))
    assert (answer.status_code, answer.json["limited_by"]) == (403, "second_factor")


def test_a_missing_organization_is_refused_like_a_foreign_one(online: FlaskClient, stack: Stack) -> None:
    answer = invite(online, uuid4(), stack.token("user_ada"))
    assert (answer.status_code, answer.json["type"]) == (403, "urn:problem:ballast:not-permitted")


@pytest.mark.parametrize(
    "body",
    [
        [], "text", 5, {}, {"email": "x@example.com"}, {"role": "member"}, {"email": "no-address", "role": "member"},
        {"email": "a b@example.com", "role": "member"}, {"email": ["x@example.com"], "role": "member"},
        {"email": "x@example.com", "role": "owner"}, {"email": "x@example.com", "role": ["member"]},
        {"email": "x@example.com", "role": "org:admin"}, {"email": "x@example.com\n", "role": "member"},
    ],
)  # fmt: skip
def test_a_malformed_invitation_is_refused(online: FlaskClient, stack: Stack, acme: UUID, body: object) -> None:
    answer = invite(online, acme, stack.token("user_ada"), body)
    assert (answer.status_code, answer.json["type"]) == (400, "urn:problem:ballast:invitation-malformed")


def test_an_existing_member_is_not_invited_and_clerks_reason_is_shown(
    online: FlaskClient, stack: Stack, acme: UUID
) -> None:
    answer = invite(online, acme, stack.token("user_ada"), {"email": "cleo@example.com", "role": "member"})
    assert (answer.status_code, answer.json["type"]) == (422, "urn:problem:ballast:clerk-refused")
    assert answer.json["clerk_code"] == "already_a_member_in_organization"


def test_an_address_is_invited_once(online: FlaskClient, stack: Stack, team: Team) -> None:
    token, body = make_token(stack, team.people["admin"]), {"email": "x@example.com", "role": "member"}
    assert invite(online, team.id, token, body).status_code == 202
    answer = invite(online, team.id, token, body)
    assert (answer.status_code, answer.json["clerk_code"]) == (422, "organization_invitation_not_unique")


def test_a_full_organization_cannot_invite(online: FlaskClient, stack: Stack, team: Team) -> None:
    """Its limit is five: it has three members and two pending invitations."""
    token = make_token(stack, team.people["owner"])
    assert [invite(online, team.id, token).status_code for _ in range(3)] == [202, 202, 422]
    answer = invite(online, team.id, token)
    assert answer.json["type"] == "urn:problem:ballast:clerk-refused"
    assert answer.json["clerk_code"] == "organization_membership_quota_exceeded"
    assert "no seat left" in answer.json["detail"]


def test_clerk_keeps_its_last_administrator(online: FlaskClient, team: Team) -> None:
    with online.application.app_context():
        clerk = components().clerk
    clerk.delete_membership(team.clerk_id, team.people["admin"])
    with pytest.raises(ClerkCallFailed) as failed:
        clerk.delete_membership(team.clerk_id, team.people["owner"])
    assert (failed.value.status, failed.value.code) == (400, "organization_minimum_permissions_needed")
    assert failed.value.is_refusal


def test_a_role_that_clerk_does_not_have_is_refused(online: FlaskClient, team: Team) -> None:
    """A Clerk instance without custom roles has no org:viewer."""
    with online.application.app_context(), pytest.raises(ClerkCallFailed) as failed:
        components().clerk.invite(team.clerk_id, "x@example.com", "org:captain", team.people["admin"])
    assert (failed.value.status, failed.value.code) == (404, "resource_not_found")


def test_inviting_requires_a_token(online: FlaskClient, acme: UUID) -> None:
    assert online.post(f"/api/v1/organizations/{acme}/invitations", json={}).status_code == 401


# --- removals ---


@dataclass(frozen=True)
class Team:
    """A new organization: Clerk ids of its `people` by name, and the ids of their `profiles`."""

    id: str
    clerk_id: str
    people: dict[str, str]
    profiles: dict[str, str]


@pytest.fixture
def team(stack: Stack, sql: psycopg.Connection[Any]) -> Team:
    tag = secrets.token_hex(5)
    people = {name: f"user_{name}{tag}" for name in ("owner", "admin", "member")}
    clerk_id = f"org_{tag}"
    send(stack, "organization.created", id=clerk_id, created_by=people["owner"])
    for name, role in (("owner", "org:admin"), ("admin", "org:admin"), ("member", "org:member")):
        send(stack, "user.created", id=people[name])
        send(
            stack, "organizationMembership.created", role=role,
            public_user_data={"user_id": people[name]}, organization={"id": clerk_id},
        )  # fmt: skip
    profile = "select id::text from public.profiles where clerk_user_id = %s"
    return Team(
        value(sql, "select id::text from public.organizations where clerk_org_id = %s", clerk_id), clerk_id, people,
        {name: value(sql, profile, user_id) for name, user_id in people.items()},
    )  # fmt: skip


def send(stack: Stack, kind: str, **data: object) -> None:
    """Sends a signed event to the stack's service. Raises NotStored."""
    send_event(stack.environment, kind, data)


def make_token(stack: Stack, user_id: str) -> str:
    return str(call_stand_in(stack, "tokens", {"user_id": user_id})["token"])


def call_stand_in(stack: Stack, what: str, body: object) -> Any:
    answer = httpx.post(f"{stack.environment['CLERK_API_URL']}/stand-in/{what}", json=body, timeout=30)
    assert answer.is_success, answer.text
    return answer.json()


def remove(client: FlaskClient, stack: Stack, team: Team, who: str, target: str) -> TestResponse:
    url = f"/api/v1/organizations/{team.id}/members/{team.profiles.get(target, target)}"
    return client.delete(url, headers=as_caller(make_token(stack, team.people[who])))


def test_a_removed_member_loses_access_within_two_seconds(online: FlaskClient, stack: Stack, team: Team) -> None:
    headers = as_caller(make_token(stack, team.people["member"]))
    assert len(online.get("/api/v1/me", headers=headers).json["organizations"]) == 1
    removed = remove(online, stack, team, "admin", "member")
    assert (removed.status_code, removed.data, removed.headers.get("Content-Type")) == (204, b"", None)
    assert wait_for(lambda: online.get("/api/v1/me", headers=headers).json["organizations"] == [], 2)
    again = remove(online, stack, team, "admin", "member")
    assert (again.status_code, again.json["type"]) == (404, "urn:problem:ballast:member-unknown")


def test_a_member_cannot_remove_anyone(online: FlaskClient, stack: Stack, team: Team) -> None:
    answer = remove(online, stack, team, "member", "admin")
    assert (answer.status_code, answer.json["permission"]) == (403, "members:remove")


def test_an_admin_cannot_remove_the_owner(online: FlaskClient, stack: Stack, team: Team) -> None:
    answer = remove(online, stack, team, "admin", "owner")
    assert (answer.status_code, answer.json["detail"].partition(".")[0]) == (
        403, "Your role ranks below the role owner of this person",
    )  # fmt: skip


def test_a_refused_role_names_the_roles_that_the_caller_may_use(
    online: FlaskClient, stack: Stack, sql: psycopg.Connection[Any], acme: UUID
) -> None:
    answer = invite(online, acme, stack.token("user_ben"), {"email": "x@example.com", "role": "emperor"})
    keys = value(
        sql,
        "select string_agg(key, ', ' order by rank desc) from public.roles"
        " where may_be_invited and rank <= (select rank from public.roles where key = %s)",
        "admin",
    )
    assert answer.json["detail"] == f"The role of an invitation must be one of these: {keys}."


def test_the_last_owner_cannot_be_removed(online: FlaskClient, stack: Stack, team: Team) -> None:
    answer = remove(online, stack, team, "owner", "owner")
    assert (answer.status_code, answer.json["type"]) == (409, "urn:problem:ballast:last-owner")


def test_members_of_other_organizations_cannot_be_removed(
    online: FlaskClient, stack: Stack, team: Team, acme: UUID
) -> None:
    url = f"/api/v1/organizations/{acme}/members/{team.profiles['member']}"
    assert online.delete(url, headers=as_caller(make_token(stack, team.people["owner"]))).status_code == 403
    url = f"/api/v1/organizations/{team.id}/members/{uuid4()}"
    assert online.delete(url, headers=as_caller(make_token(stack, team.people["owner"]))).status_code == 404


def test_removing_a_member_who_is_already_gone_at_clerk_succeeds(online: FlaskClient, stack: Stack, team: Team) -> None:
    with online.application.app_context():
        components().clerk.delete_membership(team.clerk_id, "user_unknown")


# --- the audit trail ---

REQUESTS = """
    select a.action, p.clerk_user_id, a.impersonator, host(a.ip_address), a.user_agent, a.request_id
    from public.audit_logs as a left join public.profiles as p on p.id = a.user_id
    where a.organization_id = %s and a.action like '%%requested' order by a.created_at
"""


@pytest.mark.parametrize(("proxies", "address"), [("0", "203.0.113.77"), ("1", "198.51.100.9"), ("2", "192.0.2.1")])
def test_a_request_is_recorded_with_the_address_that_trusted_proxies_wrote(
    make_app: MakeApp, stack: Stack, sql: psycopg.Connection[Any], team: Team, proxies: str, address: str
) -> None:
    """Never with an address that the client itself wrote. The client wrote the first one here."""
    service = make_app(**(stack.environment | {"ENVIRONMENT": "test", "TRUSTED_PROXIES": proxies})).test_client()
    headers = as_caller(make_token(stack, team.people["owner"])) | {
        "X-Forwarded-For": "127.9.9.9, 192.0.2.1, 198.51.100.9", "User-Agent": "Mozilla/5.0 Firefox/\xe9\t1", "X-Request-Id": f"req-{proxies}",
    }  # fmt: skip
    peer = {"REMOTE_ADDR": "203.0.113.77"}
    url = f"/api/v1/organizations/{team.id}"
    body = {"email": f"{secrets.token_hex(6)}@example.com", "role": "member"}
    invited = service.post(f"{url}/invitations", headers=headers, json=body, environ_overrides=peer)
    removed = service.delete(f"{url}/members/{team.profiles['member']}", headers=headers, environ_overrides=peer)
    assert (invited.status_code, removed.status_code) == (202, 204)
    facts = (team.people["owner"], None, address, "Mozilla/5.0 Firefox/??1", f"req-{proxies}")
    assert sql.execute(REQUESTS, [team.id]).fetchall() == [
        ("invitation.requested", *facts),
        ("member.removal_requested", *facts),
    ]
    assert body["email"] not in str(
        sql.execute("select a from public.audit_logs as a where organization_id = %s", [team.id]).fetchall()
    )


def test_a_request_that_clerk_refuses_stays_recorded(
    online: FlaskClient, stack: Stack, sql: psycopg.Connection[Any], team: Team
) -> None:
    token, body = make_token(stack, team.people["admin"]), {"email": "x@example.com", "role": "member"}
    assert [invite(online, team.id, token, body).status_code for _ in range(2)] == [202, 422]
    assert [row[0] for row in sql.execute(REQUESTS, [team.id])] == ["invitation.requested"] * 2


# --- Clerk and the database fail ---

ORGANIZATION = uuid4()
SESSION = {
    "profile": {"clerk_user_id": "user_test"},
    "second_factor": False,
    "organizations": [
        {
            "id": str(ORGANIZATION),
            "clerk_org_id": "org_test",
            "permissions": ["members:invite", "members:remove"],
            "limited_by": None,
        }
    ],
}


@pytest.fixture
def clerk() -> Iterator[Outside]:
    with running_outside() as server:
        yield server


@pytest.fixture
def client(make_app: MakeApp, outside: Outside, issuer: Issuer, clerk: Outside) -> FlaskClient:
    prepared = {"clerk_org_id": "org_test", "clerk_role": "org:member", "clerk_user_id": "user_gone"}
    outside.answer = lambda path, *_: rest_answer(SESSION if path.endswith("start_session") else prepared)
    return make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url, CLERK_API_URL=clerk.url).test_client()


def clerk_error(status: int, code: str) -> Answer:
    return status, {}, json.dumps({"errors": [{"code": code, "message": "about Ada"}]}).encode()


ACTS: dict[str, Callable[[FlaskClient, str], TestResponse]] = {
    "invite": lambda client, token: invite(client, ORGANIZATION, token),
    "remove": lambda client, token: client.delete(
        f"/api/v1/organizations/{ORGANIZATION}/members/{uuid4()}", headers=as_caller(token)
    ),
}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (clerk_error(403, "not_an_admin_in_organization"), (422, "clerk-refused")),
        (clerk_error(422, "form_param_format_invalid"), (422, "clerk-refused")),
        (clerk_error(400, "duplicate_record"), (422, "clerk-refused")),
        (clerk_error(401, "clerk_key_invalid"), (503, "clerk-unavailable")),
        (clerk_error(409, "organization_membership_managed_by_scim"), (422, "clerk-refused")),
        (clerk_error(404, "organization_not_found_or_unauthorized"), (422, "clerk-refused")),
        (clerk_error(429, "too_many_requests"), (429, "clerk-busy")),
        (clerk_error(500, "internal_clerk_error"), (503, "clerk-unavailable")),
        (HANG_UP, (503, "clerk-unavailable")),
        ((502, {}, b"<html>"), (503, "clerk-unavailable")),
        ((404, {}, b"<html>"), (503, "clerk-unavailable")),
        ((403, {}, b"<html>"), (503, "clerk-unavailable")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("act", ACTS)
def test_clerk_errors_become_matching_problems(
    client: FlaskClient, clerk: Outside, issuer: Issuer, act: str, answer: Answer | None, problem: tuple[int, str]
) -> None:
    clerk.answer = lambda *_: answer
    found = ACTS[act](client, issuer.token())
    assert (found.status_code, found.json["type"]) == (problem[0], f"urn:problem:ballast:{problem[1]}")
    assert "Ada" not in found.text


@pytest.mark.parametrize(("given", "seconds"), [("1800", "1800"), (None, "5"), ("soon", "5"), ("-3", "5")])
@pytest.mark.parametrize("act", ACTS)
def test_clerks_rate_limit_reaches_the_caller_with_retry_after(
    client: FlaskClient, clerk: Outside, issuer: Issuer, act: str, given: str | None, seconds: str
) -> None:
    status, _, body = clerk_error(429, "too_many_requests")
    clerk.answer = lambda *_: (status, {"Retry-After": given} if given else {}, body)
    answer = ACTS[act](client, issuer.token())
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, seconds)
    assert answer.json["detail"] == f"Clerk's rate limit is reached. Try again in {seconds} s."


@pytest.mark.parametrize(
    ("code", "detail"),
    [*REASONS.items(), ("something_new", "Clerk refused the request: `clerk_code` is its reason.")],
)
def test_a_refusal_by_clerk_explains_the_reason(
    client: FlaskClient, clerk: Outside, issuer: Issuer, code: str, detail: str
) -> None:
    clerk.answer = lambda *_: clerk_error(400, code)
    answer = invite(client, ORGANIZATION, issuer.token())
    assert (answer.json["detail"], answer.json["clerk_code"]) == (detail, code)


@pytest.mark.parametrize("answer", [rest_answer({}), rest_answer([]), (200, {}, b"<html>")])
def test_an_invitation_without_an_id_does_not_count_as_sent(
    client: FlaskClient, clerk: Outside, issuer: Issuer, answer: Answer
) -> None:
    clerk.answer = lambda *_: answer
    assert invite(client, ORGANIZATION, issuer.token()).status_code == 503


def test_clerk_gets_the_address_the_role_and_the_inviter(client: FlaskClient, clerk: Outside, issuer: Issuer) -> None:
    heard: list[Any] = []

    def answer(path: str, headers: Any, body: bytes) -> Answer:
        heard.append((path, json.loads(body)))
        return rest_answer({"id": "orginv_1"})

    clerk.answer = answer
    assert invite(client, ORGANIZATION, issuer.token(), {"email": "x@example.com", "role": "member"}).status_code == 202
    body = {"email_address": "x@example.com", "role": "org:member", "inviter_user_id": "user_test"}
    assert heard == [("/v1/organizations/org_test/invitations", body)]


@pytest.mark.parametrize("act", ACTS)
def test_the_database_checks_the_permission_again(
    client: FlaskClient, outside: Outside, clerk: Outside, issuer: Issuer, act: str
) -> None:
    """The cached session may be a minute old."""
    refusal = rest_answer({"code": "PT403", "message": "no", "hint": None, "details": None}, 403)
    outside.answer = lambda path, *_: rest_answer(SESSION) if path.endswith("start_session") else refusal
    assert ACTS[act](client, issuer.token()).json["type"] == "urn:problem:ballast:not-permitted"
    assert clerk.requests == []


@pytest.mark.parametrize("answer", [HANG_UP, rest_answer({"code": "57014", "message": "m"}, 500)])
@pytest.mark.parametrize("act", ACTS)
def test_without_the_database_clerk_is_not_called(
    client: FlaskClient, outside: Outside, clerk: Outside, issuer: Issuer, act: str, answer: Answer | None
) -> None:
    outside.answer = lambda path, *_: rest_answer(SESSION) if path.endswith("start_session") else answer
    assert ACTS[act](client, issuer.token()).status_code == 503
    assert clerk.requests == []


@pytest.mark.parametrize("act", ACTS)
def test_an_impersonator_is_refused(
    client: FlaskClient, outside: Outside, clerk: Outside, issuer: Issuer, act: str
) -> None:
    outside.answer = lambda path, *_: rest_answer(SESSION) if path.endswith("start_session") else HANG_UP
    answer = ACTS[act](client, issuer.token(act={"sub": "user_support"}))
    assert (answer.status_code, answer.json["type"]) == (403, "urn:problem:ballast:impersonated")
    assert clerk.requests == []


@pytest.mark.parametrize("act", ACTS)
def test_a_pending_session_is_refused(
    client: FlaskClient, outside: Outside, clerk: Outside, issuer: Issuer, act: str
) -> None:
    assert ACTS[act](client, issuer.token(sts="pending")).json["type"] == "urn:problem:ballast:session-pending"
    assert outside.requests == clerk.requests == []


def test_the_stand_in_uses_clerks_response_formats(stack: Stack, team: Team) -> None:
    headers = {"Authorization": f"Bearer {stack.environment['CLERK_SECRET_KEY']}"}
    http = httpx.Client(
        base_url=f"{stack.environment['CLERK_API_URL']}/v1/organizations/{team.clerk_id}", headers=headers
    )
    body = {"email_address": "new@example.com", "role": "org:member", "inviter_user_id": team.people["admin"]}
    invitation = http.post("/invitations", json=body).json()
    assert (invitation["object"], invitation["status"]) == ("organization_invitation", "pending")
    assert {
        "id",
        "email_address",
        "role",
        "organization_id",
        "created_at",
        "updated_at",
        "expires_at",
    } <= invitation.keys()
    no_admin = http.post("/invitations", json=body | {"inviter_user_id": team.people["member"]})
    assert (no_admin.status_code, no_admin.json()["errors"][0]["code"]) == (403, "not_an_admin_in_organization")
    assert http.post("/invitations", json={"role": "org:member"}).status_code == 422
    gone = http.delete(f"/memberships/{team.people['member']}").json()
    assert (gone["object"], gone["public_user_data"]["user_id"]) == ("organization_membership", team.people["member"])
    again = http.delete(f"/memberships/{team.people['member']}")
    assert (again.status_code, again.json()["errors"][0]["code"]) == (404, "resource_not_found")
