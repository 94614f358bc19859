"""How much one caller may ask of the service: the table of limits, and the answer to who asks for more.

Counted in Redis for all processes together, over a sliding window (`upstash-ratelimit`). Without it nobody is refused.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from enum import Enum
from functools import partial
from ipaddress import IPv6Address, ip_address

from flask import Flask, Response, g, request
from upstash_ratelimit import Ratelimit, SlidingWindow
from upstash_redis import Redis
from werkzeug.middleware.proxy_fix import ProxyFix

from service import metrics
from service.breaker import Breaker, RedisUnavailable
from service.identity import SessionTokens, current_caller
from service.problems import Problem

# Clients inside one IPv6 network of this size are one: each may choose among its addresses.
IPV6_NETWORK_BITS = 64


class Per(Enum):
    """Whose requests are counted together."""

    PERSON = "person"
    ADDRESS = "address"


@dataclass(frozen=True)
class Limit:
    """At most `requests` in any `seconds`."""

    requests: int
    seconds: int
    per: Per


# docs/limits.md explains each.
LIMITS = {
    "person": Limit(600, 60, Per.PERSON),
    "exports": Limit(60, 3600, Per.PERSON),
    "erasures": Limit(60, 3600, Per.PERSON),
    "invitations": Limit(60, 3600, Per.PERSON),
    "strangers": Limit(300, 60, Per.ADDRESS),
    "webhooks": Limit(1000, 60, Per.ADDRESS),
    "backups": Limit(60, 60, Per.ADDRESS),
    "jobs": Limit(120, 60, Per.ADDRESS),
    "pages": Limit(600, 60, Per.ADDRESS),
}
# By the blueprint or the endpoint. Whatever is not named is a page.
CLASSES = {
    "me": "person",
    "audit": "person",
    "members": "person",
    "members.invite": "invitations",
    "personal_data.export": "exports",
    "personal_data.erase": "erasures",
    "webhooks": "webhooks",
    "mail.receive": "webhooks",
    "backups": "backups",
    "jobs": "jobs",
}
# What a platform asks to know whether to send requests at all, and Redis' own state is part of the answer.
EXEMPT = frozenset({"health"})


class RateLimited(Problem, status=429, slug="rate-limited", title="Too many requests"):
    """The caller has asked for more than the limit of the route's class, which `limit` names."""

    def __init__(self, name: str, retry_after: int) -> None:
        limit = LIMITS[name]
        super().__init__(
            f"At most {limit.requests} requests in {limit.seconds} seconds. Try again in {retry_after} s.",
            limit=name,
            retry_after=retry_after,
        )


@dataclass(frozen=True)
class Standing:
    """How a caller stands: `resets_in` seconds from now a new window begins."""

    is_allowed: bool
    limit: int
    remaining: int
    resets_in: int


class Limits:
    """One per process, shared by all threads. `namespace` keeps installations apart that share a Redis."""

    def __init__(self, breaker: Breaker, redis: Redis, namespace: str) -> None:
        self._breaker = breaker
        prefix = f"ballast:{hashlib.sha256(namespace.encode()).hexdigest()[:12]}:limit"
        self._limiters = {
            name: Ratelimit(redis, SlidingWindow(limit.requests, limit.seconds), f"{prefix}:{name}")
            for name, limit in LIMITS.items()
        }

    def count(self, name: str, caller: str) -> Standing | None:
        """Counts a request of `caller`, and says how they stand; None when Redis does not."""
        # Redis sees a hash: neither addresses nor people's ids.
        identifier = hashlib.sha256(caller.encode("utf-8", "replace")).hexdigest()[:32]
        try:
            standing = self._breaker.ask(lambda _: self._standing(name, identifier))
        except RedisUnavailable:
            standing = None
        what = "errors" if standing is None else "allowed" if standing.is_allowed else "refused"
        metrics.LIMITS.labels(what).inc()
        return standing

    def _standing(self, name: str, identifier: str) -> Standing:
        response = self._limiters[name].limit(identifier)
        if type(response.remaining) is not int or response.remaining > response.limit:
            raise ValueError("not what the script returns")
        resets_in = max(1, math.ceil(response.reset - time.time()))
        return Standing(response.allowed, response.limit, response.remaining, resets_in)


def register(app: Flask, limits: Limits, session_tokens: SessionTokens, trusted_proxies: int) -> None:
    """Limits every route of `app` but those that are exempt.

    A client's address is the peer's, or what the outermost of `trusted_proxies` said in X-Forwarded-For.
    """
    if trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=trusted_proxies, x_proto=0)  # type: ignore[method-assign]
    app.before_request(partial(_check, limits, session_tokens))
    app.after_request(_show)


def class_of(endpoint: str | None) -> str | None:
    """The name of an endpoint's limit; None for those that are exempt."""
    blueprint = (endpoint or "").partition(".")[0]
    return None if blueprint in EXEMPT else CLASSES.get(endpoint or "") or CLASSES.get(blueprint, "pages")


def client_address() -> str:
    """Where the request comes from; a network, where a client has a whole one to itself."""
    address = request.remote_addr or ""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return f"{IPv6Address(int(parsed) >> IPV6_NETWORK_BITS << IPV6_NETWORK_BITS)}/{IPV6_NETWORK_BITS}"
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _check(limits: Limits, session_tokens: SessionTokens) -> None:
    name = class_of(request.endpoint)
    if name is None:
        return
    caller = client_address()
    if LIMITS[name].per is Per.PERSON:
        try:
            caller = current_caller(session_tokens).user_id
        except Problem:  # the route says so itself
            name = "strangers"
    standing = limits.count(name, caller)
    g.standing = standing
    if standing is not None and not standing.is_allowed:
        raise RateLimited(name, standing.resets_in)


def _show(response: Response) -> Response:
    standing: Standing | None = g.get("standing")
    if standing is not None:
        response.headers["RateLimit-Limit"] = str(standing.limit)
        response.headers["RateLimit-Remaining"] = str(standing.remaining)
        response.headers["RateLimit-Reset"] = str(standing.resets_in)
    return response
