"""Errors and traces to Sentry: what went wrong where, for which organization; nobody's name, data or secret."""

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

# Whatever is not named here is not sent: a new version of the package may think of new things to send.
KEPT = (
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
KEPT_OF_FRAME = ("filename", "function", "module", "lineno", "in_app")
KEPT_OF_SPAN = ("op", "span_id", "parent_span_id", "trace_id", "start_timestamp", "timestamp", "status")
KEPT_OF_CHECK_IN = (
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
KEPT_TAGS = ("organization", "problem", "code", "request_id")
PSEUDONYM_DIGITS = 16
# A scheduler may be late; a job takes half a minute.
LATE_MINUTES = 30
LONGEST_MINUTES = 5


def start(settings: Settings) -> None:
    """Sends from now on, if there is a SENTRY_DSN."""
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
        before_send=_error,
        before_send_transaction=_transaction,
        before_breadcrumb=lambda *_: None,
        trace_propagation_targets=[],
        auto_session_tracking=False,
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        server_name="",
    )


def identify(issuer: str, user_id: str, organization_id: str | None) -> None:
    """Whom the rest of this request is about. A person's id is hashed: who has it finds them, nobody reads it back."""
    if sentry_sdk.is_initialized():
        pseudonym = hashlib.sha256(f"{issuer} {user_id}".encode()).hexdigest()[:PSEUDONYM_DIGITS]
        sentry_sdk.set_user({"id": pseudonym})
        sentry_sdk.set_tag("organization", organization_id or "none")


def report(error: Exception, **tags: object) -> None:
    """An error that a caller was told of, and that somebody has to look at."""
    if sentry_sdk.is_initialized():
        with sentry_sdk.new_scope() as scope:
            for name, value in tags.items():
                scope.set_tag(name, str(value))
            scope.capture_exception(error)


def check_in(job: str, seconds: float, every_minutes: int | None, *, ok: bool) -> None:
    """Tells the job's cron monitor (ballast-<job>) how a run ended. `every_minutes` makes the monitor."""
    if not sentry_sdk.is_initialized():
        return
    config: MonitorConfig | None = None
    if every_minutes:
        config = {
            "schedule": {"type": "interval", "value": every_minutes, "unit": "minute"},
            "checkin_margin": LATE_MINUTES,
            "max_runtime": LONGEST_MINUTES,
        }
    status = MonitorStatus.OK if ok else MonitorStatus.ERROR
    capture_checkin(f"ballast-{job}", status=status, duration=seconds, monitor_config=config)


def _error(event: Event, _hint: Hint) -> Event | None:
    if event.get("type") == "check_in":
        return _only(KEPT_OF_CHECK_IN, event)  # type: ignore[return-value]
    return _kept(event) | {"exception": {"values": [_exception(each) for each in _values(event.get("exception"))]}}  # type: ignore[return-value]


def _transaction(event: Event, _hint: Hint) -> Event | None:
    given: Any = event.get("spans") or []
    spans = [_only(KEPT_OF_SPAN, span) for span in given]
    return _kept(event) | {"spans": spans}  # type: ignore[return-value]


def _kept(event: Mapping[str, Any]) -> dict[str, Any]:
    contexts = event.get("contexts") or {}
    return _only(KEPT, event) | {
        "tags": _only(KEPT_TAGS, event.get("tags") or {}),
        "user": _only(("id",), event.get("user") or {}),
        "request": _only(("method",), event.get("request") or {}),
        "contexts": {"trace": _only(KEPT_OF_SPAN, contexts.get("trace") or {})},
    }


def _exception(value: Mapping[str, Any]) -> dict[str, Any]:
    """Its class and where it was; never its text."""
    frames = [_only(KEPT_OF_FRAME, frame) for frame in (value.get("stacktrace") or {}).get("frames") or []]
    return _only(("type", "module"), value) | {"stacktrace": {"frames": frames}}


def _values(exception: Any) -> list[Mapping[str, Any]]:
    return list((exception or {}).get("values") or [])


def _only(names: tuple[str, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}
