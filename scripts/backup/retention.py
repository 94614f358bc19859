"""`ballast backup list` and `prune`: which backups there are, how good, and which stay. By the store alone."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from pydantic import AwareDatetime, BaseModel, StrictBool, ValidationError

from scripts.backup.manifest import Manifest
from scripts.backup.store import BackupStore, Leftover, ManifestInvalid, StoreUnavailable
from scripts.schema import database

DAY = timedelta(days=1)
# What is lost at worst, as app.settings.backup_rpo has it by default: the database may be gone.
DEFAULT_RPO = timedelta(days=1)
READS_AT_ONCE = 8
FORBIDDEN_CODES = {"403", "AccessDenied"}


class Report(BaseModel):
    """What counts of a drill's report."""

    passed: StrictBool
    started_at: AwareDatetime


@dataclass(frozen=True)
class ListedBackup:
    """A backup as its store shows it. One whose manifest cannot be read has none, and `damage` says why.

    `proven_at` is when the last drill that passed began. `is_refuted`: a later one failed.
    """

    name: str
    manifest: Manifest | None
    damage: str | None = None
    proven_at: datetime | None = None
    is_refuted: bool = False

    @property
    def created_at(self) -> datetime | None:
        """The moment of its data, in UTC."""
        return self.manifest.created_at.astimezone(UTC) if self.manifest else None

    @property
    def is_proven(self) -> bool:
        """A drill passed, and none has failed since."""
        return self.proven_at is not None and not self.is_refuted


@dataclass(frozen=True)
class Policy:
    """Of how many days, weeks and months that have backups the newest backup stays: grandfather, father, son."""

    daily: int
    weekly: int
    monthly: int

    def periods(self) -> tuple[tuple[str, str, int], ...]:
        """Kind, how it is written, and how many of it."""
        return ("day", "%Y-%m-%d", self.daily), ("week", "%G-W%V", self.weekly), ("month", "%Y-%m", self.monthly)


@dataclass(frozen=True)
class Plan:
    """What a pruning does. `kept` says why each of them stays."""

    to_keep: dict[str, str]
    to_delete: list[ListedBackup]
    leftovers: list[Leftover]


def list_backups(store: BackupStore) -> list[ListedBackup]:
    """All backups, oldest first; each manifest is read once. Raises StoreUnavailable."""
    names, drills = store.names(), store.drills()
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return list(pool.map(lambda name: _read_backup(store, name, drills.get(name, [])), names))


def select_kept(backups: Iterable[ListedBackup], now: datetime, policy: Policy) -> dict[str, str]:
    """Which stay, and why."""
    reasons: dict[str, list[str]] = {each.name: [f"not readable: {each.damage}"] for each in backups if each.damage}
    dated = [(each.created_at, each) for each in backups if each.created_at is not None]
    newest_first = sorted(dated, key=lambda pair: (pair[0], pair[1].name), reverse=True)

    def keep(name: str, reason: str) -> None:
        reasons.setdefault(name, []).append(reason)

    for _, each in newest_first[:1]:
        keep(each.name, "the newest")
    for _, each in [pair for pair in newest_first if pair[1].is_proven][:1]:
        keep(each.name, "the newest proven")
    for moment, each in newest_first:
        if now - moment < DAY:
            keep(each.name, "younger than a day")
    for kind, written, number in policy.periods():
        newest: dict[str, str] = {}
        for moment, each in newest_first:
            newest.setdefault(f"{moment:{written}}", each.name)
        for period, name in list(newest.items())[:number]:
            keep(name, f"{kind} {period}")
    return {name: ", ".join(each) for name, each in reasons.items()}


def make_plan(store: BackupStore, now: datetime, policy: Policy) -> Plan:
    """What would go and what would stay. Raises StoreUnavailable, and then nothing may be deleted."""
    backups = list_backups(store)
    reasons = select_kept(backups, now, policy)
    going = [each for each in backups if each.name not in reasons]
    in_order = {each.name: reasons[each.name] for each in reversed(backups) if each.name in reasons}
    return Plan(in_order, going, store.leftovers(DAY))


def apply_plan(store: BackupStore, plan: Plan) -> list[str]:
    """Deletes what goes, the oldest first, and returns what could not be deleted, having said why."""
    deeds = [(each.name, partial(store.discard, each.name)) for each in plan.to_delete]
    deeds += [(each.path, partial(store.remove, each)) for each in plan.leftovers]
    failed = []
    for name, delete in deeds:
        try:
            delete()
        except StoreUnavailable as failure:
            failed.append(name)
            why = (
                "the store forbids it (object lock, or no permission)"
                if failure.code in FORBIDDEN_CODES
                else str(failure)
            )
            database.echo_err(f"{name} could not be deleted: {why}")
    return failed


def _read_backup(store: BackupStore, name: str, drills: list[str]) -> ListedBackup:
    try:
        manifest = store.manifest(name)
    except ManifestInvalid as damage:
        return ListedBackup(name, None, str(damage))
    proven_at, is_refuted = _read_drills(store, name, drills)
    return ListedBackup(name, manifest, None, proven_at, is_refuted)


def _read_drills(store: BackupStore, name: str, drills: list[str]) -> tuple[datetime | None, bool]:
    """When the last drill that passed began, and whether one failed since: a report that is damaged proves nothing."""
    is_refuted = False
    for file in reversed(drills):
        try:
            report = Report.model_validate_json(store.read(name, file))
        except ValidationError:
            report = None
        if report and report.passed:
            return report.started_at, is_refuted
        is_refuted = True
    return None, is_refuted
