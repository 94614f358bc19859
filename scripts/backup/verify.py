"""`ballast backup verify`: the store still holds what was written, and our key opens it. No database is needed."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.backup.progress import Bar
from scripts.backup.restore_engine import Backup


def verified(backup: Backup, bar: Bar, *, opening: bool) -> None:
    """Reads all of it; `opening` also the dump's inside, to nowhere. Raises ArchiveDamaged and StoreUnavailable."""
    manifest = backup.manifest
    for file in sorted(manifest.files.keys() - {manifest.dump}):
        backup.script(file)
    sealed = backup.dump(bar)
    if opening:
        bar.stage("Opening", manifest.dump_bytes)
        with Path(os.devnull).open("wb") as nowhere:
            backup.open_into(nowhere, sealed, bar)
