"""Who is calling: Clerk's session tokens, checked against its public keys."""

from __future__ import annotations

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
# Forged tokens must not make us hammer Clerk: we ask for new keys early, or again after no answer, only this often.
EARLY_FETCH_SECONDS = 30
FAILED_FETCH_SECONDS = 5
BEARER = re.compile(r"bearer +([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+) *", re.IGNORECASE)


class TokenMissing(Problem, status=401, slug="token-missing", title="A session token is required", challenge="Bearer"):
    """The request says nothing about who sends it."""


class TokenInvalid(
    Problem,
    status=401,
    slug="token-invalid",
    title="The session token is not valid",
    challenge='Bearer error="invalid_token"',
):
    """The token is not one that Clerk issued for us, or its time is over. Which of them is not told."""


class SessionPending(Problem, status=403, slug="session-pending", title="The session has unfinished tasks"):
    """Clerk knows the person, who has yet to finish a task (choose an organization, set up a second factor)."""


class KeysUnavailable(
    Problem, status=503, slug="identity-unavailable", title="Sessions cannot be checked right now", retry_after=5
):
    """Clerk's public keys cannot be had, so no token can be checked."""


@dataclass(frozen=True)
class Caller:
    """The person behind a request, as Clerk signed it.

    `organization_role` is Clerk's key with its prefix ("org:admin"), whichever version the token has. A factor's age is
    the minutes since it was last verified, None when never or not said. Of an impersonated session (the act claim)
    the caller is whom it is about, not who sits there. What is of the organization is for routes to come.
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
        """Whether the session was verified with a second factor, as app.has_second_factor() has it."""
        return self.second_factor_age_minutes is not None


class SigningKeys:
    """Clerk's public keys by their id: fetched when first needed, kept five minutes. Safe to share between threads."""

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
        """The keys as they are now, if the last fetch is long enough ago; else those we have."""
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
        except (jwt.PyJWTError, OSError, HTTPException, ValueError, RecursionError):  # the last two: not JSON
            return
        self._keys = {key.key_id: key for key in keys if key.key_id}
        self._fetched_at = monotonic()


class SessionTokens:
    """Checks session tokens of one Clerk instance."""

    def __init__(self, issuer: str, authorized_parties: Sequence[str]) -> None:
        self._issuer = issuer
        self._authorized_parties = authorized_parties
        self._keys = SigningKeys(issuer)

    def authenticate(self, authorization: str | None) -> Caller:
        """The caller whom the request's Authorization header proves.

        Raises TokenMissing, TokenInvalid, SessionPending or KeysUnavailable.
        """
        if not authorization:
            raise TokenMissing("Send a Clerk session token: Authorization: Bearer <token>.")
        bearer = BEARER.fullmatch(authorization)
        if bearer is None:
            raise _invalid()
        claims = self._read_claims(bearer[1])
        # Absent means active: tokens had no status before Clerk had tasks.
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
                raise _invalid()
            claims = self._verify(token, kid)
        except (jwt.PyJWTError, RecursionError, ValueError, OverflowError):
            raise _invalid() from None
        if not claims["sub"] or not self._is_for_us(claims):
            raise _invalid()
        return claims

    def _verify(self, token: str, kid: str) -> dict[str, Any]:
        key = self._keys.current().get(kid)
        if key is not None:
            try:
                return self._decode(token, key)
            except jwt.InvalidSignatureError:
                pass  # Clerk names its key after the instance: a rotated key may bear the same name
        renewed = self._keys.refresh().get(kid)
        if renewed is None or renewed is key:
            raise _invalid()
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
    """Whom this request's token proves, checked once a request. Raises what SessionTokens.caller() does."""
    if "caller" not in g:
        g.caller = tokens.authenticate(request.headers.get("Authorization"))
    return cast("Caller", g.caller)


def read_caller(claims: Mapping[str, Any], token: str) -> Caller:
    """What checked claims of either version say. Claims of an unknown shape count as absent."""
    active = claims.get("o")
    if isinstance(active, dict):
        organization_id, role = _text(active.get("id")), _text(active.get("rol"))
        role = f"org:{role}" if role else None  # version 2 drops the prefix
    else:
        organization_id, role = _text(claims.get("org_id")), _text(claims.get("org_role"))
    first, second = _factor_ages(claims.get("fva"))
    return Caller(
        user_id=claims["sub"],
        token=token,
        session_id=_text(claims.get("sid")),
        organization_id=organization_id,
        organization_role=role if organization_id else None,
        first_factor_age_minutes=first,
        second_factor_age_minutes=second,
        is_impersonated=claims.get("act") is not None,
    )


def _text(claim: object) -> str | None:
    return claim if isinstance(claim, str) and claim else None


def _factor_ages(claim: object) -> tuple[int | None, int | None]:
    if not isinstance(claim, list) or len(claim) != 2:
        return None, None
    first, second = (age if type(age) is int and age >= 0 else None for age in claim)
    return first, second


def _invalid() -> TokenInvalid:
    return TokenInvalid("Send a valid Clerk session token, not older than a minute.")
