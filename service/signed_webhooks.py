"""Verifies webhooks signed by Svix, as Clerk and Resend send them. The signature covers the raw bytes."""

from __future__ import annotations

import base64
import hmac
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flask import request
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from service.problems import Problem

MAX_BODY_BYTES = 512 * 1024  # Svix sends at most about 350 kB
MESSAGE_ID = re.compile(r"[!-~]{1,256}")
TIMESTAMP = re.compile(r"[0-9]{1,12}")
MAX_TIMESTAMP = 253_402_300_799  # the end of the year 9999
# Svix sends svix-* headers; its white-label customers send webhook-*, the names of Standard Webhooks.
PREFIXES = ("svix", "webhook")


class HeadersMalformed(
    Problem, status=400, slug="webhook-headers-malformed", title="Webhook headers are missing or malformed"
):
    """One of the three headers of a delivery is missing or malformed."""


class SignatureInvalid(Problem, status=401, slug="webhook-signature-invalid", title="Webhook signature is not valid"):
    """None of our secrets made this signature, or it is too old. The answer does not reveal which.

    `skew_seconds`: our clock minus the delivery's timestamp, if one of our secrets made the signature; else None.
    """

    def __init__(self, message_id: str, skew_seconds: float | None) -> None:
        super().__init__("The signature does not match, or its timestamp is more than 5 minutes from now.")
        self.message_id = message_id
        self.skew_seconds = skew_seconds

    @property
    def reason(self) -> str:
        """`timestamp` or `signature`."""
        return "signature" if self.skew_seconds is None else "timestamp"


class BodyUnreadable(Problem, status=400, slug="webhook-body-unreadable", title="Webhook body cannot be read"):
    """The body is cut off or broken."""


class EventMalformed(Problem, status=400, slug="webhook-event-malformed", title="Webhook body is not an event"):
    """The signed body is not an event."""


class EventNotStored(
    Problem, status=503, slug="webhook-event-not-stored", title="The event could not be stored", retry_after=30
):
    """The database did not confirm that it stored the event: the sender must send it again."""


@dataclass(frozen=True)
class Delivery:
    """One attempt to deliver a message. All attempts share the id; each has its own timestamp and signature."""

    message_id: str
    timestamp: str
    signature: str


def read_body() -> bytes:
    """The request's body, byte for byte. Raises RequestEntityTooLarge or BodyUnreadable."""
    # A chunked body has no Content-Length, and Werkzeug silently cuts it at the limit: one byte more reveals that.
    request.max_content_length = MAX_BODY_BYTES + 1
    try:
        body = request.get_data()
    except HTTPException:
        raise
    except Exception as error:  # a broken chunk: each web server raises a different error for it
        raise BodyUnreadable("The body does not match its Transfer-Encoding: send it again.") from error
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def read_deliveries(headers: Headers) -> list[Delivery]:
    """Reads the delivery from each complete set of headers. Raises HeadersMalformed if no set is complete."""
    deliveries = []
    for prefix in PREFIXES:
        names = (f"{prefix}-id", f"{prefix}-timestamp", f"{prefix}-signature")
        message_id, timestamp, signature = (headers.get(name, "") for name in names)
        if MESSAGE_ID.fullmatch(message_id) and TIMESTAMP.fullmatch(timestamp) and signature:
            deliveries.append(Delivery(message_id, timestamp, signature))
    if not deliveries:
        raise HeadersMalformed("Send the headers svix-id, svix-timestamp and svix-signature as Svix documents them.")
    return deliveries


def verify_text(body: bytes, deliveries: Sequence[Delivery], secrets: Sequence[SecretStr]) -> tuple[str, str]:
    """Returns the message id and the text of `body` if one of `secrets` signed them at most 300 s ago.

    Raises HeadersMalformed, SignatureInvalid or EventMalformed.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise EventMalformed("The body is not UTF-8.") from None
    message_id = check_signature(text, deliveries, secrets)
    if "\0" in text:
        # JSON escapes this character, and Postgres accepts no text that contains it.
        raise EventMalformed("The body is not JSON.")
    return message_id, text


def check_signature(text: str, deliveries: Sequence[Delivery], secrets: Sequence[SecretStr]) -> str:
    """Returns the id of the delivery that one of `secrets` signed. Raises HeadersMalformed or SignatureInvalid."""
    malformed = False
    skew: float | None = None
    for delivery in deliveries:
        signatures = delivery.signature.split(" ")
        readable = [each for each in signatures if _is_readable(each)]
        malformed = malformed or len(readable) < len(signatures)
        headers = {
            "webhook-id": delivery.message_id,
            "webhook-timestamp": delivery.timestamp,
            "webhook-signature": " ".join(readable),
        }
        for secret in secrets:
            try:
                Webhook(secret.get_secret_value()).verify(text, headers, json_parse=False)
            except WebhookVerificationError:
                skew = _find_skew(text, delivery, readable, secret) if skew is None else skew
                continue
            return delivery.message_id
    if malformed:
        raise HeadersMalformed("A signature has the form v1,<base64>; several are separated by one space.")
    raise SignatureInvalid(deliveries[0].message_id, skew)


def _find_skew(text: str, delivery: Delivery, signatures: Sequence[str], secret: SecretStr) -> float | None:
    """Our clock minus the delivery's timestamp, if this secret made one of the signatures; else None."""
    seconds = int(delivery.timestamp)
    if seconds > MAX_TIMESTAMP:
        return None
    sent_at = datetime.fromtimestamp(seconds, UTC)
    expected = Webhook(secret.get_secret_value()).sign(delivery.message_id, sent_at, text)
    if not any(hmac.compare_digest(expected.encode(), signature.encode()) for signature in signatures):
        return None
    return time.time() - seconds


def _is_readable(signature: str) -> bool:
    """Whether standardwebhooks can read it. Where it cannot, it raises and does not read the signatures after it."""
    version, comma, encoded = signature.partition(",")
    try:
        return comma == "," and "," not in encoded and (version != "v1" or base64.b64decode(encoded) is not None)
    except ValueError:  # also binascii.Error
        return False
