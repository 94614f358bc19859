"""Processes that must not outlive their stack: who they are, who holds a port, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from scripts.errors import Failure

# psutil derives start times from the clock, which may be set while a stack runs.
CLOCK_TOLERANCE = 2.0
GRACE_SECONDS = 25.0  # longer than gunicorn gives a request: gunicorn.conf.py
PASSING_SECONDS = 5.0


class PortTaken(Failure):
    """Another process listens where one of our services would."""


@dataclass(frozen=True)
class ProcessRecord:
    """A process, told from a later one with the same id by its start (seconds since 1970). It leads its own group."""

    pid: int
    started: float
    stop_signal: int = signal.SIGTERM

    @classmethod
    def of(cls, pid: int, stop_signal: int = signal.SIGTERM) -> ProcessRecord:
        return cls(pid, psutil.Process(pid).create_time(), stop_signal)

    def process(self) -> psutil.Process | None:
        """The process while it lives; None for a zombie, and for a stranger with the same id."""
        try:
            process = psutil.Process(self.pid)
            is_ours = abs(process.create_time() - self.started) < CLOCK_TOLERANCE
            return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def group(self) -> list[psutil.Process]:
        """The living members of its group, itself among them. They may outlive it; strangers are left out."""
        if psutil.pid_exists(self.pid) and self.process() is None and not _is_zombie(self.pid):
            return []
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                is_member = os.getpgid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE
                if is_member and process.create_time() > self.started - CLOCK_TOLERANCE:
                    members.append(process)
        return members

    def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Asks the process to end; after `seconds`, or once it has ended, kills what is left of its group."""
        process = self.process()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(self.stop_signal)
            _wait_until(lambda: self.process() is None, seconds)
        for member in self.group():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        _wait_until(lambda: not self.group(), GRACE_SECONDS)


@dataclass
class RunRecord:
    """What runs for a stack, kept in its `run.json` so that a later command finds it, whatever happened to `up`."""

    file: Path
    supervisor: ProcessRecord | None = None
    ready: bool = False
    services: dict[str, ProcessRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, home: Path) -> RunRecord:
        record = cls(home / "run.json")
        with contextlib.suppress(FileNotFoundError):
            kept = json.loads(record.file.read_text())
            record.supervisor = ProcessRecord(**kept["supervisor"]) if kept["supervisor"] else None
            record.ready = kept["ready"]
            record.services = {name: ProcessRecord(**each) for name, each in kept["services"].items()}
        return record

    def write(self) -> None:
        kept: dict[str, Any] = {
            "supervisor": asdict(self.supervisor) if self.supervisor else None,
            "ready": self.ready,
            "services": {name: asdict(each) for name, each in self.services.items()},
        }
        unfinished = self.file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(kept, indent=1))
        unfinished.replace(self.file)

    def running(self) -> bool:
        """Whether a supervisor is in charge."""
        return self.supervisor is not None and self.supervisor.process() is not None

    def stop(self) -> list[str]:
        """Ends the supervisor, which ends its services; then what it left. Returns the names of what was running."""
        was_running = [name for name, each in self.services.items() if each.group()]
        if self.supervisor is not None:
            self.supervisor.stop(seconds=4 * GRACE_SECONDS)
        self.stop_services()
        return was_running

    def stop_services(self) -> None:
        """Ends what a supervisor left behind, and forgets it."""
        for record in reversed(self.services.values()):
            record.stop()
        self.file.unlink(missing_ok=True)


def require_free(port: int, wanted_by: str) -> None:
    """Raises PortTaken, naming who listens on 127.0.0.1:`port`."""
    deadline = time.monotonic() + PASSING_SECONDS
    while not _is_free(port):
        holder = _listener(port)
        if holder is None and time.monotonic() < deadline:
            time.sleep(0.1)  # the near end of somebody's connection: those pass
            continue
        raise PortTaken(
            f"Port {port}, which {wanted_by} needs, is taken by {holder or 'an open connection'}."
            " Stop that, or choose other ports with BALLAST_PORT_BASE."
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _listener(port: int) -> str | None:
    """Who listens there, in words; None when nobody does."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "a process that only an administrator may see"
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            if connection.pid is None:
                return "a process of another user"
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} ({command[:120]})"
    return None


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
