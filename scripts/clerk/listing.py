"""Lists Clerk's directory page by page through its Backend API. Waits for Retry-After and retries transient errors.

The list of users has a cursor: each page follows the last user of the previous page. The other lists have offsets only,
with two problems. A deletion shifts all later objects forward. Objects created in the same millisecond have no fixed
order, so that two requests may return them in different orders. Therefore consecutive pages overlap: a page begins one
object before the last millisecond of the previous page. If it does not begin before that millisecond, an earlier page
is read.

Example, with pages of four objects, each shown by its time of creation: the first page is [1, 2, 5, 5], so the next one
begins with 2 and is [2, 5, 5, 5]. It holds all objects of time 5, whichever two of them were on the first page.

At the end, the number of listed objects is compared with Clerk's count. Objects come and go during a listing, so the
count covers only objects that are older than the listing:

- The reading is complete if it has as many of them as Clerk counted at its start.
- Objects deleted before they were read are missing from it. So the count at its end is enough too, but only if the
  order proves that the pages had no gap. Otherwise a deletion could hide an object that was never listed.

An incomplete reading is repeated in another way: memberships and invitations by organization, the others in another
order. Memory: a few ids per object.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
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
Parameters = Mapping[str, str | int | Sequence[str]]

MAX_PAGE_SIZE = 500  # Clerk's own limit
MAX_STEPS_BACK = 1000
MAX_READINGS = 3
# Requests at the same time, where each is about one organization. Production instances accept 100 in a second.
MAX_CONCURRENT = 8
# Objects that are asked for one by one, to find out whether they still exist.
MAX_LOOKUPS = 1000
MAX_TRIES = 8
FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 30
# A longer Retry-After means that something is wrong: stop instead of waiting.
MAX_RETRY_AFTER_SECONDS = 120
MAX_CLOCK_SKEW = timedelta(seconds=2)
MAX_LEVELS = 64
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)  # a string is one token, whatever it contains
TIMEOUT = httpx.Timeout(connect=5, read=30, write=5, pool=5)


class KeyMissing(Failure):
    """CLERK_SECRET_KEY is missing or malformed."""


class KeyRefused(Failure):
    """Clerk rejects the secret key, or the key may not read."""


class RequestRefused(Failure):
    """Clerk rejects the request: the address is wrong, or its API has changed."""


class ObjectMissing(RequestRefused):
    """Clerk does not have the object whose list was requested."""


class BillingRefused(Failure):
    """Clerk refuses to list its plans, as it may without billing. It does not document how it refuses."""


class ListIncomplete(Failure):
    """Clerk still counts more objects than it lists after MAX_READINGS readings. `report` says which are missing."""

    def __init__(self, report: Incomplete) -> None:
        super().__init__(report.message)
        self.report = report


class ClerkUnavailable(Failure):
    """Clerk kept failing or returning invalid responses after all retries."""


@dataclass(frozen=True)
class Kind:
    """A kind of Clerk objects: its name in app.clerk_records, its list, and how else it can be listed.

    `other_order` sorts by another field than created_at; `part` is the list of one organization.
    """

    name: str
    plural: str
    path: str
    parameters: Parameters = field(default_factory=dict)
    has_cursor: bool = False
    other_order: str = "-created_at"
    part: str | None = None

    def is_current(self, each: Object) -> bool:
        """Whether the object is imported: every one is, except invitations that are no longer pending."""
        return self.name != "invitation" or each.get("status") == "pending"

    def within(self, organization: str) -> Kind:
        """The same kind, limited to one organization."""
        return replace(self, path=f"/v1/organizations/{_escape_segment(organization)}/{self.part}", part=None)


USERS = Kind("user", "users", "/v1/users", has_cursor=True)
ORGANIZATIONS = Kind("organization", "organizations", "/v1/organizations", other_order="+name")
MEMBERSHIPS = Kind("membership", "memberships", "/v1/organization_memberships", part="memberships")
# In every status: Clerk does not document whether total_count follows the filter.
INVITATIONS = Kind(
    "invitation", "invitations", "/v1/organization_invitations",
    {"status": ("pending", "accepted", "revoked", "expired")}, part="invitations",
)  # fmt: skip
ROLES = Kind("role", "roles", "/v1/organization_roles", other_order="+key")
PERMISSIONS = Kind("permission", "permissions", "/v1/organization_permissions", other_order="+key")
# The part is that of one organization: Clerk has no list of all subscriptions.
SUBSCRIPTIONS = Kind("subscription", "subscriptions", "", part="billing/subscription")
# Parents first: memberships, invitations and subscriptions refer to users and organizations.
KINDS = (USERS, ORGANIZATIONS, MEMBERSHIPS, INVITATIONS, ROLES, PERMISSIONS, SUBSCRIPTIONS)


@dataclass
class Incomplete:
    """A kind of which Clerk counts more objects than it lists.

    `organizations` has the number of listed and of counted objects of each organization that lacks some. `unlisted` has
    the ids that the database knows: Clerk has these objects, but does not list them.
    """

    kind: str
    plural: str
    message: str
    missing: int
    organizations: dict[str, tuple[int, int]] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)


class Position(NamedTuple):
    """A position in a list: the number of objects before it, and the last one's time of creation, in ms since 1970."""

    offset: int
    created_at: int


LIST_START = Position(0, 0)


class Reference(NamedTuple):
    """What it takes to find an object again, and when it was created, in ms since 1970."""

    clerk_id: str
    organization: str
    person: str
    created_at: int


class Page(NamedTuple):
    """Objects of a list. Clerk read them at `asked_at` or later, by its own clock.

    `total` is the length of the whole list, if Clerk states it. `offset` is the number of objects that precede the
    page. `is_gapless` is false if some of those may not have been listed.
    """

    objects: list[Object]
    asked_at: datetime
    total: int | None = None
    offset: int = 0
    is_gapless: bool = True

    @property
    def end(self) -> Position:
        """The position after the last object. The page must not be empty."""
        return Position(self.offset + len(self.objects), _read_created_at(self.objects[-1]))


class Answer(NamedTuple):
    """`body` is None if Clerk reports that the object does not exist."""

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

    def list_pages(self, kind: Kind, after: Position = LIST_START, size: int = MAX_PAGE_SIZE) -> Iterator[Page]:
        """Yields every object that exists during the whole listing, oldest first; some of them more than once.

        `after` is the position that an earlier listing reached. The listing then starts slightly before it.
        Raises ListIncomplete at the end if Clerk's count is higher than the number of listed objects.
        """
        seen: dict[str, Reference] = {}
        short: dict[str, tuple[int, int]] = {}
        for reading in range(MAX_READINGS):
            newest, counted = self._count_at_start(kind)
            read: dict[str, Reference] = {}
            before, is_gapless = 0, True
            for page in self._read(kind, after, size, reading, short):
                before = before if read else page.offset
                is_gapless = is_gapless and page.is_gapless
                read |= {each["id"]: _refer(each) for each in page.objects}
                yield page
            if not is_gapless:
                # An object that only an earlier reading has was deleted since, or left out by this one.
                read |= self._select_existing(kind, [each for key, each in seen.items() if key not in read])
            listed = before + sum(each.created_at <= newest for each in read.values())
            if listed >= counted or (is_gapless and listed >= self._count_until(kind, newest)):
                return
            seen |= read
            after = LIST_START
        message = f"Clerk counts {counted:,} {kind.plural}, but lists {listed:,} of them: run this again."
        raise ListIncomplete(Incomplete(kind.name, kind.plural, message, counted - listed, short))

    def _read(
        self, kind: Kind, after: Position, size: int, reading: int, short: dict[str, tuple[int, int]]
    ) -> Iterator[Page]:
        """Reads the list once: the first time by creation, later in another way."""
        if not reading or kind.has_cursor:
            yield from self._pages(kind, after, size)
        elif kind.part:
            short.clear()
            yield from self._pages_by_organization(kind, size, short)
        else:
            yield from self._pages_by_offset(kind, size)

    def _pages_by_organization(self, kind: Kind, size: int, short: dict[str, tuple[int, int]]) -> Iterator[Page]:
        """Reads the list of each organization. `short` receives those that lack objects: their number and the count."""
        known: set[str] = set()
        for parents in self._pages(ORGANIZATIONS, LIST_START, size):
            for organization in sorted({each["id"] for each in parents.objects} - known):
                known.add(organization)
                found: set[str] = set()
                counted = 0
                try:
                    for page in self._pages(kind.within(organization), LIST_START, size):
                        found |= {each["id"] for each in page.objects}
                        counted = page.total or 0
                        yield page._replace(is_gapless=False)
                except ObjectMissing:
                    continue  # deleted meanwhile
                if len(found) < counted:
                    short[organization] = (len(found), counted)

    def _pages_by_offset(self, kind: Kind, size: int) -> Iterator[Page]:
        """Reads the list in its other order, without any overlap."""
        offset = 0
        while True:
            page = self._fetch(kind, {"order_by": kind.other_order, "limit": size, "offset": offset}, offset)
            yield page._replace(is_gapless=False)
            offset += len(page.objects)
            if len(page.objects) < size:
                return

    def _select_existing(self, kind: Kind, objects: list[Reference]) -> dict[str, Reference]:
        """Returns the objects that still exist, of up to MAX_LOOKUPS."""
        return {each.clerk_id: each for each in objects[:MAX_LOOKUPS] if self.exists(kind, each)}

    def exists(self, kind: Kind, each: Reference) -> bool:
        """Whether Clerk has the object. A member who left and returned has another membership."""
        found = self.find(kind, each.clerk_id, each.organization, each.person)
        return any(one["id"] == each.clerk_id for one in found.objects)

    def _count_at_start(self, kind: Kind) -> tuple[int, int]:
        """Returns when the newest object was created, in ms since 1970 by Clerk's clock, and the count up to it."""
        page = self._fetch(kind, {"order_by": "-created_at", "limit": 1, "offset": 0}, 0)
        newest = _read_created_at(page.objects[0]) if page.objects else 0
        return newest, self._count_until(kind, newest) if kind is USERS else self._require_total(kind, page.total)

    def _count_until(self, kind: Kind, moment: int) -> int:
        """Returns Clerk's count of the objects that were created up to the moment, in ms since 1970."""
        if kind is USERS:
            return self._count_users({"created_at_before": moment + 1})
        page = self._fetch(kind, {"order_by": "-created_at", "limit": MAX_PAGE_SIZE, "offset": 0}, 0)
        return self._require_total(kind, page.total) - sum(_read_created_at(each) > moment for each in page.objects)

    def list_subscriptions(self, organizations: Sequence[str]) -> Iterator[Page]:
        """Yields the subscriptions of these organizations; none unless Clerk has plans for organizations.

        Each has the form of an event's: with `organization_id`, and with its items as `items`.
        Sources: get_billing_subscription and list_plans in clerk-backend-api 7.0.0.
        """
        if not organizations or not self._has_plans():
            return
        with ThreadPoolExecutor(MAX_CONCURRENT) as fetchers:
            for first in range(0, len(organizations), MAX_PAGE_SIZE):
                asked_at = datetime.now(UTC) - MAX_CLOCK_SKEW
                pages = list(fetchers.map(self._find_subscription, organizations[first : first + MAX_PAGE_SIZE]))
                objects = [each for page in pages for each in page.objects]
                yield Page(objects, min([asked_at, *(page.asked_at for page in pages)]), is_gapless=False)

    def _has_plans(self) -> bool:
        """Whether Clerk sells plans to organizations. Raises BillingRefused."""
        plans: Parameters = {"payer_type": "org", "paginated": "true", "limit": 1, "offset": 0}
        try:
            answer = self._get("/v1/billing/plans", plans, lambda body: _read_objects(body) is not None)
        except (KeyRefused, RequestRefused) as error:
            raise BillingRefused(f"Subscriptions were not read: {error}") from None
        return bool(_read_objects(answer.body))

    def _find_subscription(self, organization: str) -> Page:
        path = SUBSCRIPTIONS.within(organization).path
        answer = self._get(path, {}, lambda body: body is None or _is_object(body))
        if not answer.body:
            return Page([], answer.asked_at)
        items = answer.body.get("subscription_items")
        return Page([answer.body | {"organization_id": organization, "items": items}], answer.asked_at)

    def fetch_page(self, kind: Kind, offset: int, size: int) -> Page:
        """Returns up to `size` objects, starting at an offset of the list from the oldest to the newest."""
        return self._fetch(kind, {"limit": size, "offset": offset}, offset)

    def _pages(self, kind: Kind, after: Position, size: int) -> Iterator[Page]:
        """Reads the list once, starting at a position."""
        page = self._fetch_page_before(kind, max(0, after.offset - size), after.created_at, size)
        while True:
            yield page
            if len(page.objects) < size:
                return
            following = self._fetch_next(kind, page, size)
            page = following._replace(is_gapless=following.is_gapless and page.is_gapless)

    def _fetch_next(self, kind: Kind, page: Page, size: int) -> Page:
        """Fetches the page that follows a full page, with the cursor if the list has one."""
        last = page.objects[-1]
        if kind.has_cursor:
            try:
                cursor = {"limit": size, "starting_after": last["id"]}
                following = self._fetch(kind, cursor, page.offset + len(page.objects))
            except RequestRefused:
                pass  # the user of the cursor may have been deleted
            else:
                if _follows(following, page):
                    return following
        older = sum(_read_created_at(each) < _read_created_at(last) for each in page.objects)
        if older < 2:
            # One millisecond fills the page: only the count shows whether all its objects were listed.
            return self.fetch_page(kind, page.offset + len(page.objects), size)._replace(is_gapless=False)
        return self._fetch_page_before(kind, page.offset + older - 1, _read_created_at(last), size)

    def _fetch_page_before(self, kind: Kind, offset: int, moment: int, size: int) -> Page:
        """Fetches the page at the offset, or the nearest earlier one that begins before the moment."""
        for _ in range(MAX_STEPS_BACK):
            page = self.fetch_page(kind, offset, size)
            if not offset or (page.objects and _read_created_at(page.objects[0]) < moment):
                return page
            offset = max(0, offset - (size - 1))
        raise ClerkUnavailable(f"Clerk's list of {kind.plural} changes faster than it can be read: run this again.")

    def _fetch(self, kind: Kind, parameters: Parameters, offset: int) -> Page:
        """Fetches a page that `offset` objects precede."""
        wanted = {"order_by": "+created_at", **kind.parameters, **parameters}
        answer = self._get(kind.path, wanted, lambda body: _read_objects(body) is not None)
        if answer.body is None:
            raise ObjectMissing(str(self._make_refusal(HTTPStatus.NOT_FOUND, NOT_FOUND)))
        total = answer.body.get("total_count") if isinstance(answer.body, dict) else None
        return Page(
            _read_objects(answer.body) or [], answer.asked_at, total if isinstance(total, int) else None, offset
        )

    def count(self, kind: Kind) -> int:
        """Returns Clerk's count of the objects of a kind, except subscriptions."""
        return self._count_users({}) if kind is USERS else self._require_total(kind, self.fetch_page(kind, 0, 1).total)

    def _count_users(self, parameters: Parameters) -> int:
        body = self._get("/v1/users/count", parameters, lambda body: isinstance(body, dict)).body
        return self._require_total(USERS, body.get("total_count") if body else None)

    @staticmethod
    def _require_total(kind: Kind, total: Any) -> int:
        if not isinstance(total, int):
            raise RequestRefused(f"Clerk's response lacks the count of {kind.plural}: check CLERK_API_URL.")
        return total

    def find(self, kind: Kind, clerk_id: str | None, organization: str, person: str) -> Page:
        """Fetches one object: a page with this object, or an empty page if it does not exist.

        Raises RequestRefused if Clerk's response does not show which.
        """
        if kind is USERS:
            answer = self._get(f"/v1/users/{_escape_segment(person)}", {}, _is_object)
        elif kind is ORGANIZATIONS:
            answer = self._get(f"/v1/organizations/{_escape_segment(organization)}", {}, _is_object)
        elif kind is INVITATIONS:
            path = f"/v1/organizations/{_escape_segment(organization)}/invitations/{_escape_segment(clerk_id or '')}"
            answer = self._get(path, {}, _is_object)
        elif kind is MEMBERSHIPS:
            return self._find_membership(organization, person)
        elif kind is SUBSCRIPTIONS:
            return self._find_subscription(organization)
        else:
            answer = self._get(f"{kind.path}/{_escape_segment(clerk_id or '')}", {}, _is_object)
        return Page([answer.body] if answer.body else [], answer.asked_at)

    def fetch_instance_id(self) -> str | None:
        """Returns the id of the Clerk instance to which the key belongs."""
        body = self._get("/v1/instance", {}, lambda body: isinstance(body, dict)).body
        found = body.get("id") if body else None
        return found if isinstance(found, str) else None

    def _find_membership(self, organization: str, person: str) -> Page:
        path = f"/v1/organizations/{_escape_segment(organization)}/memberships"
        parameters: Parameters = {"user_id": person, "limit": 10}
        answer = self._get(path, parameters, lambda body: _read_objects(body) is not None)
        found = _read_objects(answer.body) or []
        if any((each.get("public_user_data") or {}).get("user_id") != person for each in found):
            raise RequestRefused(
                "Clerk returned other people when asked for one membership: check CLERK_API_URL, and Clerk's changelog."
            )
        return Page(found, answer.asked_at)

    def _get(self, path: str, parameters: Parameters, is_valid: Callable[[Any], bool]) -> Answer:
        wait = FIRST_WAIT_SECONDS
        reason = ""
        for attempt in range(MAX_TRIES):
            if attempt:
                self._sleep(wait)
                wait = min(2 * wait, MAX_WAIT_SECONDS)
            asked_at = datetime.now(UTC)
            try:
                response = self._http.get(path, params=dict(parameters))
                body = _parse_json(response)
            except httpx.HTTPError as error:
                reason = type(error).__name__
                continue
            status = response.status_code
            if status == HTTPStatus.OK and is_valid(body):
                return Answer(body, _estimate_clerk_time(response, asked_at))
            # A proxy or a wrong address returns 404 too. Only Clerk's error code proves that the object does not exist.
            if status == HTTPStatus.NOT_FOUND and _read_error_code(body) == NOT_FOUND:
                return Answer(None, _estimate_clerk_time(response, asked_at))
            reason = "an invalid response" if status == HTTPStatus.OK else str(status)
            if status == HTTPStatus.TOO_MANY_REQUESTS:
                wait = self._read_retry_after(response, wait)
            elif status != HTTPStatus.OK and status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise self._make_refusal(status, _read_error_code(body))
        raise ClerkUnavailable(
            f"Clerk failed {MAX_TRIES} times at {self._url} ({reason}). Nothing is lost: run this again."
        )

    def _make_refusal(self, status: int, code: str | None) -> Failure:
        response = f"{status} {code}" if code else str(status)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return KeyRefused(
                f"Clerk rejects the key in CLERK_SECRET_KEY ({response}): copy it again from the dashboard."
            )
        return RequestRefused(f"Clerk rejects the request at {self._url} ({response}): check CLERK_API_URL.")

    @staticmethod
    def _read_retry_after(response: httpx.Response, otherwise: float) -> float:
        """Returns the seconds of Retry-After, or `otherwise`. Raises ClerkUnavailable if they exceed the maximum."""
        given = response.headers.get("Retry-After", "")
        try:
            seconds = float(given) if given else otherwise
        except ValueError:
            date = _parse_date(given)
            seconds = (date - datetime.now(UTC)).total_seconds() if date else otherwise
        if not seconds <= MAX_RETRY_AFTER_SECONDS:
            raise ClerkUnavailable(f"Clerk is rate limiting for {seconds:.0f} s: run this again after that time.")
        return max(seconds, 0)


@contextmanager
def open_listing(environment: Mapping[str, str]) -> Iterator[ClerkListing]:
    """Opens the listing with CLERK_SECRET_KEY and CLERK_API_URL. Raises KeyMissing, which does not contain the key."""
    key = environment.get("CLERK_SECRET_KEY", "").strip()
    if not key:
        raise KeyMissing("CLERK_SECRET_KEY is not set: set it in the environment.")
    if CLERK_KEY.fullmatch(key) is None:
        raise KeyMissing(
            "CLERK_SECRET_KEY is malformed: copy the key that begins with sk_live_ or sk_test_ from Clerk's dashboard."
        )
    with closing(ClerkListing(environment.get("CLERK_API_URL") or CLERK_API_URL, key)) as listing:
        yield listing


def _follows(following: Page, page: Page) -> bool:
    """Whether the page continues from the cursor. For an unknown cursor, Clerk returns the first page again."""
    if not following.objects:
        return True
    first, last = following.objects[0], page.objects[-1]
    return _read_created_at(first) >= _read_created_at(last) and all(each["id"] != first["id"] for each in page.objects)


def _read_created_at(each: Object) -> int:
    """Returns the time of creation in ms since 1970."""
    moment = each.get("created_at")
    return moment if isinstance(moment, int) else 0


def _refer(each: Object) -> Reference:
    organization = (each.get("organization") or {}).get("id") or each.get("organization_id") or each["id"]
    person = (each.get("public_user_data") or {}).get("user_id") or each["id"]
    return Reference(each["id"], organization, person, _read_created_at(each))


def _read_objects(body: Any) -> list[Object] | None:
    """Returns the objects of a Clerk list, bare or with a count; None if the body is not a list of objects with ids."""
    found = body.get("data") if isinstance(body, dict) else body
    if body is None:
        return []
    return found if isinstance(found, list) and all(map(_is_object, found)) else None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)


def _parse_json(response: httpx.Response) -> Any:
    text = response.content.decode(errors="replace")
    try:
        try:
            return json.loads(text, object_hook=_drop_metadata)
        except RecursionError:
            return json.loads(_cut_levels(text), object_hook=_drop_metadata)
    except ValueError:
        return ()  # a value that no JSON text has


def _drop_metadata(value: Object) -> Object:
    """Drops what applications and users store at Clerk: nothing here uses it, and it may be any JSON."""
    return {name: each for name, each in value.items() if not name.endswith("_metadata")}


def _cut_levels(text: str) -> str:
    """Replaces the objects and arrays at level 64 of a JSON text with null.

    Example, if it were level 2: [[1], 2] becomes [null, 2].
    """
    pieces, start, level = [], 0, 0
    for token in BRACKETS.finditer(text):
        if token[0] in "[{":
            level += 1
            if level == MAX_LEVELS:
                pieces.append(text[start : token.start()])
        elif token[0] in "]}":
            if level == MAX_LEVELS:
                pieces.append("null")
                start = token.end()
            level -= 1
    return "".join((*pieces, text[start:] if level < MAX_LEVELS else ""))


def _read_error_code(body: Any) -> str | None:
    try:
        code = body["errors"][0]["code"]
    except (LookupError, TypeError):
        return None
    return code if isinstance(code, str) and code.isidentifier() else None


def _estimate_clerk_time(response: httpx.Response, asked_at: datetime) -> datetime:
    """Returns a time on Clerk's clock, as its events have it, at or before the moment when Clerk read the objects.

    The Date header has whole seconds only. So our clock is used, minus the skew that it may have. If the two clocks
    differ by more than that skew, the Date header is used.
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
    # Dots too: the id ".." would name the parent folder.
    return quote(clerk_id, safe="").replace(".", "%2E")
