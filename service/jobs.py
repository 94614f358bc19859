"""Work that a scheduler asks for, by its name in JOBS. Each is short, and may run at any time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from service.backups import BackupRunning
from service.clerk_api import ClerkCallFailed
from service.components import Components
from service.erasure_ledger import LedgerUnavailable
from service.problems import Problem

WORK_SECONDS = 20.0
NO_SEALS_AFTER = 2**62

Report = dict[str, Any]


class StoreUnavailable(
    Problem, status=503, slug="store-unavailable", title="The store does not answer", retry_after=300
):
    """The store of backups does not take what belongs beside them."""


def retention(tools: Components) -> Report:
    """Purges what is old: {done, purged: {table: rows}, dropped_audit_months}. Not done: run it again."""
    deadline = time.monotonic() + WORK_SECONDS
    purged: Counter[str] = Counter()
    while True:
        step = tools.data_api.call("run_retention", {})
        if not isinstance(step, dict):
            raise TypeError("run_retention() returned no object")
        purged.update(step["purged"])
        if step["done"] or time.monotonic() > deadline:
            return step | {"purged": dict(purged)}


def erasures(tools: Components) -> Report:
    """Carries on with erasures: how many are running, erased, complete, or waiting for the next run."""
    return tools.eraser.carry_out_pending()


def name_changes(tools: Components) -> Report:
    """Tells Clerk of names that people gave themselves: how many it took (told), refused, did not answer (failed)."""
    report: Counter[str] = Counter(told=0, refused=0, failed=0)
    for change in _list(tools.data_api.call("claim_name_changes", {})):
        error, is_final = None, False
        try:
            tools.clerk.rename_user(change["clerk_user_id"], change["first_name"], change["last_name"])
            report["told"] += 1
        except ClerkCallFailed as failure:
            error, is_final = failure.code, failure.is_refusal
            report["refused" if is_final else "failed"] += 1
        outcome = {"error": error, "is_final": is_final}
        named = {name: change[name] for name in ("clerk_user_id", "changed_at")}
        tools.data_api.call("end_name_change", named | outcome)
    return dict(report)


def backup(tools: Components) -> Report:
    """Starts a backup: the id of the one it started, or running where one is, or the variables that are not set."""
    if tools.backups.missing:
        return {"unconfigured": list(tools.backups.missing)}
    try:
        return {"started": tools.backups.start("automated")["id"]}
    except BackupRunning:
        return {"running": True}


def retry_events(tools: Components) -> Report:
    """Applies what failed of Clerk's events again, those that are due: how many ended in which outcome."""
    deadline = time.monotonic() + WORK_SECONDS
    report: Counter[str] = Counter()
    while time.monotonic() < deadline:
        retried = tools.data_api.call("retry_due_event", {})
        if not isinstance(retried, dict):
            break
        tools.cache.invalidate(retried["users"], retried["organizations"])
        report[retried["outcome"]] += 1
    return dict(report)


def partitions(tools: Components) -> Report:
    """Makes the audit trail's partitions of the months ahead: how many were new. Retention drops the old ones."""
    return {"made": tools.data_api.call("maintain_partitions", {})}


def seals(tools: Components) -> Report:
    """Seals the audit trail, and keeps the new seals beside the backups, out of its administrators' reach."""
    if tools.seals is None:
        tools.data_api.call("seals_after", {"newest": NO_SEALS_AFTER})
        return {"stored": 0, "unconfigured": ["BACKUP_URL"]}
    try:
        newest = max(map(int, tools.seals.receipts()), default=0)
        new = _list(tools.data_api.call("seals_after", {"newest": newest}))
        for seal in new:
            tools.seals.put(f"{seal['sequence']:012}", seal)
    except LedgerUnavailable as failure:
        raise StoreUnavailable("The seals are in the database, and not beside the backups.") from failure
    return {"stored": len(new)}


def reconcile_sample(tools: Components) -> Report:
    """Compares a sample with Clerk: how many of each kind were looked at, how many differ how. Changes nothing."""
    if tools.clerk_sample.missing:
        return {"compared": {}, "differing": {}, "unconfigured": list(tools.clerk_sample.missing)}
    return tools.clerk_sample.compare()


def mail(tools: Components) -> Report:
    """Sends what waits in the outbox: how many were sent, postponed, or given up (failed)."""
    return tools.mailer.send_due()


def _list(answer: object) -> list[dict[str, Any]]:
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
