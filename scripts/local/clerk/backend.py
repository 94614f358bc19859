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
from aiohttp.typedefs import Handler

from scripts.local.clerk.directory import ClerkRefusal, Directory, Object
from scripts.local.clerk.lists import Lists

NAMES = {"first_name", "last_name"}


class BackendApi:
    """Changes what `directory` knows by announcing it: `announce` gets an event's type and data, and completes both."""

    def __init__(
        self,
        directory: Directory,
        secret_key: str,
        announce: Callable[[str, Object], None],
        instance_id: str,
    ) -> None:
        self._directory = directory
        self._authorization = f"Bearer {secret_key}".encode()
        self._announce = announce
        self._lists = Lists(directory, instance_id)

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._authorized])
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
        self._announce("user.updated", {"id": user_id} | _names(await _json_object(request)))
        return web.json_response(self._directory.user(user_id))

    async def delete(self, request: web.Request) -> web.Response:
        user_id = self._directory.user(request.match_info["id"])["id"]
        for membership in self._directory.memberships_of(user_id):
            self._announce("organizationMembership.deleted", membership)
        self._announce("user.deleted", {"id": user_id})
        return web.json_response({"object": "user", "id": user_id, "deleted": True})

    async def invite(self, request: web.Request) -> web.Response:
        organization_id = self._directory.organization(request.match_info["id"])["id"]
        wanted = _invitation(await _json_object(request))
        inviter = self._directory.membership(wanted["inviter_user_id"], organization_id)
        if inviter["role"] != "org:admin":
            message = f"{wanted['inviter_user_id']} is no admin of {organization_id}."
            raise ClerkRefusal("not_an_admin_in_organization", 403, message)
        addresses = {
            each["public_user_data"]["identifier"]
            for each in self._directory.memberships.values()
            if each["organization"]["id"] == organization_id
        }
        if wanted["email_address"] in addresses:
            message = f"{wanted['email_address']} is a member of {organization_id}."
            raise ClerkRefusal("already_a_member_in_organization", 403, message)
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
            message = "Send the instance's secret key (`ballast env` prints it): Authorization: Bearer sk_test_…"
            raise ClerkRefusal("clerk_key_invalid", 401, message)
        return await handler(request)


async def _json_object(request: web.Request) -> Object:
    try:
        body = json.loads(await request.text())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ClerkRefusal("request_body_invalid", 400, "The body is not a JSON object.")
    return body


def _invitation(wanted: Object) -> Object:
    """Whom to invite, as what, in whose name. Raises ClerkRefusal or KeyError."""
    found = {name: wanted[name] for name in ("email_address", "role", "inviter_user_id")}
    if not all(isinstance(value, str) for value in found.values()) or "@" not in found["email_address"]:
        raise ClerkRefusal("form_param_format_invalid", 422, "email_address, role and inviter_user_id are texts.")
    return found


def _names(wanted: Object) -> Object:
    """The names to set. Raises ClerkRefusal."""
    for name, value in wanted.items():
        if name not in NAMES:
            message = f"{name} cannot be changed here: the stand-in knows {' and '.join(sorted(NAMES))}."
            raise ClerkRefusal("form_param_unknown", 422, message)
        if value is not None and not isinstance(value, str):
            raise ClerkRefusal("form_param_format_invalid", 422, f"{name} is a text or null.")
    return wanted
