"""Starts backups, each in its own process: it uses none of the service's memory and survives a worker's restart."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from service.backup_names import BackupType, name_of
from service.data_api import Call, CallFailed
from service.logs import log
from service.problems import Problem

COMMAND = (sys.executable, "-m", "scripts.cli", "backup", "run")


class BackupsUnconfigured(Problem, status=503, slug="backups-unconfigured", title="This service cannot make backups"):
    """`missing` names the variables that are not set."""

    def __init__(self, missing: tuple[str, ...]) -> None:
        super().__init__(f"Set {', '.join(missing)}; .env.example explains each.", missing=missing)


class BackupRunning(Problem, status=409, slug="backup-running", title="A backup is already running"):
    """A backup is being made, or was requested a moment ago."""

    def __init__(self) -> None:
        super().__init__("Wait until it ends: GET /api/v1/backups shows its status.")


@dataclass(frozen=True)
class BackupRunner:
    """`call` is DataApi.call or a function like it. The backup process reads the environment itself."""

    call: Call
    missing: tuple[str, ...] = ()
    command: tuple[str, ...] = COMMAND

    def start(self, backup_type: BackupType) -> dict[str, Any]:
        """Starts a backup and returns its row: {id, filename, backup_type, status, created_at}.

        Raises BackupsUnconfigured, BackupRunning, CallFailed, and OSError if the process cannot be created.
        """
        if self.missing:
            raise BackupsUnconfigured(self.missing)
        backup = uuid4()
        row: dict[str, Any] | None = self.call("request_backup", {"id": str(backup), "backup_type": backup_type})
        if row is None:
            raise BackupRunning
        options = ("--log", str(backup), "--name", name_of(row["filename"]), "--type", backup_type)
        try:
            # Its errors go to our log. It has its own session, so that a signal that stops us does not stop it.
            process = subprocess.Popen(
                (*self.command, *options), start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        except OSError:
            self._record_failure(row["id"], "The backup process could not be started.")
            raise
        log.info("backup started", extra={"backup": row["id"]})
        threading.Thread(target=self._wait, args=(row["id"], process), name="backup", daemon=True).start()
        return row

    def _wait(self, backup: str, process: subprocess.Popen[bytes]) -> None:
        """Records the failure of a process that died. A reason that the process recorded itself is kept."""
        code = process.wait()
        log.log(logging.ERROR if code else logging.INFO, "backup ended", extra={"backup": backup, "code": code})
        if code:
            self._record_failure(backup, f"The backup process ended with code {code}.")

    def _record_failure(self, backup: str, reason: str) -> None:
        with suppress(CallFailed):  # the next backup marks this one as interrupted
            self.call("end_backup", {"id": backup, "status": "failed", "error_message": reason})
