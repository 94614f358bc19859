"""Clerk's Backend API, as far as the service uses it: one user read, changed or deleted, by the secret key.

Lists are in lists.py. Here:

  GET    /v1/users/{id}  -> the user
  PATCH  /v1/users/{id}  {first_name?, last_name?} -> the user, changed
  DELETE /v1/users/{id}  -> {object, id, deleted}
  POST   /v1/organizations/{id}/invitations            {email_address, role, inviter_user_id} -> the invitation
  DELETE /v1/organizations/{id}/memberships/{user id}  -> the membership that was

As at Clerk, a change is told to the service by a webhook, which nobody waits for.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from scripts.errors import Failure
from scripts.local.clerk.directory import Directory, Object
from scripts.local.clerk.lists import Lists

NAMES = {"first_name", "last_name"}


class KeyInvalid(Failure):
    """The request does not carry the instance's secret key."""


class BodyUnreadable(Failure):
    """The body is not a JSON object."""


class ParameterUnknown(Failure):
    """The stand-in does not know how to change that, or Clerk does not."""


class ParameterMalformed(Failure):
    """A name is neither a text nor null."""


class InviterIsNoAdmin(Failure):
    """Only an organization's admins invite."""


class AlreadyMember(Failure):
    """Who is invited belongs to the organization."""


class BackendApi:
    """Changes what `directory` knows by announcing it: `announce` gets an event's type and data, and completes both.

    `limit` is a rate limit, if there is one (lists.at_most).
    """

    def __init__(
        self,
        directory: Directory,
        secret_key: str,
        announce: Callable[[str, Object], None],
        instance_id: str = "ins_test",
        limit: Middleware | None = None,
    ) -> None:
        self._directory = directory
        self._authorization = f"Bearer {secret_key}".encode()
        self._announce = announce
        self._lists = Lists(directory, instance_id)
        self._limits = [limit] if limit else []

    def application(self) -> web.Application:
        application = web.Application(middlewares=[*self._limits, self._authorized])
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
        self._announce("user.updated", {"id": user_id} | _names(await request.text()))
        return web.json_response(self._directory.user(user_id))

    async def delete(self, request: web.Request) -> web.Response:
        user_id = self._directory.user(request.match_info["id"])["id"]
        for membership in self._directory.memberships_of(user_id):
            self._announce("organizationMembership.deleted", membership)
        self._announce("user.deleted", {"id": user_id})
        return web.json_response({"object": "user", "id": user_id, "deleted": True})

    async def invite(self, request: web.Request) -> web.Response:
        organization_id = self._directory.organization(request.match_info["id"])["id"]
        wanted = _invitation(await request.text())
        inviter = self._directory.membership(wanted["inviter_user_id"], organization_id)
        if inviter["role"] != "org:admin":
            raise InviterIsNoAdmin(f"{wanted['inviter_user_id']} is no admin of {organization_id}.")
        addresses = {
            each["public_user_data"]["identifier"]
            for each in self._directory.memberships.values()
            if each["organization"]["id"] == organization_id
        }
        if wanted["email_address"] in addresses:
            raise AlreadyMember(f"{wanted['email_address']} is a member of {organization_id}.")
        asked = {name: wanted[name] for name in ("email_address", "role")} | {"organization_id": organization_id}
        whole = self._directory.complete("organizationInvitation.created", asked)
        self._announce("organizationInvitation.created", whole)
        return web.json_response(whole)

    async def remove(self, request: web.Request) -> web.Response:
        membership = self._directory.membership(request.match_info["user_id"], request.match_info["id"])
        self._announce("organizationMembership.deleted", membership)
        return web.json_response(membership)

    @web.middleware
    async def _authorized(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self._authorization):
            raise KeyInvalid(
                "Send the instance's secret key (`ballast env` prints it): Authorization: Bearer sk_test_…"
            )
        return await handler(request)


def _invitation(body: str) -> Object:
    """Whom to invite, as what, in whose name. Raises BodyUnreadable, ParameterMalformed or KeyError."""
    try:
        wanted = json.loads(body)
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise BodyUnreadable("The body is not a JSON object.")
    found = {name: wanted[name] for name in ("email_address", "role", "inviter_user_id")}
    if not all(isinstance(value, str) for value in found.values()) or "@" not in found["email_address"]:
        raise ParameterMalformed("email_address, role and inviter_user_id are texts.")
    return found


def _names(body: str) -> Object:
    """The names to set. Raises BodyUnreadable, ParameterUnknown or ParameterMalformed."""
    try:
        wanted = json.loads(body)
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise BodyUnreadable("The body is not a JSON object.")
    for name, value in wanted.items():
        if name not in NAMES:
            raise ParameterUnknown(f"{name} cannot be changed here: the stand-in knows {' and '.join(sorted(NAMES))}.")
        if value is not None and not isinstance(value, str):
            raise ParameterMalformed(f"{name} is a text or null.")
    return wanted
