"""Clerk's webhooks: verifies the signature, stores the event in Postgres, and answers."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from service.components import components
from service.data_api import CallFailed, DataApi
from service.metrics import count_webhook
from service.signed_webhooks import EventMalformed, EventNotStored, read_body, read_deliveries, verify_text

webhooks = Blueprint("webhooks", __name__, url_prefix="/webhooks")


@webhooks.post("/clerk")
def receive() -> ResponseReturnValue:
    """Stores one Clerk event and answers with its outcome."""
    deliveries = read_deliveries(request.headers)
    message_id, event = verify_text(read_body(), deliveries, components().settings.clerk_webhook_secrets)
    stored = store(components().data_api, message_id, event)
    # Whatever the outcome: for a duplicate, the first delivery may have failed before it invalidated the cache.
    components().cache.invalidate(stored["users"], stored["organizations"])
    count_webhook(stored["outcome"], stored["lag_seconds"])
    if stored.get("erasure") is not None:
        components().eraser.begin(stored["erasure"])  # the person is hidden; erasing takes longer than Clerk may wait
    return jsonify({name: stored[name] for name in ("message_id", "type", "outcome")})


def store(data_api: DataApi, message_id: str, event: str) -> dict[str, Any]:
    """Stores the event's text in the database and returns its answer. Raises EventMalformed or EventNotStored."""
    try:
        stored = data_api.call("receive_clerk_event", {"message_id": message_id, "event": event})
    except CallFailed as failure:
        if failure.code == "PT400":
            raise EventMalformed(failure.message) from failure
        raise EventNotStored("The database did not store the event. Send it again.") from failure
    if not isinstance(stored, dict) or not isinstance(stored.get("outcome"), str):
        raise EventNotStored("The database did not confirm the event. Send it again.")
    return stored
