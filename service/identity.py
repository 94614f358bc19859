"""Authentication: checks Clerk's session tokens against Clerk's public keys."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from time import monotonic
from typing import Any, cast

import jwt
from flask import g, request
from jwt import PyJWK, PyJWKClient

from service import sentry
from service.problems import Problem

ALGORITHM = "RS256"
LEEWAY_SECONDS = 5
KEYS_LIFE_SECONDS = 300
FETCH_TIMEOUT_SECONDS = 3
# Forged tokens must not make us flood Clerk with requests. These are the shortest intervals between two fetches: while
# the keys are still valid, and after a fetch that failed.
EARLY_FETCH_SECONDS = 30
FAILED_FETCH_SECONDS = 5
# The limit of app.token, which measures the claims as PostgREST writes them: compact, in UTF-8.
MAX_CLAIMS_BYTES = 8192
BEARER = re.compile(r"bearer +([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+) *", re.IGNORECASE)


class TokenMissing(Problem, status=401, slug="token-missing", title="A session token is required", challenge="Bearer"):
    """The request has no Authorization header."""


class TokenInvalid(
    Problem,
    status=401,
    slug="token-invalid",
    title="The session token is not valid",
    challenge='Bearer error="invalid_token"',
):
    """Clerk did not issue the token for us, or it has expired. The answer does not reveal which."""


class TokenTooLarge(Problem, status=431, slug="token-too-large", title="The session token has too many claims"):
    """The database ignores such a token (app.token), so its owner would seem to be signed out there."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"Its claims have {size} bytes, and at most {MAX_CLAIMS_BYTES} are read. "
            "Put fewer custom claims into Clerk's session token.",
            limit=MAX_CLAIMS_BYTES,
        )


class SessionPending(Problem, status=403, slug="session-pending", title="The session has unfinished tasks"):
    """The person must first finish a task at Clerk, such as setting up a second factor."""


class Impersonated(Problem, status=403, slug="impersonated", title="Only the person may do this"):
    """The token belongs to an impersonator (it has an act claim)."""


class KeysUnavailable(
    Problem, status=503, slug="identity-unavailable", title="Sessions cannot be checked right now", retry_after=5
):
    """Clerk's public keys cannot be fetched, so no token can be checked."""


@dataclass(frozen=True)
class Caller:
    """The person who sent a request, as Clerk's token states it.

    `organization_role` is Clerk's key with its prefix ("org:admin") in either token version. A factor's age is the
    minutes since it was last verified; None means never, or not stated. In an impersonated session (the act claim) the
    caller is the impersonated person, not the impersonator.
    """

    user_id: str
    token: str = field(repr=False)
    session_id: str | None = None
    organization_id: str | None = None
    organization_role: str | None = None
    first_factor_age_minutes: int | None = None
    second_factor_age_minutes: int | None = None
    is_impersonated: bool = False

    @property
    def has_second_factor(self) -> bool:
        """Whether the session was verified with a second factor, by the same rule as app.has_second_factor()."""
        return self.second_factor_age_minutes is not None


class SigningKeys:
    """Clerk's public keys by id: fetched when first needed, cached for five minutes. Threads may share it."""

    def __init__(self, issuer: str) -> None:
        address = f"{issuer}/.well-known/jwks.json"
        self._client = PyJWKClient(address, cache_jwk_set=False, timeout=FETCH_TIMEOUT_SECONDS)
        self._lock = threading.Lock()
        self._keys: Mapping[str, PyJWK] = {}
        self._fetched_at = -float("inf")
        self._tried_at = -float("inf")

    def current(self) -> Mapping[str, PyJWK]:
        """The keys, at most five minutes old. Raises KeysUnavailable."""
        if self._have_expired():
            with self._lock:
                if self._have_expired() and monotonic() - self._tried_at >= FAILED_FETCH_SECONDS:
                    self._fetch()
        if self._have_expired():
            raise KeysUnavailable("Clerk's public keys cannot be fetched.")
        return self._keys

    def refresh(self) -> Mapping[str, PyJWK]:
        """Fetches the keys again unless the last fetch was too recent, and returns the newest ones we have."""
        with self._lock:
            if monotonic() - self._tried_at >= EARLY_FETCH_SECONDS:
                self._fetch()
        return self._keys

    def _have_expired(self) -> bool:
        return monotonic() - self._fetched_at > KEYS_LIFE_SECONDS

    def _fetch(self) -> None:
        self._tried_at = monotonic()
        try:
            keys = self._client.get_signing_keys(refresh=True)
        except (jwt.PyJWTError, OSError, HTTPException, ValueError, RecursionError):  # the last two mean: not JSON
            return
        self._keys = {key.key_id: key for key in keys if key.key_id}
        self._fetched_at = monotonic()


class SessionTokens:
    """Checks the session tokens of one Clerk instance."""

    def __init__(self, issuer: str, authorized_parties: Sequence[str]) -> None:
        self._issuer = issuer
        self._authorized_parties = authorized_parties
        self._keys = SigningKeys(issuer)

    def authenticate(self, authorization: str | None) -> Caller:
        """Returns the caller that the Authorization header identifies.

        Raises TokenMissing, TokenInvalid, TokenTooLarge, SessionPending or KeysUnavailable.
        """
        if not authorization:
            raise TokenMissing("Send a Clerk session token: Authorization: Bearer <token>.")
        bearer = BEARER.fullmatch(authorization)
        if bearer is None:
            raise _token_invalid()
        claims = self._read_claims(bearer[1])
        _check_size(claims)
        # No status means active: tokens without one are older than Clerk's session tasks.
        if claims.get("sts", "active") != "active":
            raise SessionPending("Finish signing in: the session has unfinished tasks.")
        caller = read_caller(claims, bearer[1])
        sentry.identify(self._issuer, caller.user_id, caller.organization_id)
        return caller

    def _read_claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            if header.get("alg") != ALGORITHM or not isinstance(kid, str):
                raise _token_invalid()
            claims = self._verify(token, kid)
        except jwt.ImmatureSignatureError:  # the signature is right
            raise TokenInvalid("The token is dated in the future: the service's clock or Clerk's is wrong.") from None
        except (jwt.PyJWTError, RecursionError, ValueError, OverflowError):
            raise _token_invalid() from None
        if not claims["sub"] or not self._is_for_us(claims):
            raise _token_invalid()
        return claims

    def _verify(self, token: str, kid: str) -> dict[str, Any]:
        key = self._keys.current().get(kid)
        if key is not None:
            try:
                return self._decode(token, key)
            except jwt.InvalidSignatureError:
                pass  # Clerk names its key after the instance: a rotated key may have the same id
        renewed = self._keys.refresh().get(kid)
        if renewed is None or renewed is key:
            raise _token_invalid()
        return self._decode(token, renewed)

    def _decode(self, token: str, key: PyJWK) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            issuer=self._issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "iss", "sub"], "verify_aud": False},
        )

    def _is_for_us(self, claims: Mapping[str, Any]) -> bool:
        party = claims.get("azp")
        return party is None or not self._authorized_parties or party in self._authorized_parties


def current_caller(tokens: SessionTokens) -> Caller:
    """The caller of this request; the token is checked once. Raises what SessionTokens.authenticate() raises."""
    if "caller" not in g:
        g.caller = tokens.authenticate(request.headers.get("Authorization"))
    return cast("Caller", g.caller)


def require_person(caller: Caller, detail: str) -> None:
    """Requires that the caller acts for themselves. Raises Impersonated."""
    if caller.is_impersonated:
        raise Impersonated(f"{detail} Ask them to sign in themselves.")


def read_caller(claims: Mapping[str, Any], token: str) -> Caller:
    """Reads verified claims of either token version. A claim of an unknown shape counts as absent."""
    active = claims.get("o")
    if isinstance(active, dict):
        organization_id, role = _text_or_none(active.get("id")), _text_or_none(active.get("rol"))
        role = f"org:{role}" if role else None  # version 2 drops the prefix
    else:
        organization_id, role = _text_or_none(claims.get("org_id")), _text_or_none(claims.get("org_role"))
    first, second = _read_factor_ages(claims.get("fva"))
    return Caller(
        user_id=claims["sub"],
        token=token,
        session_id=_text_or_none(claims.get("sid")),
        organization_id=organization_id,
        organization_role=role if organization_id else None,
        first_factor_age_minutes=first,
        second_factor_age_minutes=second,
        is_impersonated=claims.get("act") is not None,
    )


def _check_size(claims: Mapping[str, Any]) -> None:
    """Raises TokenTooLarge."""
    size = len(json.dumps(claims, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    if size > MAX_CLAIMS_BYTES:
        raise TokenTooLarge(size)


def _text_or_none(claim: object) -> str | None:
    return claim if isinstance(claim, str) and claim else None


def _read_factor_ages(claim: object) -> tuple[int | None, int | None]:
    if not isinstance(claim, list) or len(claim) != 2:
        return None, None
    first, second = (age if type(age) is int and age >= 0 else None for age in claim)
    return first, second


def _token_invalid() -> TokenInvalid:
    return TokenInvalid("Send a valid Clerk session token that is less than a minute old.")
