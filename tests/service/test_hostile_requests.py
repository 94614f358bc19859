"""The service refuses any hostile request: it neither fails nor accepts it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st

from tests.service.conftest import ENVIRONMENT, make_in
from tests.service.outside import Issuer, running_outside, sign

HEADER = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=80)
BASE64URL = st.text("ABCDwxyz0189-_", min_size=1, max_size=60)


@pytest.fixture(scope="module")
def app_with_issuer() -> Iterator[Flask]:
    with running_outside() as server:
        yield make_in(ENVIRONMENT | {"CLERK_ISSUER": Issuer(server).url})


@given(
    headers=st.dictionaries(st.sampled_from(["svix-id", "svix-timestamp", "svix-signature", "webhook-id"]), HEADER),
    real=st.booleans(),
    body=st.binary(max_size=200),
)
def test_no_unsigned_delivery_is_accepted_or_causes_an_error(
    offline_app: Flask, headers: dict[str, str], real: bool, body: bytes
) -> None:
    sent = sign(body, "whsec_" + "AAAA" * 8) | headers if real else headers
    response = offline_app.test_client().post("/webhooks/clerk", data=body, headers=sent)
    assert response.status_code in {400, 401}
    assert response.content_type == "application/problem+json"


@given(body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"[" * 100_000)
@example(b"\0")
def test_no_signed_nonsense_causes_an_error(offline_app: Flask, body: bytes) -> None:
    """There is no database here: tests/db/test_clerk_inbox.py tests how the database handles such texts."""
    response = offline_app.test_client().post("/webhooks/clerk", data=body, headers=sign(body))
    is_text = b"\0" not in body and body.decode(errors="replace").encode() == body
    assert (response.status_code, response.content_type) == (503 if is_text else 400, "application/problem+json")


@given(
    authorization=HEADER
    | st.tuples(st.sampled_from(["Bearer ", "bearer  ", "Basic "]), BASE64URL, BASE64URL, BASE64URL).map(
        lambda parts: parts[0] + ".".join(parts[1:])
    )
)
def test_no_invented_token_is_accepted_or_causes_an_error(app_with_issuer: Flask, authorization: str) -> None:
    response = app_with_issuer.test_client().get("/api/v1/me", headers={"Authorization": authorization})
    assert (response.status_code, response.content_type) == (401, "application/problem+json")
