"""Who may use a route: the database's own matrix, as `public.start_session()` tells it, through the cache.

What it tells of an organization are the permissions that count in this session: those of a viewer for an owner or admin
without the second factor that the organization asks for. A test compares it with `public.has_permission()`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any
from uuid import UUID

from flask.typing import ResponseReturnValue

from service.components import components
from service.identity import Caller, current_caller
from service.problems import Problem
from service.session import Session, fetch_session

Route = Callable[..., ResponseReturnValue]


class NotPermitted(
    Problem, status=403, slug="not-permitted", title="This takes a permission that the caller does not have"
):
    """The caller lacks the `permission` in the organization, or there is no such organization.

    `limited_by` is second_factor where a session with one might do it, else null.
    """

    def __init__(self, permission: str, limited_by: str | None = None) -> None:
        detail = (
            f"It takes {permission}, and the organization asks for a second factor."
            if limited_by
            else f"It takes {permission} in this organization."
        )
        super().__init__(detail, permission=permission, limited_by=limited_by)


@dataclass(frozen=True)
class PermittedCaller:
    """A caller who may, and where: `organization` as in the session, {id, clerk_org_id, role, permissions, …}."""

    caller: Caller
    organization: dict[str, Any]


def requires(permission: str, *, refresh: bool = False) -> Callable[[Route], Route]:
    """For routes of an organization: only who holds the permission there comes in. It gets a PermittedCaller.

    With `refresh` the database is asked at once: for what it does not check again itself.
    """

    def guard(route: Route) -> Route:
        @wraps(route)
        def wrapper(organization_id: UUID, **arguments: object) -> ResponseReturnValue:
            caller = current_caller(components().session_tokens)
            organization = require_permission(fetch_session(caller, refresh=refresh), organization_id, permission)
            return route(PermittedCaller(caller, organization), **arguments)

        return wrapper

    return guard


def require_permission(session: Session, organization_id: UUID, permission: str) -> dict[str, Any]:
    """The organization of the session in which the permission holds. Raises NotPermitted."""
    for organization in session["organizations"]:
        if organization["id"] == str(organization_id):
            if permission in organization["permissions"]:
                return organization  # type: ignore[no-any-return]
            raise NotPermitted(permission, organization["limited_by"])
    raise NotPermitted(permission)
