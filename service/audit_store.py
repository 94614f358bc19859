"""Proof of the audit trail outside the database: seals and receipts, stored next to the backups and never changed.

A database administrator can change entries, seals and records alike, but cannot write here. docs/audit.md says what
this proves.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.erasure_ledger import LedgerStore

SEALS, RECEIPTS, ACCEPTANCES = "seals", "audit-receipts", "audit-accepted"
PAGE = 1000  # of public.seals_after()
SEAL_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})")

# Makes seals, and returns those after a sequence; None if the chain does not contain that sequence with this seal.
SealsAfter = Callable[[int, str | None], list[dict[str, Any]] | None]


class ChainDiverged(Exception):
    """The newest stored seal is not in the database: seals were changed, or a backup was restored."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"The stored seal {sequence} is not in the database's chain.")
        self.sequence = sequence


@dataclass(frozen=True, order=True)
class StoredSeal:
    """A seal in the store; `seal` is in hex."""

    sequence: int
    seal: str

    @property
    def name(self) -> str:
        """The name of its object. It contains the seal, so that a listing is enough to compare the chain."""
        return f"{self.sequence:012}-{self.seal}"


class AuditStore:
    """The seals, receipts and acceptances at `url`. Each method raises LedgerUnavailable."""

    def __init__(self, url: str) -> None:
        self._seals = LedgerStore(url, SEALS)
        self._receipts = LedgerStore(url, RECEIPTS)
        self._acceptances = LedgerStore(url, ACCEPTANCES)

    def put_receipt(self, receipt: Mapping[str, Any]) -> None:
        """Stores the receipt of a planned intervention. Its name is its digest."""
        self._receipts.put_once(receipt["digest"], receipt)

    def receipts(self) -> set[str]:
        """The digests of all interventions with a receipt."""
        return set(self._receipts.receipts())

    def anchor(self, seals_after: SealsAfter) -> int:
        """Stores the seals that are not stored yet, and returns how many. Raises ChainDiverged."""
        abandoned = {name for each in self.acceptances() for name in each["seals"]}
        newest = max((seal for seal in self.seals() if seal.name not in abandoned), default=None)
        stored = 0
        while True:
            new = seals_after(newest.sequence, newest.seal) if newest else seals_after(0, None)
            if new is None:
                raise ChainDiverged(newest.sequence if newest else 0)
            for seal in new:
                newest = StoredSeal(seal["sequence"], seal["seal"])
                self._seals.put_once(newest.name, seal)
            stored += len(new)
            if len(new) < PAGE:  # each call makes a new seal, so the last page is not empty
                return stored

    def seals(self) -> list[StoredSeal]:
        """All stored seals, oldest first, including those of a chain that a restore has cut."""
        found = (SEAL_NAME.fullmatch(name) for name in self._seals.receipts())
        return sorted(StoredSeal(int(name[1]), name[2]) for name in found if name)

    def accept(self, acceptance: Mapping[str, Any]) -> None:
        """Stores what an operator accepted: {seals: names, interventions: digests, reason, accepted_at}."""
        self._acceptances.put_once(str(uuid.uuid4()), acceptance)

    def acceptances(self) -> list[dict[str, Any]]:
        """Everything that operators accepted."""
        return list(self._acceptances.entries())
