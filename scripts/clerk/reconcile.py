"""`ballast clerk reconcile`: reports the differences between Clerk and the database; with --fix, repairs them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from scripts.clerk.backfill import OnProgress, prefetch, retry_on_conflict
from scripts.clerk.listing import (
    KINDS,
    MEMBERSHIPS,
    ORGANIZATIONS,
    SUBSCRIPTIONS,
    USERS,
    BillingRefused,
    ClerkListing,
    Incomplete,
    Kind,
    ListIncomplete,
    Object,
    Page,
)
from scripts.clerk.mirror import MirroredObject, list_pages, name_unlisted, read_mirror
from scripts.errors import Failure
from scripts.schema.database import Connection

ACTOR = "reconcile"
DIFFERENCES = ("missing", "stale", "wrong role", "orphaned")
# More deletions than both of these are probably a mistake, such as the key of another instance.
SUSPICIOUS_COUNT = 10
SUSPICIOUS_SHARE = 0.05
# The webhook of a recent change may still be under way: a sample leaves such objects out.
SETTLING_TIME = timedelta(minutes=5)


class ClerkEmpty(Failure):
    """Clerk has no users, but the database has: the key is probably wrong."""


@dataclass
class Difference:
    """An object that differs in `columns`. `note` is the reason if --fix did not fix it."""

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
    """The number compared per kind, the differences, and the kinds that Clerk did not list completely.

    `skipped` has the reason for each kind that was not compared, because Clerk refused to list it.
    """

    compared: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    incomplete: list[Incomplete] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def remaining(self) -> int:
        return sum(not each.fixed for each in self.differences)


@dataclass(frozen=True)
class Comparison:
    """Compares Clerk with a database. With `fix`, repairs the differences; `delete_many` permits many deletions.

    Its methods raise what ClerkListing raises.
    """

    connection: Connection
    listing: ClerkListing
    fix: bool = False
    delete_many: bool = False

    def compare_all(self, on_progress: OnProgress = lambda *_: None) -> Report:
        """Compares every object, parents first. Raises ClerkEmpty."""
        report = Report()
        for kind in KINDS:
            # Read before Clerk is asked: Clerk has had all these objects, so that an unlisted one was deleted there.
            here = read_mirror(self.connection, kind)
            total, pages = list_pages(self.connection, self.listing, kind)
            on_progress(kind, 0, total)
            listed: set[object] = set()
            ids: set[str] = set()
            try:
                for page in prefetch(pages):
                    ids.update(each["id"] for each in page.objects)
                    current = filter(kind.is_current, page.objects)
                    new_objects = [each for each in current if _mirror_key(kind, each) not in listed]
                    listed.update(_mirror_key(kind, each) for each in new_objects)
                    report.differences += self._compare_page(kind, page._replace(objects=new_objects))
                    on_progress(kind, len(listed), None)
            except ListIncomplete as error:
                report.incomplete.append(name_unlisted(self.connection, self.listing, kind, ids, error.report))
            except BillingRefused as error:
                report.skipped[kind.name] = str(error)
                continue
            if kind is USERS and here and not listed:
                raise ClerkEmpty(
                    "Clerk has no users, but the database has: check that CLERK_SECRET_KEY is of the right instance."
                )
            report.compared[kind.name] = len(listed)
            report.differences += self._resolve_unlisted(kind, here, listed)
        return report

    def compare_sample(self, size: int) -> Report:
        """Compares up to `size` objects of each kind from a random offset on, and as many of ours. Removes none."""
        report = Report()
        for kind in KINDS:
            here = read_mirror(self.connection, kind)
            try:
                page = self._fetch_sample(kind, size)
            except BillingRefused as error:
                report.skipped[kind.name] = str(error)
                continue
            page = page._replace(objects=[each for each in page.objects if kind.is_current(each)])
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

    def _fetch_sample(self, kind: Kind, size: int) -> Page:
        """Returns a page from a random offset on; of subscriptions, those of random organizations.

        Raises BillingRefused.
        """
        if kind is not SUBSCRIPTIONS:
            offset = random.randint(0, max(0, self.listing.count(kind) - size))  # noqa: S311 - no secret
            return self.listing.fetch_page(kind, offset, size)
        organizations = [each.organization or "" for each in read_mirror(self.connection, ORGANIZATIONS)]
        asked = random.sample(organizations, min(size, len(organizations)))
        return next(self.listing.list_subscriptions(asked), Page([], datetime.now(UTC)))

    def _compare_page(self, kind: Kind, page: Page) -> list[Difference]:
        """Returns the differences between a page and the database; repairs them if `fix` is set."""
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
        """Handles the objects that are here but were not listed. Fetches each one again, and compares it if it exists.

        If they are suspiciously many, reports them without fetching or removing any, unless `delete_many` is set.
        """
        unlisted = [each for each in here if each.key not in listed]
        if unlisted and not self.delete_many and is_suspicious(len(unlisted), len(here), len(listed)):
            numbers = f"{len(unlisted):,} of {len(here):,} are not in Clerk"
            note = f"{numbers}: check CLERK_SECRET_KEY; if it is right, --fix --yes-delete-many removes them"
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
        """Fetches one object. An invitation that is no longer pending counts as deleted."""
        page = self.listing.find(kind, each.clerk_id, each.organization or "", each.person or "")
        return page if all(map(kind.is_current, page.objects)) else Page([], page.asked_at)

    def _remove(self, kind: Kind, each: MirroredObject, asked_at: datetime, difference: Difference) -> None:
        values = [kind.name, each.clerk_id, each.organization, each.person, asked_at, ACTOR]
        removed, difference.note = self._try_statement("select app.delete_clerk_object(%s, %s, %s, %s, %s, %s)", values)
        difference.fixed = removed or each not in read_mirror(self.connection, kind)
        if not difference.fixed and not difference.note:
            difference.note = "Clerk has sent an event about it since the comparison: run this again"

    def _try_statement(self, statement: str, values: list[Any]) -> tuple[Any, str | None]:
        """Returns a statement's value, or the reason why the database refused it, without personal data."""
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


def is_suspicious(unlisted: int, here: int, listed: int) -> bool:
    """Whether the deletions are so many that they look like a mistake.

    Examples: all 3 of 3 objects; 11 of 100, more than SUSPICIOUS_COUNT and 5 %. Not suspicious: 10 of 100; 11 of 300.
    """
    return listed == 0 or unlisted == here or (unlisted > SUSPICIOUS_COUNT and unlisted > SUSPICIOUS_SHARE * here)


def _without_recent_changes(page: Page) -> Page:
    """Returns the page without objects that changed within SETTLING_TIME."""
    since = (datetime.now(UTC) - SETTLING_TIME).timestamp() * 1000
    moments = ((each, each.get("updated_at")) for each in page.objects)
    return page._replace(objects=[each for each, moment in moments if not isinstance(moment, int) or moment <= since])


def _mirror_key(kind: Kind, listed: Object) -> object:
    return _membership_pair(kind, listed) if kind is MEMBERSHIPS else listed["id"]


def _membership_pair(kind: Kind, listed: Object) -> tuple[str | None, str | None]:
    """Returns the organization and the person of a membership; (None, None) for another kind."""
    if kind is not MEMBERSHIPS:
        return None, None
    return (listed.get("organization") or {}).get("id"), (listed.get("public_user_data") or {}).get("user_id")


def _make_orphan(kind: Kind, each: MirroredObject, note: str | None = None) -> Difference:
    pair = (each.organization, each.person) if kind is MEMBERSHIPS else (None, None)
    return Difference(kind.name, each.clerk_id, "orphaned", [], *pair, note=note)
