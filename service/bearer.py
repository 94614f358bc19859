"""Static bearer tokens for machines and operators: each route accepts only its own token."""

from __future__ import annotations

import hmac

from flask import request
from pydantic import SecretStr

from service.problems import Problem


class TokenRefused(
    Problem, status=401, slug="token-refused", title="The token is missing or wrong", challenge="Bearer"
):
    """The request does not carry the token, or none is configured. Each kind of token has its own `slug`."""

    def __init__(self, slug: str, variable: str) -> None:
        super().__init__(f"Send the token: Authorization: Bearer <{variable}>.")
        self.slug = slug


def require(token: SecretStr | None, slug: str, variable: str) -> None:
    """Requires the header `Authorization: Bearer <token>`, compared in constant time. Raises TokenRefused.

    `variable` names the setting that holds the token. While it is not set, every request is refused.
    """
    given = request.headers.get("Authorization", "").encode()
    if token is None or not hmac.compare_digest(given, f"Bearer {token.get_secret_value()}".encode()):
        raise TokenRefused(slug, variable)
