"""Tokens of machines and operators: whether a request carries the one that is configured."""

from __future__ import annotations

import hmac

from flask import request
from pydantic import SecretStr


def carries(token: SecretStr | None) -> bool:
    """Whether it says `Authorization: Bearer <token>`, compared in constant time. Without a token none does."""
    if token is None:
        return False
    expected = f"Bearer {token.get_secret_value()}"
    return hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected.encode())
