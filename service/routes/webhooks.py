"""Clerk's webhooks: verifies the signature, stores the event in Postgres, and answers."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from service.components import components
from service.inbox import store_event
from service.metrics import count_webhook
from service.signed_webhooks import SignatureInvalid, read_body, read_deliveries, verify_text

webhooks = Blueprint("webhooks", __name__, url_prefix="/webhooks")


@webhooks.post("/clerk")
def receive() -> ResponseReturnValue:
    """Stores one Clerk event and answers with its outcome."""
    deliveries = read_deliveries(request.headers)
    try:
        message_id, event = verify_text(read_body(), deliveries, components().settings.clerk_webhook_secrets)
    except SignatureInvalid as refusal:
        components().refusals.count("clerk", refusal)
        raise
    stored = store_event(components().data_api, message_id, event)
    # Whatever the outcome: for a duplicate, the first delivery may have failed before it invalidated the cache.
    components().cache.invalidate(stored["users"], stored["organizations"])
    count_webhook(stored["outcome"], stored["lag_seconds"])
    if stored.get("erasure") is not None:
        components().eraser.begin(stored["erasure"])  # the person is hidden; erasing takes longer than Clerk may wait
    return jsonify({name: stored[name] for name in ("message_id", "type", "outcome")})
