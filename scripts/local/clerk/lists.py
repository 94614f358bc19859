"""Clerk's Backend API, as far as it lists: for `ballast clerk backfill` and `reconcile`.

  GET /v1/users?limit=&offset=&order_by=          -> [user, …]
  GET /v1/users/count                             -> {object, total_count}
  GET /v1/organizations?…                         -> {data, total_count}
  GET /v1/organizations/{id}                      -> the organization
  GET /v1/organization_memberships?…              -> {data, total_count}
  GET /v1/organizations/{id}/memberships?user_id= -> {data, total_count}
  GET /v1/organization_invitations?status=        -> {data, total_count}
  GET /v1/organizations/{id}/invitations/{id}     -> the invitation
  GET /v1/jwt_templates                           -> []
  GET /v1/instance                                -> {object, id, environment_type}

Lists are the newest first unless order_by is created_at or +created_at. A page is 10 objects unless told otherwise,
500 at most.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from scripts.local.clerk.directory import ClerkRefusal, Directory, Object, Unknown

DEFAULT_LIMIT = 10
LARGEST_LIMIT = 500
ORDERS = {"created_at": False, "+created_at": False, "-created_at": True}


class PageInvalid(ClerkRefusal):
    """Clerk has no such page: a limit, an offset or an order that it does not know."""

    def __init__(self, message: str) -> None:
        super().__init__("form_param_format_invalid", 422, message)


class Lists:
    """Reads `directory`. `instance_id` is the instance's."""

    def __init__(self, directory: Directory, instance_id: str) -> None:
        self._directory = directory
        self._instance_id = instance_id

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Before those of single objects: /users/count is no user."""
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

    async def instance(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "instance", "id": self._instance_id, "environment_type": "development"})

    async def templates(self, _: web.Request) -> web.Response:
        return web.json_response([])

    async def users(self, request: web.Request) -> web.Response:
        return web.json_response(_page(request, self._directory.users.values()))

    async def count(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "total_count", "total_count": len(self._directory.users)})

    async def organizations(self, request: web.Request) -> web.Response:
        return _counted(request, self._directory.organizations.values())

    async def organization(self, request: web.Request) -> web.Response:
        return web.json_response(self._directory.organization(request.match_info["id"]))

    async def memberships(self, request: web.Request) -> web.Response:
        return _counted(request, self._directory.memberships.values())

    async def members(self, request: web.Request) -> web.Response:
        organization_id = self._directory.organization(request.match_info["id"])["id"]
        people = request.query.getall("user_id", [])
        everybody = self._directory.memberships.values()
        here = [each for each in everybody if each["organization"]["id"] == organization_id]
        return _counted(request, [each for each in here if not people or each["public_user_data"]["user_id"] in people])

    async def invitations(self, request: web.Request) -> web.Response:
        states = request.query.getall("status", [])
        sent = self._directory.invitations.values()
        return _counted(request, [each for each in sent if not states or each["status"] in states])

    async def invitation(self, request: web.Request) -> web.Response:
        found = self._directory.invitations.get(request.match_info["invitation"])
        if found is None or found["organization_id"] != request.match_info["id"]:
            raise Unknown(f"Clerk's stand-in knows no such invitation to {request.match_info['id']}.")
        return web.json_response(found)


def _counted(request: web.Request, objects: Iterable[Object]) -> web.Response:
    every = list(objects)
    return web.json_response({"data": _page(request, every), "total_count": len(every)})


def _page(request: web.Request, objects: Iterable[Object]) -> list[Object]:
    """The part of the list that is asked for. Raises PageInvalid."""
    limit = _number(request, "limit", DEFAULT_LIMIT)
    offset = _number(request, "offset", 0)
    order = request.query.get("order_by", "-created_at")
    if not 1 <= limit <= LARGEST_LIMIT:
        raise PageInvalid(f"limit is a number from 1 to {LARGEST_LIMIT}.")
    if order not in ORDERS:
        raise PageInvalid(f"The stand-in orders by {', '.join(ORDERS)}.")
    ordered = sorted(objects, key=lambda each: (each["created_at"], each["id"]), reverse=ORDERS[order])
    return ordered[offset : offset + limit]


def _number(request: web.Request, name: str, default: int) -> int:
    try:
        number = int(request.query.get(name, default))
    except ValueError:
        number = -1
    if number < 0:
        raise PageInvalid(f"{name} is a number, 0 or more.")
    return number
