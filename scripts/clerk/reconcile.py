"""`ballast clerk reconcile`: what differs between Clerk and the database, and with --fix no longer does."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from scripts.clerk.backfill import OnProgress, prefetch, retry_on_conflict
from scripts.clerk.listing import (
    INVITATIONS,
    KINDS,
    MEMBERSHIPS,
    USERS,
    ClerkListing,
    Kind,
    ListIncomplete,
    Object,
    Page,
)
from scripts.errors import Failure
from scripts.schema.database import Connection

ACTOR = "reconcile"
DIFFERENCES = ("missing", "stale", "wrong role", "orphaned")
# More deletions than both of these are more likely somebody's mistake than Clerk's wish.
SUSPICIOUS_COUNT = 10
SUSPICIOUS_SHARE = 0.05
# What changed at Clerk just now may be on its way by a webhook: a sample leaves it out.
SETTLING_TIME = timedelta(minutes=5)


class ClerkEmpty(Failure):
    """Clerk knows nobody, while the database knows people: a wrong key, or worse."""


@dataclass(frozen=True)
class MirroredObject:
    """An object of Clerk's as it is shown here, by its ids. A membership that only a session token told of has none."""

    clerk_id: str | None
    organization: str | None
    person: str | None

    @property
    def key(self) -> object:
        """What Clerk's list knows it by: a membership is the pair."""
        return (self.organization, self.person) if self.organization and self.person else self.clerk_id


@dataclass
class Difference:
    """Something that differs: `columns` says where. `note` says why it was left as it is, if it was to be fixed."""

    kind: str
    clerk_id: str | None
    difference: str
    columns: list[str] = field(default_factory=list)
    organization: str | None = None
    person: str | None = None
    fixed: bool = False
    note: str | None = None


@dataclass
class Report:
    """How many of each kind were compared, what differs, and of which kinds Clerk counts more than it lists."""

    compared: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return sum(not each.fixed for each in self.differences)


@dataclass(frozen=True)
class Comparison:
    """Of Clerk and a database. With `fix` it mends what it finds; `delete_many` is for who has looked and is sure.

    Its methods raise what ClerkListing raises.
    """

    connection: Connection
    listing: ClerkListing
    fix: bool = False
    delete_many: bool = False

    def compare_all(self, on_progress: OnProgress = lambda *_: None) -> Report:
        """Parents first. Raises ClerkEmpty."""
        report = Report()
        for kind in KINDS:
            # Before Clerk is asked: what is shown by now, Clerk has had, so what is not listed is gone.
            here = read_mirror(self.connection, kind)
            on_progress(kind, 0, self.listing.count(kind))
            listed: set[object] = set()
            try:
                for page in prefetch(self.listing.pages(kind)):
                    new_objects = [each for each in page.objects if _mirror_key(kind, each) not in listed]
                    listed.update(_mirror_key(kind, each) for each in new_objects)
                    report.differences += self._compare_page(kind, page._replace(objects=new_objects))
                    on_progress(kind, len(listed), None)
            except ListIncomplete as error:
                report.incomplete.append(str(error))
            if kind is USERS and here and not listed:
                raise ClerkEmpty("Clerk knows nobody, but the database knows people: is it the right key?")
            report.compared[kind.name] = len(listed)
            report.differences += self._resolve_unlisted(kind, here, listed)
        return report

    def compare_sample(self, size: int) -> Report:
        """Up to `size` objects of each kind from a random place in Clerk's list, and as many of ours; removes none."""
        report = Report()
        for kind in KINDS:
            here = read_mirror(self.connection, kind)
            total = self.listing.count(kind)
            page = self.listing.page(kind, random.randint(0, max(0, total - size)), size)  # noqa: S311 - no secret
            listed = {_mirror_key(kind, each) for each in page.objects}
            others = [each for each in random.sample(here, min(size, len(here))) if each.key not in listed]
            report.compared[kind.name] = len(listed) + len(others)
            report.differences += self._compare_page(kind, _without_recent_changes(page))
            for each in others:
                found = self._fetch_again(kind, each)
                if found.objects:
                    report.differences += self._compare_page(kind, _without_recent_changes(found))
                else:
                    note = "run this without --sample to remove it" if self.fix else None
                    report.differences.append(_make_orphan(kind, each, note))
        return report

    def _compare_page(self, kind: Kind, page: Page) -> list[Difference]:
        """What of a page differs here, mended if that is wanted."""
        found = self._find_differences(kind, page.objects, page.asked_at)
        if not found or not self.fix:
            return [difference for difference, _ in found]
        for difference, each in found:
            values = [kind.name, Jsonb([each]), page.asked_at, ACTOR]
            difference.note = self._try_statement("select app.repair_clerk_objects(%s, %s, %s, %s)", values)[1]
        objects = [each for _, each in found]
        remaining = {difference.clerk_id for difference, _ in self._find_differences(kind, objects, page.asked_at)}
        for difference, _ in found:
            difference.fixed = difference.clerk_id not in remaining
        return [difference for difference, _ in found]

    def _resolve_unlisted(self, kind: Kind, here: list[MirroredObject], listed: set[object]) -> list[Difference]:
        """What is here and not listed. Each is asked for again; what Clerk does have after all is compared.

        When they are suspiciously many, nobody is asked and nothing removed, unless that is wanted.
        """
        unlisted = [each for each in here if each.key not in listed]
        if unlisted and not self.delete_many and is_suspicious(len(unlisted), len(here), len(listed)):
            numbers = f"{len(unlisted):,} of {len(here):,} are not in Clerk"
            note = f"{numbers}: is it the right Clerk? If so, --fix --yes-delete-many removes them"
            return [_make_orphan(kind, each, note) for each in unlisted]
        found = []
        for each in unlisted:
            page = self._fetch_again(kind, each)
            if page.objects:
                found += self._compare_page(kind, page)
            else:
                found.append(_make_orphan(kind, each))
                if self.fix:
                    self._remove(kind, each, page.asked_at, found[-1])
        return found

    def _fetch_again(self, kind: Kind, each: MirroredObject) -> Page:
        """What Clerk says of one object. An invitation that was answered is as good as none."""
        page = self.listing.find(kind, each.clerk_id, each.organization or "", each.person or "")
        if kind is INVITATIONS and any(found.get("status") != "pending" for found in page.objects):
            return Page([], page.asked_at)
        return page

    def _remove(self, kind: Kind, each: MirroredObject, asked_at: datetime, difference: Difference) -> None:
        values = [kind.name, each.clerk_id, each.organization, each.person, asked_at, ACTOR]
        removed, difference.note = self._try_statement("select app.delete_clerk_object(%s, %s, %s, %s, %s, %s)", values)
        difference.fixed = removed or each not in read_mirror(self.connection, kind)
        if not difference.fixed and not difference.note:
            difference.note = "Clerk has told of it since it was asked: run this again"

    def _try_statement(self, statement: str, values: list[Any]) -> tuple[Any, str | None]:
        """A statement's value, and why the database refused it, without personal data."""
        try:
            return retry_on_conflict(self.connection, statement, values), None
        except psycopg.Error as error:
            if self.connection.closed or error.sqlstate is None:
                raise
            return None, f"{error.sqlstate}: {error.diag.message_primary}"

    def _find_differences(
        self, kind: Kind, objects: list[Object], asked_at: datetime
    ) -> list[tuple[Difference, Object]]:
        query = "select clerk_id, difference, columns, object from app.clerk_differences(%s, %s, %s)"
        rows: list[Any] = self.connection.execute(query, [kind.name, Jsonb(objects), asked_at]).fetchall()
        return [
            (Difference(kind.name, clerk_id, difference, columns, *_membership_pair(kind, each)), each)
            for clerk_id, difference, columns, each in rows
        ]


def read_mirror(connection: Connection, kind: Kind) -> list[MirroredObject]:
    """What the database shows of a kind."""
    rows = connection.execute("select clerk_id, organization, person from app.clerk_mirror(%s)", [kind.name])
    return [MirroredObject(*row) for row in rows]


def is_suspicious(unlisted: int, here: int, listed: int) -> bool:
    """Whether so many deletions look like a mistake: of all that is here, or of more than a few and 5 %."""
    return listed == 0 or unlisted == here or (unlisted > SUSPICIOUS_COUNT and unlisted > SUSPICIOUS_SHARE * here)


def _without_recent_changes(page: Page) -> Page:
    """The page without what changed just now."""
    since = (datetime.now(UTC) - SETTLING_TIME).timestamp() * 1000
    moments = ((each, each.get("updated_at")) for each in page.objects)
    return page._replace(objects=[each for each, moment in moments if not isinstance(moment, int) or moment <= since])


def _mirror_key(kind: Kind, listed: Object) -> object:
    return _membership_pair(kind, listed) if kind is MEMBERSHIPS else listed["id"]


def _membership_pair(kind: Kind, listed: Object) -> tuple[str | None, str | None]:
    """The organization and the person of a membership."""
    if kind is not MEMBERSHIPS:
        return None, None
    return (listed.get("organization") or {}).get("id"), (listed.get("public_user_data") or {}).get("user_id")


def _make_orphan(kind: Kind, each: MirroredObject, note: str | None = None) -> Difference:
    pair = (each.organization, each.person) if kind is MEMBERSHIPS else (None, None)
    return Difference(kind.name, each.clerk_id, "orphaned", [], *pair, note=note)
