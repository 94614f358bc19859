"""`ballast backup restore`: restores a backup into an empty database or a Supabase project, and checks the result."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.backup import archive, checks, restore_engine
from scripts.backup.archive import Key
from scripts.backup.borrowed import EMBEDDED, Place
from scripts.backup.checks import Check
from scripts.backup.manifest import SCHEMAS
from scripts.backup.progress import Bar
from scripts.backup.restore_engine import Backup, Target
from scripts.backup.store import BackupStore
from scripts.errors import Failure
from scripts.schema import structure
from scripts.schema.database import Connection
from service.audit_store import AuditStore
from service.erasure_ledger import LedgerStore, LedgerUnavailable

SUPABASE_HOST = re.compile(r"db\.([a-z0-9]+)\.supabase\.[a-z]+")
SUPABASE_USER = re.compile(r"postgres\.([a-z0-9]+)")


class IdentityUnknown(Failure):
    """The backup is encrypted, and no identity was given."""

    exit_code = 2


class TargetOccupied(Failure):
    """The target already has our objects, and --replace was not given."""


class ProjectMistyped(Failure):
    """The typed name is not that of the project whose data would be dropped."""

    exit_code = 2


def open_backup(store: BackupStore, wanted: str, keys: list[Key], folder: Path, place: Place = EMBEDDED) -> Backup:
    """Finds a backup. Raises BackupUnknown, ManifestInvalid, or IdentityUnknown if a key is missing."""
    manifest = store.manifest(store.find(wanted))
    if manifest.is_encrypted and not keys:
        raise IdentityUnknown(
            "The backup is encrypted: pass --identity FILE, or set BACKUP_IDENTITY to the text of the key."
        )
    return Backup(store, manifest, keys, folder, place)


def restore_and_check(
    backup: Backup, target: Target, bar: Bar, audit_store: AuditStore | None = None
) -> Iterator[Check]:
    """Restores a backup and yields the result of each check. If the restore raises, the target is unchanged.

    A database that stays gets `audit_store`, for the receipts of what replayed erasures change in the audit trail.
    """
    restore_engine.require_suitable(backup.manifest, target)
    dump = backup.fetch_dump(bar)
    restore_engine.restore(backup, dump, target, bar)
    bar.start_stage("Analyzing")
    restore_engine.analyze(target.connection)
    bar.start_stage("Checking")
    for check in checks.compare_with_manifest(target.connection, backup.manifest, backup.read_definitions()):
        if check.name == "structure" and check.passed:
            # PostgreSQL stores the same expressions differently after a restore.
            target.connection.execute(structure.RECORD)
        yield check
    yield checks.replay_erasures(target.connection, lambda: read_ledger(backup.store), audit_store)


def read_ledger(store: BackupStore) -> list[dict[str, Any]]:
    """Reads the ledger of erasures. Raises CheckFailed: an unreadable ledger must not count as an empty one."""
    try:
        return list(LedgerStore(store.url).entries())
    except LedgerUnavailable as failure:
        raise checks.CheckFailed(str(failure)) from None


def read_keys(environment: dict[str, str], identity: Path | None) -> list[Key]:
    """Reads the secret keys from a file or BACKUP_IDENTITY. Raises KeyInvalid."""
    return archive.parse_identities(identity.read_text() if identity else environment.get("BACKUP_IDENTITY", ""))


def may_replace(connection: Connection, typed: str | None) -> bool:
    """Whether the target's objects may be dropped. Raises TargetOccupied and ProjectMistyped."""
    project = find_project(connection)
    if typed is not None and typed != project:
        raise ProjectMistyped(
            f"Nothing was restored: --to names the project {project!r}. Type that name after --replace."
        )
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
            f"The project {project!r} already has {tables:,} Ballast tables and views with about {rows:,} rows."
            f" Restore into an empty database, or drop them with --replace {project}."
        )
    return typed is not None


def find_project(connection: Connection) -> str:
    """The reference of a Supabase project. For other servers, the name of the database."""
    info = connection.info
    found = SUPABASE_HOST.fullmatch(info.host) or SUPABASE_USER.fullmatch(info.user)
    return found[1] if found else info.dbname
