"""A person's rights: a copy of their data, and erasure. An impersonator cannot use them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from uuid import UUID

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import MethodNotAllowed

from service.components import components
from service.data_api import CallFailed
from service.export import Export, write_json, write_zip
from service.identity import Caller, current_caller, require_person
from service.logs import log
from service.origin import origin_headers
from service.problems import Problem
from service.streaming import take_slot

personal_data = Blueprint("personal_data", __name__, url_prefix="/api/v1/gdpr")

CONFIRMATION = "erase my account"
FIRST_FACTOR_MINUTES = 10
FORMATS = {"application/json": ("json", write_json), "application/zip": ("zip", write_zip)}


class NothingHeld(Problem, status=404, slug="nothing-held", title="There is no data about this person"):
    """The caller has no profile: they never used the product, or were erased."""


class ExportTooSoon(Problem, status=429, slug="export-too-soon", title="Only one export per hour is allowed"):
    """The last export began less than an hour ago, or is still running."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            f"The last export is less than an hour old, or still running. Try again in {retry_after} s.",
            retry_after=retry_after,
        )


class ReverificationRequired(Problem, status=403, slug="reverification-required", title="Verify your identity again"):
    """The caller's last verification is too old. Clerk's `useReverification` reads `clerk_error`.

    Source: https://clerk.com/docs/guides/secure/reverification
    """

    def __init__(self) -> None:
        wanted = {"level": "first_factor", "afterMinutes": FIRST_FACTOR_MINUTES}
        super().__init__(
            f"Sign in again: the first factor must have been verified in the last {FIRST_FACTOR_MINUTES} minutes.",
            clerk_error={"type": "forbidden", "reason": "reverification-error", "metadata": {"reverification": wanted}},
        )


class ConfirmationMissing(Problem, status=400, slug="confirmation-missing", title="The erasure is not confirmed"):
    """The body does not contain the confirmation."""


class SoleOwner(Problem, status=409, slug="sole-owner", title="Some organizations would have no owner"):
    """The caller is the only owner of `organizations`: [{id, clerk_org_id, name}]."""


class ReceiptUnknown(Problem, status=404, slug="receipt-unknown", title="There is no such receipt"):
    """No erasure has this receipt."""


@personal_data.get("/export")
def export() -> ResponseReturnValue:
    """Sends all data about the caller, as JSON, or as a ZIP if the Accept header prefers that."""
    if request.method == "HEAD":
        raise MethodNotAllowed(["GET"])  # Flask would make the whole export and then discard it
    person = _require_person().user_id
    with take_slot(components().threads, person) as slot:
        started = _call("begin_export", {"clerk_user_id": person})
        if "retry_after" in started:
            raise ExportTooSoon(started["retry_after"])
        running = Export.of(components().data_api.call, started)
        content_type = request.accept_mimetypes.best_match(FORMATS, "application/json")
        extension, write = FORMATS[content_type]
        filename = f"user-data-{running.generated_at[:10]}.{extension}"
        answer = slot.send(_record_end(running, write(running)), content_type, filename)
        answer.headers["Vary"] = "Accept"
        return answer


@personal_data.post("/erasure")
def erase() -> ResponseReturnValue:
    """Erases the caller: hidden before this is answered, erased soon afterwards, then deleted at Clerk."""
    caller = _require_person()
    if caller.first_factor_age_minutes is None or caller.first_factor_age_minutes > FIRST_FACTOR_MINUTES:
        raise ReverificationRequired
    body = request.get_json(silent=True)
    if not isinstance(body, dict) or body.get("confirmation") != CONFIRMATION:
        raise ConfirmationMissing(f'This cannot be undone. Send {{"confirmation": "{CONFIRMATION}"}} as JSON.')
    requested = _call("request_erasure", {"clerk_user_id": caller.user_id})
    if "sole_owner_of" in requested:
        raise SoleOwner(
            "Ask an administrator to transfer each organization to another member, or delete it. Then try again.",
            organizations=requested["sole_owner_of"],
        )
    components().cache.invalidate(users=[caller.user_id])
    answer = jsonify(requested)
    answer.headers["Location"] = f"{personal_data.url_prefix}/erasure/{requested['receipt']}"
    components().eraser.begin(requested["receipt"])
    return answer, HTTPStatus.ACCEPTED


@personal_data.get("/erasure/<uuid:receipt>")
def show_erasure(receipt: UUID) -> ResponseReturnValue:
    """Shows the state of an erasure. An erased person cannot sign in, so the receipt alone is enough."""
    found = _call("erasure_receipt", {"receipt": str(receipt)})
    if found is None:
        raise ReceiptUnknown("Check the receipt that you got when you requested the erasure.")
    return jsonify(found)


def _require_person() -> Caller:
    """The caller, if they act for themselves. Raises Impersonated, and what SessionTokens.authenticate() raises."""
    caller = current_caller(components().session_tokens)
    require_person(caller, "An impersonator may neither export nor erase the person.")
    return caller


def _call(function: str, arguments: dict[str, Any]) -> Any:
    """Raises NothingHeld and CallFailed."""
    try:
        return components().data_api.call(function, arguments, origin_headers())
    except CallFailed as failure:
        if failure.code == "PT404":
            raise NothingHeld("Sign in to the product once. After an erasure there is no data left.") from failure
        raise


def _record_end(running: Export, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yields the pieces, then records the outcome in the database, also if the caller disconnects."""
    failed = True
    try:
        yield from pieces
        failed = False
    finally:
        with suppress(CallFailed):
            running.end(failed=failed)
        log.info("personal data export", extra={"failed": failed})
