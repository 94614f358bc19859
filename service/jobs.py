"""The jobs that a scheduler runs, by name in JOBS. Each is short, and it is safe to run it at any time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from service.audit_store import ChainDiverged
from service.backups import BackupRunning
from service.clerk_api import ClerkCallFailed
from service.components import Components
from service.erasure_ledger import LedgerUnavailable
from service.inbox import retry_due_event
from service.problems import Problem

WORK_SECONDS = 20.0
NO_SEALS_AFTER = 2**62

Report = dict[str, Any]


class StoreUnavailable(
    Problem, status=503, slug="store-unavailable", title="The backup store does not answer", retry_after=300
):
    """Seals or receipts could not be written to the backup store."""


class SealsDiverged(Problem, status=409, slug="seals-diverged", title="The audit trail does not continue its seals"):
    """The database does not contain the newest seal in the backup store."""


def retention(components: Components) -> Report:
    """Deletes expired rows: {done, purged: {table: rows}, failed, dropped_audit_months}. If not done, run it again.

    `failed` names the tables of rows that could not be deleted: {table: {error, rows, key}}.
    """
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


def erasures(components: Components) -> Report:
    """Continues due erasures: how many are now running, erased, or complete. If not done, work continues."""
    return components.eraser.carry_out_due()


def name_changes(components: Components) -> Report:
    """Sends names that people changed here to Clerk: how many were renamed, refused, or failed for now."""
    report: Counter[str] = Counter(renamed=0, refused=0, failed=0)
    for change in _require_list(components.data_api.call("claim_name_changes", {})):
        error, is_final = None, False
        try:
            components.clerk.rename_user(change["clerk_user_id"], change["first_name"], change["last_name"])
            report["renamed"] += 1
        except ClerkCallFailed as failure:
            error, is_final = failure.code, failure.is_refusal
            report["refused" if is_final else "failed"] += 1
        outcome = {"error": error, "is_final": is_final}
        key = {name: change[name] for name in ("clerk_user_id", "changed_at")}
        components.data_api.call("end_name_change", key | outcome)
    return dict(report)


def backup(components: Components) -> Report:
    """Starts a backup: {started: its id}, {running: true} if one is running, or {unconfigured: [variable]}."""
    if components.backups.missing:
        return {"unconfigured": list(components.backups.missing)}
    try:
        return {"started": components.backups.start("automated")["id"]}
    except BackupRunning:
        return {"running": True}


def retry_events(components: Components) -> Report:
    """Retries failed Clerk events that are due: how many ended in each outcome."""
    deadline = time.monotonic() + WORK_SECONDS
    report: Counter[str] = Counter()
    while time.monotonic() < deadline and (retried := retry_due_event(components.data_api)):
        components.cache.invalidate(retried["users"], retried["organizations"])
        report[retried["outcome"]] += 1
    return dict(report)


def partitions(components: Components) -> Report:
    """Creates the audit trail's partitions for the coming months: how many are new. Retention drops the old ones."""
    return {"made": components.data_api.call("maintain_partitions", {})}


def seals(components: Components) -> Report:
    """Seals the audit trail and stores the new seals with the backups, where database administrators cannot write."""
    if components.audit_store is None:
        components.data_api.call("seals_after", {"newest": NO_SEALS_AFTER})
        return {"stored": 0, "unconfigured": ["BACKUP_URL"]}

    def seals_after(newest: int, seal: str | None) -> list[dict[str, Any]] | None:
        found = components.data_api.call("seals_after", {"newest": newest, "seal": seal})
        return None if found is None else _require_list(found)

    try:
        return {"stored": components.audit_store.anchor(seals_after)}
    except LedgerUnavailable as failure:
        raise StoreUnavailable(
            "The seals are in the database but not in the backup store: run the job again."
        ) from failure
    except ChainDiverged as failure:
        raise SealsDiverged(
            f"{failure} Run `ballast audit verify`: someone changed seals, or a backup was restored. After a restore,"
            " run `ballast audit accept`."
        ) from failure


def reconcile_sample(components: Components) -> Report:
    """Compares a sample with Clerk: how many of each kind were compared, and how many differ. Changes nothing."""
    if components.clerk_sample.missing:
        return {"compared": {}, "differing": {}, "unconfigured": list(components.clerk_sample.missing)}
    return components.clerk_sample.compare()


def mail(components: Components) -> Report:
    """Sends due mail from the outbox: how many were sent, postponed, or given up (failed)."""
    return components.mailer.send_due()


def _require_list(answer: object) -> list[dict[str, Any]]:
    if not isinstance(answer, list):
        raise TypeError("the database returned no list")
    return answer


JOBS: dict[str, Callable[[Components], Report]] = {
    "retry-events": retry_events,
    "partitions": partitions,
    "seals": seals,
    "reconcile-sample": reconcile_sample,
    "retention": retention,
    "erasures": erasures,
    "name-changes": name_changes,
    "backup": backup,
    "mail": mail,
}
