"""`ballast clerk backfill`: merges every Clerk object into the database, as if its webhook had arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from scripts.clerk.listing import (
    KINDS,
    LIST_START,
    BillingRefused,
    ClerkListing,
    Incomplete,
    Kind,
    ListIncomplete,
    Object,
    Page,
    Position,
)
from scripts.clerk.mirror import list_pages, name_unlisted
from scripts.errors import Failure
from scripts.schema import database
from scripts.schema.database import Connection

ACTOR = "backfill"
# A webhook about one of these objects waits until all are merged. Each object takes up to four locks, and PostgreSQL
# has room for a few thousand.
MERGE_BATCH = 250
MAX_TRIES = 5
# Classes of transient errors: deadlock, out of memory, lock timeout, shutdown.
TRANSIENT_CLASSES = ("40", "53", "55", "57")


class OtherInstance(Failure):
    """The key belongs to another Clerk instance than the database."""


@dataclass(frozen=True)
class RefusedObject:
    """An object that could not be merged. `error` holds no personal data."""

    clerk_id: str
    error: str


@dataclass
class KindReport:
    """The result for a kind: how many objects Clerk listed, how many changed something, and which the database refused.

    An interrupted run merged the first `resumed_at` objects; they count only as listed. `incomplete` says what is
    missing if Clerk counts more objects than it lists. `skipped` is the reason if the kind could not be read.
    """

    kind: str
    listed: int = 0
    resumed_at: int = 0
    changed: int = 0
    refused: list[RefusedObject] = field(default_factory=list)
    incomplete: Incomplete | None = None
    skipped: str | None = None


OnProgress = Callable[[Kind, int, int | None], None]


def require_same_instance(connection: Connection, listing: ClerkListing) -> None:
    """Raises OtherInstance if the database belongs to another Clerk instance than the key."""
    row = connection.execute("select clerk_instance_id from app.settings").fetchone()
    pinned = row[0] if row else None
    asked = listing.fetch_instance_id() if pinned else None
    if pinned != asked:
        raise OtherInstance(
            f"The database belongs to the Clerk instance {pinned} (app.settings), but CLERK_SECRET_KEY belongs to "
            f"{asked}: use the key of {pinned}."
        )


@dataclass(frozen=True)
class Checkpoints:
    """Stored positions in the lists of a Clerk instance, from which an interrupted run resumes."""

    connection: Connection
    instance_id: str | None

    def load(self, kind: Kind) -> Position:
        """Returns the position to resume at: the start if the stored one is of another instance or older than a day."""
        row = self.connection.execute(
            "select next_offset, last_created_ms from app.clerk_backfills "
            "where kind = %s and instance_id = %s and updated_at > now() - interval '1 day'",
            [kind.name, self.instance_id],
        ).fetchone()
        return Position(*row) if row else LIST_START

    def save(self, kind: Kind, position: Position) -> None:
        """Records that the list is merged up to this position. Raises psycopg.Error."""
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
    """Merges every object that Clerk lists; each page is merged while the next one is fetched.

    Resumes an interrupted run, unless `restart` is set. Raises what ClerkListing raises.
    """
    checkpoints = Checkpoints(connection, listing.fetch_instance_id())
    if restart:
        checkpoints.clear()
    report = [_backfill_kind(checkpoints, listing, kind, on_progress) for kind in KINDS]
    checkpoints.clear()
    return report


def _backfill_kind(checkpoints: Checkpoints, listing: ClerkListing, kind: Kind, on_progress: OnProgress) -> KindReport:
    report = KindReport(kind.name)
    total, pages = list_pages(checkpoints.connection, listing, kind, checkpoints.load(kind))
    on_progress(kind, 0, total)
    known: set[str] = set()
    try:
        for page in prefetch(pages):
            if page.offset and not known:
                database.echo_err(f"Resuming {kind.plural} at {page.offset:,} of {total:,}.")
            report.resumed_at = min(report.resumed_at, page.offset) if known else page.offset
            merge_page(checkpoints.connection, kind, page, report)
            # Never past a refused object: the next run retries it, and reports it again.
            if page.objects and page.is_gapless and not report.refused:
                checkpoints.save(kind, page.end)
            known.update(each["id"] for each in page.objects)
            report.listed = report.resumed_at + len(known)
            on_progress(kind, report.listed, None)
    except ListIncomplete as error:
        report.incomplete = name_unlisted(checkpoints.connection, listing, kind, known, error.report)
    except BillingRefused as error:
        report.skipped = str(error)
    return report


def merge_page(connection: Connection, kind: Kind, page: Page, report: KindReport) -> None:
    """Merges a page in a few transactions, and adds the outcome to `report`."""
    objects = [each for each in page.objects if kind.is_current(each)]
    for first in range(0, len(objects), MERGE_BATCH):
        _merge_batch(connection, kind, objects[first : first + MERGE_BATCH], page.asked_at, report)


def _merge_batch(
    connection: Connection, kind: Kind, objects: list[Object], asked_at: datetime, report: KindReport
) -> None:
    """Merges objects in one transaction. If the database refuses it, merges each half, down to the refused objects.

    Example: of objects 1 to 4, the database refuses object 3. It then refuses [1, 2, 3, 4], merges [1, 2], refuses
    [3, 4] and [3], and merges [4].
    """
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
    """Returns a statement's value; retries transient errors up to MAX_TRIES times. Raises psycopg.Error."""
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
    """Yields the same pages; fetches the next one while the caller works on the current one."""
    fetched = iter(pages)
    with ThreadPoolExecutor(1) as fetcher:
        upcoming = fetcher.submit(next, fetched, None)
        while (page := upcoming.result()) is not None:
            upcoming = fetcher.submit(next, fetched, None)
            yield page
