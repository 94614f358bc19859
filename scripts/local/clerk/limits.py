"""Clerk's rate limits of a development instance: https://clerk.com/docs/guides/how-clerk-works/system-limits."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

from aiohttp import web

from scripts.local.clerk.errors import TooManyRequests


class Limit(NamedTuple):
    """At most `requests` in `seconds`: over all calls, or for one method and path, or for these per user."""

    requests: int
    seconds: float
    call: tuple[str, str] | None = None
    per_user: bool = False


DEVELOPMENT = (
    Limit(100, 10),
    Limit(250, 3600, ("POST", "/v1/organizations/{id}/invitations")),
    Limit(10, 10, ("PATCH", "/v1/users/{id}"), per_user=True),
)


class RateLimits:
    """Counts the accepted requests in a sliding window per limit."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits
        self._accepted: dict[tuple[Limit, str], deque[float]] = defaultdict(deque)

    def count_request(self, request: web.Request) -> None:
        """Counts the request. Raises TooManyRequests if a limit is reached."""
        now = time.monotonic()
        windows = [(limit, self._window(limit, request, now)) for limit in self._limits if _applies(limit, request)]
        for limit, window in windows:
            if len(window) >= limit.requests:
                raise TooManyRequests(max(1, math.ceil(window[0] + limit.seconds - now)))
        for _, window in windows:
            window.append(now)

    def _window(self, limit: Limit, request: web.Request, now: float) -> deque[float]:
        window = self._accepted[limit, request.match_info["id"] if limit.per_user else ""]
        while window and window[0] <= now - limit.seconds:
            window.popleft()
        return window


def _applies(limit: Limit, request: web.Request) -> bool:
    resource = request.match_info.route.resource
    return limit.call is None or limit.call == (request.method, resource.canonical if resource else "")
