"""The names of backups. The service requests them and the command makes them, so both must use the same names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

FOLDER = "database"

BackupType = Literal["automated", "manual"]


def new_name(backup: UUID, moment: datetime) -> str:
    """The name of a backup made at `moment`, such as 20261124T120000Z-1a2b3c4d. Names sort by time."""
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}-{backup.hex[:8]}"


def filename_of(name: str) -> str:
    """The backup's path in the store, as recorded in backup_logs."""
    return f"{FOLDER}/{name}"
