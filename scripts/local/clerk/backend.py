"""The part of Clerk's Backend API that Ballast calls: change and delete users, invite and remove members.

Lists are in lists.py, errors in errors.py, rate limits in limits.py. Here:

  GET    /v1/users/{id}  -> the user
  PATCH  /v1/users/{id}  {first_name?, last_name?} -> the changed user
  DELETE /v1/users/{id}  -> {object, id, deleted}
  POST   /v1/organizations/{id}/invitations            {email_address, role, inviter_user_id?} -> the invitation
  DELETE /v1/organizations/{id}/memberships/{user id}  -> the removed membership

As at Clerk, each change is also sent to the service as a webhook. The response does not wait for it.
Clerk's other parameters (metadata, redirect URLs) and its bulk calls are not implemented.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler

from scripts.local.clerk import errors
from scripts.local.clerk.directory import Directory, Object
from scripts.local.clerk.limits import Limit, RateLimits
from scripts.local.clerk.lists import Lists

NAMES = {"first_name", "last_name"}
INVITATION = {"email_address", "role", "inviter_user_id"}
# Clerk follows RFC 5322. This is narrower: no quotes, no comments, a domain with a dot.
EMAIL_ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[a-z0-9-]+(\.[a-z0-9-]+)+", re.ASCII | re.IGNORECASE)
VERSIONS = {"2021-02-05", "2024-10-01", "2025-03-12", "2025-04-10", "2025-11-10", "2025-12-03", "2026-05-12"}


class BackendApi:
    """Changes `directory` by events: `announce` takes a type and data, and completes, applies and sends the event."""

    def __init__(
        self,
        directory: Directory,
        secret_key: str,
        announce: Callable[[str, Object], None],
        instance_id: str,
        limits: Sequence[Limit] = (),
    ) -> None:
        self._directory = directory
        self._secret_key = secret_key.encode()
        self._announce = announce
        self._lists = Lists(directory, instance_id)
        self._limits = RateLimits(limits)

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._check_request])
        self._lists.add_routes(application.router)
        application.router.add_get("/users/{id}", self.read)
        application.router.add_patch("/users/{id}", self.change)
        application.router.add_delete("/users/{id}", self.delete)
        application.router.add_post("/organizations/{id}/invitations", self.invite)
        application.router.add_delete("/organizations/{id}/memberships/{user_id}", self.remove)
        return application

    async def read(self, request: web.Request) -> web.Response:
        return web.json_response(self._directory.user(request.match_info["id"]))

    async def change(self, request: web.Request) -> web.Response:
        user_id = self._directory.user(request.match_info["id"])["id"]
        names = await _body(request, NAMES)
        for name in names:
            _read_text_parameter(names, name)
        self._announce("user.updated", {"id": user_id} | names)
        return web.json_response(self._directory.user(user_id))

    async def delete(self, request: web.Request) -> web.Response:
        user_id = self._directory.user(request.match_info["id"])["id"]
        for membership in self._directory.memberships_of(user_id):
            self._announce("organizationMembership.deleted", membership)
        self._announce("user.deleted", {"id": user_id})
        return web.json_response({"object": "user", "id": user_id, "deleted": True})

    async def invite(self, request: web.Request) -> web.Response:
        organization_id = self._directory.organization(request.match_info["id"])["id"]
        wanted = await _body(request, INVITATION)
        email, role = _require_text(wanted, "email_address"), _require_text(wanted, "role")
        if EMAIL_ADDRESS.fullmatch(email) is None:
            raise errors.ParameterFormatInvalid("email_address", "a valid email address")
        if inviter_id := _read_text_parameter(wanted, "inviter_user_id"):
            self._require_manager(inviter_id, organization_id)
        self._require_stranger(email, organization_id)
        given = {"email_address": email, "role": role, "organization_id": organization_id}
        whole = self._directory.complete("organizationInvitation.created", given)
        self._announce("organizationInvitation.created", whole)
        return web.json_response(whole)

    async def remove(self, request: web.Request) -> web.Response:
        membership = self._directory.membership(request.match_info["user_id"], request.match_info["id"])
        self._directory.require_another_manager(membership)
        self._announce("organizationMembership.deleted", membership)
        return web.json_response(membership)

    def _require_manager(self, user_id: str, organization_id: str) -> None:
        """Raises Unknown for a user outside the organization, and NotAnAdmin."""
        if not self._directory.is_manager(self._directory.membership(user_id, organization_id)):
            raise errors.NotAnAdmin(user_id)

    def _require_stranger(self, email: str, organization_id: str) -> None:
        """Raises AlreadyAMember and AlreadyInvited."""
        members = self._directory.members(organization_id)
        if email.lower() in {(each["public_user_data"]["identifier"] or "").lower() for each in members}:
            raise errors.AlreadyAMember(email)
        invited = self._directory.pending_invitations(organization_id)
        if email.lower() in {each["email_address"].lower() for each in invited}:
            raise errors.AlreadyInvited

    @web.middleware
    async def _check_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not key:
            raise errors.KeyMissing
        if not hmac.compare_digest(key.encode(), self._secret_key):
            raise errors.KeyInvalid
        version = request.headers.get("Clerk-API-Version")
        if version is not None and version not in VERSIONS:
            raise errors.VersionInvalid(version)
        self._limits.count_request(request)
        return await handler(request)


async def _body(request: web.Request, parameters: set[str]) -> Object:
    """The JSON object in the body. Raises BodyInvalid and ParameterUnknown."""
    try:
        body = json.loads(await request.text())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise errors.BodyInvalid
    for name in body.keys() - parameters:
        raise errors.ParameterUnknown(name)
    return body


def _require_text(body: Object, name: str) -> str:
    """The text with this name. Raises ParameterMissing and ParameterTypeInvalid."""
    found = _read_text_parameter(body, name)
    if not found:
        raise errors.ParameterMissing(name)
    return found


def _read_text_parameter(body: Object, name: str) -> str | None:
    """The text with this name, or None for null and absence. Raises ParameterTypeInvalid."""
    found = body.get(name)
    if found is not None and not isinstance(found, str):
        raise errors.ParameterTypeInvalid(name, "string")
    return found
