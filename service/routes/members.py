"""Invites and removes members at Clerk, which owns all memberships.

The database checks the caller's permission again and records the request in the audit trail, then Clerk makes the
change. Clerk reports it by a webhook, as it reports every other change.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any
from uuid import UUID

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from service.clerk_api import ClerkCallFailed
from service.components import components
from service.data_api import CallFailed
from service.identity import require_person
from service.origin import origin_headers
from service.permissions import NotPermitted, PermittedCaller, requires
from service.problems import Problem
from service.session import problem_from_database

members = Blueprint("members", __name__, url_prefix="/api/v1/organizations/<uuid:organization_id>")

# A cheap check: Clerk validates addresses itself, but an invalid one would count against its hourly limit.
EMAIL_ADDRESS = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,255}")
ROLE_KEY = re.compile(r"[a-z][a-z_]{0,39}")  # which keys exist, and which the caller may use, the database knows
DEFAULT_RETRY_AFTER = 5
ALREADY_INVITED = "The address has a pending invitation to the organization."
NOT_A_MANAGER = "Clerk does not let the caller manage members: their role in Clerk lacks the permission."
# Clerk's codes: https://clerk.com/docs/guides/development/errors/backend-api
REASONS = {
    "already_a_member_in_organization": "The address belongs to a member of the organization.",
    "duplicate_record": ALREADY_INVITED,
    "form_param_format_invalid": "Clerk does not accept the address.",
    "missing_organization_permission": NOT_A_MANAGER,
    "not_a_member_in_organization": NOT_A_MANAGER,
    "not_an_admin_in_organization": NOT_A_MANAGER,
    "organization_invitation_not_unique": ALREADY_INVITED,
    "organization_membership_managed_by_scim": "A directory (SCIM) manages the membership: remove the person there.",
    "organization_membership_quota_exceeded": "The organization has no seat left: pending invitations count.",
    "organization_minimum_permissions_needed": "Without this member, no one could manage the organization in Clerk.",
    "resource_not_found": "Clerk does not know the organization, the caller as its member, or the role.",
}


class InvitationMalformed(Problem, status=400, slug="invitation-malformed", title="The body is not an invitation"):
    """`email` or `role` is missing or not valid."""


class MemberUnknown(Problem, status=404, slug="member-unknown", title="There is no such member"):
    """The organization has no such member."""


class LastOwner(Problem, status=409, slug="last-owner", title="The organization would have no owner"):
    """The member is the organization's only owner."""


class ClerkRefused(Problem, status=422, slug="clerk-refused", title="Clerk refused the change"):
    """Clerk refused the change. `clerk_code` is its reason, such as that the person is already a member."""


class ClerkBusy(Problem, status=429, slug="clerk-busy", title="Clerk is rate limiting"):
    """Clerk's rate limit is reached, such as 250 invitations an hour for all organizations together."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Clerk's rate limit is reached. Try again in {retry_after} s.", retry_after=retry_after)


class ClerkUnavailable(Problem, status=503, slug="clerk-unavailable", title="Clerk does not answer", retry_after=5):
    """Clerk did not answer, or its answer was not valid."""


@members.post("/invitations")
@requires("members:invite")
def invite(permitted: PermittedCaller) -> ResponseReturnValue:
    """Sends an invitation through Clerk by e-mail, on behalf of the caller."""
    require_person(permitted.caller, "An impersonator may not invite people for the person.")
    email, role = parse_invitation(request.get_json(silent=True))
    prepared = _prepare(permitted, "members:invite", "prepare_invitation", {"role": role})
    try:
        invitation_id = components().clerk.invite(
            prepared["clerk_org_id"], email, prepared["clerk_role"], permitted.caller.user_id
        )
    except ClerkCallFailed as failure:
        raise problem_from_clerk(failure) from failure
    return jsonify(clerk_invitation_id=invitation_id, role=role), HTTPStatus.ACCEPTED


@members.delete("/members/<uuid:profile_id>")
@requires("members:remove")
def remove(permitted: PermittedCaller, profile_id: UUID) -> ResponseReturnValue:
    """Deletes a membership at Clerk."""
    require_person(permitted.caller, "An impersonator may not remove members for the person.")
    prepared = _prepare(permitted, "members:remove", "prepare_removal", {"profile_id": str(profile_id)})
    try:
        components().clerk.delete_membership(prepared["clerk_org_id"], prepared["clerk_user_id"])
    except ClerkCallFailed as failure:
        raise problem_from_clerk(failure) from failure
    return "", HTTPStatus.NO_CONTENT


def parse_invitation(body: object) -> tuple[str, str]:
    """Returns the e-mail address and the role in a body. Raises InvitationMalformed."""
    email, role = (body.get("email"), body.get("role")) if isinstance(body, dict) else (None, None)
    if not isinstance(email, str) or EMAIL_ADDRESS.fullmatch(email) is None:
        raise InvitationMalformed("`email` must be the e-mail address to invite.")
    if not isinstance(role, str) or ROLE_KEY.fullmatch(role) is None:
        raise InvitationMalformed("`role` must be the key of a role, such as member.")
    return email, role


def problem_from_clerk(failure: ClerkCallFailed) -> Problem:
    """The problem that a caller gets when a call to Clerk fails."""
    # Without an error code from Clerk, a proxy may have sent the status, or CLERK_API_URL is wrong.
    has_clerk_code = not failure.code.isdigit()
    may_refuse = {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}
    if failure.is_refusal or (failure.status in may_refuse and has_clerk_code):
        reason = REASONS.get(failure.code, "Clerk refused the request: `clerk_code` is its reason.")
        return ClerkRefused(reason, clerk_code=failure.code)
    if failure.status == HTTPStatus.TOO_MANY_REQUESTS:
        return ClerkBusy(failure.retry_after or DEFAULT_RETRY_AFTER)
    return ClerkUnavailable("Try again in a few seconds.")


def _prepare(permitted: PermittedCaller, permission: str, function: str, arguments: dict[str, str]) -> dict[str, Any]:
    """Calls a database function that checks and records the request, and returns Clerk's ids for it.

    Raises the problems above, NotPermitted, and those of problem_from_database().
    """
    try:
        answer = components().data_api.call_as(
            permitted.caller.token,
            function,
            {"organization_id": permitted.organization["id"], **arguments},
            origin_headers(),
        )
    except CallFailed as failure:
        problems: dict[str, Problem] = {
            "PT400": InvitationMalformed(failure.message),
            "PT403": NotPermitted(permission, detail=f"{failure.message} {failure.hint}".strip()),
            "PT404": MemberUnknown(failure.message),
            "PT409": LastOwner(f"{failure.message} {failure.hint}".strip()),
        }
        raise problems.get(failure.code) or problem_from_database(failure) from failure
    if not isinstance(answer, dict):
        raise TypeError(f"{function}() returned no object")
    return answer
