"""The roles of the stand-in's instance.

A plain Clerk instance has `org:admin` and `org:member`. Custom roles need a paid plan in production. The example
product has one, `org:viewer`; `ballast clerk send role.created --data '{"key": "org:captain"}'` adds another.
"""

from __future__ import annotations

from typing import Any

Role = dict[str, Any]

MANAGE_MEMBERS = "org:sys_memberships:manage"
MANAGE_PROFILE = "org:sys_profile:manage"
# The default admin holds every system permission.
SYSTEM_PERMISSIONS = (
    MANAGE_PROFILE, "org:sys_profile:delete",
    MANAGE_MEMBERS, "org:sys_memberships:read",
    "org:sys_domains:manage", "org:sys_domains:read",
    "org:sys_billing:manage", "org:sys_billing:read",
)  # fmt: skip
PROJECTS = ("org:projects:manage", "org:projects:read")


def new_role(key: str, permissions: tuple[str, ...] = ()) -> Role:
    """The role object with this key, without times. Its name follows the key: org:content_manager, Content Manager."""
    name = key.removeprefix("org:").replace("_", " ").title()
    return {
        "object": "role",
        "id": f"role_{key.removeprefix('org:')}",
        "name": name,
        "key": key,
        "description": name,
        "is_creator_eligible": {MANAGE_MEMBERS, MANAGE_PROFILE} <= set(permissions),
        "permissions": [_permission(each) for each in permissions],
    }


def permissions_of(role: Role) -> list[str]:
    """The keys of the role's permissions."""
    return [each["key"] for each in role["permissions"]]


def may_manage(role: Role) -> bool:
    """Whether a member with this role can manage the organization."""
    return {MANAGE_MEMBERS, MANAGE_PROFILE} <= set(permissions_of(role))


def initial_roles() -> dict[str, Role]:
    """The roles of a new stand-in, by id: those of a plain instance, and the example product's viewer."""
    permissions = {
        "org:admin": (*SYSTEM_PERMISSIONS, *PROJECTS),
        "org:member": ("org:sys_memberships:read", "org:sys_billing:read", *PROJECTS),
        "org:viewer": ("org:projects:read",),
    }
    roles = [new_role(key, held) | {"created_at": 0, "updated_at": 0} for key, held in permissions.items()]
    return {each["id"]: each for each in roles}


def _permission(key: str) -> dict[str, Any]:
    return {
        "object": "permission",
        "id": f"perm_{key.removeprefix('org:').replace(':', '_')}",
        "name": key,
        "key": key,
        "description": "",
        "type": "system" if key.startswith("org:sys_") else "user",
        "created_at": 0,
        "updated_at": 0,
    }
