"""`ballast backup restore`: a backup into an empty database or a Supabase project, and the proof that all is there."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from scripts.backup import archive, checks, restore_engine
from scripts.backup.archive import Key
from scripts.backup.checks import Check
from scripts.backup.manifest import SCHEMAS
from scripts.backup.progress import Bar, progress_bar
from scripts.backup.report import show_checks
from scripts.backup.restore_engine import Backup, Target
from scripts.backup.run import store_of
from scripts.backup.store import BackupStore
from scripts.cli import database
from scripts.cli.database import Connection
from scripts.errors import Failure
from service.erasure_ledger import LedgerStore, LedgerUnavailable

SUPABASE_HOST = re.compile(r"db\.([a-z0-9]+)\.supabase\.[a-z]+")
SUPABASE_USER = re.compile(r"postgres\.([a-z0-9]+)")
NEXT = (
    "Clear the cache: delete the Upstash database's keys (FLUSHDB), which are from before the restore.",
    "Tell Clerk and the ledger of erasures that were replayed: ballast person resume",
    "Bring the schema up to date, if the code is newer than the backup: ballast migrate up",
    "Take in what Clerk sent since the backup: replay the messages in Clerk's dashboard (Webhooks, the endpoint).",
    "Restart the service and let browsers reload: Realtime connections are of the database that was.",
)


class IdentityUnknown(Failure):
    """Nobody says with which key the backup is opened."""

    exit_code = 2


class TargetOccupied(Failure):
    """Something is there already, and it is not to be replaced."""


class ProjectMistyped(Failure):
    """What was typed is not the name of the project whose data would go."""

    exit_code = 2


identity_option = click.option(
    "--identity",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="The secret key, as age-keygen writes it. Default: the text of BACKUP_IDENTITY.",
)


@click.command(epilog="Example: ballast backup restore latest --to $NEW_DATABASE_URL")
@click.argument("wanted", metavar="ID")
@click.option(
    "--to", "url", metavar="URL", required=True, help="The postgres role's URL of the database to restore into."
)
@click.option("--replace", "typed", metavar="PROJECT", help="Drop what is there: type the project's name to mean it.")
@identity_option
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def restore(wanted: str, url: str, typed: str | None, identity: Path | None, as_json: bool) -> None:
    """Restore a backup (its ID, or `latest`) in one transaction, then check that all of it is there.

    Into a database without anything of ours; what is there goes only with --replace and the project's name. Exits
    with 1 when nothing was restored, and when a check fails. Erasures since the backup are carried out again.
    """
    environment = database.environment(None)
    store = store_of(environment)
    with (
        tempfile.TemporaryDirectory(prefix="ballast-restore-") as folder,
        database.connected(url, tell=database.say) as connection,
        progress_bar() as bar,
    ):
        backup = opened(store, wanted, keys_of(environment, identity), Path(folder))
        target = Target(url, connection, replace=_may_replace(connection, typed))
        done = list(restored(backup, target, bar))
    show_checks(done, as_json=as_json)
    if not as_json:
        for line in NEXT:
            database.say(f"Next: {line}")
    if not all(check.passed for check in done):
        sys.exit(1)


def opened(store: BackupStore, wanted: str, keys: list[Key], folder: Path) -> Backup:
    """The backup that is wanted. Raises BackupUnknown, ManifestInvalid, and IdentityUnknown when it needs a key."""
    manifest = store.manifest(store.find(wanted))
    if manifest.is_sealed and not keys:
        raise IdentityUnknown("Which key opens it? Pass --identity FILE, or set BACKUP_IDENTITY to its text.")
    return Backup(store, manifest, keys, folder)


def restored(backup: Backup, target: Target, bar: Bar) -> Iterator[Check]:
    """Restores, and yields each check. Raises a Failure, and then the target is as it was."""
    sealed = backup.dump(bar)
    restore_engine.restore(backup, sealed, target, bar)
    bar.stage("Analyzing")
    restore_engine.analyze(target.connection)
    bar.stage("Checking")
    yield from checks.compared(target.connection, backup.manifest)
    yield checks.erased_again(target.connection, lambda: ledger_of(backup.store))


def ledger_of(store: BackupStore) -> list[dict[str, Any]]:
    """Raises CheckFailed: an unreadable ledger must not pass for an empty one."""
    try:
        return list(LedgerStore(store.url).entries())
    except LedgerUnavailable as failure:
        raise checks.CheckFailed(str(failure)) from None


def keys_of(environment: dict[str, str], identity: Path | None) -> list[Key]:
    """Raises KeyInvalid."""
    return archive.identities(identity.read_text() if identity else environment.get("BACKUP_IDENTITY", ""))


def _may_replace(connection: Connection, typed: str | None) -> bool:
    """Whether there is something to drop, and it was asked for. Raises TargetOccupied and ProjectMistyped."""
    project = project_of(connection)
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


def project_of(connection: Connection) -> str:
    """A Supabase project's reference, and elsewhere the database's name."""
    info = connection.info
    found = SUPABASE_HOST.fullmatch(info.host) or SUPABASE_USER.fullmatch(info.user)
    return found[1] if found else info.dbname
