"""Each mail is sent once, to the right person. No failure loses a mail, and logs contain nothing from it."""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from service import mail as mail_module
from service.components import components
from service.mail import KINDS, TEMPLATES, Renderer, SendingFailed, find_faults, one_line
from tests.conftest import ROOT, Stack
from tests.service.conftest import ENVIRONMENT, MakeApp, make_in
from tests.service.outside import HANG_UP, OLD_SECRET, SECRET, Answer, Outside, rest_answer, sign
from tests.service.test_personal_data import as_caller

KEY = "re_5ecretKey"
NAME, ORGANIZATION, ADDRESS = "Xaver Unmistakable", "Unmistakable Ltd", "xaver.unmistakable@mail.example"
Mail = dict[str, Any]


class Provider:
    """A stand-in for Resend: accepts a mail once per idempotency key, and gives the answers that a test sets."""

    def __init__(self, server: Outside) -> None:
        self.server = server
        self.delivered: dict[str, Mail] = {}
        self.keys: list[str] = []
        self.answers: list[Answer | Callable[[], Answer | None] | None] = []
        self.lock = threading.Lock()
        server.answer = self.answer

    def answer(self, path: str, headers: Any, body: bytes) -> Answer | None:
        assert (path, headers["Authorization"]) == ("/emails", f"Bearer {KEY}")
        key = headers["Idempotency-Key"]
        with self.lock:
            self.keys.append(key)
            chosen = self.answers.pop(0) if self.answers else None
        if chosen is not None:
            return chosen() if callable(chosen) else chosen
        return self.take(key, json.loads(body))

    def take(self, key: str, mail: Mail) -> Answer:
        if key in self.delivered and self.delivered[key] != mail:
            return refusal(409, "invalid_idempotent_request")
        self.delivered[key] = mail
        return rest_answer({"id": f"resend-{key}"})


def refusal(status: int, name: str, **headers: str) -> Answer:
    body = {"statusCode": status, "name": name, "message": f"Not {ADDRESS}"}
    return status, headers, json.dumps(body).encode()


@pytest.fixture
def provider(outside: Outside) -> Provider:
    return Provider(outside)


@pytest.fixture
def database(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    """Mail is on and the outbox is empty. There is one person, with their own organization."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("delete from app.email_outbox")
        connection.execute("set app.no_mail = 'on'")
        connection.execute(
            "insert into public.profiles (clerk_user_id, email, full_name) values ('user_mail', %s, %s)",
            [ADDRESS, NAME],
        )
        connection.execute(
            "insert into public.organizations (clerk_org_id, name) values ('org_mail', %s)", [ORGANIZATION]
        )
        connection.execute(
            "insert into public.organization_memberships (organization_id, user_id, role) "
            "select o.id, p.id, 'owner' from public.organizations as o, public.profiles as p "
            "where clerk_org_id = 'org_mail' and clerk_user_id = 'user_mail'"
        )
        connection.execute("reset app.no_mail")
        connection.execute("update app.settings set mail_enabled = true, operator_email = 'operator@mail.example'")
        yield connection
        connection.execute("update app.settings set mail_enabled = false, operator_email = null")
        connection.execute("delete from app.email_outbox")
        connection.execute("delete from public.organizations where clerk_org_id = 'org_mail'")
        connection.execute("delete from public.profiles where clerk_user_id = 'user_mail'")


def enqueue(database: psycopg.Connection[Any], template: str = "role_changed", number: int = 0) -> str:
    row = database.execute(
        "select app.enqueue_mail(%s, p.id, case when %s = 'member_joined' then p.id end, o.id, jsonb_build_object('n', %s::int)) "
        "from public.organizations as o, public.profiles as p where clerk_org_id = 'org_mail' and clerk_user_id = 'user_mail'",
        [template, template, number],
    ).fetchone()
    assert row is not None
    assert row[0] is not None
    return str(row[0])


def read_states(database: psycopg.Connection[Any], columns: str = "state") -> list[Any]:
    return database.execute(f"select {columns} from app.email_outbox order by created_at").fetchall()


def make_due(database: psycopg.Connection[Any]) -> None:
    database.execute("update app.email_outbox set next_attempt_at = now()")


@pytest.fixture
def client(make_app: MakeApp, stack: Stack, provider: Provider) -> FlaskClient:
    """The service with a Resend key that the provider accepts."""
    return sender(make_app, stack, provider.server.url).test_client()


def outgoing(url: str) -> dict[str, str]:
    """The variables for sending mail to a provider at `url`."""
    return {
        "ENVIRONMENT": "test", "RESEND_API_KEY": KEY, "RESEND_API_URL": url, "RESEND_WEBHOOK_SECRET": SECRET,
        "MAIL_FROM": "Ballast <hello@mail.example>", "SERVICE_URL": "https://api.mail.example",
    }  # fmt: skip


def sender(make_app: MakeApp, stack: Stack, url: str, **changes: str | None) -> Flask:
    return make_app(**(stack.environment | outgoing(url) | changes))


def run(client: FlaskClient, stack: Stack) -> Any:
    response = client.post("/jobs/mail", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert response.status_code == 200, response.json
    return response.json


def report(**counts: int) -> dict[str, int]:
    return {"sent": 0, "postponed": 0, "failed": 0} | counts


# --- sending


def test_queued_mail_is_sent_once_with_its_id_as_idempotency_key(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    mail_id = enqueue(database)
    assert run(client, stack) == report(sent=1)
    assert run(client, stack) == report()
    assert provider.keys == [mail_id]
    mail = provider.delivered[mail_id]
    assert (mail["from"], mail["to"]) == ("Ballast <hello@mail.example>", [ADDRESS])
    assert mail["subject"] == f"Your role in {ORGANIZATION} is now owner"
    assert all(f"Hello {NAME}" in mail[form] for form in ("html", "text"))
    assert {"name": "mail", "value": mail_id} in mail["tags"]
    assert "headers" not in mail  # essential: it has no unsubscribe link
    assert read_states(database, "state, provider_id, attempts") == [("sent", f"resend-{mail_id}", 1)]


def test_a_change_leads_to_a_delivered_mail(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    database.execute("update public.profiles set email = null where clerk_user_id = 'user_mail'")
    database.execute("update public.profiles set email = %s where clerk_user_id = 'user_mail'", [ADDRESS])
    assert run(client, stack) == report(sent=1)
    ((mail_id, mail),) = provider.delivered.items()
    event = {"email_id": f"resend-{mail_id}", "to": [ADDRESS], "tags": {"mail": mail_id}}
    assert webhook(client, "email.delivered", event).json == {"outcome": "processed"}
    assert read_states(database, "template, state") == [("welcome", "delivered")]
    assert f"Welcome to {'Ballast & Sons Ltd'}" == mail["subject"]


def test_people_unsubscribe_from_optional_mail_with_one_click(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    mail_id = enqueue(database, "welcome")
    run(client, stack)
    headers = provider.delivered[mail_id]["headers"]
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = headers["List-Unsubscribe"].strip("<>")
    assert link.startswith("https://api.mail.example/mail/unsubscribe?")
    assert link in provider.delivered[mail_id]["text"]
    assert link.replace("&", "&amp;") in provider.delivered[mail_id]["html"]
    local = link.removeprefix("https://api.mail.example")
    asked = client.get(local)
    assert (asked.status_code, '<form method="post">' in asked.text) == (200, True)
    assert read_preferences(database) == {}  # opening the link, as scanners do, changes nothing
    ended = client.post(local, data={"List-Unsubscribe": "One-Click"})
    assert ended.status_code == 200
    assert read_preferences(database) == {"mail": {"welcome": False}}


def read_preferences(database: psycopg.Connection[Any]) -> Any:
    return database.execute("select preferences from public.profiles where clerk_user_id = 'user_mail'").fetchall()[0][
        0
    ]


@pytest.mark.parametrize("change", [
    {"signature": ""}, {"signature": "0" * 64}, {"signature": "é"}, {"person": str(uuid4())}, {"kind": "role_changed"}, {"kind": ""},
])  # fmt: skip
@pytest.mark.parametrize("method", ["get", "post"])
def test_a_forged_link_unsubscribes_no_one(offline: FlaskClient, method: str, change: dict[str, str]) -> None:
    with offline.application.app_context():
        renderer = components().mailer.renderer
        person = str(uuid4())
        link = {"person": person, "kind": "welcome", "signature": renderer.signature(person, "welcome")} | change
    response = getattr(offline, method)("/mail/unsubscribe", query_string=link)
    assert (response.status_code, response.json["type"]) == (403, "urn:problem:ballast:mail-link-invalid")


# --- failures


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refusal(500, "internal_server_error"), "internal_server_error"),
        (refusal(503, "service_unavailable"), "service_unavailable"),
        ((502, {"Content-Type": "text/html"}, b"<html>Bad gateway"), "application_error"),
        ((200, {}, b"not json"), "application_error"),
        ((200, {}, b"[]"), "answer_without_id"),
        ((200, {}, b"{}"), "answer_without_id"),
        (lambda: HANG_UP, "RemoteProtocolError"),
        (refusal(401, "restricted_api_key"), "restricted_api_key"),
        (refusal(403, "invalid_api_key"), "invalid_api_key"),
        (refusal(429, "daily_quota_exceeded"), "daily_quota_exceeded"),
        (refusal(409, "concurrent_idempotent_requests"), "concurrent_idempotent_requests"),
    ],
)
def test_a_temporary_failure_is_retried_with_the_same_key(
    client: FlaskClient,
    stack: Stack,
    database: psycopg.Connection[Any],
    provider: Provider,
    answer: Any,
    code: str,
) -> None:
    mail_id = enqueue(database)
    provider.answers = [answer]
    assert run(client, stack) == report(postponed=1)
    ((state, error),) = read_states(database, "state, error")
    assert (state, error) == ("queued", code)
    assert run(client, stack) == report()  # not yet
    make_due(database)
    assert run(client, stack) == report(sent=1)
    assert provider.keys == [mail_id, mail_id]


def test_a_hanging_provider_times_out(
    client: FlaskClient,
    stack: Stack,
    database: psycopg.Connection[Any],
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (mail_module.TIMEOUT.connect, mail_module.TIMEOUT.read) == (3, 8)
    resend = cast("mail_module.Resend", client.application.extensions["ballast"].mailer.transport)
    resend._http.timeout = 0.3
    enqueue(database)
    done = threading.Event()
    provider.answers = [lambda: (done.wait(5), refusal(500, "late"))[1]]
    assert run(client, stack) == report(postponed=1)
    done.set()
    assert read_states(database, "state, error") == [("queued", "ReadTimeout")]


def test_resends_retry_after_is_respected(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    enqueue(database, number=1)
    enqueue(database, "welcome", number=2)
    provider.answers = [refusal(429, "rate_limit_exceeded", **{"Retry-After": "600"})]
    assert run(client, stack) == report(postponed=1)
    assert len(provider.keys) == 1  # the others wait too
    waits = read_states(database, "round(extract(epoch from next_attempt_at - now())) between 590 and 600")
    assert sorted(waits) == [(False,), (True,)]


@pytest.mark.parametrize(
    ("status", "name"), [(400, "validation_error"), (422, "invalid_parameter"), (404, "not_found"), (413, "x")]
)
def test_a_rejected_mail_is_given_up_and_the_next_is_sent(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider, status: int, name: str
) -> None:
    enqueue(database, number=1)
    enqueue(database, "welcome", number=2)
    provider.answers = [refusal(status, name)]
    assert run(client, stack) == report(failed=1, sent=1)
    assert database.execute("select state, error from ops.mail_failures").fetchall() == [("failed", name)]


def test_a_malformed_address_is_not_sent_to_resend(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    enqueue(database)
    database.execute(
        "update public.profiles set email = %s where clerk_user_id = 'user_mail'", ["a@b.example,c@d.example"]
    )
    assert run(client, stack) == report(failed=1)
    assert (provider.keys, read_states(database, "error")) == ([], [("address_malformed",)])


def test_a_sender_killed_after_sending_loses_nothing_and_sends_nothing_twice(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    mail_id = enqueue(database)

    class Killed(BaseException):
        """An error that nothing handles, as if the process had been killed."""

    def kill() -> Answer | None:
        raise Killed

    mailer = client.application.extensions["ballast"].mailer
    # Resend has the mail, but the outbox does not have its id yet.
    dying = mail_module.Mailer(
        lambda name, given: kill() if name == "end_mail" else mailer.call(name, given),
        mailer.renderer,
        mailer.transport,
    )
    with pytest.raises(Killed):
        dying.send_due()
    assert read_states(database) == [("sending",)]
    assert run(client, stack) == report()  # the first sender might still be working on it
    make_due(database)
    assert run(client, stack) == report(sent=1)
    assert provider.keys == [mail_id, mail_id]
    assert len(provider.delivered) == 1
    assert read_states(database, "state, provider_id") == [("sent", f"resend-{mail_id}")]


def test_a_sender_killed_during_a_request_sends_nothing_twice(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    mail_id = enqueue(database)
    taken, over = threading.Event(), threading.Event()

    def take_and_wait() -> Answer | None:
        provider.take(mail_id, {"taken": "before the kill"})
        taken.set()
        over.wait(20)
        return HANG_UP

    provider.answers = [take_and_wait]
    sending = "from service.app import create_app; create_app().extensions['ballast'].mailer.send_due()"
    environment = os.environ | ENVIRONMENT | stack.environment | outgoing(provider.server.url)
    process = subprocess.Popen([sys.executable, "-c", sending], env=environment, cwd=ROOT)
    try:
        assert taken.wait(30)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        over.set()
    assert read_states(database) == [("sending",)]
    make_due(database)
    assert run(client, stack) == report(sent=1)
    assert provider.keys == [mail_id, mail_id]
    assert provider.delivered == {mail_id: {"taken": "before the kill"}}


def test_mail_that_resend_already_has_with_other_content_counts_as_sent(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    mail_id = enqueue(database)
    provider.delivered[mail_id] = {"subject": "before the organization had another name"}
    assert run(client, stack) == report(sent=1)
    assert read_states(database, "state, provider_id") == [("sent", None)]


def test_two_jobs_at_once_send_each_mail_once(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    app = sender(make_app, stack, provider.server.url)
    mails = {
        enqueue(database, number=number) if number == 0 else enqueue_many(database, number) for number in range(20)
    }
    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(lambda _: run(app.test_client(), stack), range(2)))
    assert sum(each["sent"] for each in reports) == len(mails) == 20
    assert sorted(provider.keys) == sorted(mails)


def enqueue_many(database: psycopg.Connection[Any], number: int) -> str:
    row = database.execute(
        "insert into app.email_outbox (template, audience, data) values ('backup_failed', 'operator', %s) returning id",
        [json.dumps({"backup_id": number})],
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_the_mail_job_fails_without_the_database(make_app: MakeApp) -> None:
    client = make_app(RESEND_API_KEY=KEY, MAIL_FROM="a@b.example", SERVICE_URL="https://c.example").test_client()
    response = client.post("/jobs/mail", headers=as_caller(ENVIRONMENT["JOBS_TOKEN"] or ""))
    assert (response.status_code, response.json["type"]) == (503, "urn:problem:ballast:database-unavailable")


def test_a_slow_mail_is_the_last_one_of_the_run(
    client: FlaskClient,
    stack: Stack,
    database: psycopg.Connection[Any],
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mail_module, "WORK_SECONDS", 0.2)
    enqueue(database, number=1)
    enqueue(database, "welcome", number=2)
    provider.answers = [lambda: (time.sleep(0.4), refusal(422, "slow"))[1]]
    assert run(client, stack) == report(failed=1)
    assert run(client, stack) == report(sent=1)


def test_outside_local_and_test_nothing_is_claimed_without_a_key(make_app: MakeApp) -> None:
    https = dict.fromkeys(
        ("SUPABASE_URL", "CLERK_ISSUER", "CLERK_API_URL", "UPSTASH_REDIS_REST_URL"), "https://somewhere.example"
    )
    client = make_app(ENVIRONMENT="production", **https).test_client()
    with client.application.app_context():
        assert components().mailer.send_due() == {"unconfigured": ["RESEND_API_KEY"]}


# --- content


def renderer(**changes: str | None) -> Renderer:
    given: dict[str, Any] = {
        "company": "Ballast & Sons",
        "app_url": "https://app.example",
        "service_url": "https://api.example",
    }
    return Renderer(**(given | changes), secret=secrets.token_hex())


@dataclass(frozen=True)
class Kind:
    """A registered kind of mail."""

    is_essential: bool
    example: dict[str, Any]


@pytest.fixture(scope="session")
def registered(stack: Stack) -> dict[str, Kind]:
    """All kinds: those of Ballast and those of a product."""
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        rows = connection.execute("select kind, is_essential, example from app.mail_kinds").fetchall()
    return {kind: Kind(is_essential, example) for kind, is_essential, example in rows}


def row(template: str, kind: Kind, **changes: Any) -> Mail:
    person = str(uuid4())
    return {
        "id": str(uuid4()), "template": template, "to": "a@b.example", "person_id": person,
        "is_essential": kind.is_essential, "context": kind.example,
    } | changes  # fmt: skip


def with_each_text(context: Any, text: str) -> Any:
    """Replaces every text that is not a date or time."""
    match context:
        case dict():
            return {name: with_each_text(each, text) for name, each in context.items()}
        case list():
            return [with_each_text(each, text) for each in context]
        case str() if not re.match(r"\d{4}-\d\d-\d\d", context):
            return text
        case _:
            return context


def find_elements(html: str) -> list[tuple[str, list[str]]]:
    """The tags that a browser would see, each with the names of its attributes."""
    found: list[tuple[str, list[str]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, [name for name, _ in attrs]))

    Parser().feed(html)
    return found


@pytest.mark.parametrize("template", KINDS)
def test_every_kind_has_the_same_content_in_html_and_text(template: str, registered: dict[str, Kind]) -> None:
    message = renderer().render(row(template, registered[template]))
    assert message.subject
    assert f"<title>{message.subject.replace('&', '&amp;').replace(chr(39), '&#39;')}</title>" in message.html
    assert "{{" not in message.html + message.text
    assert "{%" not in message.html + message.text
    assert "Ballast & Sons" in message.text
    assert "Ballast &amp; Sons" in message.html
    words = set(re.findall(r"[A-Z][a-z]{4,}", re.sub(r"<[^>]*>", " ", message.html)))
    assert words <= set(re.findall(r"[A-Za-z]+", message.text + message.subject))
    assert (message.unsubscribe_url is not None) != registered[template].is_essential


@pytest.mark.parametrize("template", KINDS)
def test_every_kind_renders_with_missing_values(template: str, registered: dict[str, Kind]) -> None:
    kind = registered[template]
    message = renderer(company=None, app_url=None, service_url=None).render(
        row(template, kind, context=dict.fromkeys(kind.example))
    )
    assert message.unsubscribe_url is None
    assert message.subject
    assert "None" not in message.subject + message.html + message.text


@pytest.mark.parametrize("template", KINDS)
def test_user_input_cannot_become_markup_a_header_or_a_paragraph(template: str, registered: dict[str, Kind]) -> None:
    hostile = "<script>alert(1)</script>\r\nBcc: all@evil.example\n\nDear user,\u2028pay\u202eyap \" onload='x' {{ 777 * 777 }}"
    kind = registered[template]
    usual = find_elements(renderer().render(row(template, kind)).html)
    message = renderer().render(row(template, kind, context=with_each_text(kind.example, hostile)))
    harmless = {"html", "head", "meta", "title", "body", "div", "h1", "p", "a", "hr", "br", "strong", "code", "pre"}
    assert {tag for tag, _ in find_elements(message.html)} <= harmless | {tag for tag, _ in usual} - {"script"}
    assert {name for _, attributes in find_elements(message.html) for name in attributes} <= {
        "lang", "charset", "name", "content", "style", "role", "aria-label", "href"
    } | {name for _, attributes in usual for name in attributes} - {"onload"}  # fmt: skip
    assert len(message.subject.splitlines()) == 1
    assert not re.search(r"[\x00-\x1f\u2028\u202e]", message.subject)
    assert not re.search(r"^(Bcc|Dear)", message.text, re.MULTILINE)
    assert "603729" not in message.html + message.text


@given(text=st.text(st.characters(exclude_categories=()), max_size=300), template=st.sampled_from(KINDS))
def test_any_text_renders_to_a_valid_mail(registered: dict[str, Kind], text: str, template: str) -> None:
    kind = registered[template]
    message = renderer().render(row(template, kind, context=with_each_text(kind.example, text)))
    json.dumps([message.subject, message.html, message.text]).encode()
    (message.subject + message.html + message.text).encode()  # raises for half a surrogate pair
    assert message.subject == one_line(message.subject)
    assert message.subject


WELCOME = Kind(is_essential=False, example={"name": NAME, "organization": None})


@pytest.mark.parametrize(
    "address", ["", None, "a", "a@b", "a@b.c,d@e.f", "A <a@b.c>", "a@b.c\nBcc: d@e.f", "a b@c.d", "a@b@c.d", "(x)a@b.c"]
)
def test_mail_goes_to_exactly_one_address(address: str | None) -> None:
    with pytest.raises(SendingFailed) as refused:
        renderer().render(row("welcome", WELCOME, to=address))
    assert (refused.value.code, refused.value.is_final) == ("address_malformed", True)


def test_mail_of_an_unknown_kind_is_given_up() -> None:
    with pytest.raises(SendingFailed, match="template_unknown"):
        renderer().render(row("../../etc/passwd", WELCOME))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ""),
        ("2026-01-31", "31 January 2026"),
        ("2026-01-31T23:30:00-02:00", "1 February 2026, 01:30 UTC"),
        ("2026-01-31T10:00:00.123456+00:00", "31 January 2026, 10:00 UTC"),
    ],
)
def test_dates_and_times_are_written_for_people(given: str | None, expected: str) -> None:
    assert mail_module._format_time(given) == expected


def test_every_template_has_a_registered_kind_and_uses_only_its_data(registered: dict[str, Kind]) -> None:
    assert find_faults({kind: each.example for kind, each in registered.items()}) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "the file is missing. Write it, or delete the row of app.mail_kinds."),
        ("{% if false %}{{ mail.total }}{% endif %}", "it uses mail.total, which is not among the data of its kind."),
        ("{{ amount }}", "it uses amount, which is not among the data of its kind."),
        ("{{ mail.amount | money }}", "No filter named 'money'."),
        (
            "{% block what %}mail of {{ mail.amount }}{% endblock %}",
            "its block `what` uses mail, but the page that it is also for has no mail. Write a fixed text.",
        ),
        ("{% if %}", "Expected an expression, got 'end of statement block'."),
    ],
)
def test_a_fault_of_a_template_is_found_before_a_mail_is_sent(tmp_path: Path, text: str | None, fault: str) -> None:
    for form in ("txt", "html"):
        shutil.copy(TEMPLATES / f"layout.{form}", tmp_path)
        (tmp_path / f"reminder.{form}").write_text("{{ mail.amount }} {{ company }}")
    assert find_faults({"reminder": {"amount": 1}}, tmp_path) == []
    assert find_faults({}, tmp_path)[0].startswith(f"{tmp_path.name}/reminder.txt: its kind is not registered.")
    page = tmp_path / "reminder.html"
    page.unlink() if text is None else page.write_text(text)
    assert find_faults({"reminder": {"amount": 1}}, tmp_path) == [f"{tmp_path.name}/reminder.html: {fault}"]


def reminder(folder: Path, text: str) -> Renderer:
    """Renders one kind, whose templates are `text`."""
    for form in ("txt", "html"):
        shutil.copy(TEMPLATES / f"layout.{form}", folder)
        (folder / f"reminder.{form}").write_text(text)
    return Renderer("Ballast & Sons", None, None, "a secret", templates=folder)


def test_a_value_may_have_the_name_of_a_method_of_python(tmp_path: Path) -> None:
    kind = Kind(is_essential=True, example={"items": ["Oats", "Rye"], "values": None, "copy": "2"})
    text = (
        "{% for each in mail.items %}{{ loop.index }} {{ each.upper() }} {% endfor %}{{ mail.values }}{{ mail.copy }}"
    )
    assert reminder(tmp_path, text).render(row("reminder", kind)).subject == "1 OATS 2 RYE 2"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{{ mail.total }}", "template_UndefinedError"),
        ("{{ mail.amount + 1 }}", "template_TypeError"),
        ("{{ mail.amount | moment }}", "template_ValueError"),
        ("{{ 1 / 0 }}", "template_ZeroDivisionError"),
        ("{% include 'missing.txt' %}", "template_TemplateNotFound"),
    ],
)
def test_mail_whose_template_fails_is_given_up_whatever_it_raises(tmp_path: Path, text: str, code: str) -> None:
    with pytest.raises(SendingFailed) as failed:
        reminder(tmp_path, text).render(row("reminder", Kind(is_essential=True, example={"amount": "a lot"})))
    assert (failed.value.code, failed.value.is_final, failed.value.is_general) == (code, True, False)


def test_mail_is_retried_if_the_machine_and_not_the_template_fails(tmp_path: Path) -> None:
    renderer = reminder(tmp_path, "{{ mail.amount }}")
    mail = row("reminder", Kind(is_essential=True, example={"amount": 1}))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # too many open files
    try:
        with pytest.raises(SendingFailed) as failed:
            renderer.render(mail)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (failed.value.code, failed.value.is_final, failed.value.is_general) == ("template_OSError", False, True)


def test_the_page_to_unsubscribe_knows_the_company(tmp_path: Path) -> None:
    renderer = reminder(tmp_path, "{% block what %}reminders of {{ company }}{% endblock %}")
    assert renderer.describe("reminder") == "reminders of Ballast & Sons"


def test_a_link_is_not_valid_for_another_person_or_kind() -> None:
    ours = renderer()
    person = str(uuid4())
    query = {
        name: value
        for name, (value,) in parse_qs(urlsplit(ours.unsubscribe_url(person, "welcome") or "").query).items()
    }
    assert ours.is_signed(query["person"], query["kind"], query["signature"])
    assert not ours.is_signed(query["person"], "member_joined", query["signature"])
    assert not ours.is_signed(str(uuid4()), query["kind"], query["signature"])
    assert not renderer().is_signed(query["person"], query["kind"], query["signature"])


# --- Resend's events


def webhook(client: FlaskClient, kind: str, data: dict[str, Any], secret: str = SECRET, **given: Any) -> Any:
    body = json.dumps({"type": kind, "created_at": "2026-01-31T10:00:00.000Z", "data": data}).encode()
    return client.post("/webhooks/resend", data=body, headers=sign(body, secret, **given))


@pytest.mark.parametrize(
    ("kind", "bounce", "state", "is_suppressed"),
    [
        ("email.delivered", None, "delivered", False),
        ("email.bounced", {"type": "Permanent", "subType": "General", "message": "no"}, "bounced", True),
        ("email.bounced", {"type": "Transient", "subType": "MailboxFull", "message": "full"}, "bounced", False),
        ("email.bounced", "nonsense", "bounced", True),
        ("email.suppressed", None, "bounced", True),
        ("email.failed", None, "bounced", False),
        ("email.complained", None, "complained", True),
    ],
)
def test_the_delivery_status_of_a_mail_is_recorded(
    client: FlaskClient,
    stack: Stack,
    database: psycopg.Connection[Any],
    kind: str,
    bounce: object,
    state: str,
    is_suppressed: bool,
) -> None:
    mail_id = enqueue(database)
    run(client, stack)
    event = {"email_id": f"resend-{mail_id}", "to": [ADDRESS], "bounce": bounce}
    for _ in range(2):
        assert webhook(client, kind, event).json == {"outcome": "processed"}
    assert read_states(database) == [(state,)]
    assert len(database.execute("select from app.mail_suppressions").fetchall()) == is_suppressed


def test_a_bounce_reported_before_resends_id_is_stored_is_not_lost(
    client: FlaskClient, database: psycopg.Connection[Any]
) -> None:
    mail_id = enqueue(database)
    database.execute("select public.claim_mail(1)")
    event = {"email_id": "resend-x", "to": [ADDRESS], "tags": {"mail": mail_id}}
    assert webhook(client, "email.bounced", event).json == {"outcome": "processed"}
    assert read_states(database, "state, provider_id") == [("bounced", "resend-x")]


@pytest.mark.parametrize("data", [
    {}, {"email_id": "other"}, {"email_id": 1, "to": "x", "tags": [], "bounce": 1}, {"tags": {"mail": "x"}, "to": []},
    {"tags": {"mail": str(uuid4())}, "to": [None]},
])  # fmt: skip
def test_events_about_other_mail_are_ignored(
    client: FlaskClient, database: psycopg.Connection[Any], data: dict[str, Any]
) -> None:
    assert webhook(client, "email.bounced", data).json == {"outcome": "ignored"}
    assert webhook(client, "email.opened", data).json == {"outcome": "ignored"}


def test_only_events_signed_by_resend_are_accepted(client: FlaskClient, offline: FlaskClient) -> None:
    data = {"email_id": "x"}
    for refused in (
        webhook(client, "email.bounced", data, OLD_SECRET),
        webhook(client, "email.bounced", data, age=600),
        webhook(offline, "email.bounced", data),  # no secret is set: Clerk's secret is not used here
    ):
        assert (refused.status_code, refused.json["type"]) == (401, "urn:problem:ballast:webhook-signature-invalid")
    assert client.post("/webhooks/resend", data=b"{}").status_code == 400


def test_a_malformed_signature_before_resends_does_not_hide_it(client: FlaskClient) -> None:
    body = json.dumps({"type": "email.opened", "data": {}}).encode()
    headers = sign(body)
    headers["svix-signature"] = f"v1,abcde {headers['svix-signature']}"
    assert client.post("/webhooks/resend", data=body, headers=headers).json == {"outcome": "ignored"}


def test_an_event_that_cannot_be_stored_is_requested_again(make_app: MakeApp) -> None:
    response = webhook(make_app(RESEND_WEBHOOK_SECRET=SECRET).test_client(), "email.bounced", {"email_id": "x"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "30")


# --- logs


def test_nothing_personal_is_logged(
    client: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider, log: Any
) -> None:
    enqueue(database, number=1)
    enqueue(database, "welcome", number=2)
    provider.answers = [refusal(422, "validation_error"), refusal(500, "internal_server_error")]
    run(client, stack)
    make_due(database)
    run(client, stack)
    (mail,) = provider.delivered.values()
    client.get(mail["headers"]["List-Unsubscribe"].strip("<>").removeprefix("https://api.mail.example"))
    webhook(
        client,
        "email.bounced",
        {"email_id": "x", "to": [ADDRESS], "subject": f"Hello {NAME}", "bounce": {"message": ADDRESS}},
    )
    written = log.getvalue()
    assert "mail not sent" in written
    person = database.execute("select id::text from public.profiles where clerk_user_id = 'user_mail'").fetchall()[0][0]
    for secret in (ADDRESS, "unmistakable", NAME, ORGANIZATION, KEY, person, "signature="):
        assert secret.lower() not in written.lower()


# --- locally


@pytest.fixture
def local(make_app: MakeApp, stack: Stack, tmp_path: Any, provider: Provider) -> FlaskClient:
    """The service as on a developer's machine, where no mail is sent even with a key."""
    return sender(make_app, stack, provider.server.url, ENVIRONMENT="local", BALLAST_HOME=str(tmp_path)).test_client()


def test_locally_no_mail_is_sent_and_all_mail_is_shown(
    local: FlaskClient, stack: Stack, database: psycopg.Connection[Any], provider: Provider
) -> None:
    assert "No mail yet" in local.get("/dev/mail").text
    mail_id = enqueue(database)
    assert run(local, stack) == report(sent=1)
    assert (provider.keys, read_states(database)) == ([], [("sent",)])
    page = local.get("/dev/mail").text
    assert all(each in page for each in (ADDRESS, ORGANIZATION, f"/dev/mail/{mail_id}.html"))
    html, text = (local.get(f"/dev/mail/{mail_id}.{form}") for form in ("html", "txt"))
    assert (html.content_type, text.content_type) == ("text/html; charset=utf-8", "text/plain; charset=utf-8")
    assert all(f"Hello {NAME}" in each.text for each in (html, text))
    assert "script-src" not in html.headers["Content-Security-Policy"]
    assert "default-src 'none'" in html.headers["Content-Security-Policy"]
    assert local.get(f"/dev/mail/{uuid4()}.html").status_code == 404


@pytest.mark.parametrize("kind", KINDS)
def test_locally_an_example_of_each_kind_is_shown(local: FlaskClient, kind: str) -> None:
    assert f"/dev/mail/example/{kind}.html" in local.get("/dev/mail").text
    assert "<!doctype html>" in local.get(f"/dev/mail/example/{kind}.html").text
    assert local.get(f"/dev/mail/example/{kind}.txt").text.startswith("Subject: ")


@pytest.mark.parametrize(
    "path", ["/dev/mail", "/dev/mail/example/welcome.html", "/dev/mail/00000000-0000-4000-8000-000000000000.txt"]
)
def test_outside_local_there_is_no_mailbox_page(offline: FlaskClient, path: str) -> None:
    assert offline.get(path).status_code == 404


@pytest.mark.parametrize("name", ["MAIL_FROM", "SERVICE_URL"])
def test_with_a_resend_key_sender_and_service_url_are_required(name: str) -> None:
    given = {"RESEND_API_KEY": KEY, "MAIL_FROM": "a@b.example", "SERVICE_URL": "https://c.example"}
    make_in(ENVIRONMENT | given)
    with pytest.raises(Exception, match=f"{name} is missing"):
        make_in(ENVIRONMENT | given | {name: None})
