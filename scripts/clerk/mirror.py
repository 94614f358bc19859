"""The Clerk objects that the database has: what `ballast clerk` compares with Clerk's lists."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from scripts.clerk.listing import (
    LIST_START,
    MAX_LOOKUPS,
    ORGANIZATIONS,
    SUBSCRIPTIONS,
    ClerkListing,
    Incomplete,
    Kind,
    Page,
    Position,
    Reference,
)
from scripts.schema.database import Connection


@dataclass(frozen=True)
class MirroredObject:
    """The ids of an object in the database. A membership that only a session token reported has no `clerk_id`."""

    clerk_id: str | None
    organization: str | None
    person: str | None

    @property
    def key(self) -> object:
        """The object's identity in Clerk's list; for a membership, the pair of organization and person."""
        return (self.organization, self.person) if self.organization and self.person else self.clerk_id


def read_mirror(connection: Connection, kind: Kind) -> list[MirroredObject]:
    """Returns the objects of a kind that the database has."""
    rows = connection.execute("select clerk_id, organization, person from app.clerk_mirror(%s)", [kind.name])
    return [MirroredObject(*row) for row in rows]


def list_pages(
    connection: Connection, listing: ClerkListing, kind: Kind, after: Position = LIST_START
) -> tuple[int, Iterator[Page]]:
    """Returns how many objects Clerk has, and their pages. Subscriptions: how many organizations are asked about.

    Raises what ClerkListing.list_pages raises, and BillingRefused.
    """
    if kind is not SUBSCRIPTIONS:
        return listing.count(kind), listing.list_pages(kind, after)
    organizations = [each.organization for each in read_mirror(connection, ORGANIZATIONS) if each.organization]
    return len(organizations), listing.list_subscriptions(organizations)


def name_unlisted(
    connection: Connection, listing: ClerkListing, kind: Kind, listed: Collection[str], report: Incomplete
) -> Incomplete:
    """Adds the objects that the database and Clerk have, but Clerk did not list. Asks for up to MAX_LOOKUPS of them.

    Raises what ClerkListing raises.
    """
    references = [
        Reference(each.clerk_id, each.organization or "", each.person or "", 0)
        for each in read_mirror(connection, kind)
        if each.clerk_id and each.clerk_id not in listed
    ]
    report.unlisted = [each.clerk_id for each in references[:MAX_LOOKUPS] if listing.exists(kind, each)]
    return report
