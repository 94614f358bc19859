"""Compares the audit trail with its seals, and both with what is stored outside the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from scripts.schema.database import Connection
from service.audit_store import AuditStore, StoredSeal

QUERY = Path(__file__).with_suffix(".sql")

DIFFERENCES = {
    "broken": "entries were changed, removed or inserted",
    "seal broken": "it does not follow from the previous seal: a seal was changed or removed",
    "records broken": "the records of erasures and retention that it covers were changed",
}


@dataclass(frozen=True)
class Range:
    """A sealed range and its present contents. `seal` is in hex."""

    sequence: int
    range_start: datetime
    range_end: datetime
    sealed: int
    found: int
    erased: int
    retention_days: float
    state: str
    seal: str

    @property
    def difference(self) -> str | None:
        """The problem, or None. Erasures and retention may change a range without a problem."""
        what = DIFFERENCES.get(self.state)
        return what and f"{what} (sealed {format_entries(self.sealed)}, found {self.found:,})"


@dataclass(frozen=True)
class Intervention:
    """A row of app.audit_interventions that was carried out.

    `is_consistent`: its digest describes the rows that it claims. `is_proven`: its receipt is outside the database.
    """

    digest: str
    kind: str
    erasure: str | None
    range_start: datetime
    range_end: datetime
    entries: int
    retention_days: float
    happened_at: datetime
    is_consistent: bool
    is_proven: bool

    def describe(self) -> str:
        """Names it in a sentence."""
        what = f"erasure {self.erasure}" if self.kind == "erasure" else f"drop of {format_time(self.range_start)[:7]}"
        return f"The {what} ({format_entries(self.entries)}, {format_time(self.happened_at)})"


@dataclass(frozen=True)
class Trail:
    """What the query found. `unsealed` entries are newer than the last seal; `too_old` are older than the first range.

    `replaced` names tables that are something else now, or whose rows are hidden.
    """

    ranges: list[Range]
    interventions: list[Intervention]
    unsealed: int
    too_old: int
    replaced: list[str]


@dataclass(frozen=True)
class Evidence:
    """What is stored outside: seals, digests of interventions with a receipt, and what operators accepted."""

    seals: list[StoredSeal]
    receipts: set[str]
    accepted_seals: set[str]
    accepted_interventions: set[str]


@dataclass(frozen=True)
class Verification:
    """The trail, compared with the evidence (None: no store is configured) and with copies of seals (in hex)."""

    trail: Trail
    evidence: Evidence | None
    known_seals: tuple[str, ...]

    @property
    def anchored(self) -> Range | None:
        """The newest range of the chain whose seal is known outside. `postgres` can recompute what comes after it."""
        outside = {each.seal for each in self._stored()} | set(self.known_seals)
        return next((each for each in reversed(self.trail.ranges) if each.seal in outside), None)

    def missing_seals(self) -> list[StoredSeal]:
        """Seals in the store that are not in the chain, and that no operator accepted."""
        chain = {(each.sequence, each.seal) for each in self.trail.ranges}
        accepted = self.evidence.accepted_seals if self.evidence else set()
        return [
            each for each in self._stored() if (each.sequence, each.seal) not in chain and each.name not in accepted
        ]

    def unproven(self) -> list[Intervention]:
        """Interventions without a receipt, which therefore may be forged."""
        return [each for each in self.trail.interventions if each.is_consistent and not each.is_proven]

    def list_problems(self) -> Iterator[str]:
        """Yields a line for each kind of problem. Of the broken ranges, only the first is listed."""
        for table in self.trail.replaced:
            yield f"{table} is not the table that Ballast created, or its rows are hidden from this role."
        for broken in [each for each in self.trail.ranges if each.difference][:1]:
            yield f"The first broken range is {broken.sequence}, {format_range(broken)}: {broken.difference}."
        if self.trail.too_old:
            yield f"{format_entries(self.trail.too_old)} inserted before the first sealed range."
        for changed in self.trail.interventions:
            if not changed.is_consistent:
                yield f"{changed.describe()} does not describe the entries that it claims: its record was changed."
        chain = {each.seal for each in self.trail.ranges}
        for seal in self.known_seals:
            if seal not in chain:
                yield f"The seal {seal} is not in the chain: the chain was rewritten, or this is another database."
        if missing := self.missing_seals():
            yield (
                f"The stored seals {missing[0].sequence} to {missing[-1].sequence} are not in the chain: seals were"
                " removed or rewritten, or a backup was restored. After a restore, run `ballast audit accept`."
            )
        if self.evidence is not None:
            for unproven in self.unproven():
                yield (
                    f"{unproven.describe()} has no receipt in the store: it may be forged. If it is from before"
                    " BACKUP_URL was set, run `ballast audit accept`."
                )

    def list_doubts(self) -> Iterator[str]:
        """Yields a line for what may be true but is not proven from outside."""
        if self.evidence is None and (unproven := self.unproven()):
            yield (
                "Erasures and drops of months have no receipt outside the database, because BACKUP_URL is not set:"
                f" {len(unproven):,}."
            )
        if self.anchored is None and (self.trail.ranges or self.trail.unsealed):
            yield (
                "No seal is stored outside the database, so `postgres` can recompute all of them. Set BACKUP_URL, then"
                " run `ballast audit seal`."
            )

    def retention_changes(self) -> list[tuple[float, Range]]:
        """The ranges with another retention period than the one before, after that period in days."""
        pairs = zip(self.trail.ranges, self.trail.ranges[1:], strict=False)
        return [(old.retention_days, new) for old, new in pairs if old.retention_days != new.retention_days]

    def _stored(self) -> list[StoredSeal]:
        return self.evidence.seals if self.evidence else []


def verify(connection: Connection, store: AuditStore | None, known_seals: tuple[str, ...] = ()) -> Verification:
    """Recomputes the chain from one snapshot of the database. Raises LedgerUnavailable."""
    # A seal is stored after the transaction that made it, a receipt before the one that needs it. So the stored seals
    # are read before the snapshot is taken, and the receipts after it.
    seals = store.seals() if store else []
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        connection.execute("set local search_path = pg_catalog")
        connection.execute("select 1")
        evidence = _read_evidence(store, seals) if store else None
        proven = [*evidence.receipts, *evidence.accepted_interventions] if evidence else []
        [[found]] = connection.execute(QUERY.read_bytes(), {"proven": proven}).fetchall()
    return Verification(TypeAdapter(Trail).validate_python(found), evidence, known_seals)


def _read_evidence(store: AuditStore, seals: list[StoredSeal]) -> Evidence:
    acceptances = store.acceptances()
    return Evidence(
        seals,
        store.receipts(),
        {name for each in acceptances for name in each["seals"]},
        {digest for each in acceptances for digest in each["interventions"]},
    )


def format_range(sealed: Range) -> str:
    """Formats the limits of a range."""
    return f"{format_time(sealed.range_start)} to {format_time(sealed.range_end)}"


def format_time(moment: datetime) -> str:
    """Formats a time in UTC, in which the months of the ranges begin."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def format_entries(number: int) -> str:
    """Formats a number of entries."""
    return f"{number:,} {'entry' if number == 1 else 'entries'}"
