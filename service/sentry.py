"""Sends errors and traces to Sentry: what failed, where, and for which organization. No names, data or secrets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import sentry_sdk
from sentry_sdk.crons import capture_checkin
from sentry_sdk.crons.consts import MonitorStatus
from sentry_sdk.integrations.flask import FlaskIntegration
from sentry_sdk.types import Event, Hint, MonitorConfig

from service.settings import Settings

# Only the fields listed here are sent, because a new version of the package may add fields.
EVENT_FIELDS = (
    "event_id",
    "type",
    "timestamp",
    "start_timestamp",
    "level",
    "platform",
    "release",
    "environment",
    "transaction",
)
FRAME_FIELDS = ("filename", "function", "module", "lineno", "in_app")
SPAN_FIELDS = ("op", "span_id", "parent_span_id", "trace_id", "start_timestamp", "timestamp", "status")
CHECK_IN_FIELDS = (
    "event_id",
    "timestamp",
    "monitor_slug",
    "monitor_config",
    "check_in_id",
    "status",
    "duration",
    "release",
    "environment",
    "type",
)
TAG_NAMES = ("organization", "problem", "code", "request_id")
PSEUDONYM_DIGITS = 16
# A scheduler may be late; a job takes half a minute.
CHECK_IN_MARGIN_MINUTES = 30
MAX_RUNTIME_MINUTES = 5


def start(settings: Settings) -> None:
    """Starts to send, if SENTRY_DSN is set."""
    if settings.sentry_dsn is None:
        return
    sentry_sdk.init(
        settings.sentry_dsn.get_secret_value(),
        environment=settings.environment,
        release=settings.release or f"ballast@{version('ballast')}",
        traces_sample_rate=settings.sentry_traces_sample_rate,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[FlaskIntegration(transaction_style="url")],
        before_send=_filter_error,
        before_send_transaction=_filter_transaction,
        before_breadcrumb=lambda *_: None,
        trace_propagation_targets=[],
        auto_session_tracking=False,
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        server_name="",
    )


def identify(issuer: str, user_id: str, organization_id: str | None) -> None:
    """Attaches the caller to the rest of this request's events.

    Sentry gets a hash of the person's id: with the id you find their events, but the hash does not reveal the id.
    """
    if sentry_sdk.is_initialized():
        pseudonym = hashlib.sha256(f"{issuer} {user_id}".encode()).hexdigest()[:PSEUDONYM_DIGITS]
        sentry_sdk.set_user({"id": pseudonym})
        sentry_sdk.set_tag("organization", organization_id or "none")


def report(error: Exception, **tags: object) -> None:
    """Reports an error that a caller has seen and that an operator must examine."""
    if sentry_sdk.is_initialized():
        with sentry_sdk.new_scope() as scope:
            for name, value in tags.items():
                scope.set_tag(name, str(value))
            scope.capture_exception(error)


def check_in(job: str, seconds: float, every_minutes: int | None, *, ok: bool) -> None:
    """Reports a run's outcome to the job's cron monitor (ballast-<job>). `every_minutes` creates the monitor."""
    if not sentry_sdk.is_initialized():
        return
    config: MonitorConfig | None = None
    if every_minutes:
        config = {
            "schedule": {"type": "interval", "value": every_minutes, "unit": "minute"},
            "checkin_margin": CHECK_IN_MARGIN_MINUTES,
            "max_runtime": MAX_RUNTIME_MINUTES,
        }
    status = MonitorStatus.OK if ok else MonitorStatus.ERROR
    capture_checkin(f"ballast-{job}", status=status, duration=seconds, monitor_config=config)


def _filter_error(event: Event, _hint: Hint) -> Event | None:
    if event.get("type") == "check_in":
        return _select(CHECK_IN_FIELDS, event)  # type: ignore[return-value]
    return _filter_event(event) | {
        "exception": {"values": [_filter_exception(each) for each in _list_exceptions(event.get("exception"))]}
    }  # type: ignore[return-value]


def _filter_transaction(event: Event, _hint: Hint) -> Event | None:
    given: Any = event.get("spans") or []
    spans = [_select(SPAN_FIELDS, span) for span in given]
    return _filter_event(event) | {"spans": spans}  # type: ignore[return-value]


def _filter_event(event: Mapping[str, Any]) -> dict[str, Any]:
    contexts = event.get("contexts") or {}
    return _select(EVENT_FIELDS, event) | {
        "tags": _select(TAG_NAMES, event.get("tags") or {}),
        "user": _select(("id",), event.get("user") or {}),
        "request": _select(("method",), event.get("request") or {}),
        "contexts": {"trace": _select(SPAN_FIELDS, contexts.get("trace") or {})},
    }


def _filter_exception(value: Mapping[str, Any]) -> dict[str, Any]:
    """Its class and where it was raised; never its text."""
    frames = [_select(FRAME_FIELDS, frame) for frame in (value.get("stacktrace") or {}).get("frames") or []]
    return _select(("type", "module"), value) | {"stacktrace": {"frames": frames}}


def _list_exceptions(exception: Any) -> list[Mapping[str, Any]]:
    return list((exception or {}).get("values") or [])


def _select(names: tuple[str, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}
