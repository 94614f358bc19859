"""`ballast backup list` and `prune`: which backups there are, how good, and which stay. By the store alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import click
from pydantic import AwareDatetime, BaseModel, StrictBool, ValidationError
from rich.markup import escape
from rich.table import Table

from scripts.backup.manifest import Manifest
from scripts.backup.progress import size
from scripts.backup.run import store_of
from scripts.backup.store import BackupStore, Leftover, ManifestInvalid, StoreUnavailable
from scripts.cli import database

DAY = timedelta(days=1)
# What is lost at worst, as app.settings.backup_rpo has it by default: the database may be gone.
LATE = timedelta(days=1)
READS_AT_ONCE = 8
FORBIDDEN = {"403", "AccessDenied"}
NUMBER = click.IntRange(min=0)
UNITS = (("day", DAY), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1)))


class Report(BaseModel):
    """What counts of a drill's report."""

    passed: StrictBool
    started_at: AwareDatetime


@dataclass(frozen=True)
class Stored:
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

    kept: dict[str, str]
    going: list[Stored]
    leftovers: list[Leftover]


@click.command("list", epilog="Example: ballast backup list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_command(as_json: bool) -> None:
    """List the backups in BACKUP_URL, the newest first: age, size, and when a drill proved each.

    It needs no database. Red is what cannot be relied on: a damaged backup, a failed drill, a latest one that is late.
    """
    store = store_of(database.environment(None))
    backups = shelf(store)[::-1]
    now = datetime.now(UTC)
    if as_json:
        click.echo(json.dumps([_described(each, now) for each in backups], indent=2))
    elif backups:
        _show_backups(backups, now)
    else:
        click.echo(f"There is no backup in {store.url} yet: `ballast backup run` makes one.")


@click.command(epilog="Example: ballast backup prune --dry-run")
@click.option("--dry-run", is_flag=True, help="Show what would go, and change nothing.")
@click.option("--daily", type=NUMBER, default=7, show_default=True, metavar="N")
@click.option("--weekly", type=NUMBER, default=4, show_default=True, metavar="N")
@click.option("--monthly", type=NUMBER, default=12, show_default=True, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def prune(dry_run: bool, daily: int, weekly: int, monthly: int, as_json: bool) -> None:
    """Delete old backups from BACKUP_URL: the newest of each of the last N days, weeks and months with one stays.

    So do the newest, the newest that a drill proved, what is younger than a day, and what cannot be read. What
    interrupted runs left goes after a day. Times are UTC. Exits with 1 when something could not be deleted.
    """
    store = store_of(database.environment(None))
    now = datetime.now(UTC)
    plan = planned(store, now, Policy(daily, weekly, monthly))
    if not as_json:
        _show_plan(plan, now)
    failed = [] if dry_run else carried_out(store, plan)
    if as_json:
        going = [each.name for each in plan.going]
        leftovers = [each.path for each in plan.leftovers]
        found = {"dry_run": dry_run, "kept": plan.kept, "going": going, "leftovers": leftovers, "failed": failed}
        click.echo(json.dumps(found, indent=2))
    elif not dry_run:
        gone = len(plan.going) + len(plan.leftovers) - len(failed)
        click.echo(f"{gone} deleted, {len(plan.kept)} kept.")
    if failed:
        sys.exit(1)


def shelf(store: BackupStore) -> list[Stored]:
    """All backups, oldest first; each manifest is read once. Raises StoreUnavailable."""
    names, drills = store.names(), store.drills()
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return list(pool.map(lambda name: _stored(store, name, drills.get(name, [])), names))


def kept(backups: Iterable[Stored], now: datetime, policy: Policy) -> dict[str, str]:
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


def planned(store: BackupStore, now: datetime, policy: Policy) -> Plan:
    """What would go and what would stay. Raises StoreUnavailable, and then nothing may be deleted."""
    backups = shelf(store)
    reasons = kept(backups, now, policy)
    going = [each for each in backups if each.name not in reasons]
    in_order = {each.name: reasons[each.name] for each in reversed(backups) if each.name in reasons}
    return Plan(in_order, going, store.leftovers(DAY))


def carried_out(store: BackupStore, plan: Plan) -> list[str]:
    """Deletes what goes, the oldest first, and returns what could not be deleted, having said why."""
    deeds = [(each.name, partial(store.discard, each.name)) for each in plan.going]
    deeds += [(each.path, partial(store.remove, each)) for each in plan.leftovers]
    failed = []
    for name, delete in deeds:
        try:
            delete()
        except StoreUnavailable as failure:
            failed.append(name)
            why = "the store forbids it (object lock, or no permission)" if failure.code in FORBIDDEN else str(failure)
            database.say(f"{name} could not be deleted: {why}")
    return failed


def _stored(store: BackupStore, name: str, drills: list[str]) -> Stored:
    try:
        manifest = store.manifest(name)
    except ManifestInvalid as damage:
        return Stored(name, None, str(damage))
    proven_at, is_refuted = _verdict(store, name, drills)
    return Stored(name, manifest, None, proven_at, is_refuted)


def _verdict(store: BackupStore, name: str, drills: list[str]) -> tuple[datetime | None, bool]:
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


def _described(backup: Stored, now: datetime) -> dict[str, Any]:
    """For programs."""
    manifest, created_at = backup.manifest, backup.created_at
    return {
        "id": backup.name,
        "created_at": created_at.isoformat() if created_at else None,
        "age_seconds": round((now - created_at).total_seconds()) if created_at else None,
        "size_bytes": manifest.size_bytes if manifest else None,
        "rows": sum(manifest.rows.values()) if manifest else None,
        "encrypted": manifest.is_sealed if manifest else None,
        "proven_at": backup.proven_at.isoformat() if backup.proven_at else None,
        "last_drill_failed": backup.is_refuted,
        "damage": backup.damage,
    }


def _show_backups(backups: list[Stored], now: datetime) -> None:
    table = Table("Backup", "Age", "Size", "Rows", "Encrypted", "Proven")
    newest = next((each for each in backups if each.manifest is not None), None)
    for each in backups:
        if each.manifest is None or each.created_at is None:
            table.add_row(f"[red]{each.name}", "", "", "", "", f"[red]{escape(each.damage or '')}")
            continue
        is_late = each is newest and now - each.created_at > LATE
        table.add_row(
            each.name,
            f"[red]{_age(now - each.created_at)}" if is_late else _age(now - each.created_at),
            size(each.manifest.size_bytes),
            f"{sum(each.manifest.rows.values()):,}",
            "yes" if each.manifest.is_sealed else "[red]no",
            _proof(each, now),
        )
    database.print_table(table)


def _proof(backup: Stored, now: datetime) -> str:
    when = f"{_age(now - backup.proven_at)} ago" if backup.proven_at else "never"
    if backup.is_refuted:
        return f"[red]the last drill FAILED; proven: {when}"
    return f"[green]{when}" if backup.proven_at else when


def _show_plan(plan: Plan, now: datetime) -> None:
    table = Table("Backup", "", "Why")
    for name, reason in plan.kept.items():
        table.add_row(name, "[green]stays", escape(reason))
    for each in reversed(plan.going):
        age = f"{_age(now - each.created_at)} old" if each.created_at else ""
        table.add_row(each.name, "[yellow]goes", f"{age}; nothing asks for it")
    for leftover in plan.leftovers:
        what = "an upload that never ended" if leftover.upload_id else "a backup that was never finished"
        table.add_row(leftover.path, "[yellow]goes", f"{what}, {_age(now - leftover.began_at)} old")
    if table.rows:
        database.print_table(table)


def _age(age: timedelta) -> str:
    """As people say it: 3 days."""
    for name, unit in UNITS:
        if number := age // unit:
            return f"{number} {name}{'' if number == 1 else 's'}"
    return "a moment"
