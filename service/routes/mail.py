"""Mail from the outside in: the link that ends it, what Resend says became of it, and locally a page that shows it."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify, make_response, render_template, request
from flask.typing import ResponseReturnValue

from service.components import components
from service.data_api import CallFailed
from service.mail import KINDS, OPTIONAL, DevMailbox, Message
from service.problems import Problem
from service.signed_webhooks import EventMalformed, EventNotStored, read_body, read_delivery, verify_text

mail = Blueprint("mail", __name__)
dev_mail = Blueprint("dev_mail", __name__, url_prefix="/dev/mail")

# Of the others (opened, clicked, sent, delayed, …) we want to know nothing.
EVENTS = {
    "email.delivered": "delivered",
    "email.bounced": "bounced",
    "email.suppressed": "bounced",  # Resend has seen it bounce before, and did not try
    "email.failed": "bounced",  # Resend could not send it: of the address that says nothing
    "email.complained": "complained",
}
# A full mailbox is no reason to send nothing any more. https://resend.com/docs/dashboard/emails/email-bounces
TRANSIENT_BOUNCES = {"Transient", "Temporary"}

STYLE = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
# A mail brings its own styles, and nothing else.
MAIL_STYLE = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# What each kind of mail may say, for its preview.
EXAMPLE: dict[str, Any] = {
    "name": "Ada Winter",
    "organization": "Acme",
    "member": "Ben Summer",
    "role": "admin",
    "receipt": "00000000-0000-4000-8000-000000000000",
    "failures": 3,
    "export": {"requested_by": "person", "started_at": "2026-01-31T10:00:00+00:00"},
    "backup": {
        "filename": "database/20260131T020000Z-0123abcd",
        "created_at": "2026-01-31T02:00:00+00:00",
        "status": "failed",
        "error": "pg_dump ended with 1",
    },
}


class LinkInvalid(Problem, status=403, slug="mail-link-invalid", title="This link is not valid"):
    """The link to end mail is not one of ours, or was cut."""


class MailUnknown(Problem, status=404, slug="mail-unknown", title="There is no such mail"):
    """There is no such mail in the mailbox."""


@mail.get("/mail/unsubscribe")
def confirm_unsubscribe() -> ResponseReturnValue:
    """Asks before it ends anything: programs that look into mail open every link."""
    _, kind = _read_signed_link()
    return _render_page("unsubscribe.html", STYLE, kind=kind, done=False)


@mail.post("/mail/unsubscribe")
def unsubscribe() -> ResponseReturnValue:
    """Ends mail of one kind: from the page, or by the mail program's own button (RFC 8058)."""
    person_id, kind = _read_signed_link()
    components().data_api.call("unsubscribe_from_mail", {"person_id": person_id, "template": kind})
    return _render_page("unsubscribe.html", STYLE, kind=kind, done=True)


@mail.post("/webhooks/resend")
def receive() -> ResponseReturnValue:
    """Notes what became of a mail: of ours it is known, of others' (and of kinds we do not ask for) ignored."""
    secret = components().settings.resend_webhook_secret
    event = _parse_event(verify_text(read_body(), read_delivery(request.headers), (secret,) if secret else ()))
    kind = EVENTS.get(event["type"])
    if kind is None:
        return jsonify(outcome="ignored")
    try:
        is_known = components().data_api.call(
            "record_mail_event", {"kind": kind} | _event_arguments(event["type"], event["data"])
        )
    except CallFailed as failure:
        raise EventNotStored("The database did not take the event. Send it again.") from failure
    return jsonify(outcome="processed" if is_known else "ignored")


def _parse_event(text: str) -> dict[str, Any]:
    """The JSON in `text`. Raises EventMalformed."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise EventMalformed("The body is not JSON.") from None
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict) or not isinstance(event.get("type"), str):
        raise EventMalformed("An event is a JSON object with a text as its type and an object as its data.")
    return event


def _event_arguments(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    tags, to, bounce = data.get("tags"), data.get("to"), data.get("bounce")
    return {
        "mail_id": _uuid(tags.get("mail")) if isinstance(tags, dict) else None,
        "provider_id": _text(data.get("email_id")),
        "address": _text(to[0]) if isinstance(to, list) and to else None,
        "is_permanent": kind != "email.failed"
        and not (isinstance(bounce, dict) and bounce.get("type") in TRANSIENT_BOUNCES),
    }


def _text(value: object) -> str | None:
    """A text that Postgres can hold: it has no zero character and no half of a surrogate pair."""
    return value if isinstance(value, str) and value.isprintable() else None


def _uuid(text: object) -> str | None:
    try:
        return str(UUID(text)) if isinstance(text, str) else None
    except ValueError:
        return None


def _read_signed_link() -> tuple[str, str]:
    """Whose mail of which kind. Raises LinkInvalid."""
    person_id, kind, signature = (request.args.get(name, "") for name in ("person", "kind", "signature"))
    if not components().mailer.renderer.is_signed(person_id, kind, signature):
        raise LinkInvalid("Open it from the mail once more, whole; or change your preferences after signing in.")
    return person_id, kind


@dev_mail.get("")
def list_messages() -> ResponseReturnValue:
    """All mail that was sent here, newest first, and an example of each kind."""
    return _render_page("dev_mailbox.html", STYLE, messages=_dev_mailbox().list_messages(), kinds=KINDS)


@dev_mail.get("/<uuid:mail_id>.<any(html, txt):form>")
def show(mail_id: UUID, form: str) -> ResponseReturnValue:
    """One mail, as HTML or text."""
    for message in _dev_mailbox().list_messages():
        if message["id"] == str(mail_id):
            return _render_message(message["subject"], message["html"], message["text"], form)
    raise MailUnknown("Look at /dev/mail.")


@dev_mail.get("/example/<any({}):kind>.<any(html, txt):form>".format(", ".join(KINDS)))
def example(kind: str, form: str) -> ResponseReturnValue:
    """A kind of mail, filled with examples."""
    message = example_message(kind)
    return _render_message(message.subject, message.html, message.text, form)


def example_message(kind: str) -> Message:
    """A mail of this kind to Ada Winter."""
    return components().mailer.renderer.render(
        {
            "id": EXAMPLE["receipt"],
            "template": kind,
            "to": "ada@example.com",
            "person_id": EXAMPLE["receipt"],
            "is_essential": kind not in OPTIONAL,
            "context": EXAMPLE,
        }
    )


def _dev_mailbox() -> DevMailbox:
    way = components().mailer.transport
    return way if isinstance(way, DevMailbox) else DevMailbox(None)


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
    response.headers["Referrer-Policy"] = "no-referrer"  # the address has the signature
    return response
