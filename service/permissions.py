"""Who may use a route: the database's permission matrix, as `public.start_session()` returns it, cached.

An organization's permissions are those that count in this session. A role without the second factor that it needs and
the organization requires has only those of its fallback role. A test compares this with `public.has_permission()`.
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


class NotPermitted(Problem, status=403, slug="not-permitted", title="The caller lacks the required permission"):
    """The caller lacks the `permission` in the organization, or there is no such organization.

    `limited_by` is second_factor if a session with a second factor would have the permission, else null.
    """

    def __init__(self, permission: str, limited_by: str | None = None, detail: str | None = None) -> None:
        detail = detail or (
            f"This requires {permission}, and the organization requires a second factor. Sign in again with one."
            if limited_by
            else f"This requires {permission} in this organization. Ask one of its owners."
        )
        super().__init__(detail, permission=permission, limited_by=limited_by)


@dataclass(frozen=True)
class PermittedCaller:
    """A permitted caller and their `organization`, as in the session: {id, clerk_org_id, role, permissions, …}."""

    caller: Caller
    organization: dict[str, Any]


def requires(permission: str, *, refresh: bool = False) -> Callable[[Route], Route]:
    """Admits only callers with the permission in the route's organization. The route gets a PermittedCaller.

    `refresh` bypasses the cache: use it where the database does not check the permission again itself.
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
    """Returns the organization from the session if the caller holds the permission there. Raises NotPermitted."""
    for organization in session["organizations"]:
        if organization["id"] == str(organization_id):
            if permission in organization["permissions"]:
                return organization  # type: ignore[no-any-return]
            raise NotPermitted(permission, organization["limited_by"])
    raise NotPermitted(permission)
