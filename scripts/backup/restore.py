"""`ballast backup restore`: a backup into an empty database or a Supabase project, and the proof that all is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.backup import archive, checks, restore_engine
from scripts.backup.archive import Key
from scripts.backup.checks import Check
from scripts.backup.manifest import SCHEMAS
from scripts.backup.progress import Bar
from scripts.backup.restore_engine import Backup, Target
from scripts.backup.store import BackupStore
from scripts.errors import Failure
from scripts.schema.database import Connection
from service.erasure_ledger import LedgerStore, LedgerUnavailable

SUPABASE_HOST = re.compile(r"db\.([a-z0-9]+)\.supabase\.[a-z]+")
SUPABASE_USER = re.compile(r"postgres\.([a-z0-9]+)")


class IdentityUnknown(Failure):
    """Nobody says with which key the backup is opened."""

    exit_code = 2


class TargetOccupied(Failure):
    """Something is there already, and it is not to be replaced."""


class ProjectMistyped(Failure):
    """What was typed is not the name of the project whose data would go."""

    exit_code = 2


def open_backup(store: BackupStore, wanted: str, keys: list[Key], folder: Path) -> Backup:
    """The backup that is wanted. Raises BackupUnknown, ManifestInvalid, and IdentityUnknown when it needs a key."""
    manifest = store.manifest(store.find(wanted))
    if manifest.is_sealed and not keys:
        raise IdentityUnknown("Which key opens it? Pass --identity FILE, or set BACKUP_IDENTITY to its text.")
    return Backup(store, manifest, keys, folder)


def restore_and_check(backup: Backup, target: Target, bar: Bar) -> Iterator[Check]:
    """Restores, and yields each check. Raises a Failure, and then the target is as it was."""
    sealed = backup.fetch_dump(bar)
    restore_engine.restore(backup, sealed, target, bar)
    bar.start_stage("Analyzing")
    restore_engine.analyze(target.connection)
    bar.start_stage("Checking")
    yield from checks.compare_with_manifest(target.connection, backup.manifest)
    yield checks.replay_erasures(target.connection, lambda: read_ledger(backup.store))


def read_ledger(store: BackupStore) -> list[dict[str, Any]]:
    """Raises CheckFailed: an unreadable ledger must not pass for an empty one."""
    try:
        return list(LedgerStore(store.url).entries())
    except LedgerUnavailable as failure:
        raise checks.CheckFailed(str(failure)) from None


def read_keys(environment: dict[str, str], identity: Path | None) -> list[Key]:
    """Raises KeyInvalid."""
    return archive.parse_identities(identity.read_text() if identity else environment.get("BACKUP_IDENTITY", ""))


def may_replace(connection: Connection, typed: str | None) -> bool:
    """Whether there is something to drop, and it was asked for. Raises TargetOccupied and ProjectMistyped."""
    project = find_project(connection)
    if typed is not None and typed != project:
        raise ProjectMistyped(f"That database belongs to the project {project!r}: type its name after --replace.")
    [[tables, rows]] = connection.execute(
        """
        select count(*), coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
        from pg_class as c
        where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relnamespace::regnamespace::text = any(%s)
            and not exists (select from pg_depend as d where d.objid = c.oid and d.deptype = 'e')
        """,
        [list(SCHEMAS)],
    ).fetchall()
    if tables and typed is None:
        raise TargetOccupied(
            f"The project {project!r} has {tables:,} tables and views of ours, with about {rows:,} rows."
            f" Restore into an empty database, or drop all that with --replace {project}."
        )
    return typed is not None


def find_project(connection: Connection) -> str:
    """A Supabase project's reference, and elsewhere the database's name."""
    info = connection.info
    found = SUPABASE_HOST.fullmatch(info.host) or SUPABASE_USER.fullmatch(info.user)
    return found[1] if found else info.dbname
