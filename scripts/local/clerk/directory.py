"""The objects of the Clerk stand-in: users, organizations, memberships and invitations, in the format of webhooks.

The directory applies the events that are sent through it, and adds the fields that the sender left out. So
`ballast clerk send user.created --data '{"id": "user_zoe"}'` sends a complete user.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from scripts.local.clerk.errors import LastAdministrator, NoSeatLeft, ParameterMissing, RoleUnknown, Unknown
from scripts.local.clerk.roles import Role, initial_roles, may_manage, new_role, permissions_of

Object = dict[str, Any]

DAY_MS = 24 * 60 * 60 * 1000


class IncompleteData(ParameterMissing):
    """The data of an event lacks an id that the stand-in cannot invent."""


class Directory:
    """The objects, in memory and, if given, in `file`. Times are in milliseconds, as at Clerk."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        stored = json.loads(file.read_text()) if file and file.exists() else {}
        self.users: dict[str, Object] = stored.get("users", {})
        self.organizations: dict[str, Object] = stored.get("organizations", {})
        self.memberships: dict[str, Object] = stored.get("memberships", {})
        self.invitations: dict[str, Object] = stored.get("invitations", {})
        self.roles: dict[str, Role] = stored.get("roles") or initial_roles()
        # By organization. People who subscribe are left out.
        self.subscriptions: dict[str, Object] = stored.get("subscriptions", {})
        self.deleted: list[str] = stored.get("deleted", [])

    def user(self, user_id: str) -> Object:
        """The user object. Raises Unknown with a list of the users."""
        if user_id not in self.users:
            raise Unknown(f"The Clerk stand-in has no user {user_id}. Its users: {_names(self.users)}.")
        return self.users[user_id]

    def organization(self, organization_id: str) -> Object:
        """The organization object. Raises Unknown with a list of the organizations."""
        if organization_id not in self.organizations:
            raise Unknown(
                f"The Clerk stand-in has no organization {organization_id}. Its organizations: "
                f"{_names(self.organizations)}."
            )
        return self.organizations[organization_id]

    def membership(self, user_id: str, organization_id: str) -> Object:
        """The user's membership of the organization. Raises Unknown if one of the three does not exist."""
        user, organization = self.user(user_id), self.organization(organization_id)
        membership = self._membership_of(user["id"], organization["id"])
        if membership is None:
            raise Unknown(f"{user_id} is not a member of {organization_id}: send organizationMembership.created first.")
        return membership

    def memberships_of(self, user_id: str) -> list[Object]:
        """The user's memberships; an empty list for an unknown user."""
        return [each for each in self.memberships.values() if each["public_user_data"]["user_id"] == user_id]

    def members(self, organization_id: str) -> list[Object]:
        """The organization's memberships."""
        return [each for each in self.memberships.values() if each["organization"]["id"] == organization_id]

    def pending_invitations(self, organization_id: str) -> list[Object]:
        """The organization's invitations that were neither accepted nor revoked."""
        sent = self.invitations.values()
        return [each for each in sent if each["organization_id"] == organization_id and each["status"] == "pending"]

    def role(self, key: str) -> Role:
        """The role with this key. Raises RoleUnknown."""
        found = self._role_with(key)
        if found is None:
            raise RoleUnknown(key, sorted(each["key"] for each in self.roles.values()))
        return found

    def permissions(self) -> dict[str, Object]:
        """The permissions of all roles, by id."""
        return {each["id"]: each for role in self.roles.values() for each in role["permissions"]}

    def require_another_manager(self, membership: Object) -> None:
        """Raises LastAdministrator if no other member could manage the organization."""
        others = [each for each in self.members(membership["organization"]["id"]) if each["id"] != membership["id"]]
        if self.is_manager(membership) and not any(map(self.is_manager, others)):
            raise LastAdministrator

    def is_manager(self, membership: Object) -> bool:
        """Whether the member's role lets them manage the organization."""
        role = self._role_with(membership["role"])
        return role is not None and may_manage(role)

    def people(self) -> list[Object]:
        """All users, for the sign-in page: {user_id, name, organizations: [{organization_id, name, role}]}."""
        return [
            {
                "user_id": user_id,
                "name": " ".join(filter(None, (user["first_name"], user["last_name"]))) or user_id,
                "organizations": [
                    {
                        "organization_id": each["organization"]["id"],
                        "name": (self.organizations.get(each["organization"]["id"]) or each["organization"])["name"],
                        "role": each["role"],
                    }
                    for each in self.memberships_of(user_id)
                ],
            }
            for user_id, user in self.users.items()
        ]

    def complete(self, event_type: str, data: Object) -> Object:
        """`data` with all fields of an event of that type.

        Raises IncompleteData, RoleUnknown and NoSeatLeft: Clerk sends no event about a change that it refuses.
        """
        subject, _, what = event_type.partition(".")
        if subject == "user":
            return self._make_deletion("user", data) if what == "deleted" else self._complete_user(data)
        if subject == "organization":
            return self._make_deletion("organization", data) if what == "deleted" else self._complete_organization(data)
        if subject == "organizationMembership":
            membership = self._fill_in_membership(data)
            if what != "deleted":
                self.role(membership["role"])
            if what == "created":
                self._require_seat(membership["organization"]["id"], _address(membership))
            return membership
        if subject == "organizationInvitation":
            invitation = self._complete_invitation(what, data)
            if what == "created":
                self._require_seat(invitation["organization_id"], invitation["email_address"])
            return invitation
        if subject == "role":
            return self._make_deletion("role", data) if what == "deleted" else self._fill_in_role(data)
        return data

    def apply(self, event_type: str, data: Object) -> None:
        """Applies a complete event, unless the object is newer or was deleted, and stores the result."""
        subject, _, what = event_type.partition(".")
        organization_id = (data.get("payer") or {}).get("organization_id")
        if subject == "subscription" and organization_id:
            self.subscriptions[organization_id] = data
            self._store()
            return
        objects = {
            "user": self.users,
            "organization": self.organizations,
            "organizationMembership": self.memberships,
            "organizationInvitation": self.invitations,
            "role": self.roles,
        }.get(subject)
        if objects is None or data["id"] in self.deleted:
            return
        if what == "deleted":
            self.deleted.append(data["id"])
            self._remove(data["id"])
        elif objects.get(data["id"], {}).get("updated_at", 0) <= data["updated_at"]:
            objects[data["id"]] = data
            if subject == "user":
                self._update_copies(data["id"])
        self._store()

    def _update_copies(self, user_id: str) -> None:
        """Updates the copy of the user in each of their memberships."""
        public = self._public_user_data(user_id)
        for each in self.memberships_of(user_id):
            self.memberships[each["id"]] = each | {"public_user_data": each["public_user_data"] | public}

    def _require_seat(self, organization_id: str, address: str) -> None:
        """Raises NoSeatLeft. An invited person who joins takes the seat of the invitation."""
        limit = self.organizations.get(organization_id, {}).get("max_allowed_memberships")
        members = {_address(each) for each in self.members(organization_id)}
        invited = {each["email_address"].lower() for each in self.pending_invitations(organization_id)}
        taken = members | invited
        # Clerk reads 0 as no limit.
        if limit and address.lower() not in taken and len(taken) >= limit:
            raise NoSeatLeft(limit)

    def _role_with(self, key: str) -> Role | None:
        return next((each for each in self.roles.values() if each["key"] == key), None)

    def _remove(self, deleted: str) -> None:
        self.users.pop(deleted, None)
        self.roles.pop(deleted, None)
        self.organizations.pop(deleted, None)
        self.subscriptions.pop(deleted, None)
        self.invitations = {key: each for key, each in self.invitations.items() if each["organization_id"] != deleted}
        self.memberships = {
            key: each
            for key, each in self.memberships.items()
            if deleted not in (key, each["public_user_data"]["user_id"], each["organization"]["id"])
        }

    def _complete_user(self, data: Object) -> Object:
        user_id = data.get("id") or f"user_{_random_id()}"
        known = self.users.get(user_id) or _new_user(user_id)
        user = known | _times(known) | data | {"object": "user", "id": user_id}
        user["email_addresses"] = [_new_address() | each for each in user["email_addresses"] or []]
        if data.get("email_addresses") and "primary_email_address_id" not in data:
            user["primary_email_address_id"] = data["email_addresses"][0].get("id")
        return user

    def _complete_organization(self, data: Object) -> Object:
        organization_id = data.get("id") or f"org_{_random_id()}"
        known = self.organizations.get(organization_id) or _new_organization(organization_id)
        return known | _times(known) | data | {"object": "organization", "id": organization_id}

    def _fill_in_membership(self, data: Object) -> Object:
        known = self.memberships.get(data.get("id", ""), {})
        user_id = (data.get("public_user_data") or known.get("public_user_data") or {}).get("user_id")
        organization_id = (data.get("organization") or known.get("organization") or {}).get("id")
        if not user_id or not organization_id:
            needed = '{"public_user_data": {"user_id": …}, "organization": {"id": …}}'
            raise IncompleteData("organization", f"A membership needs {needed}.")
        known = known or self._membership_of(user_id, organization_id) or {}
        key = data.get("role") or known.get("role") or "org:member"
        role = self._role_with(key) or new_role(key)
        defaults: Object = {
            "object": "organization_membership",
            "id": known.get("id") or f"orgmem_{_random_id()}",
            "role": role["key"],
            "role_name": role["name"],
            "permissions": permissions_of(role),
            "public_metadata": {},
            "private_metadata": {},
        }
        nested = {
            "organization": self._complete_organization(data.get("organization") or {"id": organization_id}),
            "public_user_data": self._public_user_data(user_id) | (data.get("public_user_data") or {}),
        }
        # A membership has a copy of its organization, which must not be newer than the original.
        if organization_id in self.organizations and "updated_at" not in (data.get("organization") or {}):
            nested["organization"]["updated_at"] = self.organizations[organization_id]["updated_at"]
        return defaults | _times(known) | data | nested

    def _complete_invitation(self, what: str, data: Object) -> Object:
        for needed in ("organization_id", "email_address"):
            if not data.get(needed):
                raise IncompleteData(needed, f'An invitation needs {{"{needed}": …}}.')
        role = self.role(data.get("role") or "org:member")
        defaults: Object = {
            "object": "organization_invitation",
            "id": f"orginv_{_random_id()}",
            "role": role["key"],
            "role_name": role["name"],
            "status": {"accepted": "accepted", "revoked": "revoked"}.get(what, "pending"),
            "public_metadata": {},
            "private_metadata": {},
            "url": None,
            "expires_at": now() + 30 * DAY_MS,
        }
        return defaults | _times({}) | data

    def _fill_in_role(self, data: Object) -> Object:
        known = self.roles.get(data.get("id", "")) or self._role_with(data.get("key", "")) or {}
        key = data.get("key") or known.get("key")
        if not key:
            raise IncompleteData("key", 'A role needs {"key": "org:…"}.')
        whole = known or new_role(key)
        return whole | _times(whole) | data

    def _public_user_data(self, user_id: str) -> Object:
        user = self.users.get(user_id) or _new_user(user_id)
        addresses = {each.get("id"): each.get("email_address") for each in user["email_addresses"]}
        return {
            "user_id": user_id,
            "first_name": user["first_name"],
            "last_name": user["last_name"],
            "profile_image_url": user["image_url"],
            "image_url": user["image_url"],
            "has_image": user["has_image"],
            "identifier": addresses.get(user["primary_email_address_id"]),
            "banned": user["banned"],
            "deprovisioned": user.get("deprovisioned", False),
        }

    def _make_deletion(self, kind: str, data: Object) -> Object:
        if not data.get("id"):
            raise IncompleteData("id", f'The deletion of a {kind} needs {{"id": …}}.')
        slug = {"slug": self.organizations[data["id"]]["slug"]} if data["id"] in self.organizations else {}
        return {"object": kind, "deleted": True} | slug | data

    def _membership_of(self, user_id: str, organization_id: str) -> Object | None:
        pairs = self.memberships_of(user_id)
        return next((each for each in pairs if each["organization"]["id"] == organization_id), None)

    def _store(self) -> None:
        if self._file is None:
            return
        content = {name: value for name, value in vars(self).items() if name != "_file"}
        unfinished = self._file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(content, indent=1))
        unfinished.replace(self._file)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _times(known: Object) -> Object:
    """The times of creation and of the change; a change is always later than the previous one."""
    at = max(now(), known.get("updated_at", 0) + 1)
    return {"created_at": known.get("created_at", at), "updated_at": at}


def _names(objects: dict[str, Object]) -> str:
    shown = ", ".join(sorted(objects)[:10])
    return f"{shown}, …" if len(objects) > 10 else shown or "none (run `ballast seed`)"


def _address(membership: Object) -> str:
    """The member's e-mail address, to compare with invitations; the user id if there is no address."""
    public = membership["public_user_data"]
    return str(public["identifier"] or public["user_id"]).lower()


def _random_id() -> str:
    return "2" + secrets.token_hex(13)


def _title(identifier: str, prefix: str) -> str:
    return identifier.removeprefix(prefix).replace("_", " ").title()


def _new_address() -> Object:
    """An e-mail address that the person has verified, without the address."""
    return {
        "object": "email_address",
        "linked_to": [],
        "reserved": False,
        "verification": {"status": "verified", "strategy": "email_code", "attempts": 1, "expire_at": None},
    }


def _new_user(user_id: str) -> Object:
    """A user with one verified address at example.com, named after the id: user_ada is Ada."""
    name = user_id.removeprefix("user_")
    address_id = f"idn_{name}"
    return {
        "object": "user",
        "id": user_id,
        "external_id": None,
        "primary_email_address_id": address_id,
        "primary_phone_number_id": None,
        "primary_web3_wallet_id": None,
        "username": None,
        "first_name": _title(user_id, "user_"),
        "last_name": None,
        "profile_image_url": f"https://img.clerk.com/{name}",
        "image_url": f"https://img.clerk.com/{name}",
        "has_image": False,
        "public_metadata": {},
        "private_metadata": {},
        "unsafe_metadata": {},
        "email_addresses": [_new_address() | {"id": address_id, "email_address": f"{name}@example.com"}],
        "phone_numbers": [],
        "web3_wallets": [],
        "passkeys": [],
        "external_accounts": [],
        "saml_accounts": [],
        "enterprise_accounts": [],
        "password_enabled": True,
        "two_factor_enabled": True,
        "totp_enabled": True,
        "backup_code_enabled": False,
        "mfa_enabled_at": None,
        "mfa_disabled_at": None,
        "last_sign_in_at": None,
        "last_active_at": None,
        "banned": False,
        "deprovisioned": False,
        "locked": False,
        "lockout_expires_in_seconds": None,
        "verification_attempts_remaining": 100,
        "delete_self_enabled": True,
        "create_organization_enabled": True,
        "create_organizations_limit": None,
        "legal_accepted_at": None,
    }


def _new_organization(organization_id: str) -> Object:
    """An organization named after its id: org_acme is Acme. It has no creator until an event names one."""
    name = organization_id.removeprefix("org_")
    return {
        "object": "organization",
        "id": organization_id,
        "name": _title(organization_id, "org_"),
        "slug": name.replace("_", "-").lower(),
        "image_url": f"https://img.clerk.com/{name}",
        "has_image": False,
        "max_allowed_memberships": 5,
        "admin_delete_enabled": True,
        "public_metadata": {},
        "private_metadata": {},
        "created_by": None,
    }
