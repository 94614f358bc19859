"""The Clerk stand-in refuses the same requests as Clerk, with Clerk's status, code and format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.local.clerk import svix
from scripts.local.clerk.directory import Directory
from scripts.local.clerk.errors import NoSeatLeft, RoleUnknown
from scripts.local.clerk.limits import DEVELOPMENT, Limit
from scripts.local.clerk.server import ClerkStandIn
from tests import events
from tests.clerk_server import SECRET_KEY, ClerkServer, running_clerk

ADA, BEN = events.user("user_ada"), events.user("user_ben", email="ben@example.com")
ACME = events.organization("org_acme") | {"max_allowed_memberships": 3}
ADA_IN_ACME = events.membership("orgmem_ada", ACME, ADA, "org:admin") | {
    "public_user_data": {"user_id": "user_ada", "identifier": "ada@example.com"}
}
BEN_IN_ACME = events.membership("orgmem_ben", ACME, BEN, "org:member") | {
    "public_user_data": {"user_id": "user_ben", "identifier": "ben@example.com"}
}
INVITATION = {"email_address": "cleo@example.com", "role": "org:member", "inviter_user_id": "user_ada"}


@pytest.fixture
def clerk() -> Iterator[ClerkServer]:
    with running_clerk() as server:
        server.put(ADA, BEN, ACME, ADA_IN_ACME, BEN_IN_ACME)
        yield server


def ask(clerk: ClerkServer, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {SECRET_KEY}"} | more.pop("headers", {})
    return httpx.request(method, f"{clerk.url}/v1{path}", headers=headers, **more)


def invite(clerk: ClerkServer, **changes: object) -> httpx.Response:
    body = {name: value for name, value in (INVITATION | changes).items() if value is not ...}
    return ask(clerk, "POST", "/organizations/org_acme/invitations", json=body)


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    """The status, the code and the parameter's name. Fails if the response does not have Clerk's format."""
    body = answer.json()
    assert body.keys() == {"errors", "clerk_trace_id"}
    [error] = body["errors"]
    assert {"message", "long_message", "code"} <= error.keys() <= {"message", "long_message", "code", "meta"}
    return answer.status_code, error["code"], error.get("meta", {}).get("param_name")


# Invitations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"email_address": ...}, (422, "form_param_missing", "email_address")),
        ({"email_address": None}, (422, "form_param_missing", "email_address")),
        ({"role": ...}, (422, "form_param_missing", "role")),
        ({"email_address": 5}, (422, "form_param_type_invalid", "email_address")),
        ({"inviter_user_id": ["user_ada"]}, (422, "form_param_type_invalid", "inviter_user_id")),
        ({"email_address": "cleo"}, (422, "form_param_format_invalid", "email_address")),
        ({"email_address": "cleo@example"}, (422, "form_param_format_invalid", "email_address")),
        ({"email_address": "cleo@example.com "}, (422, "form_param_format_invalid", "email_address")),
        ({"redirect_url": "https://example.com"}, (422, "form_param_unknown", "redirect_url")),
        ({"role": "org:captain"}, (404, "resource_not_found", "role")),
        ({"role": "member"}, (404, "resource_not_found", "role")),
        ({"inviter_user_id": "user_ben"}, (403, "not_an_admin_in_organization", None)),
        ({"inviter_user_id": "user_unknown"}, (404, "resource_not_found", None)),
        ({"email_address": "BEN@example.com"}, (400, "already_a_member_in_organization", None)),
    ],
)
def test_an_invitation_that_clerk_would_refuse_is_refused(
    clerk: ClerkServer, changes: dict[str, object], expected: tuple[int, str, str | None]
) -> None:
    assert refusal(invite(clerk, **changes)) == expected


def test_an_inviter_is_not_required(clerk: ClerkServer) -> None:
    assert invite(clerk, inviter_user_id=None).status_code == 200
    assert invite(clerk, inviter_user_id=...).status_code == 200


def test_an_address_has_one_pending_invitation_to_an_organization(clerk: ClerkServer) -> None:
    clerk.put(events.invitation("orginv_cleo", "org_acme") | {"email_address": "cleo@example.com"})
    assert refusal(invite(clerk)) == (400, "organization_invitation_not_unique", None)
    assert refusal(invite(clerk, email_address="Cleo@Example.com"))[1] == "organization_invitation_not_unique"
    clerk.put(events.invitation("orginv_cleo", "org_acme") | {"status": "revoked"})
    assert invite(clerk).status_code == 200


def test_pending_invitations_take_seats(clerk: ClerkServer) -> None:
    clerk.put(events.invitation("orginv_dee", "org_acme") | {"email_address": "dee@example.com"})
    answer = invite(clerk)
    assert refusal(answer) == (403, "organization_membership_quota_exceeded", None)
    assert "limit of 3" in answer.json()["errors"][0]["long_message"]
    clerk.put(ACME | {"max_allowed_memberships": 0})
    assert invite(clerk).status_code == 200


@pytest.mark.parametrize("body", ["", "[]", "null", "{"])
def test_a_body_that_is_not_an_object_is_refused(clerk: ClerkServer, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = ask(clerk, "POST", "/organizations/org_acme/invitations", content=body, headers=headers)
    assert refusal(answer) == (400, "request_body_invalid", None)


# Memberships ---------------------------------------------------------------------------------------------------------


def test_the_last_administrator_cannot_be_removed(clerk: ClerkServer) -> None:
    answer = ask(clerk, "DELETE", "/organizations/org_acme/memberships/user_ada")
    assert refusal(answer) == (400, "organization_minimum_permissions_needed", None)
    assert ask(clerk, "DELETE", "/organizations/org_acme/memberships/user_ben").status_code == 200
    clerk.put(BEN_IN_ACME | {"role": "org:admin"})
    assert ask(clerk, "DELETE", "/organizations/org_acme/memberships/user_ada").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/users/user_unknown"),
        ("PATCH", "/users/user_unknown"),
        ("DELETE", "/users/user_unknown"),
        ("GET", "/organizations/org_nowhere"),
        ("POST", "/organizations/org_nowhere/invitations"),
        ("GET", "/organizations/org_nowhere/memberships"),
        ("GET", "/organizations/org_acme/invitations/orginv_none"),
        ("DELETE", "/organizations/org_nowhere/memberships/user_ada"),
        ("DELETE", "/organizations/org_acme/memberships/user_unknown"),
    ],
)
def test_an_unknown_id_is_not_found(clerk: ClerkServer, method: str, path: str) -> None:
    body = {"json": {}} if method in {"PATCH", "POST"} else {}
    assert refusal(ask(clerk, method, path, **body))[:2] == (404, "resource_not_found")


# Keys, versions, limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("", "authorization_header_format_invalid"),
        (SECRET_KEY, "authorization_header_format_invalid"),
        (f"Basic {SECRET_KEY}", "authorization_header_format_invalid"),
        (f"Bearer {SECRET_KEY}x", "clerk_key_invalid"),
    ],
)
def test_a_request_without_the_key_is_refused(clerk: ClerkServer, authorization: str, code: str) -> None:
    assert refusal(ask(clerk, "GET", "/users", headers={"Authorization": authorization})) == (401, code, None)


def test_an_api_version_that_does_not_exist_is_refused(clerk: ClerkServer) -> None:
    assert ask(clerk, "GET", "/users", headers={"Clerk-API-Version": "2025-11-10"}).status_code == 200
    assert ask(clerk, "GET", "/users", headers={"Clerk-API-Version": "2025-11-11"}).status_code == 400


def test_a_rate_limit_is_reported_with_the_seconds_to_wait() -> None:
    with running_clerk(Limit(2, 60)) as clerk:
        assert [ask(clerk, "GET", "/users/count").status_code for _ in range(3)] == [200, 200, 429]
        answer = ask(clerk, "GET", "/users/count")
        assert refusal(answer)[:2] == (429, "too_many_requests")
        assert 50 < int(answer.headers["Retry-After"]) <= 60
        assert refusal(ask(clerk, "GET", "/users", headers={"Authorization": ""}))[0] == 401


def test_a_limit_may_apply_to_one_call_or_to_each_user() -> None:
    per_user = Limit(1, 60, ("PATCH", "/v1/users/{id}"), per_user=True)
    with running_clerk(Limit(1, 60, ("POST", "/v1/organizations/{id}/invitations")), per_user) as clerk:
        clerk.put(ADA, BEN, ACME, ADA_IN_ACME)
        assert [invite(clerk, email_address=f"{n}@example.com").status_code for n in range(2)] == [200, 429]
        renamed = [ask(clerk, "PATCH", f"/users/{user}", json={}).status_code for user in ("user_ada", "user_ben")]
        assert renamed == [200, 200]
        assert ask(clerk, "PATCH", "/users/user_ada", json={}).status_code == 429


def test_the_stack_has_the_limits_of_a_development_instance() -> None:
    assert DEVELOPMENT == (
        (100, 10, None, False),
        (250, 3600, ("POST", "/v1/organizations/{id}/invitations"), False),
        (10, 10, ("PATCH", "/v1/users/{id}"), True),
    )


# Roles ---------------------------------------------------------------------------------------------------------------


def test_the_roles_are_those_of_a_plain_instance_and_the_examples_viewer(clerk: ClerkServer) -> None:
    listed = ask(clerk, "GET", "/organization_roles").json()
    roles = {each["key"]: each for each in listed["data"]}
    assert listed["total_count"] == 3
    assert roles.keys() == {"org:admin", "org:member", "org:viewer"}
    assert {key: role["is_creator_eligible"] for key, role in roles.items()} == {
        "org:admin": True,
        "org:member": False,
        "org:viewer": False,
    }
    assert {"object", "id", "name", "key", "description", "permissions", "created_at", "updated_at"} <= roles[
        "org:viewer"
    ].keys()
    system = {each["key"] for each in roles["org:admin"]["permissions"] if each["type"] == "system"}
    assert len(system) == 8
    assert "org:sys_profile:delete" in system


def apply_event(directory: Directory, event_type: str, **data: object) -> Any:
    whole = directory.complete(event_type, data)
    directory.apply(event_type, whole)
    return whole


def pair(user_id: str) -> dict[str, object]:
    return {"organization": {"id": "org_acme"}, "public_user_data": {"user_id": user_id}}


def test_a_role_exists_after_its_event_and_until_it_is_deleted() -> None:
    directory = Directory()
    captain = pair("user_zoe") | {"role": "org:captain"}
    with pytest.raises(RoleUnknown, match=r"org:captain.*org:admin, org:member, org:viewer"):
        directory.complete("organizationMembership.created", captain)
    permission = {"key": "org:ship:steer"}
    role = apply_event(directory, "role.created", key="org:captain", permissions=[permission])
    assert (role["object"], role["name"]) == ("role", "Captain")
    membership = directory.complete("organizationMembership.created", captain)
    assert (membership["role_name"], membership["permissions"]) == ("Captain", ["org:ship:steer"])
    apply_event(directory, "role.deleted", id=role["id"])
    with pytest.raises(RoleUnknown):
        directory.complete("organizationInvitation.created", {
            "organization_id": "org_acme", "email_address": "x@example.com", "role": "org:captain",
        })  # fmt: skip


def test_a_member_with_a_deleted_role_can_be_deleted() -> None:
    directory = Directory()
    role = apply_event(directory, "role.created", key="org:captain")
    membership = apply_event(directory, "organizationMembership.created", **pair("user_zoe"), role="org:captain")
    apply_event(directory, "role.deleted", id=role["id"])
    apply_event(directory, "organizationMembership.deleted", **membership)
    assert directory.memberships == {}


def test_roles_outlive_their_process(tmp_path: Path) -> None:
    file = tmp_path / "directory.json"
    apply_event(Directory(file), "role.created", key="org:captain")
    assert Directory(file).role("org:captain")["name"] == "Captain"


# Events --------------------------------------------------------------------------------------------------------------


def test_no_event_adds_members_beyond_the_limit_of_an_organization() -> None:
    directory = Directory()
    apply_event(directory, "organization.created", id="org_acme", max_allowed_memberships=2)
    apply_event(directory, "organizationMembership.created", **pair("user_ada"))
    apply_event(
        directory, "organizationInvitation.created", organization_id="org_acme", email_address="ben@example.com"
    )
    with pytest.raises(NoSeatLeft):
        directory.complete("organizationMembership.created", pair("user_cleo"))
    with pytest.raises(NoSeatLeft):
        directory.complete(
            "organizationInvitation.created", {"organization_id": "org_acme", "email_address": "dee@example.com"}
        )
    apply_event(directory, "organizationMembership.created", **pair("user_ben"))  # takes the seat of the invitation
    apply_event(directory, "organizationMembership.created", **pair("user_ada"))  # already is a member
    apply_event(directory, "organization.updated", id="org_acme", max_allowed_memberships=3)
    apply_event(directory, "organizationMembership.created", **pair("user_cleo"))


def test_a_refused_invitation_is_not_stored(tmp_path: Path) -> None:
    stand_in = ClerkStandIn(tmp_path, "", "", svix.Endpoint("", "whsec_plJ3nmyCDGBKInavdOK15jsl"), SECRET_KEY)
    with pytest.raises(RoleUnknown):
        stand_in.event(
            "organizationInvitation.created",
            {"organization_id": "org_acme", "email_address": "x@example.com", "role": "org:x"},
        )
    assert stand_in.directory.invitations == {}
