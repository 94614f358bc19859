"""Verifies API keys and tokens of the project, and Clerk session tokens."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
from jwt import PyJWKClient

from scripts.local.stack import Secrets

Claims = dict[str, Any]
FAR_FUTURE = 4_102_444_800  # in the year 2100
FETCH_TIMEOUT_SECONDS = 3
ROLES = ("anon", "authenticated", "service_role")
# Like hosted Realtime, this checks the signature, and that `exp` is in the future, without leeway. Not these claims.
UNCHECKED_CLAIMS = ("iss", "aud", "sub", "jti", "nbf", "iat")


class TokenRefused(Exception):
    """An invalid token. `code` is Realtime's code for the reason; str() is the message for the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def reason(self) -> str:
        return f"{self.code}: {self}"


class Tokens:
    """Verifies tokens: HS256 with the project's secret, RS256 with the keys of the Clerk instance `issuer`."""

    def __init__(self, secrets: Secrets, issuer: str) -> None:
        self._secret = secrets.jwt_secret
        self._keys = {secrets.publishable_key: "anon", secrets.secret_key: "service_role"}
        self._jwks = PyJWKClient(f"{issuer}/.well-known/jwks.json", timeout=FETCH_TIMEOUT_SECONDS)

    async def of_key(self, key: str | None) -> str:
        """The token for an API key; a valid token is returned as it is. Raises TokenRefused."""
        if not key:
            raise TokenRefused("InvalidJWTToken", "API key is missing")
        role = self._keys.get(key)
        if role is None:
            await self.claims(key)
            return key
        return jwt.encode({"role": role, "exp": FAR_FUTURE}, self._secret, algorithm="HS256")

    async def claims(self, token: str) -> Claims:
        """The claims of a valid token, including `role` and `exp`. Raises TokenRefused."""
        try:
            claims = await self._verify(token)
        except jwt.ExpiredSignatureError:
            raise _refuse_expired(token) from None
        except jwt.MissingRequiredClaimError:
            claims = {}
        except (jwt.InvalidSignatureError, jwt.PyJWKClientError):
            raise TokenRefused("JwtSignatureError", "Failed to validate JWT signature") from None
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenRefused("MalformedJWT", "The token provided is not a valid JWT") from None
        if claims.get("role") not in ROLES:
            raise TokenRefused("InvalidJWTToken", "Fields `role` and `exp` are required in JWT")
        return claims

    async def _verify(self, token: str) -> Claims:
        options: Any = {"require": ["role", "exp"]} | {f"verify_{claim}": False for claim in UNCHECKED_CLAIMS}
        if jwt.get_unverified_header(token).get("alg") == "HS256":
            return jwt.decode(token, self._secret, algorithms=["HS256"], options=options)
        key = await asyncio.to_thread(self._jwks.get_signing_key_from_jwt, token)
        return jwt.decode(token, key, algorithms=["RS256"], options=options)


def _refuse_expired(token: str) -> TokenRefused:
    expired = jwt.decode(token, options={"verify_signature": False})["exp"]
    return TokenRefused("InvalidJWTToken", f"Token has expired {int(time.time()) - int(expired)} seconds ago")
