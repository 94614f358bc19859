"""The service accepts only tokens that Clerk issued, for this instance, and that are valid now."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.identity import (
    MAX_CLAIMS_BYTES,
    Caller,
    KeysUnavailable,
    SessionPending,
    SessionTokens,
    TokenInvalid,
    TokenMissing,
    TokenTooLarge,
)
from tests.service.outside import HANG_UP, Issuer, new_key, rest_answer

PARTIES = ("https://app.example", "https://admin.example")


@pytest.fixture
def tokens(issuer: Issuer) -> SessionTokens:
    return SessionTokens(issuer.url, PARTIES)


class Clock:
    """The service's clock, which the test moves."""

    def __init__(self) -> None:
        self.passed = 0.0

    def __call__(self) -> float:
        return 1000.0 + self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.identity.monotonic", clock)
    return clock


def bearer(token: str) -> str:
    return f"Bearer {token}"


# --- who the caller is ---


def test_a_version_2_token_yields_person_session_organization_and_factors(
    issuer: Issuer, tokens: SessionTokens
) -> None:
    token = issuer.token()
    assert tokens.authenticate(bearer(token)) == Caller(
        user_id="user_test",
        token=token,
        session_id="sess_test",
        organization_id="org_test",
        organization_role="org:admin",
        first_factor_age_minutes=3,
        second_factor_age_minutes=None,
    )


def test_a_version_1_token_yields_the_same(issuer: Issuer, tokens: SessionTokens) -> None:
    old = {
        "o": None,
        "v": None,
        "sts": None,
        "org_id": "org_old",
        "org_role": "org:member",
        "org_slug": "old",
        "fva": [0, 7],
    }
    caller = tokens.authenticate(bearer(issuer.token(**old)))
    assert (caller.organization_id, caller.organization_role) == ("org_old", "org:member")
    assert (caller.first_factor_age_minutes, caller.second_factor_age_minutes) == (0, 7)


@pytest.mark.parametrize("o", [None, [], "org_test", 5, {}, {"rol": "admin"}, {"id": 5, "rol": "admin"}, {"id": ""}])
def test_an_organization_claim_of_an_unknown_shape_is_no_organization(
    issuer: Issuer, tokens: SessionTokens, o: object
) -> None:
    caller = tokens.authenticate(bearer(issuer.token(o=o)))
    assert (caller.organization_id, caller.organization_role) == (None, None)


@pytest.mark.parametrize(
    "fva", [None, [], [1], [-1, -1], [1, 2, 3], "01", {"0": 1}, ["1", "2"], [True, True], [0.5, 0.5]]
)
def test_a_factor_claim_of_an_unknown_shape_counts_as_not_verified(
    issuer: Issuer, tokens: SessionTokens, fva: object
) -> None:
    assert tokens.authenticate(bearer(issuer.token(fva=fva))).second_factor_age_minutes is None


def test_printing_a_caller_does_not_show_the_token(issuer: Issuer, tokens: SessionTokens) -> None:
    token = issuer.token()
    assert token not in repr(tokens.authenticate(bearer(token)))


# --- attacks ---


def make_unsigned(issuer: Issuer) -> str:
    return jwt.encode(issuer.claims(), None, "none", headers={"kid": "ins_test"})


def signed_with_the_public_key_as_a_password(issuer: Issuer) -> str:
    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    public = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    content = part(b'{"alg":"HS256","kid":"ins_test"}') + b"." + part(json.dumps(issuer.claims()).encode())
    return (content + b"." + part(hmac.digest(public, content, "sha256"))).decode()


def bringing_its_own_key(issuer: Issuer) -> str:
    key = new_key()
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    headers = {"kid": "ins_test", "jwk": jwk, "jku": "http://127.0.0.1:9/keys"}
    return jwt.encode(issuer.claims(), key, "RS256", headers=headers)


def raw(header: bytes) -> str:
    return base64.urlsafe_b64encode(header).rstrip(b"=").decode() + ".e30.AAAA"


ATTACKS: dict[str, Callable[[Issuer], str]] = {
    "alg none": make_unsigned,
    "HS256 with the public key": signed_with_the_public_key_as_a_password,
    "RS512": lambda i: jwt.encode(i.claims(), i.key, "RS512", headers={"kid": "ins_test"}),
    "another key": lambda i: i.token(key=new_key()),
    "its own key in the header": bringing_its_own_key,
    "unknown kid": lambda i: i.token(kid="ins_other"),
    "no kid": lambda i: i.token(kid=None),
    "another issuer": lambda i: i.token(iss="https://clerk.evil.example"),
    "the issuer with a slash": lambda i: i.token(iss=i.url + "/"),
    "the issuer in capitals": lambda i: i.token(iss=i.url.upper()),
    "the issuer as a list": lambda i: raw_claims(i, iss=[i.url]),
    "another party": lambda i: i.token(azp="https://evil.example"),
    "the party as a list": lambda i: i.token(azp=[PARTIES[0]]),
    "an empty party": lambda i: i.token(azp=""),
    "expired": lambda i: i.token(exp=int(time.time()) - 6),
    "not yet valid": lambda i: i.token(nbf=int(time.time()) + 60),
    "issued in the future": lambda i: i.token(iat=int(time.time()) + 60),
    "no exp": lambda i: i.token(exp=None),
    "no iat": lambda i: i.token(iat=None),
    "no iss": lambda i: i.token(iss=None),
    "no sub": lambda i: i.token(sub=None),
    "empty sub": lambda i: i.token(sub=""),
    "exp as text": lambda i: raw_claims(i, exp="soon"),
    "infinite iat": lambda i: raw_claims(i, iat=float("inf")),
    "sub as a number": lambda i: raw_claims(i, sub=5),
    "a changed payload": lambda i: i.token().replace(".", ".A", 1),
    "kid as a list": lambda _: raw(b'{"alg":"RS256","kid":["ins_test"]}'),
    "alg as a list": lambda _: raw(b'{"alg":["RS256"],"kid":"ins_test"}'),
    "a header that is not an object": lambda _: raw(b"[]"),
    "a header that is not JSON": lambda _: raw(b"\xff\xfe"),
    "a deeply nested header": lambda _: raw(b"[" * 5000),
    "a number too long in the header": lambda _: raw(b'{"alg":' + b"9" * 5000 + b"}"),
    "unencoded payload": lambda _: raw(b'{"alg":"RS256","kid":"ins_test","b64":false,"crit":["b64"]}'),
    "two parts": lambda i: i.token().rpartition(".")[0],
    "five parts": lambda i: i.token() + ".a.b",
    "empty parts": lambda _: "..",
    "no token": lambda _: "",
    "not ASCII": lambda _: "\xe9.\xe9.\xe9",
    "spaces": lambda i: i.token().replace(".", " ."),
}


def raw_claims(issuer: Issuer, **changes: object) -> str:
    """A signed token with claims that PyJWT refuses to encode."""
    payload = json.dumps(issuer.claims(**changes)).encode()
    return jwt.api_jws.encode(payload, issuer.key, "RS256", headers={"kid": "ins_test"})


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_token_that_clerk_did_not_issue_for_us_now_is_refused(
    issuer: Issuer, tokens: SessionTokens, attack: str
) -> None:
    with pytest.raises(TokenInvalid):
        tokens.authenticate(bearer(ATTACKS[attack](issuer)))


@pytest.mark.parametrize("header", [None, ""])
def test_a_missing_token_is_requested(tokens: SessionTokens, header: str | None) -> None:
    with pytest.raises(TokenMissing):
        tokens.authenticate(header)


@pytest.mark.parametrize("scheme", ["Basic ", "Token ", "", "Bearer", "Bearer\t", "Bearer Bearer "])
def test_only_the_bearer_scheme_is_accepted(issuer: Issuer, tokens: SessionTokens, scheme: str) -> None:
    with pytest.raises(TokenInvalid):
        tokens.authenticate(scheme + issuer.token())


@pytest.mark.parametrize("scheme", ["bearer ", "BEARER  "])
def test_the_schemes_case_does_not_matter(issuer: Issuer, tokens: SessionTokens, scheme: str) -> None:
    assert tokens.authenticate(scheme + issuer.token()).user_id == "user_test"


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -3), ("nbf", 3), ("iat", 3)])
def test_clocks_may_differ_by_five_seconds(issuer: Issuer, tokens: SessionTokens, claim: str, seconds: int) -> None:
    token = issuer.token(**{claim: int(time.time()) + seconds})
    assert tokens.authenticate(bearer(token)).user_id == "user_test"


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_from_the_future_is_refused_with_the_clock_as_the_reason(
    issuer: Issuer, tokens: SessionTokens, claim: str
) -> None:
    now = int(time.time())
    for token, names_clock in ((issuer.token(**{claim: now + 600}), True), (issuer.token(exp=now - 600), False)):
        with pytest.raises(TokenInvalid) as refusal:
            tokens.authenticate(bearer(token))
        assert ("dated in the future" in refusal.value.detail) == names_clock


@pytest.mark.parametrize("claims", [{"azp": PARTIES[1]}, {"azp": None}, {"aud": "another-audience"}])
def test_the_authorized_party_may_be_absent_and_the_audience_is_ignored(
    issuer: Issuer, tokens: SessionTokens, claims: dict[str, object]
) -> None:
    assert tokens.authenticate(bearer(issuer.token(**claims))).user_id == "user_test"


def test_without_configured_parties_any_party_is_accepted(issuer: Issuer) -> None:
    assert (
        SessionTokens(issuer.url, ()).authenticate(bearer(issuer.token(azp="https://any.example"))).user_id
        == "user_test"
    )


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_token_with_more_than_8_kb_of_claims_is_refused_with_the_limit(
    issuer: Issuer, tokens: SessionTokens, letter: str
) -> None:
    large = issuer.claims(custom="")
    space = MAX_CLAIMS_BYTES - len(json.dumps(large, separators=(",", ":")))
    fitting = letter * (space // len(letter.encode()))
    assert tokens.authenticate(bearer(issuer.token(**large | {"custom": fitting}))).user_id == "user_test"
    with pytest.raises(TokenTooLarge, match="fewer custom claims") as refused:
        tokens.authenticate(bearer(issuer.token(**large | {"custom": fitting + letter})))
    assert (refused.value.status, refused.value.more) == (431, {"limit": 8192})


def test_a_forged_token_of_any_size_is_only_not_valid(issuer: Issuer, tokens: SessionTokens) -> None:
    with pytest.raises(TokenInvalid):
        tokens.authenticate(bearer(issuer.token(key=new_key(), custom="x" * 10_000)))


@pytest.mark.parametrize("status", ["pending", "something new", 5])
def test_a_session_that_is_not_active_is_refused(issuer: Issuer, tokens: SessionTokens, status: object) -> None:
    with pytest.raises(SessionPending):
        tokens.authenticate(bearer(issuer.token(sts=status)))


# --- keys ---


def test_keys_are_fetched_once_for_five_minutes(issuer: Issuer, tokens: SessionTokens, clock: Clock) -> None:
    for clock.passed in (0, 100, 200, 300):
        tokens.authenticate(bearer(issuer.token()))
    assert issuer.server.requests == ["/.well-known/jwks.json"]
    clock.passed = 301
    tokens.authenticate(bearer(issuer.token()))
    assert len(issuer.server.requests) == 2


@pytest.mark.parametrize("forged", ["unknown kid", "another key"])
def test_a_flood_of_forged_tokens_does_not_flood_clerk(
    issuer: Issuer, tokens: SessionTokens, clock: Clock, forged: str
) -> None:
    token = bearer(ATTACKS[forged](issuer))
    for second in range(120):
        clock.passed = second
        for _ in range(3):
            with pytest.raises(TokenInvalid):
                tokens.authenticate(token)
    assert len(issuer.server.requests) == 4


def test_during_a_flood_real_tokens_are_accepted(issuer: Issuer, tokens: SessionTokens) -> None:
    for number in range(20):
        with pytest.raises(TokenInvalid):
            tokens.authenticate(bearer(issuer.token(kid=f"ins_{number}")))
        assert tokens.authenticate(bearer(issuer.token())).user_id == "user_test"


@pytest.mark.parametrize("kid", ["ins_test", "ins_rotated"])
def test_a_rotated_key_is_found_whether_or_not_its_name_changed(
    issuer: Issuer, tokens: SessionTokens, clock: Clock, kid: str
) -> None:
    tokens.authenticate(bearer(issuer.token()))
    rotated = new_key()
    issuer.publish(rotated, kid=kid)
    clock.passed = 31
    assert tokens.authenticate(bearer(issuer.token(key=rotated, kid=kid))).user_id == "user_test"
    with pytest.raises(TokenInvalid):
        tokens.authenticate(bearer(issuer.token()))


@pytest.mark.parametrize(
    "answer",
    [
        lambda *_: HANG_UP,
        lambda *_: rest_answer({}, 500),
        lambda *_: (302, {"Location": "https://evil.example/"}, b""),
        lambda *_: (200, {}, b"<html>"),
        lambda *_: (200, {}, b"\xff"),
        lambda *_: (200, {"Content-Length": "100"}, b"{"),
        lambda *_: rest_answer([]),
        lambda *_: rest_answer({}),
        lambda *_: rest_answer({"keys": []}),
        lambda *_: rest_answer({"keys": [{"kty": "RSA", "kid": "ins_test"}]}),
        lambda *_: (200, {}, b"[" * 100_000),
    ],
)
def test_without_keys_every_token_is_refused_and_clerk_is_retried_after_a_pause(
    issuer: Issuer, tokens: SessionTokens, clock: Clock, answer: Any
) -> None:
    token = bearer(issuer.token())
    working, issuer.server.answer = issuer.server.answer, answer
    for clock.passed in (0, 1, 4):
        with pytest.raises(KeysUnavailable):
            tokens.authenticate(token)
    assert len(issuer.server.requests) == 1
    issuer.server.answer = working
    clock.passed = 5
    assert tokens.authenticate(token).user_id == "user_test"


def test_during_a_clerk_outage_cached_keys_are_used_until_they_expire(
    issuer: Issuer, tokens: SessionTokens, clock: Clock
) -> None:
    tokens.authenticate(bearer(issuer.token()))
    issuer.server.answer = lambda *_: HANG_UP
    clock.passed = 299
    assert tokens.authenticate(bearer(issuer.token())).user_id == "user_test"
    with pytest.raises(TokenInvalid):
        tokens.authenticate(bearer(issuer.token(kid="ins_other")))
    clock.passed = 330
    with pytest.raises(KeysUnavailable):
        tokens.authenticate(bearer(issuer.token()))


def test_a_slow_clerk_times_out(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.identity.FETCH_TIMEOUT_SECONDS", 0.2)
    issuer.server.answer = lambda *_: time.sleep(1)
    began = time.perf_counter()
    with pytest.raises(KeysUnavailable):
        SessionTokens(issuer.url, ()).authenticate(bearer(issuer.token()))
    assert time.perf_counter() - began < 0.8


def test_an_unreachable_clerk_is_an_outage() -> None:
    with pytest.raises(KeysUnavailable):
        SessionTokens("http://127.0.0.1:9", ()).authenticate(bearer(raw(b'{"alg":"RS256","kid":"ins_test"}')))


def test_concurrent_threads_fetch_the_keys_once(issuer: Issuer, tokens: SessionTokens) -> None:
    token, found = bearer(issuer.token()), []
    barrier = threading.Barrier(12)

    def ask() -> None:
        barrier.wait()
        found.append(tokens.authenticate(token).user_id)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["user_test"] * 12
    assert len(issuer.server.requests) == 1
