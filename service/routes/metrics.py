"""`/metrics` for Prometheus: requests, Clerk's webhooks and their lag, and the database's state, such as backup age.

Each worker counts for itself. All workers write their counts into one folder, which gunicorn.conf.py creates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service import bearer
from service.components import components
from service.data_api import CallFailed
from service.routes.health import read_redis_state

metrics = Blueprint("metrics", __name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# What public.service_metrics() returns in addition to `health`: numbers, or null if there is nothing to measure yet.
FROM_DATABASE = {
    "backup_age_seconds": "Age of the data in the last completed backup.",
    "drill_age_seconds": "Time since a restore drill last passed.",
    "webhook_failures": "Clerk events that could not be applied yet.",
    "erasures_waiting": "Erasures that are not complete.",
    "mail_queued": "Mail waiting to be sent.",
    "mail_oldest_seconds": "Time since the oldest waiting mail became due.",
}


@metrics.get("/metrics")
def show() -> ResponseReturnValue:
    """Serves all metrics in Prometheus' text format."""
    bearer.require(components().settings.metrics_token, "metrics-refused", "METRICS_TOKEN")
    registry = CollectorRegistry()
    if FOLDER in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(_Database())
    registry.register(_Redis())
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Redis(Collector):
    """Whether Redis answers a PING at each scrape."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = read_redis_state(components().redis_probe)
        gauge = GaugeMetricFamily(
            "ballast_redis_up", "Whether Redis answered; state: up, unreachable, hanging, invalid.", labels=["state"]
        )
        gauge.add_metric([state], float(state == "up"))
        yield gauge


class _Database(Collector):
    """Metrics that are read from the database at each scrape."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            answer = components().data_api.call("service_metrics", {})
        except CallFailed:
            answer = None
        found: Mapping[str, Any] = answer if isinstance(answer, dict) else {}
        yield GaugeMetricFamily(
            "ballast_database_up", "Whether the database answered this scrape.", value=float(answer is not None)
        )
        health = GaugeMetricFamily(
            "ballast_health", "The rows of ops.health: 0 is green, 1 yellow, 2 red.", labels=["subject"]
        )
        for subject, light in (found.get("health") or {}).items():
            health.add_metric([subject], light)
        yield health
        for name, meaning in FROM_DATABASE.items():
            if found.get(name) is not None:
                yield GaugeMetricFamily(f"ballast_{name}", meaning, value=float(found[name]))
