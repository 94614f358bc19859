"""Records backups and drills in public.backup_logs, through the Data API like the service."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from scripts.backup.manifest import Manifest
from scripts.schema import database
from service.data_api import CallFailed, DataApi

# A restarted database accepts connections again within this time.
RETRY_SECONDS = 30.0
PAUSE_SECONDS = 1.0


class BackupLog:
    """The log of one database. A failed write is only reported: the store is the source of truth."""

    def __init__(self, data_api: DataApi | None) -> None:
        self._data_api = data_api

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> BackupLog:
        """Connects with SUPABASE_URL and SUPABASE_SECRET_KEY."""
        url, key = environment.get("SUPABASE_URL"), environment.get("SUPABASE_SECRET_KEY")
        if url and key:
            try:
                return cls(DataApi(url.rstrip("/"), key))
            except ValueError:  # its message may quote them
                database.echo_err("Not recorded in public.backup_logs: SUPABASE_URL or the key is malformed.")
                return cls(None)
        database.echo_err("Not recorded in public.backup_logs: set SUPABASE_URL and SUPABASE_SECRET_KEY to record it.")
        return cls(None)

    def begin(self, backup_id: str, filename: str, backup_type: str) -> None:
        """Records this backup as started, and those left by a crash as interrupted."""
        self._call("begin_backup", {"id": backup_id, "filename": filename, "backup_type": backup_type}, retry_seconds=0)

    def complete(self, manifest: Manifest) -> None:
        ended = {"id": manifest.id, "status": "completed", "size_bytes": manifest.size_bytes}
        self._call("end_backup", ended | {"checksum": manifest.files[manifest.dump].sha256})

    def fail(self, backup_id: str, reason: str) -> None:
        self._call("end_backup", {"id": backup_id, "status": "failed", "error_message": reason})

    def record_drill(self, manifest: Manifest, filename: str, report: Mapping[str, Any]) -> None:
        backup = {
            "id": manifest.id,
            "filename": filename,
            "backup_type": manifest.backup_type,
            "size_bytes": manifest.size_bytes,
            "checksum": manifest.files[manifest.dump].sha256,
            "created_at": manifest.created_at.isoformat(),
        }
        self._call("record_drill", {"backup": backup, "report": dict(report)})

    def _call(self, function: str, arguments: Mapping[str, Any], retry_seconds: float = RETRY_SECONDS) -> None:
        if self._data_api is None:
            return
        deadline = time.monotonic() + retry_seconds
        while True:
            try:
                self._data_api.call(function, arguments)
            except CallFailed as failure:
                if time.monotonic() < deadline:
                    time.sleep(PAUSE_SECONDS)
                    continue
                database.echo_err(f"Could not record this in public.backup_logs: {failure}.")
            return
