"""Rate limits: the table of limits, and the 429 answer for a caller that exceeds one.

Redis counts for all processes together, over a sliding window (`upstash-ratelimit`). Without Redis none is refused.
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
from service.threads import Threads

# All addresses of an IPv6 network of this size count as one client, because one client can use any of them.
IPV6_NETWORK_BITS = 64


class Per(Enum):
    """What requests are counted by."""

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
# The limit of a request, by the start of its path. All others have the limit for pages.
PREFIXES = {"/api/": "person", "/webhooks/": "webhooks", "/jobs": "jobs"}
# The endpoints and blueprints that have another limit.
EXCEPTIONS = {
    "members.invite": "invitations",
    "personal_data.export": "exports",
    "personal_data.erase": "erasures",
    "personal_data.show_erasure": "pages",
    "backups": "backups",
}
# The platform's health checks. They also report the state of Redis, which counts the requests.
EXEMPT = frozenset({"health"})


class RateLimited(Problem, status=429, slug="rate-limited", title="Too many requests"):
    """The caller has exceeded the limit of the route's class, which `limit` names."""

    def __init__(self, name: str, retry_after: int) -> None:
        limit = LIMITS[name]
        super().__init__(
            f"At most {limit.requests} requests in {limit.seconds} seconds. Try again in {retry_after} s.",
            limit=name,
            retry_after=retry_after,
        )


class TooManyAtOnce(Problem, status=429, slug="too-many-at-once", title="Too many requests at once"):
    """As many requests of the person are being processed as are allowed: the last threads are for others."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} of your requests are being processed. Try again in 1 s.", limit=limit, retry_after=1)


@dataclass(frozen=True)
class Decision:
    """Whether a request is allowed, and what is left of the limit. A new window begins in `resets_in` seconds."""

    is_allowed: bool
    limit: int
    remaining: int
    resets_in: int


class Limits:
    """One per process, shared by all threads. `namespace` separates installations that share a Redis."""

    def __init__(self, breaker: Breaker, redis: Redis, namespace: str) -> None:
        self._breaker = breaker
        prefix = f"ballast:{hashlib.sha256(namespace.encode()).hexdigest()[:12]}:limit"
        self._limiters = {
            name: Ratelimit(redis, SlidingWindow(limit.requests, limit.seconds), f"{prefix}:{name}")
            for name, limit in LIMITS.items()
        }

    def count(self, name: str, caller: str) -> Decision | None:
        """Counts a request of `caller` against the limit `name`; None if Redis is unavailable."""
        # Redis gets a hash: neither addresses nor people's ids.
        identifier = hashlib.sha256(caller.encode("utf-8", "replace")).hexdigest()[:32]
        try:
            decision = self._breaker.call(lambda _: self._decide(name, identifier))
        except RedisUnavailable:
            decision = None
        what = "errors" if decision is None else "allowed" if decision.is_allowed else "refused"
        metrics.LIMITS.labels(what).inc()
        return decision

    def _decide(self, name: str, identifier: str) -> Decision:
        response = self._limiters[name].limit(identifier)
        if type(response.remaining) is not int or response.remaining > response.limit:
            raise ValueError("unexpected result of the script")
        resets_in = max(1, math.ceil(response.reset - time.time()))
        return Decision(response.allowed, response.limit, response.remaining, resets_in)


def register(app: Flask, limits: Limits, threads: Threads, session_tokens: SessionTokens, trusted_proxies: int) -> None:
    """Limits every route of `app` except those that are exempt. A route whose limit counts people needs a session.

    A client's address is the peer's, or the one that the outermost of `trusted_proxies` wrote into X-Forwarded-For.
    """
    if trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=trusted_proxies, x_proto=0)  # type: ignore[method-assign]
    app.before_request(partial(_check, limits, threads, session_tokens))
    app.teardown_request(lambda _: _release(threads))
    app.after_request(_set_headers)


def find_limit(endpoint: str | None, path: str) -> str | None:
    """The name of a request's limit; None if its route is exempt. A request without a route has the limit for pages.

    The path counts, and not the route's pattern: /<kind>/invoices also matches /api/invoices.
    """
    if endpoint is None:
        return "pages"
    blueprint = endpoint.partition(".")[0]
    by_path = (name for prefix, name in PREFIXES.items() if path.startswith(prefix))
    other = EXCEPTIONS.get(endpoint) or EXCEPTIONS.get(blueprint)
    return None if blueprint in EXEMPT else other or next(by_path, "pages")


def client_address() -> str:
    """The address that the request comes from; for IPv6 its network, since a client may have a whole network."""
    address = request.remote_addr or ""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return f"{IPv6Address(int(parsed) >> IPV6_NETWORK_BITS << IPV6_NETWORK_BITS)}/{IPV6_NETWORK_BITS}"
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _check(limits: Limits, threads: Threads, session_tokens: SessionTokens) -> None:
    name = find_limit(request.endpoint, request.path)
    if name is None:
        return
    caller = client_address()
    refusal: Problem | None = None
    if LIMITS[name].per is Per.PERSON:
        try:
            caller = current_caller(session_tokens).user_id
        except Problem as problem:
            name, refusal = "strangers", problem
        else:
            _take_place(threads, caller)
    decision = limits.count(name, caller)
    g.limit_decision = decision
    if decision is not None and not decision.is_allowed:
        raise RateLimited(name, decision.resets_in)
    if refusal is not None:
        raise refusal


def _take_place(threads: Threads, person: str) -> None:
    """Counts the request until its response is made. Raises TooManyAtOnce."""
    most = threads.most_requests_per_person
    if threads.requests.take(person, most, math.inf) is not None:
        raise TooManyAtOnce(most)
    g.place = person


def _release(threads: Threads) -> None:
    # A download's context is torn down twice: before its body is sent, and after it.
    if (person := g.pop("place", None)) is not None:
        threads.requests.release(person)


def _set_headers(response: Response) -> Response:
    decision: Decision | None = g.get("limit_decision")
    if decision is not None:
        response.headers["RateLimit-Limit"] = str(decision.limit)
        response.headers["RateLimit-Remaining"] = str(decision.remaining)
        response.headers["RateLimit-Reset"] = str(decision.resets_in)
    return response
