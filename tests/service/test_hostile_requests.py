"""Whatever a stranger sends, the service answers with a refusal: it neither breaks nor lets anything in."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st

from service.routes.webhooks import UNSTORABLE, event_in
from tests.service.conftest import ENVIRONMENT, made_in
from tests.service.outside import Issuer, running_outside, signed

ANY_CHARACTER = st.characters(exclude_categories=())  # with halves of surrogate pairs
HEADER = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=80)
BASE64URL = st.text("ABCDwxyz0189-_", min_size=1, max_size=60)
NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(ANY_CHARACTER, max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(ANY_CHARACTER, max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def app_with_issuer() -> Iterator[Flask]:
    with running_outside() as server:
        yield made_in(ENVIRONMENT | {"CLERK_ISSUER": Issuer(server).url})


@given(
    headers=st.dictionaries(st.sampled_from(["svix-id", "svix-timestamp", "svix-signature", "webhook-id"]), HEADER),
    real=st.booleans(),
    body=st.binary(max_size=200),
)
def test_no_unsigned_delivery_is_taken_or_breaks_the_service(
    lonely_app: Flask, headers: dict[str, str], real: bool, body: bytes
) -> None:
    sent = signed(body, "whsec_" + "AAAA" * 8) | headers if real else headers
    response = lonely_app.test_client().post("/webhooks/clerk", data=body, headers=sent)
    assert response.status_code in {400, 401}
    assert response.content_type == "application/problem+json"


@given(body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"[" * 100_000)
def test_no_signed_nonsense_breaks_the_service(lonely_app: Flask, body: bytes) -> None:
    response = lonely_app.test_client().post("/webhooks/clerk", data=body, headers=signed(body))
    assert (response.status_code, response.content_type) == (400, "application/problem+json")


@given(
    authorization=HEADER
    | st.tuples(st.sampled_from(["Bearer ", "bearer  ", "Basic "]), BASE64URL, BASE64URL, BASE64URL).map(
        lambda parts: parts[0] + ".".join(parts[1:])
    )
)
def test_no_made_up_token_is_taken_or_breaks_the_service(app_with_issuer: Flask, authorization: str) -> None:
    response = app_with_issuer.test_client().get("/api/v1/me", headers={"Authorization": authorization})
    assert (response.status_code, response.content_type) == (401, "application/problem+json")


@given(data=st.dictionaries(st.text(ANY_CHARACTER, max_size=8), JSON, max_size=5))
def test_any_event_becomes_one_that_jsonb_holds_and_else_stays_as_it_is(data: dict[str, object]) -> None:
    text = json.dumps({"type": "a", "data": data})
    found = event_in(text)
    stored = json.dumps(found, ensure_ascii=False).encode()  # raises for half a surrogate pair
    assert b"\\u0000" not in stored.replace(b"\\\\", b"")
    if not UNSTORABLE.search(json.dumps(data, ensure_ascii=False)) and "\\u0000" not in text:
        assert found["data"] == data
