"""Clerk's webhooks: check the signature over the raw bytes, hand the event to Postgres, answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from service.components import components
from service.data_api import CallFailed, DataApi
from service.metrics import count_webhook
from service.problems import Problem

MAX_BODY_BYTES = 512 * 1024  # Svix sends at most about 350 kB
MESSAGE_ID = re.compile(r"[!-~]{1,256}")
TIMESTAMP = re.compile(r"[0-9]{1,12}")
# Svix signs as svix-*; its white-label customers as webhook-*, the Standard Webhooks' names.
PREFIXES = ("svix", "webhook")

# What jsonb refuses inside a string: the zero character, and halves of surrogate pairs.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# Texts, finished or not, and brackets. Whatever follows a quote matches, so that no text is looked at twice.
STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
MAX_LEVELS = 100
MAX_DIGITS = 4000  # Python reads no whole number of more than 4,300

webhooks = Blueprint("webhooks", __name__, url_prefix="/webhooks")


class HeadersMalformed(
    Problem, status=400, slug="webhook-headers-malformed", title="Webhook headers are missing or malformed"
):
    """The three headers of a delivery are not all there, or not of their form."""


class SignatureInvalid(Problem, status=401, slug="webhook-signature-invalid", title="Webhook signature is not valid"):
    """No secret of ours made this signature, or it was made too long ago. Which of the two is not told."""


class BodyUnreadable(Problem, status=400, slug="webhook-body-unreadable", title="Webhook body cannot be read"):
    """The body ends, or breaks, before it should."""


class EventMalformed(Problem, status=400, slug="webhook-event-malformed", title="Webhook body is not an event"):
    """The body is not an event."""


class EventNotStored(
    Problem, status=503, slug="webhook-event-not-stored", title="The event could not be stored", retry_after=30
):
    """The database did not confirm that it has the event: the sender must try again."""


@dataclass(frozen=True)
class Delivery:
    """One attempt to hand us a message: the id is the same on every attempt, timestamp and signature are not."""

    message_id: str
    timestamp: str
    signature: str


@webhooks.post("/clerk")
def receive() -> ResponseReturnValue:
    """Stores one event of Clerk's and answers with what became of it."""
    delivery = delivery_in(request.headers)
    event = signed_event(raw_body(), delivery, components().settings.clerk_webhook_secrets)
    outcome = store(components().data_api, delivery.message_id, event)
    # Whatever the outcome: an event that comes again may be one whose first answer was lost.
    components().cache.changed(**scopes_of(event))
    count_webhook(outcome["outcome"], event.get("timestamp"))
    answer = jsonify(outcome)
    if event["type"] == "user.deleted":
        components().eraser.begin_pending()  # what the database did not erase at once
    return answer


def raw_body() -> bytes:
    """The request's body, byte for byte. Raises RequestEntityTooLarge or BodyUnreadable."""
    # A chunked body has no Content-Length, and Werkzeug cuts it at the limit without a word: leave room to notice.
    request.max_content_length = MAX_BODY_BYTES + 1
    try:
        body = request.get_data()
    except HTTPException:
        raise
    except Exception as error:  # a broken chunk: each web server has an error of its own for it
        raise BodyUnreadable("The body does not follow its own Transfer-Encoding.") from error
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def delivery_in(headers: Headers) -> Delivery:
    """The delivery that the headers describe, by the first complete set of names. Raises HeadersMalformed."""
    for prefix in PREFIXES:
        names = (f"{prefix}-id", f"{prefix}-timestamp", f"{prefix}-signature")
        message_id, timestamp, signature = (headers.get(name, "") for name in names)
        if MESSAGE_ID.fullmatch(message_id) and TIMESTAMP.fullmatch(timestamp) and signature:
            return Delivery(message_id, timestamp, signature)
    raise HeadersMalformed("A delivery has the headers svix-id, svix-timestamp and svix-signature, in Svix's form.")


def signed_event(body: bytes, delivery: Delivery, secrets: Sequence[SecretStr]) -> dict[str, Any]:
    """The event in `body`, fit for storing, once one of `secrets` proves to have signed it at most 300 s ago.

    Raises HeadersMalformed, SignatureInvalid or EventMalformed.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise EventMalformed("The body is not UTF-8.") from None
    check_signature(text, delivery, secrets)
    return event_in(text)


def check_signature(text: str, delivery: Delivery, secrets: Sequence[SecretStr]) -> None:
    """Returns when one of `secrets` made a signature of the delivery. Raises HeadersMalformed or SignatureInvalid."""
    headers = {
        "webhook-id": delivery.message_id,
        "webhook-timestamp": delivery.timestamp,
        "webhook-signature": delivery.signature,
    }
    malformed = False
    for secret in secrets:
        try:
            Webhook(secret.get_secret_value()).verify(text, headers, json_parse=False)
        except WebhookVerificationError:
            continue
        except ValueError:  # a signature that is not "version,base64" raises this, or its subclass binascii.Error
            malformed = True
        else:
            return
    if malformed:
        raise HeadersMalformed("A signature has the form v1,<base64>; several are separated by one space.")
    raise SignatureInvalid("The signature does not match the message, or its timestamp is not within 5 minutes of now.")


def event_in(text: str) -> dict[str, Any]:
    """The JSON in `text`, changed where Postgres could not hold it. Raises EventMalformed.

    A signed event must not be lost because of what a person put into their own metadata: characters that jsonb refuses
    become U+FFFD, and what is nested too deeply or is too large a number for a parser becomes null.
    """
    try:
        try:
            event = storable(_parsed(text))
        except RecursionError:
            event = storable(_parsed(without_depths(text)))
    except ValueError:
        raise EventMalformed("The body is not JSON.") from None
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
        raise EventMalformed("An event is a JSON object with an object as its data.")
    if not isinstance(event.get("type"), str) or not event["type"]:
        raise EventMalformed("An event's type is a text.")
    return event


def store(data_api: DataApi, message_id: str, event: Mapping[str, Any]) -> dict[str, Any]:
    """Hands the event to the database and returns its outcome. Raises EventNotStored."""
    try:
        outcome = data_api.call("receive_clerk_event", {"message_id": message_id, "event": event})
    except CallFailed as failure:
        raise EventNotStored("The database did not take the event. Send it again.") from failure
    if not isinstance(outcome, dict) or not isinstance(outcome.get("outcome"), str):
        raise EventNotStored("The database did not confirm the event. Send it again.")
    return outcome


def scopes_of(event: Mapping[str, Any]) -> dict[str, list[str]]:
    """Whom and what an event is about, as far as an answer in the cache could speak of it."""
    subject, data = event["type"].partition(".")[0], event["data"]
    inner, public = data.get("organization"), data.get("public_user_data")
    found = {
        "users": [data.get("id") if subject == "user" else None, *_values(public, "user_id")],
        "organizations": [data.get("id") if subject == "organization" else None, *_values(inner, "id")],
    }
    return {name: [each for each in ids if isinstance(each, str) and each] for name, ids in found.items()}


def storable(value: Any) -> Any:
    """`value`, as parsed from JSON, with U+FFFD for each character that jsonb refuses. Raises RecursionError."""
    match value:
        case str():
            return UNSTORABLE.sub("\ufffd", value)
        case list():
            return [storable(item) for item in value]
        case dict():
            return {storable(key): storable(item) for key, item in value.items()}
        case _:
            return value


def without_depths(text: str) -> str:
    """The JSON `text` with null for what is nested deeper than MAX_LEVELS. Text that is not JSON stays so."""
    kept, start, level = [], 0, 0
    for token in STRUCTURE.finditer(text):
        if token[0] in {"[", "{"}:
            level += 1
            if level == MAX_LEVELS + 1:
                kept.append(f"{text[start : token.start()]}null")
        elif token[0] in {"]", "}"}:
            if level == MAX_LEVELS + 1:
                start = token.end()
            level -= 1
    return "".join(kept) + text[start:]


def _values(found: object, name: str) -> list[object]:
    return [found.get(name)] if isinstance(found, dict) else []


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_refused, parse_float=_finite, parse_int=_readable)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _readable(digits: str) -> int | None:
    return int(digits) if len(digits) <= MAX_DIGITS else None
