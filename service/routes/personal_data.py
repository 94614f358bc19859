"""A person's rights: a copy of what is held of them, and their erasure. Nobody has them in somebody else's name."""

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
from service.identity import Caller, current_caller
from service.logs import log
from service.problems import Problem
from service.streaming import stream_file

personal_data = Blueprint("personal_data", __name__, url_prefix="/api/v1/gdpr")

CONFIRMATION = "erase my account"
FIRST_FACTOR_MINUTES = 10
FORMATS = {"application/json": ("json", write_json), "application/zip": ("zip", write_zip)}


class Impersonated(Problem, status=403, slug="impersonated", title="Only the person may do this"):
    """The token was made for somebody who acts in the person's name (its act claim)."""


class NothingHeld(Problem, status=404, slug="nothing-held", title="Nothing is held of this person"):
    """There is no profile of the caller: they never came in, or were erased."""


class ExportTooSoon(Problem, status=429, slug="export-too-soon", title="One export an hour"):
    """The last export began less than an hour ago, or is still running."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("The last export is too recent, or still running.", retry_after=retry_after)


class ReverificationRequired(Problem, status=403, slug="reverification-required", title="Prove once more who you are"):
    """The caller has not proved lately who they are. `clerk_error` is what Clerk's `useReverification` looks for.

    Source: https://clerk.com/docs/guides/secure/reverification
    """

    def __init__(self) -> None:
        wanted = {"level": "first_factor", "afterMinutes": FIRST_FACTOR_MINUTES}
        super().__init__(
            f"The first factor must have been verified in the last {FIRST_FACTOR_MINUTES} minutes.",
            clerk_error={"type": "forbidden", "reason": "reverification-error", "metadata": {"reverification": wanted}},
        )


class ConfirmationMissing(Problem, status=400, slug="confirmation-missing", title="The erasure is not confirmed"):
    """The body does not say that the caller means it."""


class SoleOwner(Problem, status=409, slug="sole-owner", title="Organizations would be without an owner"):
    """`organizations` would be without an owner: [{id, clerk_org_id, name}]."""


class ReceiptUnknown(Problem, status=404, slug="receipt-unknown", title="There is no such receipt"):
    """No erasure has this receipt."""


@personal_data.get("/export")
def export() -> ResponseReturnValue:
    """All that is held of the caller, as JSON, or as a ZIP where that is accepted rather."""
    if request.method == "HEAD":
        raise MethodNotAllowed(["GET"])  # Flask would make the whole export, to throw it away
    begun = _call("begin_export", {"clerk_user_id": _require_person().user_id})
    if "retry_after" in begun:
        raise ExportTooSoon(begun["retry_after"])
    running = Export.of(components().data_api.call, begun)
    content_type = request.accept_mimetypes.best_match(FORMATS, "application/json")
    ending, written = FORMATS[content_type]
    filename = f"user-data-{running.generated_at[:10]}.{ending}"
    answer = stream_file(_record_end(running, written(running)), content_type, filename)
    answer.headers["Vary"] = "Accept"
    return answer


@personal_data.post("/erasure")
def erase() -> ResponseReturnValue:
    """Erases the caller: hidden when this is answered, erased soon after, then deleted at Clerk."""
    caller = _require_person()
    if caller.first_factor_age_minutes is None or caller.first_factor_age_minutes > FIRST_FACTOR_MINUTES:
        raise ReverificationRequired
    body = request.get_json(silent=True)
    if not isinstance(body, dict) or body.get("confirmation") != CONFIRMATION:
        raise ConfirmationMissing(f'This cannot be undone. Send {{"confirmation": "{CONFIRMATION}"}} as JSON.')
    asked = _call("request_erasure", {"clerk_user_id": caller.user_id})
    if "sole_owner_of" in asked:
        raise SoleOwner(
            "Make somebody else an owner of each, or delete it; then ask again.", organizations=asked["sole_owner_of"]
        )
    components().cache.invalidate(users=[caller.user_id])
    answer = jsonify(asked)
    answer.headers["Location"] = f"{personal_data.url_prefix}/erasure/{asked['receipt']}"
    components().eraser.begin(asked["receipt"])
    return answer, HTTPStatus.ACCEPTED


@personal_data.get("/erasure/<uuid:receipt>")
def show_erasure(receipt: UUID) -> ResponseReturnValue:
    """How far an erasure is. Whoever has been erased cannot sign in, so the receipt is enough."""
    found = _call("erasure_receipt", {"receipt": str(receipt)})
    if found is None:
        raise ReceiptUnknown("Check the receipt that was given when the erasure was asked for.")
    return jsonify(found)


def _require_person() -> Caller:
    """The caller, who is the person. Raises Impersonated, and what SessionTokens.caller() raises."""
    caller = current_caller(components().session_tokens)
    if caller.is_impersonated:
        raise Impersonated("Who acts in somebody's name may neither take their data nor erase them.")
    return caller


def _call(function: str, arguments: dict[str, Any]) -> Any:
    """Raises NothingHeld and CallFailed."""
    try:
        return components().data_api.call(function, arguments)
    except CallFailed as failure:
        if failure.code == "PT404":
            raise NothingHeld("Sign in to the product once; who was erased has nothing here any more.") from failure
        raise


def _record_end(running: Export, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces; and the database is told how it ended, also when the caller has gone."""
    failed = True
    try:
        yield from pieces
        failed = False
    finally:
        with suppress(CallFailed):
            running.end(failed=failed)
        log.info("personal data export", extra={"failed": failed})
