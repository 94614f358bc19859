"""`ballast backup verify`: checks that the stored files are unchanged and that our key decrypts the dump."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.backup.progress import Bar
from scripts.backup.restore_engine import Backup


def verify_backup(backup: Backup, bar: Bar, *, decrypt: bool) -> None:
    """Reads every file; `decrypt` also decrypts them. Raises ArchiveDamaged and StoreUnavailable."""
    manifest = backup.manifest
    for file in sorted(manifest.files.keys() - {manifest.dump}):
        backup.read_file(file)
    dump = backup.fetch_dump(bar)
    if decrypt:
        bar.start_stage("Decrypting", manifest.dump_bytes)
        with Path(os.devnull).open("wb") as nowhere:
            backup.decrypt_into(nowhere, dump, bar)
        backup.read_definitions()
