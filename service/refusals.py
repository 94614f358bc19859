"""Counts refused webhook deliveries in the database, where ops.health sees them.

Strangers can send any number of them. So each process writes at most once a minute, and a row counts a whole hour.
"""

from __future__ import annotations

import threading
from collections import Counter
from time import monotonic

from service.data_api import Call, CallFailed
from service.signed_webhooks import SignatureInvalid

PAUSE_SECONDS = 60.0
# `ballast doctor` sends a delivery with a wrong signature on purpose. Its message ids begin so, and do not count.
DOCTOR_MESSAGE = "msg_ballast_doctor_"


class Refusals:
    """One per process, shared by all threads. `call` is DataApi.call_briefly or a function like it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._skews: dict[str, float] = {}
        self._next_write = 0.0

    def count(self, sender: str, refusal: SignatureInvalid) -> None:
        """Counts one of `sender`, clerk or resend. Counts that could not be written stay for the next time."""
        if refusal.message_id.startswith(DOCTOR_MESSAGE):
            return
        with self._lock:
            self._counts[sender, refusal.reason] += 1
            if refusal.skew_seconds is not None:
                self._skews[sender] = refusal.skew_seconds
            if monotonic() < self._next_write:
                return
            self._next_write = monotonic() + PAUSE_SECONDS
            counts, self._counts = self._counts, Counter()
        for (of, reason), deliveries in counts.items():
            skew = self._skews.get(of) if reason == "timestamp" else None
            refused = {"sender": of, "reason": reason, "deliveries": deliveries, "skew_seconds": skew}
            try:
                self._call("record_refused_deliveries", refused)
            except CallFailed:
                with self._lock:
                    self._counts[of, reason] += deliveries
