"""Carries out erasures: step by step in the database, then in the ledger next to the backups, then at Clerk.

Each step is idempotent: after a crash, any process can continue and reaches the same state.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from service.audit_store import AuditStore
from service.clerk_api import ClerkApi, ClerkCallFailed
from service.data_api import Call, CallFailed
from service.erasure_ledger import LedgerStore, LedgerUnavailable
from service.logs import log

# An erasure takes turns of this length with the others.
WORK_SECONDS = 20.0
# How long the job waits before it responds. The work continues in the background.
JOB_SECONDS = 20.0
PAUSE_SECONDS = 0.1
MAX_PAUSES = 10
THREADS = 2
DUE_THREADS = 2
LEDGER_FIELDS = ("receipt", "subject_hash", "salt", "requested_at", "erased_at", "counts")


class DueWork:
    """Works on due erasures with DUE_THREADS threads, however often it is run at once."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(DUE_THREADS, "due erasures")
        self._lock = threading.Lock()
        self._work: list[Future[None]] = []
        self._states: Counter[str] = Counter()

    def run(self, work: Callable[[Counter[str]], None]) -> dict[str, Any]:
        """Starts the work unless it is going on, and waits for it. Raises its error."""
        with self._lock:
            if all(each.done() for each in self._work):
                self._states = Counter()
                self._work = [self._threads.submit(work, self._states) for _ in range(DUE_THREADS)]
            running, states = self._work, self._states
        ended, unfinished = wait(running, JOB_SECONDS)
        for each in ended:
            each.result()
        return {"done": not unfinished, **states}


@dataclass(frozen=True)
class Eraser:
    """`call` is DataApi.call or a function like it.

    Without a ledger the erasure is recorded only in the database, so restoring a backup undoes it. Without an audit
    store the changes to the audit trail have no receipts, so `ballast audit verify` cannot prove them.

    `on_erased` is called with the Clerk id of each erased person.
    """

    call: Call
    clerk: ClerkApi
    ledger: LedgerStore | None
    audit_store: AuditStore | None = None
    on_erased: Callable[[str], None] = lambda _: None
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "erasure"), repr=False)
    _due: DueWork = field(default_factory=DueWork, repr=False)

    def begin(self, receipt: str) -> None:
        """Carries out an erasure in the background. After a crash, the job continues it."""
        self._threads.submit(self.carry_out, receipt).add_done_callback(_log_failure)

    def carry_out(self, receipt: str, on_step: Callable[[dict[str, Any]], None] = lambda _: None) -> str:
        """Works on an erasure for at most WORK_SECONDS and returns its state: running, erased or complete.

        `on_step` is called with each step that public.continue_erasure() returns. After a failed step the database
        continues with other rows. If only rows are left that cannot be erased yet, the person is deleted at Clerk, and
        the state stays "running".
        """
        deadline = time.monotonic() + WORK_SECONDS
        step: dict[str, Any] = {}
        pauses = 0
        while step.get("state", "running") == "running" and not step.get("is_blocked"):
            if time.monotonic() > deadline or pauses >= MAX_PAUSES:
                return "running"
            before = step
            try:
                step = self.call("continue_erasure", {"receipt": receipt, "has_store": self.audit_store is not None})
            except CallFailed as failure:
                self._postpone(receipt, failure, in_step=True)
            else:
                on_step(step)
            if not self._store_receipt(receipt, step):
                return "running"
            if step == before:
                pauses += 1
                time.sleep(PAUSE_SECONDS)  # it failed, waits for older transactions, or another process works on it
        if step["state"] == "complete":
            return "complete"
        try:
            self._follow_up(step)
        except (CallFailed, ClerkCallFailed, LedgerUnavailable) as failure:
            self._postpone(receipt, failure, in_step=False)
            return str(step["state"])
        return "running" if step["state"] == "running" else "complete"

    def _store_receipt(self, receipt: str, step: dict[str, Any]) -> bool:
        """Stores the receipt for which the erasure waits, if any. False: it failed, and is tried again later."""
        pending = step.get("receipt_to_store")
        if self.audit_store is None or pending is None:
            return True
        try:
            self.audit_store.put_receipt(pending)
            self.call("confirm_receipt", {"digest": pending["digest"]})
        except (CallFailed, LedgerUnavailable) as failure:
            self._postpone(receipt, failure, in_step=False)
            return False
        return True

    def _postpone(
        self, receipt: str, failure: CallFailed | ClerkCallFailed | LedgerUnavailable, *, in_step: bool
    ) -> None:
        log.error("erasure postponed", extra={"failure": type(failure).__name__, "code": failure.code})
        error = f"{type(failure).__name__}: {failure.code}"
        with suppress(CallFailed):
            self.call("postpone_erasure", {"receipt": receipt, "error": error, "in_step": in_step})

    def carry_out_due(self) -> dict[str, Any]:
        """Works on due erasures until none is due: {done, and how many are now in each state}. Raises CallFailed.

        Returns after at most JOB_SECONDS. What is left then is continued in the background (done: false).
        """
        return self._due.run(self._work_through_due)

    def _work_through_due(self, states: Counter[str]) -> None:
        # The main thread ends first when the process ends. What is left is continued by another one.
        while threading.main_thread().is_alive() and (receipt := self.call("claim_due_erasure", {})) is not None:
            states[self.carry_out(receipt)] += 1

    def _follow_up(self, step: dict[str, Any]) -> None:
        """The steps outside the database. Raises LedgerUnavailable, ClerkCallFailed, CallFailed."""
        if self.ledger is not None:
            self.ledger.put(step["receipt"], {name: step[name] for name in LEDGER_FIELDS})
        if step["to_delete_at_clerk"] is not None:
            self.on_erased(step["to_delete_at_clerk"])
            self.clerk.delete_user(step["to_delete_at_clerk"])
        self.call("end_erasure", {"receipt": step["receipt"], "is_stored": self.ledger is not None})


def _log_failure(work: Future[Any]) -> None:
    """Logs an error of background work. No caller waits for its result, so the error would be lost."""
    error = work.exception()
    if error is not None:
        log.error("erasure aborted", extra={"error": type(error).__name__})
