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

from scripts.clerk.listing import BEGINNING, KINDS, ClerkListing, Kind, Object, Page, Place
from scripts.errors import Failure
from scripts.schema import database
from scripts.schema.database import Connection

ACTOR = "backfill"
# A webhook about one of them waits until all are merged, and each holds up to four locks of the few thousand there are.
MERGED_AT_ONCE = 250
MOST_TRIES = 5
# Classes of errors that pass: a deadlock, no memory, a lock not got in time, a shutdown.
PASSING = ("40", "53", "55", "57")


class OtherInstance(Failure):
    """The key is of an instance of Clerk's other than the one that the database belongs to."""


@dataclass(frozen=True)
class Refused:
    """An object that could not be merged. `error` holds no personal data."""

    clerk_id: str
    error: str


@dataclass
class Merged:
    """What became of a kind: how many objects Clerk listed, how many were news, which ones the database refused.

    The first `resumed_at` of those listed were merged by a run that was interrupted, and counted here only as listed.
    """

    kind: str
    listed: int = 0
    resumed_at: int = 0
    changed: int = 0
    refused: list[Refused] = field(default_factory=list)


Advance = Callable[[Kind, int, int | None], None]


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
class Places:
    """How far a run came in the lists of an instance of Clerk's: what stays when it is interrupted."""

    connection: Connection
    instance_id: str | None

    def of(self, kind: Kind) -> Place:
        """Where to go on: the beginning, too, when what is known is of another instance or older than a day."""
        row = self.connection.execute(
            "select next_offset, last_created_ms from app.clerk_backfills "
            "where kind = %s and instance_id = %s and updated_at > now() - interval '1 day'",
            [kind.name, self.instance_id],
        ).fetchone()
        return Place(*row) if row else BEGINNING

    def keep(self, kind: Kind, place: Place) -> None:
        """All of the list up to there is merged. Raises psycopg.Error."""
        statement = """
            insert into app.clerk_backfills (kind, instance_id, next_offset, last_created_ms) values (%s, %s, %s, %s)
            on conflict (kind) do update set instance_id = excluded.instance_id, next_offset = excluded.next_offset,
              last_created_ms = excluded.last_created_ms, updated_at = excluded.updated_at
            returning kind"""
        tried(self.connection, statement, [kind.name, self.instance_id, *place])

    def forget(self) -> None:
        self.connection.execute("delete from app.clerk_backfills")


def backfill(
    connection: Connection, listing: ClerkListing, advance: Advance = lambda *_: None, *, restart: bool = False
) -> list[Merged]:
    """Merges all that Clerk lists, a page while the next one is fetched. Raises what ClerkListing raises.

    Unless told to `restart`, without what a run merged that was interrupted.
    """
    places = Places(connection, listing.instance_id())
    if restart:
        places.forget()
    report = [_backfill_kind(places, listing, kind, advance) for kind in KINDS]
    places.forget()
    return report


def _backfill_kind(places: Places, listing: ClerkListing, kind: Kind, advance: Advance) -> Merged:
    merged = Merged(kind.name)
    total = listing.count(kind)
    advance(kind, 0, total)
    known: set[str] = set()
    for page in ahead(listing.pages(kind, places.of(kind))):
        if page.offset and not known:
            database.say(f"Going on with {kind.plural} at {page.offset:,} of {total:,}.")
        merged.resumed_at = min(merged.resumed_at, page.offset) if known else page.offset
        merge(places.connection, kind, page, merged)
        # Not past one that was refused: the next run tries it again, and names it.
        if page.objects and not merged.refused:
            places.keep(kind, page.end)
        known.update(each["id"] for each in page.objects)
        merged.listed = merged.resumed_at + len(known)
        advance(kind, merged.listed, None)
    return merged


def merge(connection: Connection, kind: Kind, page: Page, merged: Merged) -> None:
    """Merges a page in a few transactions, and adds to `merged` what came of it."""
    for first in range(0, len(page.objects), MERGED_AT_ONCE):
        _merge_some(connection, kind, page.objects[first : first + MERGED_AT_ONCE], page.asked_at, merged)


def _merge_some(connection: Connection, kind: Kind, objects: list[Object], asked_at: datetime, merged: Merged) -> None:
    """One transaction; when the database refuses it, the halves of it, until only what it refuses is left out."""
    try:
        statement = "select app.merge_clerk_page(%s, %s, %s, %s)"
        merged.changed += tried(connection, statement, [kind.name, Jsonb(objects), asked_at, ACTOR])
    except psycopg.Error as error:
        if connection.closed or error.sqlstate is None or error.sqlstate[:2] in PASSING:
            raise
        if len(objects) == 1:
            merged.refused.append(Refused(objects[0]["id"], f"{error.sqlstate}: {error.diag.message_primary}"))
            return
        middle = len(objects) // 2
        for half in (objects[:middle], objects[middle:]):
            _merge_some(connection, kind, half, asked_at, merged)


def tried(connection: Connection, statement: str, values: list[Any]) -> Any:
    """The one value of a statement, tried again while what is wrong passes. Raises psycopg.Error."""
    for attempt in range(1, MOST_TRIES + 1):
        try:
            row = connection.execute(statement.encode(), values).fetchone()
        except psycopg.Error as error:
            if connection.closed or attempt == MOST_TRIES or (error.sqlstate or "")[:2] not in PASSING:
                raise
            time.sleep(0.1 * 2**attempt)
        else:
            return row[0] if row else None
    raise AssertionError("unreachable")


def ahead(pages: Iterable[Page]) -> Iterator[Page]:
    """The same pages; each is fetched while the caller works on the one before."""
    fetched = iter(pages)
    with ThreadPoolExecutor(1) as fetcher:
        upcoming = fetcher.submit(next, fetched, None)
        while (page := upcoming.result()) is not None:
            upcoming = fetcher.submit(next, fetched, None)
            yield page
