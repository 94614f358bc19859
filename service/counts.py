"""What is counted, wherever it happens; service/metrics.py shows it. Each worker counts for itself."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LAG_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200, 36000)

REQUESTS = Counter("ballast_requests_total", "Requests, by route, method and status.", ("route", "method", "status"))
DURATION = Histogram("ballast_request_seconds", "How long a request took, by route.", ("route",), buckets=SECONDS)
WEBHOOKS = Counter("ballast_webhooks_total", "Clerk's events that were stored, by outcome.", ("outcome",))
LAG = Histogram("ballast_webhook_lag_seconds", "From an event at Clerk until it was stored here.", buckets=LAG_SECONDS)
CACHE = Counter("ballast_cache_total", "What the cache did: hits, misses, errors and changes.", ("what",))
LIMITS = Counter("ballast_limits_total", "What the limits decided: allowed, refused, or not asked (errors).", ("what",))
