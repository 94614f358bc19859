"""The lists of Clerk's Backend API, for `ballast clerk backfill` and `reconcile`.

  GET /v1/users?limit=&offset=&order_by=&starting_after= -> [user, …]
  GET /v1/users/count                                    -> {object, total_count}
  GET /v1/organizations?…                                -> {data, total_count}
  GET /v1/organizations/{id or slug}                     -> the organization
  GET /v1/organization_memberships?…                     -> {data, total_count}
  GET /v1/organizations/{id}/memberships?user_id=        -> {data, total_count}
  GET /v1/organization_invitations?status=               -> {data, total_count}
  GET /v1/organizations/{id}/invitations/{id}            -> the invitation
  GET /v1/organization_roles?…                           -> {data, total_count}
  GET /v1/jwt_templates                                  -> []
  GET /v1/instance                                       -> {object, id, environment_type}

Lists are sorted by creation, newest first, unless order_by is created_at or +created_at. A page has 10 objects by
default, and 500 at most. Objects that were created in the same millisecond change their order between requests.

Only users have a cursor: `starting_after`, the id of the last user of the previous page. It needs an order by
created_at, and cannot be combined with an offset. A page with offset 0 has the order that the cursor continues. Clerk
does not document the cursor of a deleted user; the stand-in refuses it.
Source: GetUserList in https://github.com/clerk/clerk-sdk-python.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from aiohttp import web

from scripts.local.clerk import errors
from scripts.local.clerk.directory import Directory, Object

DEFAULT_LIMIT = 10
MAX_LIMIT = 500
ORDERS = {"created_at": False, "+created_at": False, "-created_at": True}
STATES = ("pending", "accepted", "revoked", "expired")
# The first API version with a cursor for users. Older versions ignore it, like every unknown parameter.
CURSOR_VERSION = "2025-11-10"


class Lists:
    """Serves lists of the objects in `directory`."""

    def __init__(self, directory: Directory, instance_id: str) -> None:
        self._directory = directory
        self._instance_id = instance_id

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Adds the routes. Call it before the routes of single objects are added: /users/count must not match an id."""
        router.add_get("/instance", self.instance)
        router.add_get("/jwt_templates", self.templates)
        router.add_get("/users", self.users)
        router.add_get("/users/count", self.count)
        router.add_get("/organizations", self.organizations)
        router.add_get("/organizations/{id}", self.organization)
        router.add_get("/organizations/{id}/memberships", self.members)
        router.add_get("/organizations/{id}/invitations/{invitation}", self.invitation)
        router.add_get("/organization_memberships", self.memberships)
        router.add_get("/organization_invitations", self.invitations)
        router.add_get("/organization_roles", self.roles)

    async def instance(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "instance", "id": self._instance_id, "environment_type": "development"})

    async def templates(self, _: web.Request) -> web.Response:
        return web.json_response([])

    async def users(self, request: web.Request) -> web.Response:
        everyone = self._directory.users
        cursor = request.query.get("starting_after")
        if cursor is None or request.headers.get("Clerk-API-Version", "") < CURSOR_VERSION:
            is_stable = _number(request, "offset", 0) == 0
            return web.json_response(_page(request, everyone.values(), is_stable=is_stable))
        if _number(request, "offset", 0):
            raise errors.ParameterConflict("offset", "starting_after")
        if cursor not in everyone:
            raise errors.ResourceNotFound("starting_after")
        ordered = _sort(request, everyone.values(), is_stable=True)
        following = ordered[ordered.index(everyone[cursor]) + 1 :]
        return web.json_response(following[: _limit(request)])

    async def count(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "total_count", "total_count": len(self._directory.users)})

    async def organizations(self, request: web.Request) -> web.Response:
        return _respond_with_count(request, self._directory.organizations.values())

    async def organization(self, request: web.Request) -> web.Response:
        named = request.match_info["id"]
        by_slug = {each["slug"]: each["id"] for each in self._directory.organizations.values()}
        return web.json_response(self._directory.organization(by_slug.get(named, named)))

    async def memberships(self, request: web.Request) -> web.Response:
        return _respond_with_count(request, self._directory.memberships.values())

    async def members(self, request: web.Request) -> web.Response:
        here = self._directory.members(self._directory.organization(request.match_info["id"])["id"])
        people = request.query.getall("user_id", [])
        return _respond_with_count(
            request, [each for each in here if not people or each["public_user_data"]["user_id"] in people]
        )

    async def invitations(self, request: web.Request) -> web.Response:
        states = request.query.getall("status", [])
        for state in states:
            if state not in STATES:
                raise errors.ParameterValueInvalid("status", state, ", ".join(STATES))
        sent = self._directory.invitations.values()
        return _respond_with_count(request, [each for each in sent if not states or each["status"] in states])

    async def invitation(self, request: web.Request) -> web.Response:
        found = self._directory.invitations.get(request.match_info["invitation"])
        if found is None or found["organization_id"] != request.match_info["id"]:
            raise errors.Unknown(f"The Clerk stand-in has no such invitation to {request.match_info['id']}.")
        return web.json_response(found)

    async def roles(self, request: web.Request) -> web.Response:
        return _respond_with_count(request, self._directory.roles.values())


def _respond_with_count(request: web.Request, objects: Iterable[Object]) -> web.Response:
    every = list(objects)
    return web.json_response({"data": _page(request, every), "total_count": len(every)})


def _page(request: web.Request, objects: Iterable[Object], *, is_stable: bool = False) -> list[Object]:
    """The part of the list that `limit` and `offset` select."""
    limit, offset = _limit(request), _number(request, "offset", 0)
    return _sort(request, objects, is_stable=is_stable)[offset : offset + limit]


def _sort(request: web.Request, objects: Iterable[Object], *, is_stable: bool) -> list[Object]:
    """The list in the requested order. Objects of the same millisecond keep their order only if it `is_stable`."""
    order = request.query.get("order_by", "-created_at")
    if order not in ORDERS:
        raise errors.ParameterValueInvalid("order_by", order, ", ".join(ORDERS))
    return sorted(objects, key=lambda each: (each["created_at"], _tie_break(each, is_stable)), reverse=ORDERS[order])


def _tie_break(each: Object, is_stable: bool) -> float:
    """The place among objects of the same millisecond. Python salts the hash, so the order is not by id."""
    return hash(each["id"]) if is_stable else random.random()  # noqa: S311 - no secret


def _limit(request: web.Request) -> int:
    limit = _number(request, "limit", DEFAULT_LIMIT)
    if not 1 <= limit <= MAX_LIMIT:
        raise errors.ParameterFormatInvalid("limit", f"a number from 1 to {MAX_LIMIT}")
    return limit


def _number(request: web.Request, name: str, default: int) -> int:
    try:
        number = int(request.query.get(name, default))
    except ValueError:
        number = -1
    if number < 0:
        raise errors.ParameterFormatInvalid(name, "a number, 0 or more")
    return number
