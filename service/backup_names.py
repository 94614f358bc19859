"""The names of backups. They contain a time of the database, so that no other machine's clock matters.

`ballast backup run` makes a name here. A backup that the service requests is named by public.request_backup().
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

FOLDER = "database"

BackupType = Literal["automated", "manual"]


def new_name(backup: UUID, moment: datetime) -> str:
    """The name of a backup made at `moment`, such as 20261124T120000Z-1a2b3c4d."""
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}-{backup.hex[:8]}"


def filename_of(name: str) -> str:
    """The backup's path in the store, as recorded in backup_logs."""
    return f"{FOLDER}/{name}"


def name_of(filename: str) -> str:
    """The name of the backup that is recorded under this path."""
    return filename.removeprefix(f"{FOLDER}/")
