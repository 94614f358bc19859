"""Sends the mail in the outbox: claims one at a time, renders it, and sends it to Resend.

The mail's id is the idempotency key. So a sender that is killed, fails or runs twice neither loses nor repeats a mail:
the outbox still has what is not sent, and Resend recognizes what it already has.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode
from uuid import UUID

import httpx
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound, meta, nodes

from service.data_api import Call
from service.logs import log
from service.settings import ADDRESS

TEMPLATES = Path(__file__).with_name("mail_templates")
LAYOUT = "layout"
FORMS = ("txt", "html")
# What a template may use, besides `mail`.
CONSTANTS = frozenset({"company", "app_url", "unsubscribe_url", "subject"})
WORK_SECONDS = 20.0
TIMEOUT = httpx.Timeout(connect=3, read=8, write=3, pool=3)
MAX_TEXT_LENGTH = 200
MAX_RETRY_AFTER = 24 * 60 * 60
# Control and format characters, line and paragraph separators: they could end a line or reverse its direction.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u2069\ufeff\ud800-\udfff]+")
CODE = re.compile(r"[A-Za-z0-9_]{1,100}")
# The mail itself is not the cause, so it is retried. The cause is the API key or domain (401, 403), a timeout (408),
# another request in flight with the same idempotency key (409), or the rate (429).
RETRYABLE_STATUSES = {401, 403, 408, 409, 425, 429}
# Resend has already accepted a mail with this key but other content, because a name changed meanwhile: it was sent.
# https://resend.com/docs/dashboard/emails/idempotency-keys
ALREADY_SENT = "invalid_idempotent_request"


def list_kinds(folder: Path = TEMPLATES) -> list[str]:
    """The kinds of mail that have both templates in `folder`, by name."""
    texts, pages = ({file.stem for file in folder.glob(f"*.{form}")} for form in FORMS)
    return sorted((texts & pages) - {LAYOUT})


KINDS = list_kinds()


class SendingFailed(Exception):
    """Resend did not confirm that it accepted a mail. str(), which appears in logs and in the outbox, names no person.

    `is_final`: the same mail would always fail. `is_general`: the next mail would fail too. `retry_after`: seconds, if
    Resend states them.
    """

    def __init__(
        self, code: str, *, is_final: bool = False, is_general: bool = False, retry_after: int | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.is_final = is_final
        self.is_general = is_general
        self.retry_after = retry_after


def find_faults(examples: Mapping[str, Mapping[str, Any]], templates: Path = TEMPLATES) -> list[str]:
    """Compares the templates with the registered kinds, which are given with an example of their data.

    A fault is a kind without templates or registration, a template that does not parse, or one that uses a value that
    the data of its kind does not have.
    """
    faults = []
    kinds = {file.stem for form in FORMS for file in templates.glob(f"*.{form}")} - {LAYOUT}
    for form, environment in zip(FORMS, _open_templates(templates), strict=True):
        for kind in sorted({*examples, *kinds}):
            if kind not in examples:
                found = ["its kind is not registered. Call app.register_mail_kind(), or delete the file."]
            else:
                found = _find_template_faults(environment, f"{kind}.{form}", examples[kind])
            faults += [f"{templates.name}/{kind}.{form}: {fault}" for fault in found]
    return faults


@dataclass(frozen=True)
class Message:
    """A rendered mail. `unsubscribe_url` is None for essential mail."""

    id: str
    template: str
    to: str
    subject: str
    html: str
    text: str
    unsubscribe_url: str | None


class Renderer:
    """Renders the outbox's rows as messages: HTML and plain text, each from its own template."""

    def __init__(
        self,
        company: str | None,
        app_url: str | None,
        service_url: str | None,
        secret: str,
        templates: Path = TEMPLATES,
    ) -> None:
        self._constants = {"company": company or "Ballast", "app_url": app_url}
        self._service_url = service_url
        self._key = hmac.digest(secret.encode(), b"mail/unsubscribe", hashlib.sha256)
        self.kinds = list_kinds(templates)
        self._text, self._html = _open_templates(templates)

    def render(self, mail: Mapping[str, Any]) -> Message:
        """Renders a row that claim_mail() returned. Raises SendingFailed if that is impossible."""
        if mail["template"] not in self.kinds:
            raise SendingFailed("template_unknown", is_final=True)
        if not ADDRESS.fullmatch(mail["to"] or ""):
            raise SendingFailed("address_malformed", is_final=True)
        unsubscribe_url = None if mail["is_essential"] else self.unsubscribe_url(mail["person_id"], mail["template"])
        context = self._constants | {"unsubscribe_url": unsubscribe_url} | {"mail": _clean(mail["context"])}
        try:
            whole = self._text.get_template(f"{mail['template']}.txt").render(context)
            subject, _, text = whole.strip().partition("\n")
            subject = one_line(subject)
            html = self._html.get_template(f"{mail['template']}.html").render(context, subject=subject)
        except Exception as error:  # a template may fail with any: one mail must not stop the others
            is_of_machine = isinstance(error, MemoryError | OSError) and not isinstance(error, TemplateError)
            code = f"template_{type(error).__name__}"
            raise SendingFailed(code, is_final=not is_of_machine, is_general=is_of_machine) from None
        return Message(mail["id"], mail["template"], mail["to"], subject, html, text.strip() + "\n", unsubscribe_url)

    def describe(self, kind: str) -> str:
        """What people unsubscribe from: the block `what` of the kind's text, or the layout's if it has none."""
        template, layout = (
            self._text.get_template(f"{name}.txt") for name in (kind if kind in self.kinds else LAYOUT, LAYOUT)
        )
        source = template if "what" in template.blocks else layout
        return "".join(source.blocks["what"](source.new_context(self._constants)))

    def unsubscribe_url(self, person_id: str, kind: str) -> str | None:
        """The link that unsubscribes from this kind of mail without signing in. None while SERVICE_URL is not set."""
        if self._service_url is None:
            return None
        query = urlencode({"person": person_id, "kind": kind, "signature": self.signature(person_id, kind)})
        return f"{self._service_url}/mail/unsubscribe?{query}"

    def signature(self, person_id: str, kind: str) -> str:
        """The signature of an unsubscribe link. It never expires, because a mail may be read much later."""
        return hmac.new(self._key, f"{person_id}/{kind}".encode(), hashlib.sha256).hexdigest()

    def is_signed(self, person_id: str, kind: str, signature: str) -> bool:
        """Whether the signature of a link is valid."""
        return hmac.compare_digest(self.signature(person_id, kind).encode(), signature.encode(errors="replace"))


class Resend:
    """Resend's API. One per process: it reuses its connections. `sender` is the From header."""

    def __init__(self, api_key: str, api_url: str, sender: str) -> None:
        self._sender = sender
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=api_url, headers=headers, timeout=TIMEOUT)

    def send(self, message: Message) -> str | None:
        """Sends a message and returns Resend's id; None if Resend already had it. Raises SendingFailed."""
        headers = {"Idempotency-Key": message.id}
        try:
            answer = self._http.post("/emails", json=self._body(message), headers=headers)
        except httpx.HTTPError as error:
            failure = SendingFailed(type(error).__name__, is_general=True)
        else:
            return _read_provider_id(answer)
        # Raised outside the except block: httpx's error holds the request, with the mail's content.
        raise failure

    def _body(self, message: Message) -> dict[str, Any]:
        body: dict[str, Any] = {
            "from": self._sender,
            "to": [message.to],
            "subject": message.subject,
            "html": message.html,
            "text": message.text,
            # Resend's webhooks repeat the tags. A webhook may arrive before we have Resend's id.
            "tags": [{"name": "mail", "value": message.id}, {"name": "template", "value": message.template}],
        }
        if message.unsubscribe_url is not None:
            body["headers"] = {
                "List-Unsubscribe": f"<{message.unsubscribe_url}>",
                "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",  # RFC 8058
            }
        return body


@dataclass(frozen=True)
class DevMailbox:
    """Replaces Resend where no mail may be sent: stores messages in `folder` for /dev/mail, if there is a folder."""

    folder: Path | None

    def send(self, message: Message) -> str | None:
        """Stores the message."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{UUID(message.id)}.json"
            unfinished = path.with_suffix(".new")
            stored = asdict(message) | {"sent_at": datetime.now(UTC).isoformat(timespec="seconds")}
            unfinished.write_text(json.dumps(stored, ensure_ascii=False))
            unfinished.replace(path)
        return None

    def list_messages(self) -> list[dict[str, Any]]:
        """The stored messages, newest first."""
        stored = [json.loads(file.read_text()) for file in self.folder.glob("*.json")] if self.folder else []
        return sorted(stored, key=lambda each: each["sent_at"], reverse=True)


@dataclass(frozen=True)
class Mailer:
    """`call` is DataApi.call or a function like it. Without a `transport` no mail is claimed."""

    call: Call
    renderer: Renderer
    transport: Resend | DevMailbox | None

    def send_due(self) -> dict[str, Any]:
        """Sends due mail for at most WORK_SECONDS. Returns how many were sent, postponed, or given up (failed).

        Raises CallFailed if the database does not answer. A claimed mail can then be claimed again after some minutes.
        """
        if self.transport is None:
            return {"unconfigured": ["RESEND_API_KEY"]}
        report: Counter[str] = Counter(sent=0, postponed=0, failed=0)
        deadline = time.monotonic() + WORK_SECONDS
        while time.monotonic() < deadline:
            # One at a time: a sender that is killed leaves at most one claimed.
            claimed = self.call("claim_mail", {"batch": 1, "kinds": self.renderer.kinds})
            if not claimed:
                break
            try:
                provider_id = self.transport.send(self.renderer.render(claimed[0]))
            except SendingFailed as failure:
                self._end(claimed[0]["id"], failure, report)
                if failure.is_general:
                    break
            else:
                self.call("end_mail", {"id": claimed[0]["id"], "state": "sent", "provider_id": provider_id})
                report["sent"] += 1
        return dict(report)

    def _end(self, mail_id: str, failure: SendingFailed, report: Counter[str]) -> None:
        requested = "failed" if failure.is_final else "queued"
        outcome = {"id": mail_id, "state": requested, "error": failure.code, "retry_after": failure.retry_after}
        state = self.call("end_mail", outcome)
        report["failed" if state == "failed" else "postponed"] += 1
        log.warning("mail not sent", extra={"mail": mail_id, "code": failure.code, "state": state})


def one_line(text: str) -> str:
    """`text` on one line, without invisible characters and cut to length, so that it is safe in a header."""
    return " ".join(UNPRINTABLE.sub(" ", text).split())[:MAX_TEXT_LENGTH]


def _clean(value: Any) -> Any:
    """Reduces each text that people entered, such as a name, to one line: it cannot add a paragraph to our mail."""
    match value:
        case str():
            return one_line(value)
        case dict():
            return {name: _clean(each) for name, each in value.items()}
        case list():
            return [_clean(each) for each in value]
        case _:
            return value


def _omit_none(value: Any) -> Any:
    """Renders a missing value as nothing instead of `None`."""
    return "" if value is None else value


def _format_time(text: str | None) -> str:
    """Formats a PostgreSQL date or timestamp for people: 31 January 2026, or 31 January 2026, 10:00 UTC."""
    if text is None:
        return ""
    moment = datetime.fromisoformat(text)
    if len(text) == len("2026-01-31"):
        return f"{moment.day} {moment:%B %Y}"
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


class _Templates(Environment):
    """`mail.items` is the value of this name, not the method of Python's dict."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Looks for a value first, then for an attribute."""
        return self.getitem(obj, attribute)


def _open_templates(folder: Path) -> tuple[Environment, Environment]:
    """One environment for each of FORMS, because plain text must not be escaped."""
    options: dict[str, Any] = {
        "loader": FileSystemLoader(folder),
        "undefined": StrictUndefined,
        "finalize": _omit_none,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    text = _Templates(autoescape=False, **options)
    html = _Templates(autoescape=True, **options)
    html.filters["moment"] = text.filters["moment"] = _format_time
    return text, html


def _find_template_faults(environment: Environment, name: str, example: Mapping[str, Any]) -> list[str]:
    """Examines all branches of a template, which rendering it once does not."""
    loader = cast("FileSystemLoader", environment.loader)
    try:
        environment.get_template(name)
        tree = environment.parse(loader.get_source(environment, name)[0])
    except TemplateNotFound:
        return ["the file is missing. Write it, or delete the row of app.mail_kinds."]
    except TemplateError as error:
        return [f"{(error.message or type(error).__name__).rstrip('.')}."]
    used = {
        each.attr
        for each in tree.find_all(nodes.Getattr)
        if isinstance(each.node, nodes.Name) and each.node.name == "mail"
    }
    unknown = [f"mail.{each}" for each in sorted(used - {*example})]
    unknown += sorted(meta.find_undeclared_variables(tree) - CONSTANTS - {"mail"})
    faults = [f"it uses {each}, which is not among the data of its kind." for each in unknown]
    what = [each for block in tree.find_all(nodes.Block) if block.name == "what" for each in block.find_all(nodes.Name)]
    if any(each.name == "mail" for each in what):
        faults.append("its block `what` uses mail, but the page that it is also for has no mail. Write a fixed text.")
    return faults


def _read_provider_id(answer: httpx.Response) -> str | None:
    """Resend's id of the accepted mail; None if Resend already had it. Raises SendingFailed."""
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        code = "application_error"  # a proxy's page, or an empty body
    else:
        fields = body if isinstance(body, dict) else {}
        provider_id, name = fields.get("id"), fields.get("name")
        if answer.is_success and isinstance(provider_id, str) and provider_id:
            return provider_id
        code = name if isinstance(name, str) and CODE.fullmatch(name) else "unknown"
        if answer.is_success:
            code = "answer_without_id"
        elif code == ALREADY_SENT:
            return None
    if answer.is_client_error and answer.status_code not in RETRYABLE_STATUSES:
        raise SendingFailed(code, is_final=True)
    is_general = answer.status_code != HTTPStatus.CONFLICT
    raise SendingFailed(code, is_general=is_general, retry_after=_read_retry_after(answer))


def _read_retry_after(answer: httpx.Response) -> int | None:
    given = answer.headers.get("Retry-After", "")
    return min(int(given), MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,9}", given) else None
