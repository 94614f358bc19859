"""`ballast backup verify`: the store still holds what was written, and our key opens it. No database is needed."""

from __future__ import annotations

from pathlib import Path

import click

from scripts.backup.progress import Bar, progress_bar, size
from scripts.backup.restore import identity_option, keys_of
from scripts.backup.restore_engine import Backup
from scripts.backup.run import store_of
from scripts.cli import database
from scripts.scratch.server import scratch_folder


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, piece: bytes, /) -> int:
        return len(piece)


@click.command(epilog="Example: ballast backup verify latest --identity key.txt")
@click.argument("wanted", metavar="[ID]", default="latest")
@identity_option
def verify(wanted: str, identity: Path | None) -> None:
    """Fetch a backup (the latest, or ID), and check that every byte of it is as it was written.

    With the key, also that it can be decrypted and decompressed to its full length. It needs no database, and proves
    less than `ballast backup drill`: not that PostgreSQL takes it. Exits with 1 when something is damaged or missing.
    """
    environment = database.environment(None)
    store = store_of(environment)
    manifest = store.manifest(store.find(wanted))
    keys = keys_of(environment, identity)
    with scratch_folder("verify") as folder, progress_bar() as bar:
        backup = Backup(store, manifest, keys, folder)
        is_opened = bool(keys) or not manifest.is_sealed
        verified(backup, bar, opening=is_opened)
    if is_opened:
        opened = f"{'decrypted and ' if manifest.is_sealed else ''}decompressed to {size(manifest.dump_bytes)}"
    else:
        opened = "not decrypted"
        database.say("Without a key only the checksums were compared: pass --identity FILE, or set BACKUP_IDENTITY.")
    files = len(manifest.files)
    click.echo(f"{manifest.name}: {files} files, {size(manifest.size_bytes)}, each as it was written; {opened}.")


def verified(backup: Backup, bar: Bar, *, opening: bool) -> None:
    """Reads all of it; `opening` also the dump's inside, to nowhere. Raises ArchiveDamaged and StoreUnavailable."""
    manifest = backup.manifest
    for file in sorted(manifest.files.keys() - {manifest.dump}):
        backup.script(file)
    sealed = backup.dump(bar)
    if opening:
        bar.stage("Opening", manifest.dump_bytes)
        backup.open_into(Nowhere(), sealed, bar)
