"""`ballast backup verify`: the store still holds what was written, and our key opens it. No database is needed."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.backup.progress import Bar
from scripts.backup.restore_engine import Backup


def verify_backup(backup: Backup, bar: Bar, *, unseal: bool) -> None:
    """Reads all of it; `unseal` also the dump's inside, to nowhere. Raises ArchiveDamaged and StoreUnavailable."""
    manifest = backup.manifest
    for file in sorted(manifest.files.keys() - {manifest.dump}):
        backup.read_script(file)
    sealed = backup.fetch_dump(bar)
    if unseal:
        bar.start_stage("Opening", manifest.dump_bytes)
        with Path(os.devnull).open("wb") as nowhere:
            backup.unseal_into(nowhere, sealed, bar)
