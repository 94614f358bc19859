"""A small Clerk in memory. Operations change its objects and make the events that Clerk would send.

It shares no code with our SQL, so tests compare the sync's rows with its `visible()`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests import events
from tests.events import SECOND, START, Json

Row = tuple[Any, ...]
Rows = dict[str, list[Row]]

PREFIX = "~"  # in all ids and addresses; a delivery replaces it, so that histories do not share objects
ROLES = ("org:admin", "org:member", "org:billing_manager")  # the last one is a custom role, which has no mapping
PLANS = ("pro", "enterprise", "made_to_measure")  # the last one has no mapping either
OUR_ROLE = {"org:admin": "admin", "org:member": "member"}
TEXTUAL: dict[int, Callable[[int], str]] = {
    2: str,
    3: lambda milliseconds: datetime.fromtimestamp(milliseconds / SECOND, UTC).isoformat(timespec="milliseconds"),
}
UNUSABLE = {4: None, 5: "yesterday", 6: 1, 7: 4_000_000_000_000}  # 4,000,000,000,000 is in the year 2096
OUR_STATUS = {"active": "active", "past_due": "past_due", "ended": "cancelled"}


@dataclass(frozen=True)
class Message:
    number: int
    event: Json

    def __str__(self) -> str:
        data = self.event["data"]
        names = ("organization_id", "role", "status", "name", "first_name", "banned", "deprovisioned", "created_by", "updated_at")  # fmt: skip
        details = {name: data[name] for name in names if data.get(name)}
        if "public_user_data" in data:
            details |= {"organization": data["organization"]["id"], "user": data["public_user_data"]["user_id"]}
        return f"{self.number}: {self.event.get('timestamp')} {self.event['type']} {data['id']} {details}"


@dataclass(frozen=True)
class Session:
    """The claims of a token. A browser may start a session with it at any time."""

    claims: Json

    def __str__(self) -> str:
        return f"start_session {self.claims}"


@dataclass(frozen=True)
class Transfer:
    """An administrator of ours transfers an ownership, after the first `after` messages. Clerk gets no notice of it."""

    after: int
    organization: str
    user: str

    def __str__(self) -> str:
        return f"transfer {self.organization} to {self.user} after {self.after} messages"


@dataclass
class Clerk:
    """Each operation takes two numbers: the first selects an object, the second selects the change.

    `forms` selects how each event in turn writes its times, and whether a deletion has more than the id: see send().
    From 8 on, an event lacks created_at if an earlier event of the object had it.
    """

    coarse: bool = False  # event times are in seconds, as in Clerk's published examples, so that many are equal
    sketchy: bool = False  # memberships contain only partial copies of their organizations
    forms: tuple[int, ...] = (0,)
    now: int = START
    sent_at: int = START
    ids: int = 0
    messages: list[Message] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)  # by organization, of those that were transferred
    users: dict[str, Json] = field(default_factory=dict)
    organizations: dict[str, Json] = field(default_factory=dict)
    memberships: dict[str, Json] = field(default_factory=dict)
    invitations: dict[str, Json] = field(default_factory=dict)
    subscriptions: dict[str, Json] = field(default_factory=dict)  # by organization
    items: dict[str, Json] = field(default_factory=dict)  # the item in force, by organization
    dated: set[str] = field(default_factory=set)  # the objects whose created_at was sent
    everyone: list[str] = field(default_factory=list)
    everywhere: list[str] = field(default_factory=list)
    addresses: dict[str, set[str]] = field(default_factory=dict)  # all that a person ever had, by person
    deletions: dict[str, float] = field(default_factory=dict)  # by person; infinite without a usable time

    def send(self, kind: str, data: Json) -> None:
        """Each message has a later time than the previous one, even if the object's updated_at is the same.

        Only an end that is final may lack all times. An update lacks one of its two times if the other one gives the
        same, so that the newest state remains known.
        """
        self.sent_at = max(self.now, self.sent_at + 1)
        sent_at = self.sent_at // SECOND if self.coarse else self.sent_at
        is_partial, form = divmod(self.forms[len(self.messages) % len(self.forms)], 8)
        subject, action = kind.split(".")
        is_final = action in {"deleted", "accepted", "revoked", "ended"}
        if action == "deleted" and (subject in {"user", "organization"} or form % 2):
            event = events.deletion_event(subject, data["id"], sent_at)
        else:
            event = events.event(kind, dict(data), sent_at)
        if kind in {"subscriptionItem.ended", "subscriptionItem.canceled"} and form % 2:
            del event["data"]["payer"]
        if is_partial and data["id"] in self.dated:
            event["data"].pop("created_at", None)
        elif "created_at" in event["data"]:
            self.dated.add(data["id"])
        is_dated = True
        if form in TEXTUAL:
            event["timestamp"] = TEXTUAL[form](self.sent_at)
        elif form in UNUSABLE and is_final:
            event |= {"timestamp": UNUSABLE[form]}
            event["data"] |= {"updated_at": UNUSABLE[form]}
            is_dated = False
        elif form in UNUSABLE and not self.coarse and data.get("updated_at") == sent_at:
            without = event if form % 2 else event["data"]
            without |= {"timestamp" if form % 2 else "updated_at": UNUSABLE[form]}
        self.messages.append(Message(len(self.messages), json.loads(json.dumps(event))))
        if subject == "user":
            self.addresses.setdefault(data["id"], set()).update(verified_addresses(data))
        if kind == "user.deleted":
            self.deletions[data["id"]] = self.sent_at if is_dated else math.inf

    def new_id(self, kind: str) -> str:
        self.ids += 1
        return f"{kind}_{PREFIX}{self.ids}"

    # People

    def sign_up(self, a: int, b: int) -> None:
        person = events.user(self.new_id("user"), self.now, address(a) if b % 3 else None, created_at=self.now)
        person["email_addresses"][0]["email_address"] = address("first")
        self.users[person["id"]] = person
        self.everyone.append(person["id"])
        self.send("user.created", person)

    def change_user(self, a: int, b: int) -> None:
        if person := choose(self.users, a):
            changes: tuple[Json, ...] = (
                {"first_name": f"Name {b}"},
                {"first_name": None, "last_name": None},
                {"banned": not person["banned"]}
                if a % 2
                else {"deprovisioned": not person.get("deprovisioned", False)},
                {"last_sign_in_at": self.now},
                {"primary_email_address_id": "idn_other" if b > 5 else None},
                {"image_url": f"https://img.clerk.com/{b}"},
            )
            person |= changes[b % 6] | {"updated_at": self.now}
            self.send("user.updated", person)

    def change_address(self, a: int, b: int) -> None:
        """Adds an address or replaces all. It may be primary, verified or neither, and others may have it, too."""
        if person := choose(self.users, a):
            status = "unverified" if b % 4 == 0 else "verified"
            new = events.email_address(self.new_id("idn"), address(b % 3), status)
            if a % 3 == 0:
                person |= {"email_addresses": [], "primary_email_address_id": None}
            person["email_addresses"] = [*person["email_addresses"], new]
            person |= ({"primary_email_address_id": new["id"]} if b % 2 else {}) | {"updated_at": self.now}
            self.send("user.updated", person)

    def delete_user(self, a: int, b: int) -> None:
        if person := choose(self.users, a):
            self.end_memberships("user", person["id"], with_events=b % 2 == 0)
            del self.users[person["id"]]
            self.send("user.deleted", person)

    def start_session(self, a: int, b: int) -> None:
        """Issues a token now. The delivery determines when a browser uses it."""
        if person := choose(self.users, a):
            claims = {"sub": person["id"], "iat": self.now // SECOND, "v": 2}
            mine = {key: known for key, known in self.memberships.items() if known["user"] == person["id"]}
            if known := choose(mine, b):
                claims["o"] = {"id": known["org"], "rol": known["role"].removeprefix("org:"), "slg": "acme"}
            self.sessions.append(Session(claims))

    # Organizations and members

    def found_organization(self, a: int, b: int) -> None:
        if person := choose(self.users, a):
            org = events.organization(self.new_id("org"), self.now, person["id"], name=f"Org {b}", created_at=self.now)
            self.organizations[org["id"]] = org
            self.everywhere.append(org["id"])
            self.send("organization.created", org)
            self.join(org, person, "org:admin")

    def change_organization(self, a: int, b: int) -> None:
        if org := choose(self.organizations, a):
            changes: tuple[Json, ...] = (
                {"name": f"Renamed {b}"},
                {"slug": None},
                {"max_allowed_memberships": b},
                {"members_count": b},
            )
            org |= changes[b % 4] | {"updated_at": self.now}
            self.send("organization.updated", org)

    def delete_organization(self, a: int, b: int) -> None:
        if org := choose(self.organizations, a):
            self.end_memberships("org", org["id"], with_events=b % 2 == 0)
            del self.organizations[org["id"]]
            self.send("organization.deleted", org)

    def join(self, org: Json, person: Json, role: str) -> None:
        known = {"id": self.new_id("orgmem"), "org": org["id"], "user": person["id"], "role": role}
        known |= {"created_at": self.now, "updated_at": self.now}
        self.memberships[known["id"]] = known
        org["members_count"] += 1
        self.send_membership("created", known)

    def send_membership(self, action: str, known: Json) -> None:
        copy = self.organizations[known["org"]] | ({"created_by": None, "updated_at": None} if self.sketchy else {})
        data = events.membership(
            known["id"], copy, self.users[known["user"]], known["role"],
            known["updated_at"], created_at=known["created_at"],
        )  # fmt: skip
        self.send(f"organizationMembership.{action}", data)

    def belongs(self, person: Json, org: Json) -> bool:
        return any((known["org"], known["user"]) == (org["id"], person["id"]) for known in self.memberships.values())

    def add_member(self, a: int, b: int) -> None:
        org, person = choose(self.organizations, a), choose(self.users, b)
        if org and person and not self.belongs(person, org):
            self.join(org, person, ROLES[(a + b) % 3])

    def change_role(self, a: int, b: int) -> None:
        if known := choose(self.memberships, a):
            known |= {"role": ROLES[b % 3], "updated_at": self.now}
            self.send_membership("updated", known)

    def leave(self, known: Json) -> None:
        self.send_membership("deleted", known)
        del self.memberships[known["id"]]

    def remove_member(self, a: int, _b: int) -> None:
        if known := choose(self.memberships, a):
            self.leave(known)

    def rejoin(self, a: int, b: int) -> None:
        if known := choose(self.memberships, a):
            self.leave(known)
            self.join(self.organizations[known["org"]], self.users[known["user"]], ROLES[b % 3])

    def end_memberships(self, side: str, clerk_id: str, *, with_events: bool) -> None:
        """Clerk does not document whether it sends these events when it deletes a person or an organization."""
        for known in [known for known in self.memberships.values() if known[side] == clerk_id]:
            if with_events:
                self.leave(known)
            else:
                del self.memberships[known["id"]]

    def invite(self, a: int, b: int) -> None:
        self.invite_address(a, b, address(b))

    def invite_person(self, a: int, b: int) -> None:
        """Invites a current or former address of a current or deleted person."""
        if known := sorted({(person, email) for person, emails in self.addresses.items() for email in emails}):
            email = known[b % len(known)][1]
            self.invite_address(a, b, email.title() if a % 3 == 0 else email)

    def invite_address(self, a: int, b: int, email: str) -> None:
        if org := choose(self.organizations, a):
            sent = events.invitation(
                self.new_id("orginv"), org["id"], "pending", self.now, created_at=self.now,
                role=ROLES[b % 3], email_address=email, expires_at=self.now + SECOND if b % 4 else None,
            )  # fmt: skip
            self.invitations[sent["id"]] = sent
            self.send("organizationInvitation.created", sent)

    def waiting(self) -> dict[str, Json]:
        return {key: sent for key, sent in self.invitations.items() if sent["organization_id"] in self.organizations}

    def predates_erasure(self, sent: Json) -> bool:
        """Whether a person who ever had its address was deleted after its creation. Current owners do not matter."""
        return any(
            sent["email_address"].lower() in self.addresses[person] and sent["created_at"] <= deleted_at
            for person, deleted_at in self.deletions.items()
        )

    def revoke_invitation(self, a: int, _b: int) -> None:
        if sent := choose(self.waiting(), a):
            self.send("organizationInvitation.revoked", sent | {"status": "revoked", "updated_at": self.now})
            del self.invitations[sent["id"]]

    def accept_invitation(self, a: int, b: int) -> None:
        sent, person = choose(self.waiting(), a), choose(self.users, b)
        if sent and person and not self.belongs(person, self.organizations[sent["organization_id"]]):
            answer = {"status": "accepted", "user_id": person["id"], "updated_at": self.now}
            self.send("organizationInvitation.accepted", sent | answer)
            del self.invitations[sent["id"]]
            self.join(self.organizations[sent["organization_id"]], person, sent["role"])

    # Billing: one subscription per organization, one item in force

    def subscribe(self, a: int, b: int) -> None:
        """Starts a plan, or changes it: the item in force ends and a new one begins."""
        if org := choose(self.organizations, a):
            payer = org["id"]
            first = payer not in self.subscriptions
            if first:
                self.subscriptions[payer] = events.subscription(self.new_id("csub"), events.payer(payer))
            self.change_item(payer, "ended")
            new = events.subscription_item(self.new_id("csub_item"), PLANS[b % 3], created_at=self.now)
            self.items[payer] = new | {"payer": events.payer(payer)}
            self.change_item(payer, "active")
            self.change_subscription(payer, "created" if first else "updated", "active")

    def miss_payment(self, a: int, _b: int) -> None:
        if payer := choose_payer(self.items, a):
            self.change_item(payer, "past_due")
            self.change_subscription(payer, "pastDue", "past_due")

    def pay(self, a: int, _b: int) -> None:
        if payer := choose_payer(self.items, a):
            self.change_item(payer, "active")
            self.change_subscription(payer, "active", "active")

    def unsubscribe(self, a: int, b: int) -> None:
        """A cancelled item stays in force until its period ends, which may be at once."""
        if payer := choose_payer(self.items, a):
            self.change_item(payer, "canceled")
            if b % 2:
                self.change_item(payer, "ended")
                self.change_subscription(payer, "updated", "ended")

    def change_item(self, payer: str, status: str) -> None:
        if item := self.items.get(payer):
            item |= {"status": status, "updated_at": self.now}
            self.send(f"subscriptionItem.{status.replace('past_due', 'pastDue')}", item)
            if status == "ended":
                del self.items[payer]

    def change_subscription(self, payer: str, action: str, status: str) -> None:
        items = [self.items[payer]] if payer in self.items else []
        self.subscriptions[payer] |= {"status": status, "updated_at": self.now, "items": items}
        self.send(f"subscription.{action}", self.subscriptions[payer])

    def transfer(self, a: int, _b: int) -> None:
        """Only an admin can become the owner. With coarse times, the rows may not show yet who is one."""
        admins = [known for known in self.memberships.values() if known["role"] == "org:admin"]
        if admins and not self.coarse:
            known = admins[a % len(admins)]
            self.owners[known["org"]] = known["user"]
            self.transfers.append(Transfer(len(self.messages), known["org"], known["user"]))

    # The expected rows

    def visible(self) -> Rows:
        return {
            "profiles": in_order(expected_user(person) for person in self.users.values()),
            "organizations": in_order(self.expected_organization(org) for org in self.organizations.values()),
            "memberships": in_order(self.expected_membership(known) for known in self.memberships.values()),
            "invitations": in_order(
                expected_invitation(sent) for sent in self.waiting().values() if not self.predates_erasure(sent)
            ),
        }

    def expected_organization(self, org: Json) -> Row:
        plan = self.items[org["id"]]["plan"]["slug"] if org["id"] in self.items else None
        return (
            org["id"], org["name"], org["slug"], org["max_allowed_memberships"] or None, at(org["created_at"]),
            plan if plan in {"pro", "enterprise"} else "free",
            OUR_STATUS[self.subscriptions[org["id"]]["status"]] if org["id"] in self.subscriptions else "active",
        )  # fmt: skip

    def expected_membership(self, known: Json) -> Row:
        owner = self.owners.get(known["org"], self.organizations[known["org"]]["created_by"])
        is_owner = owner == known["user"] and known["role"] == "org:admin"
        role = "owner" if is_owner else OUR_ROLE.get(known["role"], "viewer")
        return (known["id"], known["org"], known["user"], role, known["role"], at(known["created_at"]))


def expected_user(person: Json) -> Row:
    addresses = {entry["id"]: entry["email_address"] for entry in person["email_addresses"] if is_verified(entry)}
    return (
        person["id"], addresses.get(person["primary_email_address_id"]),
        " ".join(filter(None, (person["first_name"], person["last_name"]))) or None,
        person["image_url"], person["banned"] or person.get("deprovisioned", False), at(person["created_at"]),
    )  # fmt: skip


def address(name: object) -> str:
    return f"{PREFIX}{name}@example.com"


def is_verified(entry: Json) -> bool:
    return entry["verification"] is not None and entry["verification"]["status"] == "verified"


def verified_addresses(person: Json) -> set[str]:
    return {entry["email_address"].lower() for entry in person["email_addresses"] if is_verified(entry)}


def expected_invitation(sent: Json) -> Row:
    return (
        sent["id"], sent["organization_id"], sent["email_address"], OUR_ROLE.get(sent["role"], "viewer"), sent["role"],
        at(sent["expires_at"]), at(sent["created_at"]),
    )  # fmt: skip


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Sorts by text, because columns may be null."""
    return sorted(rows, key=str)


def at(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / SECOND, UTC)


def choose(things: dict[str, Json], number: int) -> Json | None:
    return list(things.values())[number % len(things)] if things else None


def choose_payer(items: dict[str, Json], number: int) -> str | None:
    return list(items)[number % len(items)] if items else None
