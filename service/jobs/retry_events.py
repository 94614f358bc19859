"""Retries failed Clerk events that are due: how many ended in each outcome."""

from __future__ import annotations

import time
from collections import Counter

from service.components import Components
from service.inbox import retry_due_event
from service.jobs import WORK_SECONDS, Report


def run(components: Components) -> Report:
    deadline = time.monotonic() + WORK_SECONDS
    report: Counter[str] = Counter()
    while time.monotonic() < deadline and (retried := retry_due_event(components.data_api)):
        components.cache.invalidate(retried["users"], retried["organizations"])
        report[retried["outcome"]] += 1
    return dict(report)
