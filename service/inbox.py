"""Hands Clerk's events to the database, and records the attempts that failed there together with their transaction."""

from __future__ import annotations

import re
from typing import Any

from service.data_api import CallFailed, DataApi
from service.signed_webhooks import EventMalformed, EventNotStored

SQLSTATE = re.compile(r"[0-9A-Z]{5}")
QUERY_CANCELED = "57014"


def store_event(data_api: DataApi, message_id: str, event: str) -> dict[str, Any]:
    """Stores the event's text in the database and returns its answer. Raises EventMalformed or EventNotStored."""
    try:
        stored = data_api.call("receive_clerk_event", {"message_id": message_id, "event": event})
    except CallFailed as failure:
        if failure.code == "PT400":
            raise EventMalformed(failure.message) from failure
        record_failure(data_api, message_id, failure)
        raise EventNotStored("The database did not store the event. Send it again.") from failure
    if not isinstance(stored, dict) or not isinstance(stored.get("outcome"), str):
        raise EventNotStored("The database did not confirm the event. Send it again.")
    return stored


def retry_due_event(data_api: DataApi) -> dict[str, Any] | None:
    """Retries one failed event that is due: {outcome, users, organizations}; None if no event is due.

    Raises CallFailed if the database does not answer. If only this event's attempt fails there, its outcome is failed.
    """
    claimed = data_api.call("claim_due_event", {})
    if not isinstance(claimed, dict):
        return None
    message_id = claimed.pop("message_id")
    try:
        outcome = data_api.call("retry_claimed_event", {"message_id": message_id})
    except CallFailed as failure:
        if not record_failure(data_api, message_id, failure):
            raise
        outcome = "failed"
    return claimed | {"outcome": outcome}


def record_failure(data_api: DataApi, message_id: str, failure: CallFailed) -> bool:
    """Records the SQLSTATE with which an attempt failed. False if there is none, or the database does not answer."""
    # The service stops waiting at the same time as Postgres, so either of the two may be first.
    code = QUERY_CANCELED if failure.code == "ReadTimeout" else failure.code
    if not SQLSTATE.fullmatch(code):
        return False
    try:
        data_api.call_briefly("record_event_failure", {"message_id": message_id, "error": code})
    except CallFailed:
        return False
    return True
