"""Continues due erasures: how many are now running, erased, or complete. If not done, work continues."""

from __future__ import annotations

from service.components import Components
from service.jobs import Report


def run(components: Components) -> Report:
    return components.eraser.carry_out_due()
