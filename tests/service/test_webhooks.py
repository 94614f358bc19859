"""Clerk's webhooks: a signed event is stored once, and nothing else is accepted."""

from __future__ import annotations

import base64
import datetime
import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr
from werkzeug.datastructures import Headers

from service import refusals
from service.data_api import CallFailed
from service.signed_webhooks import (
    MAX_BODY_BYTES,
    HeadersMalformed,
    SignatureInvalid,
    check_signature,
    read_deliveries,
)
from tests.conftest import Stack
from tests.service.conftest import MakeApp
from tests.service.outside import (
    HANG_UP,
    OLD_SECRET,
    SECRET,
    Answer,
    Outside,
    event,
    new_message_id,
    rest_answer,
    sign,
    signature,
    stored_answer,
)

URL = "/webhooks/clerk"
BODY = event()
VECTOR = {
    "svix-id": "msg_loFOjxBNrRLzqYUf",
    "svix-timestamp": "1731705121",
    "svix-signature": "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
}
VECTOR_BODY = '{"event_type":"ping","data":{"success":true}}'


def secret_list(*texts: str) -> list[SecretStr]:
    return [SecretStr(text) for text in texts]


def slug_of(response: Any) -> str:
    """The slug of a problem document."""
    assert response.content_type == "application/problem+json"
    return str(response.json["type"]).rpartition(":")[2]


# --- the signature ---


@pytest.fixture
def at_the_vectors_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(1731705121, tz)

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", Then)


@pytest.mark.usefixtures("at_the_vectors_time")
def test_the_signature_that_svix_publishes_is_accepted() -> None:
    check_signature(VECTOR_BODY, read_deliveries(Headers(VECTOR)), secret_list(SECRET))


@pytest.mark.usefixtures("at_the_vectors_time")
@pytest.mark.parametrize(
    "change",
    [
        {"svix-id": "msg_loFOjxBNrRLzqYUg"},
        {"svix-timestamp": "1731705122"},
        {"svix-signature": "v1,rAvfW3dJ/X/qxhsbXPOyyCGmRKsaKWcsNccKXlIktD0="},
    ],
)
def test_the_published_signature_is_refused_if_a_header_is_changed(change: dict[str, str]) -> None:
    changed = VECTOR | change
    with pytest.raises(SignatureInvalid):
        check_signature(VECTOR_BODY, read_deliveries(Headers(changed)), secret_list(SECRET))


@pytest.mark.usefixtures("at_the_vectors_time")
def test_the_published_signature_is_refused_if_the_body_is_changed() -> None:
    with pytest.raises(SignatureInvalid):
        check_signature(VECTOR_BODY + " ", read_deliveries(Headers(VECTOR)), secret_list(SECRET))


def test_while_secrets_rotate_both_are_accepted(online: FlaskClient) -> None:
    for secret in (SECRET, OLD_SECRET):
        assert online.post(URL, data=BODY, headers=sign(BODY, secret)).status_code == 200


def test_a_message_signed_with_two_secrets_is_accepted_when_one_of_them_is_ours(online: FlaskClient) -> None:
    headers = sign(BODY)
    foreign = signature(BODY, headers["svix-id"], headers["svix-timestamp"], "whsec_" + "AAAA" * 8)
    headers["svix-signature"] = f"{foreign} v2,unknown {headers['svix-signature']}"
    assert online.post(URL, data=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize("malformed", ["v1", "no comma", "v1,a,b", "v1,abcde", "v1,\xe9\xe9\xe9\xe9", ""])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_malformed_signature_does_not_hide_a_good_one(online: FlaskClient, malformed: str, is_first: bool) -> None:
    headers = sign(BODY)
    both = [malformed, headers["svix-signature"]]
    headers["svix-signature"] = " ".join(both if is_first else reversed(both))
    assert online.post(URL, data=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"svix-signature": "v1,abcde"},
        {"svix-signature": "v1,AAAA"},
        {"svix-timestamp": "soon"},
        {"svix-id": "msg_other"},
    ],
)
def test_one_set_of_headers_does_not_hide_a_good_one(online: FlaskClient, change: dict[str, str]) -> None:
    headers = sign(BODY)
    good = {name.replace("svix-", "webhook-"): value for name, value in headers.items()}
    response = online.post(URL, data=BODY, headers=headers | change | good)
    assert (response.status_code, response.json["message_id"]) == (200, headers["svix-id"])


def test_a_signature_with_a_foreign_secret_is_refused(offline: FlaskClient) -> None:
    response = offline.post(URL, data=BODY, headers=sign(BODY, "whsec_" + "AAAA" * 8))
    assert (response.status_code, slug_of(response)) == (401, "webhook-signature-invalid")


@pytest.mark.parametrize("age", [301, 86_400, -310])
def test_a_late_replay_is_refused_like_a_bad_signature(offline: FlaskClient, age: int) -> None:
    replayed = offline.post(URL, data=BODY, headers=sign(BODY, age=age))
    forged = offline.post(URL, data=BODY, headers=sign(BODY) | {"svix-signature": "v1,AAAA"})
    assert replayed.status_code == forged.status_code == 401
    assert replayed.json["detail"] == forged.json["detail"]


@pytest.mark.parametrize("age", [0, 290, -290])
def test_clocks_may_differ_by_almost_five_minutes(online: FlaskClient, age: int) -> None:
    assert online.post(URL, data=BODY, headers=sign(BODY, age=age)).status_code == 200


@pytest.fixture
def refused(stack: Stack) -> Iterator[Callable[[], list[tuple[Any, ...]]]]:
    """Reads the counts of refused deliveries, and removes them before and after the test."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("delete from app.refused_deliveries")
        yield lambda: connection.execute(
            "select sender, reason, deliveries, round(extract(epoch from skew) / 60) from app.refused_deliveries order by reason"
        ).fetchall()
        connection.execute("delete from app.refused_deliveries")


FOREIGN_SECRET = "whsec_" + "AAAA" * 8


def test_refused_deliveries_are_counted_with_one_write_a_minute(
    make_app: MakeApp, stack: Stack, refused: Callable[[], list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(refusals, "monotonic", lambda: now)
    app = make_app(**stack.environment | {"CLERK_WEBHOOK_SECRETS": SECRET})
    client, counter = app.test_client(), app.extensions["ballast"].refusals
    writes = []
    monkeypatch.setattr(counter, "_call", lambda *call, write=counter._call: writes.append(call) or write(*call))
    for _ in range(20):
        assert client.post(URL, data=BODY, headers=sign(BODY, FOREIGN_SECRET)).status_code == 401
    assert client.post(URL, data=BODY, headers=sign(BODY, age=600)).status_code == 401
    assert (len(writes), refused()) == (1, [("clerk", "signature", 1, None)])
    now += refusals.PAUSE_SECONDS
    assert client.post("/webhooks/resend", data=BODY, headers=sign(BODY, FOREIGN_SECRET)).status_code == 401
    assert (len(writes), refused()) == (
        4,
        [("clerk", "signature", 20, None), ("resend", "signature", 1, None), ("clerk", "timestamp", 1, 10)],
    )


def test_only_a_delivery_with_our_signature_counts_as_clock_skew(
    online: FlaskClient, stack: Stack, refused: Callable[[], list[tuple[Any, ...]]]
) -> None:
    """The service's clock is 20 minutes behind. A stranger without the secret cannot cause this count."""
    assert online.post(URL, data=BODY, headers=sign(BODY, age=-1200)).status_code == 401
    assert refused() == [("clerk", "timestamp", 1, -20)]
    [light] = [
        check for check in json.loads(stack.ballast("status", "--json").stdout)["checks"] if check["name"] == "webhook"
    ]
    assert (light["status"], light["advice"].startswith("Clock skew: ")) == ("red", True)


def test_the_forged_ping_of_the_doctor_is_not_counted(
    online: FlaskClient, refused: Callable[[], list[tuple[Any, ...]]]
) -> None:
    forged = sign(BODY, FOREIGN_SECRET, message_id=f"{refusals.DOCTOR_MESSAGE}x")
    assert online.post(URL, data=BODY, headers=forged).status_code == 401
    assert refused() == []


def test_counts_that_the_database_does_not_take_are_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now, writes = 1000.0, []

    def call(function: str, arguments: dict[str, Any]) -> None:
        if now < 2000:
            raise CallFailed(function, "ConnectError")
        writes.append((function, arguments["deliveries"]))

    monkeypatch.setattr(refusals, "monotonic", lambda: now)
    counter = refusals.Refusals(call)
    for _ in range(3):
        counter.count("clerk", SignatureInvalid("msg_1", None))
    now = 3000.0
    counter.count("clerk", SignatureInvalid("msg_1", None))
    assert writes == [("record_refused_deliveries", 4)]


def test_the_signature_covers_the_bytes_not_the_parsed_json(offline: FlaskClient) -> None:
    headers = sign(BODY)
    assert offline.post(URL, data=json.dumps(json.loads(BODY), indent=1), headers=headers).status_code == 401


# --- the headers ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("svix-id", None),
        ("svix-timestamp", None),
        ("svix-signature", None),
        ("svix-id", ""),
        ("svix-timestamp", ""),
        ("svix-signature", ""),
        ("svix-id", "a" * 257),
        ("svix-id", "msg_\xe9"),
        ("svix-id", "two words"),
        ("svix-timestamp", "soon"),
        ("svix-timestamp", "-1731705121"),
        ("svix-timestamp", "1731705121.5"),
        ("svix-timestamp", "1e9"),
        ("svix-timestamp", "nan"),
        ("svix-timestamp", "inf"),
        ("svix-timestamp", "\xb2\xb3"),
        ("svix-timestamp", "9" * 13),
        ("svix-timestamp", "9" * 4000),
        ("svix-signature", "no comma"),
        ("svix-signature", "v1,a,b"),
        ("svix-signature", "v1"),
        ("svix-signature", "v1,abcde"),
        ("svix-signature", "v1,\xe9\xe9\xe9\xe9"),
        ("svix-signature", "v1,AAAA  v1,AAAA"),
        ("svix-signature", "v1,AAAA,v1,AAAA"),
    ],
)
def test_missing_and_malformed_headers_are_client_errors(offline: FlaskClient, name: str, value: str | None) -> None:
    headers = {**sign(BODY), name: value}
    response = offline.post(
        URL, data=BODY, headers={name: value for name, value in headers.items() if value is not None}
    )
    assert (response.status_code, slug_of(response)) == (400, "webhook-headers-malformed")


@pytest.mark.parametrize("timestamp", ["0", "1", "9" * 11, "9" * 12])
def test_an_extreme_timestamp_is_refused_without_an_error(offline: FlaskClient, timestamp: str) -> None:
    assert offline.post(URL, data=BODY, headers=sign(BODY) | {"svix-timestamp": timestamp}).status_code == 401


@pytest.mark.parametrize("signature", ["v1,", "v1,!!!!", "v1,AAAA", "v1a,AAAA", "v2,AAAA", ",", "v1,AAAA v1,AAAA"])
def test_a_meaningless_signature_is_refused(offline: FlaskClient, signature: str) -> None:
    assert offline.post(URL, data=BODY, headers=sign(BODY) | {"svix-signature": signature}).status_code == 401


def test_headers_are_checked_before_the_signature_and_the_signature_before_the_body(online: FlaskClient) -> None:
    assert slug_of(online.post(URL, data=b"no json")) == "webhook-headers-malformed"
    assert slug_of(online.post(URL, data=b"no json", headers=sign(BODY))) == "webhook-signature-invalid"
    assert slug_of(online.post(URL, data=b"no json", headers=sign(b"no json"))) == "webhook-event-malformed"


def test_a_message_id_may_have_256_characters(online: FlaskClient) -> None:
    message_id = new_message_id().ljust(256, "x")
    response = online.post(URL, data=BODY, headers=sign(BODY, message_id=message_id))
    assert (response.status_code, response.json["message_id"]) == (200, message_id)


def test_the_standard_webhooks_header_names_are_accepted(online: FlaskClient) -> None:
    headers = {name.replace("svix-", "webhook-"): value for name, value in sign(BODY).items()}
    assert online.post(URL, data=BODY, headers=headers).status_code == 200


def test_the_two_sets_of_header_names_are_not_mixed() -> None:
    headers = sign(BODY)
    headers["webhook-signature"] = headers.pop("svix-signature")
    with pytest.raises(HeadersMalformed):
        read_deliveries(Headers(headers))


# --- the body ---


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"\xff\xfe",
        b'{"type": "a\0", "data": {}}',
        b'{"type": "a", "data": {"name": "\xe9"}}',
        b'\xef\xbb\xbf{"type": "a", "data": {}}',
        b'{"type": "a", "data": {}} {}',
        b'{"type": "a", "data": {"n": NaN}}',
        b'{"type": "a", "data": {"n": Infinity}}',
        b'{"type": "a", "data": {"n": -Infinity}}',
        b'{"type": "a", "data": ' + b"[" * 100_000,
        b"]" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"type": "a"}',
        b'{"data": {}}',
        b'{"type": "", "data": {}}',
        b'{"type": 1, "data": {}}',
        b'{"type": null, "data": {}}',
        b'{"type": ["a"], "data": {}}',
        b'{"type": "a", "data": null}',
        b'{"type": "a", "data": []}',
        b'{"type": "a", "data": "text"}',
    ],
    ids=lambda body: repr(body[:48]),
)
def test_a_signed_body_that_is_not_an_event_is_refused(online: FlaskClient, body: bytes) -> None:
    response = online.post(URL, data=body, headers=sign(body) if body[:1] != b"\xff" else sign(BODY))
    assert (response.status_code, slug_of(response)) == (400, "webhook-event-malformed")


def test_a_body_over_512_kb_is_refused_by_its_declared_size(offline: FlaskClient) -> None:
    response = offline.post(URL, data=b" " * (MAX_BODY_BYTES + 1), headers=sign(BODY))
    assert (response.status_code, response.json["title"]) == (413, "Request Entity Too Large")


def test_a_body_of_exactly_512_kb_is_read(offline: FlaskClient) -> None:
    assert offline.post(URL, data=b" " * MAX_BODY_BYTES, headers=sign(BODY)).status_code == 401


# --- storing ---


def read_stored(stack: Stack, message_id: str) -> Any:
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        query = "select event, outcome from app.webhook_events where message_id = %s"
        return connection.execute(query, (message_id,)).fetchone()


def delete_user(online: FlaskClient, user_id: str) -> None:
    """Removes a user that the stand-in does not know: `ballast doctor` and reconcile-sample would find a difference."""
    body = event("user.deleted", id=user_id, deleted=True)
    assert online.post(URL, data=body, headers=sign(body)).json["outcome"] == "processed"


def test_a_signed_event_is_stored_and_its_outcome_returned(online: FlaskClient, stack: Stack) -> None:
    user_id = f"user_{secrets.token_hex(8)}"
    body = event("user.created", id=user_id, email_addresses=[], first_name="Grace", created_at=1, updated_at=1)
    headers = sign(body)
    response = online.post(URL, data=body, headers=headers)
    assert response.status_code == 200
    assert response.json == {"message_id": headers["svix-id"], "type": "user.created", "outcome": "processed"}
    assert read_stored(stack, headers["svix-id"]) == (json.loads(body), "processed")
    delete_user(online, user_id)


def test_a_redelivery_is_answered_as_a_duplicate(online: FlaskClient) -> None:
    message_id = new_message_id()
    first, again = (online.post(URL, data=BODY, headers=sign(BODY, message_id=message_id)) for _ in range(2))
    assert (first.status_code, first.json["outcome"]) == (200, "ignored")
    assert (again.status_code, again.json["outcome"]) == (200, "duplicate")


@pytest.mark.parametrize(
    "text",
    [
        r'{"type": "email.created", "data": {"subject": "a\u0000b", "\ud800": "\udfff"}}',
        '{"type": "email.created", "data": {"deep": ' + "[" * 4_000 + "]" * 4_000 + "}}",
        '{"type": "email.created", "data": {"deep": ' + "[" * 300 + "]" * 300 + "}}",
        '{"type": "email.created", "data": {"big": 123456789012345678901234567890, "small": 1e-300}}',
        '{"type": "email.created", "data": {"text": "\U0001f600 \u2028 \x7f"}}',
    ],
)
def test_an_event_that_jsonb_cannot_represent_is_stored(online: FlaskClient, stack: Stack, text: str) -> None:
    headers = sign(text.encode())
    assert online.post(URL, data=text.encode(), headers=headers).status_code == 200
    assert read_stored(stack, headers["svix-id"]) is not None


def test_an_event_of_svixs_maximum_size_is_stored(online: FlaskClient) -> None:
    body = event(text="x" * 350_000)
    assert online.post(URL, data=body, headers=sign(body)).status_code == 200


# --- outages ---


def slow(*_: object) -> Answer:
    time.sleep(0.6)
    return stored_answer()


@pytest.mark.parametrize(
    "answer",
    [
        lambda *_: HANG_UP,
        slow,
        lambda *_: rest_answer({"code": "XX000", "message": "Ada's address", "hint": None, "details": None}, 500),
        lambda *_: rest_answer({"code": "PGRST301", "message": "m"}, 401),
        lambda *_: rest_answer({"code": "PGRST202", "message": "m"}, 404),
        lambda *_: rest_answer({"message": "m"}, 400),
        lambda *_: (502, {"Content-Type": "text/html"}, b"<html>Ada's address</html>"),
        lambda *_: (302, {"Location": "/elsewhere"}, b""),
        lambda *_: (200, {"Content-Type": "text/html"}, b"<html>welcome</html>"),
        lambda *_: (200, {"Content-Length": "400"}, b"{"),
        lambda *_: (200, {"Content-Encoding": "gzip"}, b"not gzip"),
        lambda *_: (204, {"Content-Length": "0"}, b""),
        lambda *_: rest_answer(None),
        lambda *_: rest_answer([]),
        lambda *_: rest_answer({"outcome": None}),
    ],
    ids=[
        "hangs up",
        "slow",
        "500",
        "401",
        "404",
        "no code",
        "502",
        "302",
        "html",
        "cut",
        "not gzip",
        "204",
        "null",
        "[]",
        "{}",
    ],
)
def test_an_event_not_confirmed_as_stored_is_requested_again(
    make_app: MakeApp,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: Callable[[], list[dict[str, object]]],
    answer: Callable[..., Answer | None],
) -> None:
    monkeypatch.setattr("service.data_api.TIMEOUT", httpx.Timeout(0.3))
    outside.answer = answer
    response = make_app(SUPABASE_URL=outside.url).test_client().post(URL, data=BODY, headers=sign(BODY))
    assert (response.status_code, slug_of(response)) == (503, "webhook-event-not-stored")
    assert int(response.headers["Retry-After"]) > 0
    assert "Ada" not in response.text + json.dumps(log_lines())


@pytest.fixture
def trouble(stack: Stack) -> Iterator[Callable[[str, str], None]]:
    """Returns a function that makes each write of one person's profile run a statement first, until the test ends."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:

        def begin(user_id: str, statement: str) -> None:
            connection.execute(
                "create function public.test_trouble() returns trigger language plpgsql as "
                f"$$ begin if new.clerk_user_id = '{user_id}' then {statement}; end if; return new; end $$".encode()
            )
            connection.execute(
                "create trigger trouble before insert or update on public.profiles "
                "for each row execute function public.test_trouble()"
            )

        yield begin
        connection.execute("drop function if exists public.test_trouble() cascade")


def new_user() -> tuple[str, bytes]:
    user_id = f"user_{secrets.token_hex(8)}"
    return user_id, event("user.created", id=user_id, email_addresses=[], first_name="Eve", created_at=1, updated_at=1)


@pytest.mark.parametrize(
    "statement",
    [
        "raise sqlstate '40P01'",
        "raise sqlstate '53200'",
        "raise sqlstate '57014'",
        "perform pg_cancel_backend(pg_backend_pid()); perform pg_sleep(1)",
    ],
)
def test_an_event_that_fails_twice_in_the_same_way_is_stored_and_retried_later(
    online: FlaskClient, stack: Stack, trouble: Callable[[str, str], None], statement: str
) -> None:
    user_id, body = new_user()
    message_id = new_message_id()
    trouble(user_id, statement)
    answers = [online.post(URL, data=body, headers=sign(body, message_id=message_id)) for _ in range(4)]
    assert [each.status_code for each in answers] == [503, 503, 200, 200]
    assert {each.json["outcome"] for each in answers[2:]} == {"failed"}
    assert read_stored(stack, message_id) == (json.loads(body), "failed")
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("drop function public.test_trouble() cascade")
        connection.execute("update app.webhook_events set next_attempt_at = now() where message_id = %s", [message_id])
    headers = {"Authorization": f"Bearer {stack.environment['JOBS_TOKEN']}"}
    assert online.post("/jobs/retry-events", headers=headers).json == {"processed": 1}
    delete_user(online, user_id)


@pytest.mark.parametrize(
    ("answer", "recorded"),
    [
        (lambda *_: rest_answer({"code": "40001", "message": "m"}, 500), ["40001"]),
        (slow, ["57014"]),  # Postgres and the service stop waiting at the same time
        (lambda *_: rest_answer({"code": "PGRST003", "message": "no connection"}, 504), []),
        (lambda *_: rest_answer({"message": "m"}, 503), []),
        (lambda *_: (502, {"Content-Type": "text/html"}, b"<html>"), []),
        (lambda *_: HANG_UP, []),
    ],
    ids=["40001", "no answer in time", "no connection", "503", "502", "hangs up"],
)
def test_an_outage_is_not_recorded_as_a_failure_of_the_event(
    make_app: MakeApp,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[..., Answer | None],
    recorded: list[str],
) -> None:
    monkeypatch.setattr("service.data_api.TIMEOUT", httpx.Timeout(0.3))
    seen = []

    def answer_by_path(path: str, headers: Any, body: bytes) -> Answer | None:
        if not path.endswith("/record_event_failure"):
            return answer(path, headers, body)
        seen.append(json.loads(body))
        return rest_answer(None)

    outside.answer = answer_by_path
    headers = sign(BODY)
    response = make_app(SUPABASE_URL=outside.url).test_client().post(URL, data=BODY, headers=headers)
    assert slug_of(response) == "webhook-event-not-stored"
    assert seen == [{"message_id": headers["svix-id"], "error": code} for code in recorded]


def test_an_unreachable_database_is_an_outage_too(offline: FlaskClient) -> None:
    assert slug_of(offline.post(URL, data=BODY, headers=sign(BODY))) == "webhook-event-not-stored"


def test_connections_to_the_data_api_are_reused(make_app: MakeApp, outside: Outside) -> None:
    outside.answer = lambda *_: stored_answer()
    client = make_app(SUPABASE_URL=outside.url).test_client()
    for _ in range(5):
        assert client.post(URL, data=BODY, headers=sign(BODY)).status_code == 200
    assert (len(outside.requests), outside.connections) == (5, 1)


def test_the_data_api_gets_the_secret_key_and_the_event_once(make_app: MakeApp, outside: Outside) -> None:
    seen = []

    def answer(path: str, headers: Any, body: bytes) -> Answer:
        seen.append((path, headers["apikey"], json.loads(body)))
        return stored_answer()

    outside.answer = answer
    headers = sign(BODY)
    make_app(SUPABASE_URL=outside.url).test_client().post(URL, data=BODY, headers=headers)
    arguments = {"message_id": headers["svix-id"], "event": BODY.decode()}
    assert seen == [("/rest/v1/rpc/receive_clerk_event", "sb_secret_test", arguments)]


def test_the_answer_to_a_forger_contains_no_trace_and_no_part_of_the_request(offline: FlaskClient) -> None:
    marker = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
    for headers in ({"svix-id": marker}, sign(BODY) | {"svix-signature": f"v1,{marker}"}, sign(marker.encode())):
        text = offline.post(URL, data=marker.encode(), headers=headers).text
        assert marker not in text
        assert "Traceback" not in text
