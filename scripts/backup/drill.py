"""`ballast backup drill`: proves a backup by restoring it into a temporary server and checking the result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from scripts.backup import checks
from scripts.backup.borrowed import SuperuserMissing, borrow_database
from scripts.backup.checks import Check
from scripts.backup.programs import ProgramsMissing
from scripts.backup.progress import Bar
from scripts.backup.restore import restore_and_check
from scripts.backup.restore_engine import Backup, ServerUnsuitable, Target
from scripts.errors import Failure
from scripts.schema import database
from scripts.schema.database import DatabaseUnreachable, DatabaseUrlInvalid
from scripts.scratch.postgres import ServerDidNotStart
from scripts.scratch.server import scratch_server

# The server does not have to survive a power failure.
SCRATCH_SETTINGS = {
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

# Errors about the place of a test restore.
UNSUITABLE = (
    ServerUnsuitable,
    ProgramsMissing,
    SuperuserMissing,
    ServerDidNotStart,
    DatabaseUnreachable,
    DatabaseUrlInvalid,
)


class DrillFailed(Failure):
    """The backup could not be restored, or the result differs from what was backed up."""


@dataclass(frozen=True)
class Drill:
    """The report of a drill. RTO is the duration of the recovery, RPO the age of the data when it began.

    The age is None if a clock is wrong.
    """

    backup: str
    passed: bool
    started_at: str
    rto_seconds: float
    rpo_seconds: float | None
    rows: int
    dump_bytes: int
    server_version: int
    checks: list[Check]


@contextmanager
def scratch_target(backup: Backup, bar: Bar) -> Iterator[Target]:
    """Provides an empty database to restore into, which is gone when the block ends."""
    bar.start_stage("Starting")
    place = backup.place
    with ExitStack() as stack:
        if place.server is not None:
            borrowed = stack.enter_context(borrow_database(place.server, backup.manifest.roles))
            url, admin_url = borrowed.url, borrowed.admin_url
        else:
            server = stack.enter_context(scratch_server(backup.folder, place.programs, **SCRATCH_SETTINGS))
            url, admin_url = server.url(), server.url("supabase_admin")
        connection = stack.enter_context(database.connect(url, notify=database.echo_err))
        admin = stack.enter_context(database.connect(admin_url))
        yield Target(url, connection, admin=admin, programs=place.programs)


def run_drill(backup: Backup, bar: Bar) -> Drill:
    """Restores and checks a backup. A failed restore is reported as a failed check.

    Raises the errors in UNSUITABLE, which say nothing about the backup.
    """
    began, started_at = time.monotonic(), datetime.now(UTC)
    manifest, done = backup.manifest, list[Check]()
    clocks, age = check_clocks(backup), (started_at - manifest.created_at).total_seconds()
    try:
        with scratch_target(backup, bar) as target:
            for check in restore_and_check(backup, target, bar):
                done.append(check)
            done += [checks.check_tenant_isolation(target.connection), clocks]
    except UNSUITABLE:
        raise
    except Failure as failure:
        done.append(Check("restore", False, str(failure), round(time.monotonic() - began, 3)))
    return Drill(
        manifest.name,
        all(check.passed for check in done),
        started_at.isoformat(timespec="seconds"),
        round(time.monotonic() - began, 1),
        round(max(age, 0), 1) if clocks.passed else None,
        sum(manifest.rows.values()),
        manifest.dump_bytes,
        manifest.server_version,
        done,
    )


def check_clocks(backup: Backup) -> Check:
    """Checks that the backup is not dated in the future: its age would be unknown, and `latest` another backup."""
    began, made_at = time.monotonic(), backup.manifest.created_at.astimezone(UTC)
    ahead = backup.store.measure_ahead(backup.manifest)
    detail = f"made at {made_at:%Y-%m-%d %H:%M:%S} UTC"
    if ahead:
        detail += f", {ahead} ahead: the clock of the database, of the store or of this machine is wrong"
    return Check("clocks", not ahead, detail, round(time.monotonic() - began, 3))
