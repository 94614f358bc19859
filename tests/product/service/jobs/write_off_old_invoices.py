"""Writes off old unsettled invoices: {written_off: how many}. If there are 1,000, the next run continues."""

from __future__ import annotations

from service.components import Components
from service.jobs import Report
from service.settings.invoicing import Invoicing


def run(components: Components) -> Report:
    days = components.settings.of(Invoicing).write_off_days
    return {"written_off": components.data_api.call("write_off_old_invoices", {"days": days})}
