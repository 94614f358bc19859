"""Clerk's Backend API: deletes and renames people, and classifies failures as final or temporary."""

from __future__ import annotations

import json
import secrets
import threading
import time
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from service.clerk_api import API_VERSION, ClerkApi, ClerkCallFailed
from service.components import components
from tests.conftest import Stack
from tests.service.conftest import UNUSED_URL, MakeApp
from tests.service.outside import HANG_UP, Answer, Outside, rest_answer

PERSON = "user_ada"


# --- on the running stack ---


@pytest.fixture
def clerk(online: FlaskClient) -> ClerkApi:
    with online.application.app_context():
        return components().clerk


@pytest.fixture
def user_id(stack: Stack) -> str:
    """A Clerk user that only this test uses."""
    user_id = f"user_{secrets.token_hex(8)}"
    sent = stack.ballast("clerk", "send", "user.created", "--data", json.dumps({"id": user_id}))
    assert sent.returncode == 0, sent.stderr
    return user_id


def fetch_user(stack: Stack, user_id: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {stack.environment['CLERK_SECRET_KEY']}"}
    return httpx.get(f"{stack.environment['CLERK_API_URL']}/v1/users/{user_id}", headers=headers)


def test_deleting_a_person_removes_the_account_and_can_be_repeated(clerk: ClerkApi, stack: Stack, user_id: str) -> None:
    clerk.delete_user(user_id)
    assert fetch_user(stack, user_id).status_code == 404
    clerk.delete_user(user_id)


@pytest.mark.parametrize("last_name", ["Łukasiewicz", "", None])
def test_a_renamed_person_has_the_new_names_at_clerk(
    clerk: ClerkApi, stack: Stack, user_id: str, last_name: str | None
) -> None:
    assert clerk.rename_user(user_id, "Zoë", last_name) is True
    user = fetch_user(stack, user_id).json()
    assert (user["first_name"], user["last_name"]) == ("Zoë", last_name)


def test_renaming_a_deleted_person_returns_false(clerk: ClerkApi) -> None:
    assert clerk.rename_user("user_gone", "Zoe", None) is False


def test_a_wrong_key_is_not_a_refusal(make_app: MakeApp, stack: Stack) -> None:
    app = make_app(**(stack.environment | {"CLERK_SECRET_KEY": "sk_test_wrong"}))
    with app.app_context(), pytest.raises(ClerkCallFailed) as failed:
        components().clerk.delete_user(PERSON)
    assert (failed.value.status, failed.value.code, failed.value.is_refusal) == (401, "clerk_key_invalid", False)


# --- on a server that fails ---


@pytest.fixture
def failing(make_app: MakeApp, outside: Outside) -> ClerkApi:
    with make_app(CLERK_API_URL=outside.url).app_context():
        return components().clerk


def error(status: int, code: object = "some_code", **headers: str) -> Answer:
    errors = [{"message": "about Ada", "long_message": "No user was found with id user_ada", "code": code}]
    return status, headers, json.dumps({"errors": errors, "clerk_trace_id": "t"}).encode()


def get_failure(clerk: ClerkApi, outside: Outside, answer: Answer | None) -> ClerkCallFailed:
    outside.answer = lambda *_: answer
    with pytest.raises(ClerkCallFailed) as failed:
        clerk.delete_user(PERSON)
    return failed.value


def test_requests_carry_the_key_and_the_api_version(failing: ClerkApi, outside: Outside) -> None:
    seen: list[Any] = []

    def answer(path: str, headers: Any, body: bytes) -> Answer:
        seen.append((path, headers["Authorization"], headers["Clerk-API-Version"], json.loads(body)))
        return rest_answer({})

    outside.answer = answer
    assert failing.rename_user(PERSON, "Ada", "")
    names = {"first_name": "Ada", "last_name": ""}
    assert seen == [("/v1/users/user_ada", "Bearer sk_test_key", API_VERSION, names)]


@pytest.mark.parametrize(
    ("user_id", "path"),
    [
        ("..", "/v1/users/%2E%2E"),
        ("a/../b?c#d", "/v1/users/a%2F%2E%2E%2Fb%3Fc%23d"),
        ("user ü", "/v1/users/user%20%C3%BC"),
    ],
)
def test_an_id_cannot_change_the_path(failing: ClerkApi, outside: Outside, user_id: str, path: str) -> None:
    outside.answer = lambda *_: rest_answer({})
    failing.delete_user(user_id)
    assert outside.requests == [path]


@pytest.mark.parametrize("status", [400, 422])
def test_a_rejected_request_is_a_refusal(failing: ClerkApi, outside: Outside, status: int) -> None:
    failed = get_failure(failing, outside, error(status))
    assert (failed.status, failed.code, failed.is_refusal) == (status, "some_code", True)


@pytest.mark.parametrize("status", [302, 401, 403, 404, 408, 409, 410, 425, 429, 500, 502, 503, 504])
def test_a_temporary_failure_is_not_a_refusal(failing: ClerkApi, outside: Outside, status: int) -> None:
    failed = get_failure(failing, outside, error(status, Location="/"))
    assert (failed.status, failed.code, failed.is_refusal) == (status, "some_code", False)
    assert len(outside.requests) == 1


@pytest.mark.parametrize(("given", "seconds"), [("30", 30), ("0", 0), ("", None), ("soon", None), ("1.5", None)])
def test_a_failure_has_the_seconds_that_clerk_asks_to_wait(
    failing: ClerkApi, outside: Outside, given: str, seconds: int | None
) -> None:
    answer = error(429, "too_many_requests", **{"Retry-After": given})
    assert get_failure(failing, outside, answer).retry_after == seconds


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[]", b'{"errors": []}', b'{"errors": {"code": "x"}}'])
def test_a_404_from_a_proxy_does_not_mean_that_the_person_is_gone(
    failing: ClerkApi, outside: Outside, body: bytes
) -> None:
    failed = get_failure(failing, outside, (404, {}, body))
    assert (failed.code, failed.is_refusal) == ("404", False)


@pytest.mark.parametrize("code", [None, 5, ["x"], "", "ada@example.com", "x" * 101])
def test_a_malformed_error_code_is_not_repeated(failing: ClerkApi, outside: Outside, code: object) -> None:
    assert get_failure(failing, outside, error(422, code)).code == "422"


def test_no_answer_is_a_temporary_failure(failing: ClerkApi, outside: Outside, make_app: MakeApp) -> None:
    hung_up = get_failure(failing, outside, HANG_UP)
    with make_app(CLERK_API_URL=UNUSED_URL).app_context(), pytest.raises(ClerkCallFailed) as absent:
        components().clerk.delete_user(PERSON)
    for failed, code in ((hung_up, "RemoteProtocolError"), (absent.value, "ConnectError")):
        assert (failed.status, failed.code, failed.is_refusal) == (None, code, False)


@pytest.mark.thorough
def test_a_hanging_clerk_blocks_a_call_for_at_most_ten_seconds(failing: ClerkApi, outside: Outside) -> None:
    given_up = threading.Event()

    def answer(*_: object) -> None:
        given_up.wait(20)

    outside.answer = answer
    began = time.monotonic()
    with pytest.raises(ClerkCallFailed) as failed:
        failing.delete_user(PERSON)
    given_up.set()
    assert (failed.value.code, failed.value.is_refusal) == ("ReadTimeout", False)
    assert time.monotonic() - began < 10


def test_a_failure_names_neither_the_person_nor_the_key(failing: ClerkApi, outside: Outside) -> None:
    for answer in (error(422), (404, {}, b"ada"), HANG_UP):
        failed = get_failure(failing, outside, answer)
        assert "ada" not in str(failed).lower() + repr(failed).lower()
        assert "sk_test_key" not in str(failed) + repr(failed)
        assert failed.__cause__ is failed.__context__ is None
