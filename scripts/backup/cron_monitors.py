"""Sentry cron monitors: they alert when a backup or a drill fails, and when none runs at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scripts.schema import database

if TYPE_CHECKING:
    from sentry_sdk.types import MonitorConfig

# The schedules of .github/workflows/. The margin and the runtime are in minutes.
MONITORS: Final[dict[str, MonitorConfig]] = {
    "ballast-backup": {
        "schedule": {"type": "crontab", "value": "0 2 * * *"},
        "timezone": "UTC",
        "checkin_margin": 60,
        "max_runtime": 120,
    },
    "ballast-restore-drill": {
        "schedule": {"type": "crontab", "value": "0 4 * * 0"},
        "timezone": "UTC",
        "checkin_margin": 60,
        "max_runtime": 240,
    },
}


@contextmanager
def report_to_monitor(slug: str) -> Iterator[None]:
    """Checks in before and after the block; an exception is reported as an error. Does nothing without SENTRY_DSN.

    A malformed SENTRY_DSN is only reported: a backup without its monitor is better than none.
    Only the check-in is sent: no integrations, no tags of this machine, no traceback.
    """
    dsn = os.environ.get("SENTRY_DSN")
    if not dsn:
        yield
        return
    import sentry_sdk  # noqa: PLC0415 - takes 0.1 s and 10 MB, and most runs do not need it
    from sentry_sdk.crons import monitor  # noqa: PLC0415
    from sentry_sdk.utils import BadDsn, Dsn  # noqa: PLC0415

    try:
        Dsn(dsn)
    except BadDsn:
        database.echo_err("SENTRY_DSN is malformed, so Sentry is not notified: copy it from the project's settings.")
        yield
        return
    with sentry_sdk.isolation_scope():
        sentry_sdk.init(
            dsn,
            environment=os.environ.get("ENVIRONMENT", "production"),
            default_integrations=False,
            auto_enabling_integrations=False,
            server_name="",
        )
        try:
            with monitor(slug, MONITORS[slug]):
                yield
        finally:
            sentry_sdk.flush(timeout=5)
            sentry_sdk.get_client().close()
