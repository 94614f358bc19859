"""Runs a stack: starts each service once those that it needs are healthy, watches all, and stops them in reverse order.

Example: Postgres, Redis and the Clerk stand-in need no other service, so they start at once. When Postgres is healthy,
the migrations, the Data API, the gateway and Flask's `service` start. The seed needs `service` and the stand-in: it
starts when both are healthy, and only if the database is empty. A service that is not wanted counts as healthy, so
others do not wait for it: with a real Clerk the stand-in is not started.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import IO

import click

from scripts.errors import Failure
from scripts.local.processes import ProcessRecord, RunRecord, require_free
from scripts.local.services import Service
from scripts.local.stack import CHECKOUT, Stack

READY_SECONDS = 60.0
TAIL_LINES = 30
# A log is renamed to .log.1 when it is full and at the next start, and .log.1 to .log.2.
LOG_BYTES = 10_000_000
OLDER_LOGS = 2
LINE_BYTES = 65_536
COLOURS = ("blue", "magenta", "green", "yellow", "cyan", "bright_blue", "bright_magenta", "bright_green")


class AlreadyRunning(Failure):
    """Another `ballast up` runs the stack of this folder."""


class CannotStart(Failure):
    """The program of a service is missing, or is not executable."""


class ServiceEnded(Failure):
    """A service ended unexpectedly, or did not become healthy. The message ends with its log."""


class ServiceLog(RotatingFileHandler):
    """A log of bounded size. Writes that fail, as on a full disk, are dropped, so that the service is not blocked."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, maxBytes=LOG_BYTES, backupCount=OLDER_LOGS, encoding="utf-8")
        if file.stat().st_size:
            self.doRollover()

    def handleError(self, record: LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Drops the line."""

    def close(self) -> None:
        """Closes the file, also without the lines that could not be written."""
        with suppress(OSError):
            super().close()


class RunningService:
    """A started service: its process, and a thread that copies its output to the log and to the screen."""

    def __init__(self, service: Service, stack: Stack, colour: str) -> None:
        self.service = service
        self.healthy = False
        self.process = subprocess.Popen(
            service.command(),
            cwd=service.folder,
            env=os.environ | stack.environment() | {"PYTHONUNBUFFERED": "1"} | service.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the supervisor, which stops the services in order
            **service.run_as,
        )
        self.record = ProcessRecord.of(self.process.pid, service.stop_signal)
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.started = time.monotonic()
        self._prefix = click.style(f"{service.name:>9} │ ", fg=colour)
        self._log = stack.logs / f"{service.name}.log"
        self._secrets = list(asdict(stack.secrets).values())
        self._copying = threading.Thread(target=self._copy_output, daemon=True)
        self._copying.start()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        self.record.stop()
        self.process.wait()
        self._copying.join(timeout=1)

    def error(self) -> ServiceEnded:
        """The error with the service's name, how it ended, and the end of its log."""
        self._copying.join(timeout=1)
        if self.has_ended():
            how = describe_end(self.process.returncode)
        elif self.service.once:
            how = f"did not finish within {READY_SECONDS:g} s"
        elif self.healthy:
            how = "does not answer any more"
        else:
            how = f"did not become healthy within {READY_SECONDS:g} s"
        lines = "\n".join(f"  {line}" for line in self.tail) or "  (it is empty)"
        return ServiceEnded(f"{self.service.name} {how}. The end of {self._log}:\n{lines}")

    def _copy_output(self) -> None:
        output: IO[bytes] | None = self.process.stdout
        if output is None:
            return
        with closing(ServiceLog(self._log)) as log:
            for line in iter(lambda: output.readline(LINE_BYTES), b""):
                text = line.decode(errors="replace").rstrip()
                for secret in self._secrets:
                    text = text.replace(secret, "…")
                log.handle(makeLogRecord({"msg": text}))
                self.tail.append(text)
                with suppress(OSError):  # a closed output must not stop the service
                    click.echo(self._prefix + text)


class Supervisor:
    """Runs the services of a stack, from the first start to the last stop."""

    def __init__(self, stack: Stack, services: list[Service]) -> None:
        self._stack = stack
        self._services = services
        self._running: list[RunningService] = []
        self._run = RunRecord(stack.home / "run.json", port_base=stack.port_base)
        self._stop_requested = threading.Event()

    def run(self, when_ready: Callable[[], None]) -> None:
        """Blocks until a signal requests the stop. Raises ServiceEnded, AlreadyRunning or PortTaken."""
        with (
            _lock_home(self._stack.home),
            _record_error(self._stack),
            _set_on_signals(self._stop_requested),
        ):
            require_startable(self._stack, self._services)
            self._run.supervisor = ProcessRecord.of(os.getpid())
            self._run.write()
            try:
                if self._start():
                    self._require_healthy()
                    self._run.ready = True
                    self._run.write()
                    when_ready()
                    self._watch()
            finally:
                self._stop()

    def _start(self) -> bool:
        """Starts the services. Returns False if a stop was requested before all of them were healthy."""
        waiting = list(self._services)
        unwanted: set[str] = set()
        colours = itertools.cycle(COLOURS)
        while waiting or not all(running.healthy for running in self._running):
            healthy = unwanted | {running.service.name for running in self._running if running.healthy}
            for service in [service for service in waiting if healthy.issuperset(service.needs)]:
                if self._stop_requested.is_set():
                    return False
                waiting.remove(service)
                if service.is_wanted():
                    self._launch(service, next(colours))
                else:
                    unwanted.add(service.name)
            for running in self._running:
                self._check(running)
                if not running.healthy and time.monotonic() > running.started + READY_SECONDS:
                    raise running.error()
            if self._stop_requested.wait(0.1):
                return False
        return True

    def _require_healthy(self) -> None:
        """Asks each service again: the first may have failed while the last started. Raises ServiceEnded."""
        for running in self._running:
            self._check(running)
            if not running.service.once and not running.service.is_healthy():
                raise running.error()

    def _launch(self, service: Service, colour: str) -> None:
        try:
            service.before()
            self._running.append(RunningService(service, self._stack, colour))
        except OSError as error:
            raise CannotStart(
                f"{service.name} cannot be started: {error}. ./scripts/up installs what is missing."
            ) from None
        self._run.services[service.name] = self._running[-1].record
        self._run.write()

    def _check(self, running: RunningService) -> None:
        """Records that a starting service has become healthy. Raises ServiceEnded if it has ended unexpectedly."""
        if running.has_ended():
            if not running.service.once or running.process.returncode != 0:
                raise running.error()
            if not running.healthy:
                running.service.after()
            running.healthy = True
        elif not running.service.once and not running.healthy and running.service.is_healthy():
            running.service.after()
            running.healthy = True

    def _watch(self) -> None:
        while not self._stop_requested.wait(0.2):
            for running in self._running:
                self._check(running)

    def _stop(self) -> None:
        for running in reversed(self._running):
            running.stop()
        self._run.file.unlink(missing_ok=True)


def require_startable(stack: Stack, services: list[Service]) -> None:
    """Stops services that a killed supervisor left running. Raises AlreadyRunning or PortTaken."""
    record = RunRecord.read(stack.home)
    if record.is_running() and record.supervisor and record.supervisor.pid != os.getpid():
        raise AlreadyRunning(f"The stack in {stack.home} is running already: see `ballast status`, or `ballast down`.")
    record.stop_services()
    for service in services:
        if service.port is not None:
            require_free(service.port, service.name)


def start_detached(stack: Stack, services: list[Service]) -> None:
    """Starts a supervisor that outlives this process. Returns once all services are healthy. Raises ServiceEnded."""
    require_startable(stack, services)
    stack.logs.mkdir(parents=True, exist_ok=True)
    _errors_file(stack).unlink(missing_ok=True)
    # Each service has its own log. What `up` prints besides has the stack's keys.
    with (stack.logs / "supervisor.log").open("wb") as errors:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "scripts.cli", "up"],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    try:
        while supervisor.poll() is None:
            record = RunRecord.read(stack.home)
            if record.ready and record.supervisor and record.supervisor.pid == supervisor.pid:
                return
            time.sleep(0.05)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise
    printed = (stack.logs / "supervisor.log").read_text(errors="replace").strip().removeprefix("ballast: ")
    raise ServiceEnded(read_error(stack) or printed or f"`ballast up` {describe_end(supervisor.returncode)}.")


def read_error(stack: Stack) -> str:
    """The error that ended the last `ballast up`; empty after a requested stop, and if there was none."""
    return _errors_file(stack).read_text(errors="replace") if _errors_file(stack).exists() else ""


def describe_end(code: int) -> str:
    """How a process ended, with what often causes it."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    cause = ": it was killed by hand, or by the system because memory ran out" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{cause}"


def _errors_file(stack: Stack) -> Path:
    return stack.logs / "supervisor.err"


@contextmanager
def _record_error(stack: Stack) -> Iterator[None]:
    """Keeps the error that ends the run, for `ballast status`."""
    stack.logs.mkdir(parents=True, exist_ok=True)
    _errors_file(stack).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, Failure) else f"`ballast up` failed: {type(error).__name__}: {error}"
        with suppress(OSError):  # a full disk
            _errors_file(stack).write_text(message)
        raise


@contextmanager
def _lock_home(home: Path) -> Iterator[None]:
    """Locks the folder. The system releases the lock when this process ends, even if it is killed."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"The stack in {home} is running already: see `ballast status`.") from None
        yield


@contextmanager
def _set_on_signals(event: threading.Event) -> Iterator[None]:
    """Sets the event on Ctrl-C, on SIGTERM and when the terminal closes. Further signals have no effect."""

    def set_event(_number: int, _frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, set_event) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
