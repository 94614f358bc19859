"""`ballast backup drill`: the proof of a backup. It is restored into a server of its own, and checked."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from scripts.backup import checks
from scripts.backup.alarm import monitored
from scripts.backup.checks import Check
from scripts.backup.progress import Bar, progress_bar, size
from scripts.backup.records import Records
from scripts.backup.report import show_checks
from scripts.backup.restore import identity_option, keys_of, opened, restored
from scripts.backup.restore_engine import Backup, Target
from scripts.backup.run import store_of
from scripts.backup.store import DRILLS
from scripts.cli import database
from scripts.errors import Failure
from scripts.scratch.server import scratch_folder, scratch_server
from service.backup_names import filename_of

# Nothing of it has to survive a power failure.
HASTY = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "autovacuum": "off",
    "shared_buffers": "256MB",
    "default_statistics_target": "10",
}


class DrillFailed(Failure):
    """The backup could not be restored, or not to what it was made of."""


@dataclass(frozen=True)
class Drill:
    """What a drill found. RTO is how long the whole recovery took, RPO how old the data were when it began."""

    backup: str
    passed: bool
    started_at: str
    rto_seconds: float
    rpo_seconds: float
    rows: int
    dump_bytes: int
    server_version: int
    checks: list[Check]


@click.command(epilog="Example: ballast backup drill latest")
@click.argument("wanted", metavar="[ID]", default="latest")
@identity_option
@database.url_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def drill(wanted: str, identity: Path | None, url: str | None, as_json: bool) -> None:
    """Restore a backup (the latest, or ID) into a scratch PostgreSQL, check it, and remove the server again.

    The report is kept beside the backup and in the database's public.backup_logs. Exits with 1 when a check fails.
    """
    environment = database.environment(url)
    store = store_of(environment)
    records = Records.of(environment)
    with scratch_folder("drill") as folder, monitored("ballast-restore-drill"):
        with progress_bar() as bar:
            backup = opened(store, wanted, keys_of(environment, identity), folder)
            report = drilled(backup, bar)
        records.drill(backup.manifest, filename_of(report.backup), asdict(report))
        _show(report, as_json=as_json)
        body = json.dumps(asdict(report), indent=2).encode()
        store.put(report.backup, f"{DRILLS}/{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.json", body)
        if not report.passed:
            raise DrillFailed(f"{report.backup} is not proven: do not count on it, and make another.")


def drilled(backup: Backup, bar: Bar) -> Drill:
    """Restores and checks. What goes wrong is a check that failed."""
    began, started_at = time.monotonic(), datetime.now(UTC)
    done: list[Check] = []
    try:
        bar.stage("Starting")
        with (
            scratch_server(backup.folder, **HASTY) as server,
            database.connected(server.url(), tell=database.say) as connection,
        ):
            for check in restored(backup, Target(server.url(), connection), bar):
                done.append(check)
            done.append(checks.denied(connection))
    except Failure as failure:
        done.append(Check("restore", False, str(failure), round(time.monotonic() - began, 3)))
    manifest = backup.manifest
    return Drill(
        manifest.name,
        all(check.passed for check in done),
        started_at.isoformat(timespec="seconds"),
        round(time.monotonic() - began, 1),
        round((started_at - manifest.created_at).total_seconds(), 1),
        sum(manifest.rows.values()),
        manifest.dump_bytes,
        manifest.server_version,
        done,
    )


def _show(report: Drill, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
        return
    show_checks(report.checks, as_json=False)
    age = timedelta(seconds=round(report.rpo_seconds))
    click.echo(
        f"{report.backup}: {'proven' if report.passed else 'NOT proven'}. Recovered {size(report.dump_bytes)} in"
        f" {report.rto_seconds} s (RTO); the data are {age} old (RPO)."
    )
