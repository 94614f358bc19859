"""Incoming requests about mail: the unsubscribe link, Resend's delivery events, and the local mailbox page."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify, make_response, render_template, request
from flask.typing import ResponseReturnValue

from service.components import components
from service.data_api import CallFailed
from service.mail import KINDS, DevMailbox, Message
from service.problems import Problem
from service.routes import LocalBlueprint
from service.signed_webhooks import (
    EventMalformed,
    EventNotStored,
    SignatureInvalid,
    read_body,
    read_deliveries,
    verify_text,
)

mail = Blueprint("mail", __name__)
dev_mail = LocalBlueprint("dev_mail", __name__, url_prefix="/dev/mail")

# Other events (opened, clicked, sent, delayed, …) are ignored.
EVENTS = {
    "email.delivered": "delivered",
    "email.bounced": "bounced",
    "email.suppressed": "bounced",  # Resend did not try, because the address bounced before
    "email.failed": "bounced",  # Resend could not send it, which does not mean that the address is bad
    "email.complained": "complained",
}
# After these, such as a full mailbox, the address stays in use. https://resend.com/docs/dashboard/emails/email-bounces
TRANSIENT_BOUNCES = {"Transient", "Temporary"}

STYLE = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
# A mail contains its own styles and loads nothing else.
MAIL_STYLE = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

EXAMPLE_ID = "00000000-0000-4000-8000-000000000000"


class LinkInvalid(Problem, status=403, slug="mail-link-invalid", title="This link is not valid"):
    """The signature of an unsubscribe link is not valid, or the link was cut off."""


class MailUnknown(Problem, status=404, slug="mail-unknown", title="There is no such mail"):
    """The local mailbox has no mail with this id."""


@mail.get("/mail/unsubscribe")
def confirm_unsubscribe() -> ResponseReturnValue:
    """Asks for confirmation and changes nothing: mail scanners open every link."""
    _, kind = _read_signed_link()
    return _render_page("unsubscribe.html", STYLE, what=_describe(kind), done=False)


@mail.post("/mail/unsubscribe")
def unsubscribe() -> ResponseReturnValue:
    """Unsubscribes from one kind of mail: from the page, or by the mail program's own button (RFC 8058)."""
    person_id, kind = _read_signed_link()
    components().data_api.call("unsubscribe_from_mail", {"person_id": person_id, "template": kind})
    return _render_page("unsubscribe.html", STYLE, what=_describe(kind), done=True)


@mail.post("/webhooks/resend")
def receive() -> ResponseReturnValue:
    """Records the delivery status of a mail. Events of other kinds, or about mail that is not ours, are ignored."""
    secret = components().settings.resend_webhook_secret
    deliveries = read_deliveries(request.headers)
    try:
        _, text = verify_text(read_body(), deliveries, (secret,) if secret else ())
    except SignatureInvalid as refusal:
        components().refusals.count("resend", refusal)
        raise
    event = _parse_event(text)
    kind = EVENTS.get(event["type"])
    if kind is None:
        return jsonify(outcome="ignored")
    try:
        is_known = components().data_api.call(
            "record_mail_event", {"kind": kind} | _build_arguments(event["type"], event["data"])
        )
    except CallFailed as failure:
        raise EventNotStored("The database did not store the event. Send it again.") from failure
    return jsonify(outcome="processed" if is_known else "ignored")


def _parse_event(text: str) -> dict[str, Any]:
    """The JSON in `text`. Raises EventMalformed."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise EventMalformed("The body is not JSON.") from None
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict) or not isinstance(event.get("type"), str):
        raise EventMalformed("An event is a JSON object: `type` is a string and `data` is an object.")
    return event


def _build_arguments(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    tags, to, bounce = data.get("tags"), data.get("to"), data.get("bounce")
    return {
        "mail_id": _uuid_or_none(tags.get("mail")) if isinstance(tags, dict) else None,
        "provider_id": _text_or_none(data.get("email_id")),
        "address": _text_or_none(to[0]) if isinstance(to, list) and to else None,
        "is_permanent": kind != "email.failed"
        and not (isinstance(bounce, dict) and bounce.get("type") in TRANSIENT_BOUNCES),
    }


def _text_or_none(value: object) -> str | None:
    """`value` if it is a text that Postgres can store: without NUL characters and lone surrogates."""
    return value if isinstance(value, str) and value.isprintable() else None


def _uuid_or_none(text: object) -> str | None:
    try:
        return str(UUID(text)) if isinstance(text, str) else None
    except ValueError:
        return None


def _read_signed_link() -> tuple[str, str]:
    """The person and the kind of mail that a link names. Raises LinkInvalid."""
    person_id, kind, signature = (request.args.get(name, "") for name in ("person", "kind", "signature"))
    if not components().mailer.renderer.is_signed(person_id, kind, signature):
        raise LinkInvalid("Open the complete link from the mail again, or sign in and change your preferences.")
    return person_id, kind


def _describe(kind: str) -> str:
    return components().mailer.renderer.describe(kind)


@dev_mail.get("")
def list_messages() -> ResponseReturnValue:
    """Lists all mail that was sent locally, newest first, and an example of each kind."""
    return _render_page("dev_mailbox.html", STYLE, messages=_dev_mailbox().list_messages(), kinds=KINDS)


@dev_mail.get("/<uuid:mail_id>.<any(html, txt):form>")
def show(mail_id: UUID, form: str) -> ResponseReturnValue:
    """Shows one mail as HTML or text."""
    for message in _dev_mailbox().list_messages():
        if message["id"] == str(mail_id):
            return _render_message(message["subject"], message["html"], message["text"], form)
    raise MailUnknown("/dev/mail lists all mail.")


@dev_mail.get("/example/<any({}):kind>.<any(html, txt):form>".format(", ".join(KINDS)))
def example(kind: str, form: str) -> ResponseReturnValue:
    """Shows a kind of mail with example values."""
    message = example_message(kind)
    return _render_message(message.subject, message.html, message.text, form)


def example_message(kind: str) -> Message:
    """Renders an example of this kind of mail. Raises MailUnknown if the kind is not registered."""
    registered = components().mailer.call("list_mail_kinds", {})
    if kind not in registered:
        raise MailUnknown(f"Register the kind {kind} with app.register_mail_kind().")
    return components().mailer.renderer.render(
        {
            "id": EXAMPLE_ID,
            "template": kind,
            "to": "ada@example.com",
            "person_id": EXAMPLE_ID,
            "is_essential": registered[kind]["is_essential"],
            "context": registered[kind]["example"],
        }
    )


def _dev_mailbox() -> DevMailbox:
    transport = components().mailer.transport
    return transport if isinstance(transport, DevMailbox) else DevMailbox(None)


def _render_message(subject: str, html: str, text: str, form: str) -> Response:
    if form == "txt":
        response = make_response(f"Subject: {subject}\n\n{text}")
        response.content_type = "text/plain; charset=utf-8"
    else:
        response = make_response(html)
    response.headers["Content-Security-Policy"] = MAIL_STYLE
    return response


def _render_page(template: str, policy: str, **context: object) -> Response:
    response = make_response(render_template(template, settings=components().settings, **context))
    response.headers["Content-Security-Policy"] = policy
    return response
