"""Identifies and stops the processes of a stack, and finds the process that listens on a port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from scripts.errors import Failure

# psutil derives start times from the clock, which may be adjusted while a stack runs.
CLOCK_TOLERANCE = 2.0
GRACE_SECONDS = 25.0  # longer than gunicorn gives a request: gunicorn.conf.py
PASSING_SECONDS = 5.0


class PortTaken(Failure):
    """Another process listens on a port that the stack needs."""


@dataclass(frozen=True)
class ProcessRecord:
    """A process, identified by its id and its start (seconds since 1970), as ids are reused. It leads its own group."""

    pid: int
    started: float
    stop_signal: int = signal.SIGTERM

    @classmethod
    def of(cls, pid: int, stop_signal: int = signal.SIGTERM) -> ProcessRecord:
        return cls(pid, psutil.Process(pid).create_time(), stop_signal)

    def process(self) -> psutil.Process | None:
        """The process while it runs; None for a zombie, and for another process that reuses the id."""
        try:
            process = psutil.Process(self.pid)
            is_ours = abs(process.create_time() - self.started) < CLOCK_TOLERANCE
            return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def group(self) -> list[psutil.Process]:
        """The running members of its process group, itself included. They may outlive it."""
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
        """Signals the process to end; once it has ended, or after `seconds`, kills the rest of its group."""
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
    """The running processes of a stack. Stored in `run.json`, so that commands find them even if `up` was killed."""

    file: Path
    supervisor: ProcessRecord | None = None
    ready: bool = False
    port_base: int = 0
    services: dict[str, ProcessRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, home: Path) -> RunRecord:
        record = cls(home / "run.json")
        # A power failure may leave an empty file. `up` then finds what still runs by its port.
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            stored = json.loads(record.file.read_text())
            record.supervisor = ProcessRecord(**stored["supervisor"]) if stored["supervisor"] else None
            record.ready = stored["ready"]
            record.port_base = stored.get("port_base", 0)  # absent if an older release wrote it
            record.services = {name: ProcessRecord(**each) for name, each in stored["services"].items()}
        return record

    def write(self) -> None:
        content: dict[str, Any] = {
            "supervisor": asdict(self.supervisor) if self.supervisor else None,
            "ready": self.ready,
            "port_base": self.port_base,
            "services": {name: asdict(each) for name, each in self.services.items()},
        }
        unfinished = self.file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(content, indent=1))
        unfinished.replace(self.file)

    def is_running(self) -> bool:
        """Whether the supervisor runs."""
        return self.supervisor is not None and self.supervisor.process() is not None

    def stop(self) -> list[str]:
        """Stops the supervisor, then any services that are left. Returns the names of the services that ran."""
        was_running = [name for name, each in self.services.items() if each.group()]
        if self.supervisor is not None:
            self.supervisor.stop(seconds=4 * GRACE_SECONDS)
        self.stop_services()
        return was_running

    def stop_services(self) -> None:
        """Stops the services that a supervisor left running, and deletes the record."""
        for record in reversed(self.services.values()):
            record.stop()
        self.file.unlink(missing_ok=True)


def require_free(port: int, wanted_by: str) -> None:
    """Raises PortTaken, with the process that listens on 127.0.0.1:`port`."""
    deadline = time.monotonic() + PASSING_SECONDS
    while not _is_free(port):
        holder = _listener(port)
        if holder is None and time.monotonic() < deadline:
            time.sleep(0.1)  # the local end of an outgoing connection, which closes soon
            continue
        raise PortTaken(
            f"Port {port}, which {wanted_by} needs, is in use by {holder or 'an open connection'}."
            " Stop it, or choose other ports with BALLAST_PORT_BASE."
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
    """A description of the process that listens on the port; None if there is no such process."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "a process that only an administrator can inspect"
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


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
