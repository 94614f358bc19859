"""Webhooks signed by Svix, as Clerk and Resend send them: the signature is checked over the raw bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flask import request
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from service.problems import Problem

MAX_BODY_BYTES = 512 * 1024  # Svix sends at most about 350 kB
MESSAGE_ID = re.compile(r"[!-~]{1,256}")
TIMESTAMP = re.compile(r"[0-9]{1,12}")
# Svix signs as svix-*; its white-label customers as webhook-*, the Standard Webhooks' names.
PREFIXES = ("svix", "webhook")


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


def read_body() -> bytes:
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


def read_delivery(headers: Headers) -> Delivery:
    """The delivery that the headers describe, by the first complete set of names. Raises HeadersMalformed."""
    for prefix in PREFIXES:
        names = (f"{prefix}-id", f"{prefix}-timestamp", f"{prefix}-signature")
        message_id, timestamp, signature = (headers.get(name, "") for name in names)
        if MESSAGE_ID.fullmatch(message_id) and TIMESTAMP.fullmatch(timestamp) and signature:
            return Delivery(message_id, timestamp, signature)
    raise HeadersMalformed("A delivery has the headers svix-id, svix-timestamp and svix-signature, in Svix's form.")


def verify_text(body: bytes, delivery: Delivery, secrets: Sequence[SecretStr]) -> str:
    """The text of `body`, once one of `secrets` proves to have signed it at most 300 s ago.

    Raises HeadersMalformed, SignatureInvalid or EventMalformed.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise EventMalformed("The body is not UTF-8.") from None
    check_signature(text, delivery, secrets)
    if "\0" in text:
        raise EventMalformed("The body is not JSON.")  # which escapes this character; Postgres takes no text with it
    return text


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
