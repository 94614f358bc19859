"""Clerk's directory as its Backend API lists it: page by page, waiting when told to, asking again when it has to.

Users have a cursor: each page follows the last user of the page before. The other lists have offsets only. There,
objects that are deleted meanwhile move the others forward, and objects that were created in the same millisecond come
in any order, which may differ from request to request. So a page begins one object before the last millisecond of the
page before, and is read further back if it does not begin before that millisecond.

Example, with pages of four and the time of creation: the first page is [1, 2, 5, 5], so the next one begins with 2:
[2, 5, 5, 5]. Whichever two objects of time 5 were on the first page, the second has them all.

In the end, the number of listed objects is compared with Clerk's count. Memory: one id per object.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from scripts.errors import Failure
from service.clerk_api import API_VERSION, CLERK_API_URL, NOT_FOUND
from service.settings import CLERK_KEY

Object = dict[str, Any]
Parameters = Mapping[str, str | int]

MAX_PAGE_SIZE = 500  # Clerk's own limit
MAX_STEPS_BACK = 1000
MAX_READINGS = 3
MAX_TRIES = 8
FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 30
# Who is told to come back later than this had better look why.
MAX_RETRY_AFTER_SECONDS = 120
MAX_CLOCK_SKEW = timedelta(seconds=2)
TIMEOUT = httpx.Timeout(connect=5, read=30, write=5, pool=5)


class KeyMissing(Failure):
    """Nobody says which Clerk to ask, or the key is none."""


class KeyRefused(Failure):
    """Clerk does not know the secret key, or does not let it read."""


class RequestRefused(Failure):
    """Clerk answers, but not what was asked for: a wrong address, or an API that has changed."""


class ListIncomplete(Failure):
    """Clerk counts more objects than it listed, however often the list was read."""


class ClerkUnavailable(Failure):
    """Clerk did not answer, or not in its right mind, however often it was asked."""


@dataclass(frozen=True)
class Kind:
    """A kind of Clerk's objects: its name in app.clerk_records, where its list is, and whether that has a cursor."""

    name: str
    plural: str
    path: str
    parameters: Parameters
    has_cursor: bool = False


USERS = Kind("user", "users", "/v1/users", {"order_by": "+created_at"}, has_cursor=True)
ORGANIZATIONS = Kind("organization", "organizations", "/v1/organizations", {"order_by": "+created_at"})
MEMBERSHIPS = Kind("membership", "memberships", "/v1/organization_memberships", {"order_by": "+created_at"})
INVITATIONS = Kind(
    "invitation", "invitations", "/v1/organization_invitations", {"order_by": "+created_at", "status": "pending"}
)
# Parents first: what comes later refers to what came before.
KINDS = (USERS, ORGANIZATIONS, MEMBERSHIPS, INVITATIONS)


class Position(NamedTuple):
    """How far a list was read: how many objects, and when the last of them was created, in ms since 1970."""

    offset: int
    created_at: int


LIST_START = Position(0, 0)


class Page(NamedTuple):
    """Objects, and a moment on Clerk's clock before which they were not read. `total` of how many, if Clerk says so.

    `offset` of how many others the list has before them. `is_gapless` unless some of those may have been missed.
    """

    objects: list[Object]
    asked_at: datetime
    total: int | None = None
    offset: int = 0
    is_gapless: bool = True

    @property
    def end(self) -> Position:
        """The place after its last object, of which there must be one."""
        return Position(self.offset + len(self.objects), _created_at(self.objects[-1]))


class Answer(NamedTuple):
    """`body` is None when Clerk says that there is no such object."""

    body: Any
    asked_at: datetime


class ClerkListing:
    """One per command. Every method raises KeyRefused, RequestRefused or ClerkUnavailable."""

    def __init__(self, url: str, secret_key: str, sleep: Callable[[float], None] = time.sleep) -> None:
        headers = {"Authorization": f"Bearer {secret_key}", "Clerk-API-Version": API_VERSION}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT)
        self._url = url
        self._sleep = sleep

    def close(self) -> None:
        self._http.close()

    def pages(self, kind: Kind, after: Position = LIST_START, size: int = MAX_PAGE_SIZE) -> Iterator[Page]:
        """Every object of the kind that is there throughout, oldest first; some more than once.

        With the place up to which they were listed some other time, what has come after it, and some from before.
        Raises ListIncomplete in the end if Clerk counts more.
        """
        seen: set[str] = set()
        for _ in range(MAX_READINGS):
            counted = self.count(kind)
            before: int | None = None
            for page in self._pages(kind, after, size):
                before = page.offset if before is None else before
                seen.update(each["id"] for each in page.objects)
                yield page
            listed = len(seen) + (before or 0)
            # Deletions meanwhile lower the second count; objects created meanwhile are not in the first one.
            if listed >= counted or listed >= self.count(kind):
                return
            after = LIST_START
        raise ListIncomplete(f"Clerk counts {counted:,} {kind.plural}, but lists {listed:,} of them: run this again.")

    def page(self, kind: Kind, offset: int, size: int) -> Page:
        """Up to `size` objects from a place on."""
        return self._fetch(kind, {"limit": size, "offset": offset}, offset)

    def _pages(self, kind: Kind, after: Position, size: int) -> Iterator[Page]:
        """The list once, from the place on."""
        page = self._page_from_before(kind, max(0, after.offset - size), after.created_at, size)
        while True:
            yield page
            if len(page.objects) < size:
                return
            following = self._next(kind, page, size)
            page = following._replace(is_gapless=following.is_gapless and page.is_gapless)

    def _next(self, kind: Kind, page: Page, size: int) -> Page:
        """What follows a full page, by the cursor if there is one."""
        last = page.objects[-1]
        if kind.has_cursor:
            try:
                cursor = {"limit": size, "starting_after": last["id"]}
                following = self._fetch(kind, cursor, page.offset + len(page.objects))
            except RequestRefused:
                pass  # as when that user was deleted meanwhile
            else:
                if _follows(following, page):
                    return following
        older = sum(_created_at(each) < _created_at(last) for each in page.objects)
        if older < 2:
            # One millisecond fills the page: only the count shows whether all its objects were listed.
            return self.page(kind, page.offset + len(page.objects), size)._replace(is_gapless=False)
        return self._page_from_before(kind, page.offset + older - 1, _created_at(last), size)

    def _page_from_before(self, kind: Kind, offset: int, moment: int, size: int) -> Page:
        """The page at the offset, or the nearest earlier one that begins before the moment."""
        for _ in range(MAX_STEPS_BACK):
            page = self.page(kind, offset, size)
            if not offset or (page.objects and _created_at(page.objects[0]) < moment):
                return page
            offset = max(0, offset - (size - 1))
        raise ClerkUnavailable(f"Clerk's list of {kind.plural} changes faster than it can be read.")

    def _fetch(self, kind: Kind, parameters: Parameters, offset: int) -> Page:
        """A page, which has `offset` others before it."""
        answer = self._get(kind.path, {**kind.parameters, **parameters}, lambda body: _objects(body) is not None)
        if answer.body is None:
            raise self._refusal(HTTPStatus.NOT_FOUND, NOT_FOUND)
        total = answer.body.get("total_count") if isinstance(answer.body, dict) else None
        return Page(_objects(answer.body) or [], answer.asked_at, total if isinstance(total, int) else None, offset)

    def count(self, kind: Kind) -> int:
        """How many there are."""
        if kind is not USERS:
            total = self.page(kind, 0, 1).total
        else:
            body = self._get("/v1/users/count", {}, lambda body: isinstance(body, dict)).body
            total = body.get("total_count") if body else None
        if not isinstance(total, int):
            raise RequestRefused(f"Clerk does not say how many {kind.plural} there are.")
        return total

    def find(self, kind: Kind, clerk_id: str | None, organization: str, person: str) -> Page:
        """What Clerk says of one object now: a page of it alone, or an empty one when there is none.

        Raises RequestRefused when that cannot be told.
        """
        if kind is USERS:
            answer = self._get(f"/v1/users/{_escape_segment(person)}", {}, _is_object)
        elif kind is ORGANIZATIONS:
            answer = self._get(f"/v1/organizations/{_escape_segment(organization)}", {}, _is_object)
        elif kind is INVITATIONS:
            path = f"/v1/organizations/{_escape_segment(organization)}/invitations/{_escape_segment(clerk_id or '')}"
            answer = self._get(path, {}, _is_object)
        else:
            return self._find_membership(organization, person)
        return Page([answer.body] if answer.body else [], answer.asked_at)

    def instance_id(self) -> str | None:
        """Which instance the key is of."""
        body = self._get("/v1/instance", {}, lambda body: isinstance(body, dict)).body
        found = body.get("id") if body else None
        return found if isinstance(found, str) else None

    def _find_membership(self, organization: str, person: str) -> Page:
        path = f"/v1/organizations/{_escape_segment(organization)}/memberships"
        parameters: Parameters = {"user_id": person, "limit": 10}
        answer = self._get(path, parameters, lambda body: _objects(body) is not None)
        found = _objects(answer.body) or []
        if any((each.get("public_user_data") or {}).get("user_id") != person for each in found):
            raise RequestRefused("Clerk does not say whether somebody is a member: it answers with other people.")
        return Page(found, answer.asked_at)

    def _get(self, path: str, parameters: Parameters, is_valid: Callable[[Any], bool]) -> Answer:
        wait = FIRST_WAIT_SECONDS
        trouble = ""
        for attempt in range(MAX_TRIES):
            if attempt:
                self._sleep(wait)
                wait = min(2 * wait, MAX_WAIT_SECONDS)
            asked_at = datetime.now(UTC)
            try:
                response = self._http.get(path, params=dict(parameters))
                body = _json(response)
            except httpx.HTTPError as error:
                trouble = type(error).__name__
                continue
            status = response.status_code
            if status == HTTPStatus.OK and is_valid(body):
                return Answer(body, _clerk_time(response, asked_at))
            # A proxy or a wrong address has 404s too: only Clerk's own means that there is no such object.
            if status == HTTPStatus.NOT_FOUND and _error_code(body) == NOT_FOUND:
                return Answer(None, _clerk_time(response, asked_at))
            trouble = "an answer that is none" if status == HTTPStatus.OK else str(status)
            if status == HTTPStatus.TOO_MANY_REQUESTS:
                wait = self._read_retry_after(response, wait)
            elif status != HTTPStatus.OK and status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise self._refusal(status, _error_code(body))
        raise ClerkUnavailable(
            f"Clerk does not answer at {self._url} ({trouble}, {MAX_TRIES} times). Nothing is lost: run this again."
        )

    def _refusal(self, status: int, code: str | None) -> Failure:
        said = f"{status} {code}" if code else str(status)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return KeyRefused(f"Clerk refuses the key in CLERK_SECRET_KEY ({said}): copy it again from the dashboard.")
        return RequestRefused(f"Clerk does not answer the question at {self._url} ({said}): is CLERK_API_URL right?")

    @staticmethod
    def _read_retry_after(response: httpx.Response, otherwise: float) -> float:
        """Seconds, by Retry-After if there is one. Raises ClerkUnavailable when they are too many."""
        given = response.headers.get("Retry-After", "")
        try:
            seconds = float(given) if given else otherwise
        except ValueError:
            date = _parse_date(given)
            seconds = (date - datetime.now(UTC)).total_seconds() if date else otherwise
        if not seconds <= MAX_RETRY_AFTER_SECONDS:
            raise ClerkUnavailable(f"Clerk wants no requests for {seconds:.0f} seconds. Run this again then.")
        return max(seconds, 0)


@contextmanager
def open_listing(environment: Mapping[str, str]) -> Iterator[ClerkListing]:
    """The listing by CLERK_SECRET_KEY and CLERK_API_URL. Raises KeyMissing, which does not tell the key."""
    key = environment.get("CLERK_SECRET_KEY", "").strip()
    if not key:
        raise KeyMissing("Which Clerk? Set CLERK_SECRET_KEY, and CLERK_API_URL unless it is Clerk's own.")
    if CLERK_KEY.fullmatch(key) is None:
        raise KeyMissing("CLERK_SECRET_KEY is no secret key of Clerk's: they begin with sk_live_ or sk_test_.")
    with closing(ClerkListing(environment.get("CLERK_API_URL") or CLERK_API_URL, key)) as listing:
        yield listing


def _follows(following: Page, page: Page) -> bool:
    """Whether Clerk went on from the cursor. If it does not know the cursor, it answers with the first page again."""
    if not following.objects:
        return True
    first, last = following.objects[0], page.objects[-1]
    return _created_at(first) >= _created_at(last) and all(each["id"] != first["id"] for each in page.objects)


def _created_at(each: Object) -> int:
    """In ms since 1970."""
    moment = each.get("created_at")
    return moment if isinstance(moment, int) else 0


def _objects(body: Any) -> list[Object] | None:
    """The objects in a list of Clerk's, bare or with a count; None when it is no list of objects with ids."""
    found = body.get("data") if isinstance(body, dict) else body
    if body is None:
        return []
    return found if isinstance(found, list) and all(map(_is_object, found)) else None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return ()  # which is nothing that JSON could be


def _error_code(body: Any) -> str | None:
    try:
        code = body["errors"][0]["code"]
    except (LookupError, TypeError):
        return None
    return code if isinstance(code, str) and code.isidentifier() else None


def _clerk_time(response: httpx.Response, asked_at: datetime) -> datetime:
    """A moment before Clerk read what it answered, by its clock, which its events go by too.

    That tells seconds only. So ours counts, put back by what it may be ahead, unless the two are further apart.
    """
    date = _parse_date(response.headers.get("Date", ""))
    ahead = asked_at + response.elapsed - date if date else timedelta(0)
    if date and not -MAX_CLOCK_SKEW <= ahead <= MAX_CLOCK_SKEW + timedelta(seconds=1):
        return date - response.elapsed
    return asked_at - MAX_CLOCK_SKEW


def _parse_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _escape_segment(clerk_id: str) -> str:
    # Dots too: an id of two of them would name the folder above.
    return quote(clerk_id, safe="").replace(".", "%2E")
