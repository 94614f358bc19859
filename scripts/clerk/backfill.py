"""`ballast clerk backfill`: everything that Clerk has, merged as if its webhooks had told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from scripts.clerk.listing import KINDS, LIST_START, ClerkListing, Kind, ListIncomplete, Object, Page, Position
from scripts.errors import Failure
from scripts.schema import database
from scripts.schema.database import Connection

ACTOR = "backfill"
# A webhook about one of them waits until all are merged, and each holds up to four locks of the few thousand there are.
MERGE_BATCH = 250
MAX_TRIES = 5
# Classes of errors that pass: a deadlock, no memory, a lock not got in time, a shutdown.
TRANSIENT_CLASSES = ("40", "53", "55", "57")


class OtherInstance(Failure):
    """The key is of an instance of Clerk's other than the one that the database belongs to."""


@dataclass(frozen=True)
class RefusedObject:
    """An object that could not be merged. `error` holds no personal data."""

    clerk_id: str
    error: str


@dataclass
class KindReport:
    """What became of a kind: how many objects Clerk listed, how many were news, which ones the database refused.

    The first `resumed_at` of those listed were merged by a run that was interrupted, and counted here only as listed.
    `incomplete` says so if Clerk counts more than it lists.
    """

    kind: str
    listed: int = 0
    resumed_at: int = 0
    changed: int = 0
    refused: list[RefusedObject] = field(default_factory=list)
    incomplete: str | None = None


OnProgress = Callable[[Kind, int, int | None], None]


def require_same_instance(connection: Connection, listing: ClerkListing) -> None:
    """Raises OtherInstance when the database belongs to another Clerk instance than the key."""
    row = connection.execute("select clerk_instance_id from app.settings").fetchone()
    pinned = row[0] if row else None
    asked = listing.instance_id() if pinned else None
    if pinned != asked:
        raise OtherInstance(
            f"The database belongs to Clerk's instance {pinned} (app.settings), the key to {asked}: "
            "use the key of that instance."
        )


@dataclass(frozen=True)
class Checkpoints:
    """How far a run came in the lists of an instance of Clerk's: what stays when it is interrupted."""

    connection: Connection
    instance_id: str | None

    def load(self, kind: Kind) -> Position:
        """Where to go on: the beginning, too, when what is known is of another instance or older than a day."""
        row = self.connection.execute(
            "select next_offset, last_created_ms from app.clerk_backfills "
            "where kind = %s and instance_id = %s and updated_at > now() - interval '1 day'",
            [kind.name, self.instance_id],
        ).fetchone()
        return Position(*row) if row else LIST_START

    def save(self, kind: Kind, position: Position) -> None:
        """All of the list up to there is merged. Raises psycopg.Error."""
        statement = """
            insert into app.clerk_backfills (kind, instance_id, next_offset, last_created_ms) values (%s, %s, %s, %s)
            on conflict (kind) do update set instance_id = excluded.instance_id, next_offset = excluded.next_offset,
              last_created_ms = excluded.last_created_ms, updated_at = excluded.updated_at
            returning kind"""
        retry_on_conflict(self.connection, statement, [kind.name, self.instance_id, *position])

    def clear(self) -> None:
        self.connection.execute("delete from app.clerk_backfills")


def backfill(
    connection: Connection, listing: ClerkListing, on_progress: OnProgress = lambda *_: None, *, restart: bool = False
) -> list[KindReport]:
    """Merges all that Clerk lists, a page while the next one is fetched. Raises what ClerkListing raises.

    Unless told to `restart`, without what a run merged that was interrupted.
    """
    checkpoints = Checkpoints(connection, listing.instance_id())
    if restart:
        checkpoints.clear()
    report = [_backfill_kind(checkpoints, listing, kind, on_progress) for kind in KINDS]
    checkpoints.clear()
    return report


def _backfill_kind(checkpoints: Checkpoints, listing: ClerkListing, kind: Kind, on_progress: OnProgress) -> KindReport:
    report = KindReport(kind.name)
    total = listing.count(kind)
    on_progress(kind, 0, total)
    known: set[str] = set()
    try:
        for page in prefetch(listing.pages(kind, checkpoints.load(kind))):
            if page.offset and not known:
                database.echo_err(f"Going on with {kind.plural} at {page.offset:,} of {total:,}.")
            report.resumed_at = min(report.resumed_at, page.offset) if known else page.offset
            merge_page(checkpoints.connection, kind, page, report)
            # Not past one that was refused: the next run tries it again, and names it.
            if page.objects and page.is_gapless and not report.refused:
                checkpoints.save(kind, page.end)
            known.update(each["id"] for each in page.objects)
            report.listed = report.resumed_at + len(known)
            on_progress(kind, report.listed, None)
    except ListIncomplete as error:
        report.incomplete = str(error)
    return report


def merge_page(connection: Connection, kind: Kind, page: Page, report: KindReport) -> None:
    """Merges a page in a few transactions, and adds to `report` what came of it."""
    for first in range(0, len(page.objects), MERGE_BATCH):
        _merge_batch(connection, kind, page.objects[first : first + MERGE_BATCH], page.asked_at, report)


def _merge_batch(
    connection: Connection, kind: Kind, objects: list[Object], asked_at: datetime, report: KindReport
) -> None:
    """One transaction; when the database refuses it, the halves of it, until only what it refuses is left out."""
    try:
        statement = "select app.merge_clerk_page(%s, %s, %s, %s)"
        report.changed += retry_on_conflict(connection, statement, [kind.name, Jsonb(objects), asked_at, ACTOR])
    except psycopg.Error as error:
        if connection.closed or error.sqlstate is None or error.sqlstate[:2] in TRANSIENT_CLASSES:
            raise
        if len(objects) == 1:
            report.refused.append(RefusedObject(objects[0]["id"], f"{error.sqlstate}: {error.diag.message_primary}"))
            return
        middle = len(objects) // 2
        for half in (objects[:middle], objects[middle:]):
            _merge_batch(connection, kind, half, asked_at, report)


def retry_on_conflict(connection: Connection, statement: str, values: list[Any]) -> Any:
    """The one value of a statement, tried again while what is wrong passes. Raises psycopg.Error."""
    for attempt in range(1, MAX_TRIES + 1):
        try:
            row = connection.execute(statement.encode(), values).fetchone()
        except psycopg.Error as error:
            if connection.closed or attempt == MAX_TRIES or (error.sqlstate or "")[:2] not in TRANSIENT_CLASSES:
                raise
            time.sleep(0.1 * 2**attempt)
        else:
            return row[0] if row else None
    raise AssertionError("unreachable")


def prefetch(pages: Iterable[Page]) -> Iterator[Page]:
    """The same pages; each is fetched while the caller works on the one before."""
    fetched = iter(pages)
    with ThreadPoolExecutor(1) as fetcher:
        upcoming = fetcher.submit(next, fetched, None)
        while (page := upcoming.result()) is not None:
            upcoming = fetcher.submit(next, fetched, None)
            yield page
