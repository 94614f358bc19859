"""The lists of Clerk's Backend API, for `ballast clerk backfill` and `reconcile`.

  GET /v1/users?limit=&offset=&order_by=&starting_after= -> [user, …]
  GET /v1/users/count?created_at_before=                 -> {object, total_count}
  GET /v1/organizations?…                                -> {data, total_count}
  GET /v1/organizations/{id or slug}                     -> the organization
  GET /v1/organization_memberships?…                     -> {data, total_count}
  GET /v1/organizations/{id}/memberships?user_id=        -> {data, total_count}
  GET /v1/organization_invitations?status=               -> {data, total_count}
  GET /v1/organizations/{id}/invitations/{id}            -> the invitation
  GET /v1/organizations/{id}/invitations?status=         -> {data, total_count}
  GET /v1/organization_roles?…                           -> {data, total_count}
  GET /v1/organization_roles/{id}                        -> the role
  GET /v1/organization_permissions?…                     -> {data, total_count}
  GET /v1/organization_permissions/{id}                  -> the permission
  GET /v1/billing/plans?…                                -> {data, total_count}
  GET /v1/organizations/{id}/billing/subscription        -> the subscription
  GET /v1/jwt_templates                                  -> []
  GET /v1/instance                                       -> {object, id, environment_type}

Lists are sorted by creation, newest first, unless order_by names another field of the kind. A page has 10 objects by
default, and 500 at most. Objects that are equal in that field change their order between requests.

Only users have a cursor: `starting_after`, the id of the last user of the previous page. It needs an order by
created_at, and cannot be combined with an offset. A page with offset 0 has the order that the cursor continues. Clerk
does not document the cursor of a deleted user; the stand-in refuses it.
Source: clerk-backend-api 7.0.0, https://github.com/clerk/clerk-sdk-python.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable

from aiohttp import web

from scripts.local.clerk import errors
from scripts.local.clerk.directory import Directory, Object

DEFAULT_LIMIT = 10
MAX_LIMIT = 500
# What lists can be sorted by besides created_at, by the last part of the path. Only what the objects here have.
OTHER_ORDERS = {
    "organizations": ("name",),
    "organization_invitations": ("email_address",),
    "invitations": ("email_address",),
    "organization_roles": ("name", "key"),
    "organization_permissions": ("name", "key"),
}
PAYERS = ("org", "user")
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
        router.add_get("/organizations/{id}/invitations", self.invited)
        router.add_get("/organizations/{id}/invitations/{invitation}", self.invitation)
        router.add_get("/organization_memberships", self.memberships)
        router.add_get("/organization_invitations", self.invitations)
        router.add_get("/organizations/{id}/billing/subscription", self.subscription)
        router.add_get("/billing/plans", self.plans)
        router.add_get("/organization_roles", self.roles)
        router.add_get("/organization_roles/{id}", self.role)
        router.add_get("/organization_permissions", self.permissions)
        router.add_get("/organization_permissions/{id}", self.permission)

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

    async def count(self, request: web.Request) -> web.Response:
        before = _number(request, "created_at_before", sys.maxsize)
        older = [each for each in self._directory.users.values() if each["created_at"] < before]
        return web.json_response({"object": "total_count", "total_count": len(older)})

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
        return _respond_with_count(request, _select_by_status(request, self._directory.invitations.values()))

    async def invited(self, request: web.Request) -> web.Response:
        organization_id = self._directory.organization(request.match_info["id"])["id"]
        here = [each for each in self._directory.invitations.values() if each["organization_id"] == organization_id]
        return _respond_with_count(request, _select_by_status(request, here))

    async def invitation(self, request: web.Request) -> web.Response:
        found = self._directory.invitations.get(request.match_info["invitation"])
        if found is None or found["organization_id"] != request.match_info["id"]:
            raise errors.Unknown(f"The Clerk stand-in has no such invitation to {request.match_info['id']}.")
        return web.json_response(found)

    async def roles(self, request: web.Request) -> web.Response:
        return _respond_with_count(request, self._directory.roles.values())

    async def role(self, request: web.Request) -> web.Response:
        return _respond_with_one(self._directory.roles, request.match_info["id"])

    async def permissions(self, request: web.Request) -> web.Response:
        return _respond_with_count(request, self._directory.permissions().values())

    async def permission(self, request: web.Request) -> web.Response:
        return _respond_with_one(self._directory.permissions(), request.match_info["id"])

    async def plans(self, request: web.Request) -> web.Response:
        """The plans of the organizations' subscriptions. Clerk has them even before they are sold."""
        payer = request.query.get("payer_type", "org")
        if payer not in PAYERS:
            raise errors.ParameterValueInvalid("payer_type", payer, ", ".join(PAYERS))
        items = [item for each in self._directory.subscriptions.values() for item in each["items"]]
        plans = {item["plan"]["id"]: item["plan"] | {"created_at": 0} for item in items} if payer == "org" else {}
        return _respond_with_count(request, plans.values())

    async def subscription(self, request: web.Request) -> web.Response:
        """The subscription in the Backend API's form: no payer, and the items have another name."""
        organization_id = self._directory.organization(request.match_info["id"])["id"]
        if organization_id not in self._directory.subscriptions:
            raise errors.Unknown(f"{organization_id} has no subscription.")
        whole = self._directory.subscriptions[organization_id]
        kept = {name: value for name, value in whole.items() if name not in ("payer", "items")}
        items = [item | {"payer_id": whole.get("payer_id")} for item in whole["items"]]
        return web.json_response(kept | {"instance_id": self._instance_id, "subscription_items": items})


def _select_by_status(request: web.Request, invitations: Iterable[Object]) -> list[Object]:
    """The invitations with one of the requested statuses, or all of them."""
    states = request.query.getall("status", [])
    for state in states:
        if state not in STATES:
            raise errors.ParameterValueInvalid("status", state, ", ".join(STATES))
    return [each for each in invitations if not states or each["status"] in states]


def _respond_with_one(objects: dict[str, Object], wanted: str) -> web.Response:
    if wanted not in objects:
        raise errors.Unknown(f"The Clerk stand-in has no {wanted}.")
    return web.json_response(objects[wanted])


def _respond_with_count(request: web.Request, objects: Iterable[Object]) -> web.Response:
    every = list(objects)
    return web.json_response({"data": _page(request, every), "total_count": len(every)})


def _page(request: web.Request, objects: Iterable[Object], *, is_stable: bool = False) -> list[Object]:
    """The part of the list that `limit` and `offset` select."""
    limit, offset = _limit(request), _number(request, "offset", 0)
    return _sort(request, objects, is_stable=is_stable)[offset : offset + limit]


def _sort(request: web.Request, objects: Iterable[Object], *, is_stable: bool) -> list[Object]:
    """The list in the requested order. Objects that are equal in it keep their places only if it `is_stable`."""
    order = request.query.get("order_by", "-created_at")
    field = order.removeprefix("-") if order.startswith("-") else order.removeprefix("+")
    fields = ("created_at", *OTHER_ORDERS.get(request.path.rpartition("/")[2], ()))
    if field not in fields:
        raise errors.ParameterValueInvalid("order_by", order, ", ".join(fields))
    return sorted(objects, key=lambda each: (each[field], _tie_break(each, is_stable)), reverse=order.startswith("-"))


def _tie_break(each: Object, is_stable: bool) -> float:
    """The place among equal objects. Python salts the hash, so the order is not by id."""
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
