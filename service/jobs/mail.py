"""Sends due mail from the outbox: how many were sent, postponed, or given up (failed)."""

from __future__ import annotations

from service.components import Components
from service.jobs import Report


def run(components: Components) -> Report:
    return components.mailer.send_due()
