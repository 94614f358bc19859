"""The service's counters and histograms; service/routes/metrics.py serves them. Each worker counts for itself."""

from __future__ import annotations

import time

from flask import Flask, Response, g, request
from prometheus_client import Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LAG_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200, 36000)

REQUESTS = Counter("ballast_requests_total", "Requests, by route, method and status.", ("route", "method", "status"))
DURATION = Histogram("ballast_request_seconds", "Duration of requests, by route.", ("route",), buckets=SECONDS)
WEBHOOKS = Counter("ballast_webhooks_total", "Clerk events that were stored, by outcome.", ("outcome",))
LAG = Histogram("ballast_webhook_lag_seconds", "Time from a Clerk event until it was stored.", buckets=LAG_SECONDS)
CACHE = Counter("ballast_cache_total", "Cache operations: hits, misses, errors and changes.", ("what",))
LIMITS = Counter("ballast_limits_total", "Rate limit decisions: allowed, refused, or unavailable (errors).", ("what",))


def register(app: Flask) -> None:
    """Counts every request of `app`."""
    app.after_request(_count)


def count_webhook(outcome: str, lag_seconds: float | None) -> None:
    """Counts a stored event. `lag_seconds` is its age at that moment; None if the event has no time."""
    WEBHOOKS.labels(outcome).inc()
    if lag_seconds is not None:
        LAG.observe(max(0.0, lag_seconds))


def _count(response: Response) -> Response:
    # The template, not the path: a path may name a person, and each path would become a separate series.
    route = request.url_rule.rule if request.url_rule else "none"
    method = request.method if request.url_rule else "none"
    REQUESTS.labels(route, method, response.status_code).inc()
    DURATION.labels(route).observe(time.perf_counter() - g.started)
    return response
