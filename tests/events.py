"""Builds Clerk's webhook events as dicts, in the form of real deliveries. Times are in milliseconds since 1970."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
START = 1_760_000_000_000
SECOND = 1_000
MINUTE = 60 * SECOND


def event(kind: str, data: Json, timestamp: int | None = None) -> Json:
    """The whole event. Its default timestamp is the object's updated_at."""
    return {
        "data": data,
        "event_attributes": {"http_request": {"client_ip": "192.0.2.1", "user_agent": "okhttp/4.12.0"}},
        "instance_id": "ins_test",
        "object": "event",
        "timestamp": data["updated_at"] if timestamp is None else timestamp,
        "type": kind,
    }


def deletion_event(kind: str, clerk_id: str, timestamp: int) -> Json:
    """The deletion of a user, organization, role or permission. Its data contains little more than the id."""
    return event(f"{kind}.deleted", {"object": kind, "id": clerk_id, "deleted": True}, timestamp)


def email_address(clerk_id: str, email: str, status: str | None = "verified") -> Json:
    """One of a user's addresses. With None, Clerk has no verification of it at all."""
    verification = status and {"status": status, "strategy": "email_code", "attempts": 1, "expire_at": None}
    return {"id": clerk_id, "object": "email_address", "email_address": email, "verification": verification}


def user(clerk_id: str, updated_at: int = START, email: str | None = "ada@example.com", **changes: Any) -> Json:
    """A user whose primary address is `email`. With None, a user who signed up by phone."""
    addresses = [email_address("idn_other", "first@example.com", None)]
    if email:
        addresses.append(email_address("idn_primary", email))
    return {
        "object": "user",
        "id": clerk_id,
        "first_name": "Ada",
        "last_name": "Winter",
        "username": None,
        "image_url": "https://img.clerk.com/ada",
        "primary_email_address_id": "idn_primary" if email else None,
        "email_addresses": addresses,
        "phone_numbers": [],
        "external_accounts": [],
        "external_id": None,
        "public_metadata": {},
        "private_metadata": {},
        "unsafe_metadata": {},
        "banned": False,
        "locked": False,
        "last_sign_in_at": None,
        "last_active_at": updated_at,
        "created_at": START,
        "updated_at": updated_at,
    } | changes


def organization(clerk_id: str, updated_at: int = START, created_by: str | None = "user_ada", **changes: Any) -> Json:
    return {
        "object": "organization",
        "id": clerk_id,
        "name": "Acme",
        "slug": "acme",
        "image_url": "https://img.clerk.com/acme",
        "has_image": False,
        "members_count": 1,
        "pending_invitations_count": 0,
        "max_allowed_memberships": 5,
        "admin_delete_enabled": True,
        "public_metadata": {},
        "private_metadata": {},
        "created_by": created_by,
        "created_at": START,
        "updated_at": updated_at,
    } | changes


def membership(
    clerk_id: str, org: Json, person: Json, role: str = "org:member", updated_at: int = START, **changes: Any
) -> Json:
    """A membership, with the copies of the organization and the person that Clerk includes."""
    return {
        "object": "organization_membership",
        "id": clerk_id,
        "role": role,
        "role_name": role.removeprefix("org:").title(),
        "permissions": ["org:posts:read"],
        "public_metadata": {},
        "private_metadata": {},
        "organization": org,
        "public_user_data": {
            "user_id": person["id"],
            "first_name": person["first_name"],
            "last_name": person["last_name"],
            "image_url": person["image_url"],
            "has_image": True,
            "identifier": "ada@example.com",
        },
        "created_at": START,
        "updated_at": updated_at,
    } | changes


def invitation(
    clerk_id: str, organization_id: str, status: str = "pending", updated_at: int = START, **changes: Any
) -> Json:
    return {
        "object": "organization_invitation",
        "id": clerk_id,
        "email_address": "cleo@example.com",
        "role": "org:member",
        "role_name": "Member",
        "organization_id": organization_id,
        "status": status,
        "public_metadata": {},
        "private_metadata": {},
        "url": "https://accounts.example.com/accept-invitation?token=abc",
        "expires_at": START + 30 * 24 * 60 * MINUTE,
        "created_at": START,
        "updated_at": updated_at,
    } | changes


def role(clerk_id: str, key: str, updated_at: int = START, permissions: tuple[str, ...] = (), **changes: Any) -> Json:
    return {
        "object": "role",
        "id": clerk_id,
        "name": key.removeprefix("org:").title(),
        "key": key,
        "description": "Made by the customer",
        "is_creator_eligible": False,
        "permissions": [permission(f"perm_{number}", name) for number, name in enumerate(permissions)],
        "created_at": START,
        "updated_at": updated_at,
    } | changes


def permission(clerk_id: str, key: str, updated_at: int = START) -> Json:
    return {
        "object": "permission",
        "id": clerk_id,
        "name": key.removeprefix("org:").title(),
        "key": key,
        "description": "Made by the customer",
        "type": "custom",
        "created_at": START,
        "updated_at": updated_at,
    }


def payer(organization_id: str = "", user_id: str = "") -> Json:
    """The payer is an organization or a person. Clerk leaves the other id empty."""
    return {
        "object": "commerce_payer",
        "id": f"cpayer_{organization_id or user_id}",
        "user_id": user_id,
        "email": "billing@example.com",
        "organization_id": organization_id,
        "organization_name": "Acme" if organization_id else "",
        "created_at": START,
        "updated_at": START,
    }


def subscription_item(
    clerk_id: str, plan: str, status: str = "active", updated_at: int = START, **changes: Any
) -> Json:
    """A subscription item. Its own events contain the payer, the copies in a subscription do not."""
    return {
        "object": "commerce_subscription_item",
        "id": clerk_id,
        "status": status,
        "is_free_trial": False,
        "interval": "month",
        "period_start": START,
        "period_end": None,
        "plan_id": f"cplan_{plan}",
        "plan": {"id": f"cplan_{plan}", "slug": plan, "name": plan.title(), "amount": 2000, "currency": "USD"},
        "created_at": START,
        "updated_at": updated_at,
    } | changes


def subscription(
    clerk_id: str, paid_by: Json, items: tuple[Json, ...] = (), status: str = "active", updated_at: int = START
) -> Json:
    return {
        "object": "commerce_subscription",
        "id": clerk_id,
        "status": status,
        "payer_id": paid_by["id"],
        "payer": paid_by,
        "items": list(items),
        "active_at": START,
        "canceled_at": None,
        "ended_at": None,
        "past_due_at": None,
        "created_at": START,
        "updated_at": updated_at,
    }
