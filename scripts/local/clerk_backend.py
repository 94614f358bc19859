"""Clerk's Backend API, as far as the service uses it: one user read, changed or deleted, by the secret key.

  GET    /v1/users/{id}  -> the user
  PATCH  /v1/users/{id}  {first_name?, last_name?} -> the user, changed
  DELETE /v1/users/{id}  -> {object, id, deleted}

As at Clerk, a change is told to the service by a webhook, which nobody waits for.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from scripts.failure import Failure
from scripts.local.clerk_directory import Directory, Object

NAMES = {"first_name", "last_name"}


class KeyInvalid(Failure):
    """The request does not carry the instance's secret key."""


class BodyUnreadable(Failure):
    """The body is not a JSON object."""


class ParameterUnknown(Failure):
    """The stand-in does not know how to change that, or Clerk does not."""


class ParameterMalformed(Failure):
    """A name is neither a text nor null."""


class BackendApi:
    """Changes what `directory` knows by announcing it: `announce` gets an event's type and data, and completes both."""

    def __init__(self, directory: Directory, secret_key: str, announce: Callable[[str, Object], None]) -> None:
        self._directory = directory
        self._authorization = f"Bearer {secret_key}".encode()
        self._announce = announce

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._authorized])
        application.router.add_get("/users/{id}", self.read)
        application.router.add_patch("/users/{id}", self.change)
        application.router.add_delete("/users/{id}", self.delete)
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

    @web.middleware
    async def _authorized(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self._authorization):
            raise KeyInvalid(
                "Send the instance's secret key (`ballast env` prints it): Authorization: Bearer sk_test_…"
            )
        return await handler(request)


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
