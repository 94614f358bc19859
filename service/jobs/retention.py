"""Deletes expired rows: {done, purged: {table: rows}, failed, dropped_audit_months}. If not done, run it again.

`failed` names the tables of rows that could not be deleted: {table: {error, rows, key}}.
"""

from __future__ import annotations

import time
from collections import Counter

from service.components import Components
from service.erasure_ledger import LedgerUnavailable
from service.jobs import WORK_SECONDS, Report, StoreUnavailable


def run(components: Components) -> Report:
    deadline = time.monotonic() + WORK_SECONDS
    store = components.audit_store
    purged: Counter[str] = Counter()
    failed: Report = {}
    dropped: int | None = 0
    while True:
        step = components.data_api.call("run_retention", {"has_store": store is not None})
        if not isinstance(step, dict):
            raise TypeError("run_retention() returned no object")
        purged.update(step["purged"])
        failed |= step["failed"]
        months = step["dropped_audit_months"]
        dropped = None if dropped is None or months is None else dropped + months
        if store is not None and step["receipt_to_store"] is not None:
            try:
                store.put_receipt(step["receipt_to_store"])
            except LedgerUnavailable as failure:
                raise StoreUnavailable("The receipt of an expired month could not be stored.") from failure
            components.data_api.call("confirm_receipt", {"digest": step["receipt_to_store"]["digest"]})
        if step["done"] or time.monotonic() > deadline:
            return {"done": step["done"], "purged": dict(purged), "failed": failed, "dropped_audit_months": dropped}
