"""Who is connecting: the project's API keys and tokens, and Clerk's session tokens."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
from jwt import PyJWKClient

from scripts.local.stack import Secrets

Claims = dict[str, Any]
FOR_EVER = 4_102_444_800  # in the year 2100
FETCH_TIMEOUT_SECONDS = 3
ROLES = ("anon", "authenticated", "service_role")
# As Realtime does: a signature by a known key and an `exp` in the future, without leeway. Nothing else is checked.
UNCHECKED_CLAIMS = ("iss", "aud", "sub", "jti", "nbf", "iat")


class TokenRefused(Exception):
    """A token that does not count. `code` names the kind, in Realtime's words; str() is what a client reads."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def reason(self) -> str:
        return f"{self.code}: {self}"


class Tokens:
    """Checks tokens: HS256 with the project's secret, RS256 with the keys of the Clerk instance `issuer`."""

    def __init__(self, secrets: Secrets, issuer: str) -> None:
        self._secret = secrets.jwt_secret
        self._keys = {secrets.publishable_key: "anon", secrets.secret_key: "service_role"}
        self._jwks = PyJWKClient(f"{issuer}/.well-known/jwks.json", timeout=FETCH_TIMEOUT_SECONDS)

    async def of_key(self, key: str | None) -> str:
        """The token that an API key stands for: itself when it is one. Raises TokenRefused."""
        if not key:
            raise TokenRefused("InvalidJWTToken", "API key is missing")
        role = self._keys.get(key)
        if role is None:
            await self.claims(key)
            return key
        return jwt.encode({"role": role, "exp": FOR_EVER}, self._secret, algorithm="HS256")

    async def claims(self, token: str) -> Claims:
        """The claims of a valid token; `role` and `exp` are among them. Raises TokenRefused."""
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
