"""Where a request comes from, as the audit trail records it: headers for calls to the database on a person's behalf."""

from __future__ import annotations

import re

from flask import g, has_request_context, request

# The database keeps as much.
USER_AGENT_LENGTH = 512
NOT_PRINTABLE = re.compile(r"[^ -~]")


def origin_headers() -> dict[str, str]:
    """The address, the browser and the id of the current request; nothing outside a request.

    The address is the peer's, or the one that a trusted proxy wrote (TRUSTED_PROXIES). What the client itself wrote
    into X-Forwarded-For never counts.
    """
    if not has_request_context():
        return {}
    return {
        "X-Forwarded-For": _as_header(request.remote_addr or ""),
        # Supabase refuses a secret key that comes with a browser's User-Agent.
        "X-User-Agent": _as_header(request.headers.get("User-Agent", ""))[:USER_AGENT_LENGTH].strip(),
        "X-Request-Id": g.request_id,
    }


def _as_header(text: str) -> str:
    """The text with "?" for each character that HTTP does not allow in a header."""
    return NOT_PRINTABLE.sub("?", text).strip()
