"""What backups are called: the service, which asks for them, and the command, which makes them, must agree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

FOLDER = "database"

BackupType = Literal["automated", "manual"]


def new_name(backup: UUID, moment: datetime) -> str:
    """The name of a backup of that moment: 20261124T120000Z-1a2b3c4d. Names sort by time."""
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}-{backup.hex[:8]}"


def filename_of(name: str) -> str:
    """Where the store keeps it, as backup_logs says."""
    return f"{FOLDER}/{name}"
