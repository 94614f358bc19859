"""`ballast backup list` and `prune`: list the backups with their state, and delete old ones. They only need the store.

`prune` keeps a backup if at least one rule gives a reason. The rules compare the backups with each other, by the clock
of their database, so the clock of this machine does not matter. Example: there are six backups. A drill has proven only
the oldest. `prune --daily 1 --weekly 2 --monthly 2` decides:

    2026-11-24 02:00  keep: the newest, day 2026-11-24, week 2026-W48, month 2026-11
    2026-11-23 02:00  delete: its week and month have a newer backup, and only one day is kept
    2026-11-22 02:00  keep: week 2026-W47
    2026-11-15 02:00  delete: week 2026-W46 would be the third
    2026-10-31 02:00  keep: month 2026-10
    2026-10-04 02:00  keep: the newest proven

A backup that is dated after the clock of the store or of this machine is kept, but does not count: if it counted as the
newest, the one that really is would not be protected.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from pydantic import AwareDatetime, BaseModel, StrictBool, ValidationError

from scripts.backup.checksum import has_checksum
from scripts.backup.manifest import Manifest
from scripts.backup.store import MANIFESTS_AT_ONCE, BackupStore, StoredManifest, StoreUnavailable, UnfinishedBackup
from scripts.schema import database

DAY = timedelta(days=1)
# The default of app.settings.backup_rpo. The setting itself may be out of reach: the database may be gone.
DEFAULT_RPO = timedelta(days=1)
FORBIDDEN_CODES = {"403", "AccessDenied"}


class Report(BaseModel):
    """The fields of a drill's report that matter here."""

    passed: StrictBool
    started_at: AwareDatetime


@dataclass(frozen=True)
class ListedBackup:
    """A backup in the store. If its manifest cannot be read, `manifest` is None and `damage` is the reason.

    `proven_at` is the start of the last drill that passed. `is_refuted` means that a later drill failed. `ahead` is how
    far the backup is dated after the clock of the store or of this machine: that of the database may have been wrong.
    """

    name: str
    manifest: Manifest | None
    damage: str | None = None
    proven_at: datetime | None = None
    is_refuted: bool = False
    ahead: timedelta = timedelta(0)

    @property
    def created_at(self) -> datetime | None:
        """The time of its snapshot, in UTC."""
        return self.manifest.created_at.astimezone(UTC) if self.manifest else None

    @property
    def is_proven(self) -> bool:
        """Whether a drill passed and none has failed since."""
        return self.proven_at is not None and not self.is_refuted


@dataclass(frozen=True)
class Policy:
    """Grandfather-father-son retention: for how many days, weeks and months the newest backup is kept.

    Days, weeks and months without a backup do not count.
    """

    daily: int
    weekly: int
    monthly: int

    def periods(self) -> tuple[tuple[str, str, int], ...]:
        """For each kind of period: its name, its date format and how many are kept."""
        return ("day", "%Y-%m-%d", self.daily), ("week", "%G-W%V", self.weekly), ("month", "%Y-%m", self.monthly)


@dataclass(frozen=True)
class Plan:
    """What `prune` will do. `to_keep` maps each kept backup to its reasons."""

    to_keep: dict[str, str]
    to_delete: list[ListedBackup]
    leftovers: list[UnfinishedBackup]


def list_backups(store: BackupStore) -> list[ListedBackup]:
    """Lists all backups, oldest first, and reads each manifest once. Raises StoreUnavailable."""
    stored, drills = store.manifests(), store.drills()
    with ThreadPoolExecutor(MANIFESTS_AT_ONCE) as pool:
        return list(pool.map(lambda each: _add_drills(store, each, drills.get(each.name, [])), stored))


def select_kept(backups: Iterable[ListedBackup], policy: Policy) -> dict[str, str]:
    """Decides which backups to keep, and why."""
    reasons: dict[str, list[str]] = {each.name: [f"not readable: {each.damage}"] for each in backups if each.damage}
    reasons |= {each.name: [f"dated {each.ahead} ahead: a clock is wrong"] for each in backups if each.ahead}
    dated = [(each.created_at, each) for each in backups if each.created_at is not None and not each.ahead]
    newest_first = sorted(dated, key=lambda pair: (pair[0], pair[1].name), reverse=True)

    def keep(name: str, reason: str) -> None:
        reasons.setdefault(name, []).append(reason)

    for _, each in newest_first[:1]:
        keep(each.name, "the newest")
    for _, each in [pair for pair in newest_first if pair[1].is_proven][:1]:
        keep(each.name, "the newest proven")
    for moment, each in newest_first[1:]:
        if newest_first[0][0] - moment < DAY:
            keep(each.name, "made less than a day before the newest")
    for kind, date_format, number in policy.periods():
        newest: dict[str, str] = {}
        for moment, each in newest_first:
            newest.setdefault(f"{moment:{date_format}}", each.name)
        for period, name in list(newest.items())[:number]:
            keep(name, f"{kind} {period}")
    return {name: ", ".join(each) for name, each in reasons.items()}


def make_plan(store: BackupStore, policy: Policy) -> Plan:
    """Decides which backups and leftovers to delete. Raises StoreUnavailable; then nothing may be deleted."""
    backups = list_backups(store)
    reasons = select_kept(backups, policy)
    to_delete = [each for each in backups if each.name not in reasons]
    to_keep = {each.name: reasons[each.name] for each in reversed(backups) if each.name in reasons}
    return Plan(to_keep, to_delete, store.leftovers(DAY))


def apply_plan(store: BackupStore, plan: Plan) -> list[str]:
    """Deletes the oldest backups first. Reports each failed deletion, and returns the names that failed."""
    deletions = [(each.name, partial(store.discard, each.name)) for each in plan.to_delete]
    deletions += [(each.path, partial(store.remove, each)) for each in plan.leftovers]
    failed = []
    for name, delete in deletions:
        try:
            delete()
        except StoreUnavailable as failure:
            failed.append(name)
            reason = (
                "the store refused (object lock, or missing permission)"
                if failure.code in FORBIDDEN_CODES
                else str(failure)
            )
            database.echo_err(f"{name} could not be deleted: {reason}")
    return failed


def _add_drills(store: BackupStore, stored: StoredManifest, drills: list[str]) -> ListedBackup:
    if stored.manifest is None:
        return ListedBackup(stored.name, None, stored.damage)
    proven_at, is_refuted = _read_drills(store, stored.name, drills)
    return ListedBackup(stored.name, stored.manifest, None, proven_at, is_refuted, stored.ahead)


def _read_drills(store: BackupStore, name: str, drills: list[str]) -> tuple[datetime | None, bool]:
    """The start of the last drill that passed, and whether one failed since. A damaged report counts as failed."""
    is_refuted = False
    for file in reversed(drills):
        stored = store.read(name, file)
        try:
            report = Report.model_validate_json(stored)
        except ValidationError:
            report = None
        if report and report.passed and has_checksum(stored):
            return report.started_at, is_refuted
        is_refuted = True
    return None, is_refuted
