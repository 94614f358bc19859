"""Servers that all test processes of a run share, and the guard that stops everything that a run started.

The first process that needs a server starts it, under a lock in the run's folder; the others read its address. Every process of
a run has the folder's name in its environment. The guard is a separate process. When pytest ends, for any reason, the guard
stops all processes with that name, and removes the folder. So nothing is left after Ctrl-C, SIGTERM or SIGKILL.

With `--keep` the database servers keep running for the next run. The name of their folder is a hash of the sources of the
migrated database.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import psycopg

from scripts.local.processes import ProcessRecord, RunRecord
from scripts.scratch.postgres import Postgres
from scripts.scratch.server import free_ports
from tests.schema import migrate

ROOT = Path(__file__).parents[1]
MARK = "BALLAST_TEST_RUN"
KEPT_SERVERS = ROOT / ".test-servers"
# The sources of the databases of a kept server.
SOURCES = (
    "migrations", "functions", "policies", "tests/schema/specimens.sql",
    *(f"scripts/scratch/{name}.sql" for name in ("roles", "bootstrap", "realtime_roles", "realtime", "supautils")),
)  # fmt: skip
MIGRATED_DATABASE = "migrated"
GRACE_SECONDS = 10
Json = dict[str, Any]


@contextlib.contextmanager
def lock_file(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass
class TestRun:
    """One run of pytest with all its processes. `folder` is shared. `kept` is the folder of servers to keep, if any."""

    __test__ = False

    folder: Path
    kept: Path | None = None
    guard: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    turn: IO[str] | None = field(default=None, repr=False)
    in_use: IO[str] | None = field(default=None, repr=False)

    @classmethod
    def begin(cls, kept: Path | None) -> TestRun:
        """Makes the folder and starts the guard. Called only in the process that the developer started."""
        folder = Path(tempfile.mkdtemp(prefix="ballast-tests-"))
        folder.chmod(0o755)  # the system user of PostgreSQL has to enter it
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        environment.pop("COVERAGE_PROCESS_CONFIG", None)
        guard = subprocess.Popen(
            [sys.executable, "-m", "tests.servers", "guard", str(folder)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        os.environ[MARK] = str(folder)
        run = cls(folder, kept, guard)
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            run.in_use = (kept / "in-use").open("w")
            fcntl.flock(run.in_use, fcntl.LOCK_SH)
        return run

    def end(self) -> None:
        """Makes the guard stop everything, and waits for it."""
        if self.guard is not None and self.guard.stdin is not None:
            self.guard.stdin.close()
            self.guard.wait()
            os.environ.pop(MARK, None)

    def once(self, name: str, start: Callable[[Path], Json]) -> Json:
        """The result of `start`, which only the first process calls, with a new folder."""
        with lock_file(self.folder / f"{name}.lock"):
            answer = self.folder / f"{name}.json"
            if not answer.exists():
                answer.write_text(json.dumps(start(self.folder / name)))
            return dict(json.loads(answer.read_text()))

    def postgres(self, name: str, programs: Path | None, *, is_migrated: bool) -> Postgres:
        """A PostgreSQL like a new Supabase project, without durability. With `is_migrated` it has MIGRATED_DATABASE to copy."""
        started = self._reuse_postgres(name, programs, is_migrated) if self.kept else None
        if started is None:
            started = self.once(name, lambda home: start_postgres(home, programs, is_migrated=is_migrated))
        return Postgres(Path(started["home"]), started["port"], started["password"], programs)

    def _reuse_postgres(self, name: str, programs: Path | None, is_migrated: bool) -> Json:
        assert self.kept is not None
        answer = self.kept / f"{name}.json"
        with lock_file(self.kept / f"{name}.lock"):
            if answer.exists():
                started: Json = json.loads(answer.read_text())
                if ProcessRecord(**started["process"]).process() is not None:
                    return started
            stop_kept_server(answer)
            mark = os.environ.pop(MARK)  # so that the guard does not stop it
            try:
                started = start_postgres(self.kept / name, programs, is_migrated=is_migrated)
            finally:
                os.environ[MARK] = mark
            answer.write_text(json.dumps(started))
            return started

    def take_turn(self) -> None:
        """Waits until no other process uses the stack, which only one may use at a time."""
        if self.turn is None:
            self.turn = (self.folder / "turn").open("w")
            fcntl.flock(self.turn, fcntl.LOCK_EX)

    def end_turn(self) -> None:
        if self.turn is not None:
            self.turn.close()
            self.turn = None


def start_postgres(home: Path, programs: Path | None, *, is_migrated: bool) -> Json:
    postgres = Postgres(home, free_ports(1), "test", programs)
    process = postgres.start(fsync="off", max_connections="120")
    if is_migrated:
        with psycopg.connect(postgres.url(database="template1"), autocommit=True) as connection:
            connection.execute(f"create database {MIGRATED_DATABASE} template postgres")
        migrate(postgres.url(database=MIGRATED_DATABASE))
    return {
        "home": str(home), "port": postgres.port, "password": postgres.password,
        "process": asdict(ProcessRecord.of(process.pid, signal.SIGINT)),
    }  # fmt: skip


# --- servers that outlive a run ---


def folder_to_keep(programs: Path | None) -> Path:
    """The folder of the servers of a run with --keep. Stops servers that were made from other sources."""
    binaries = _digest(str(programs)) if programs else "embedded"
    digest = hashlib.sha256()
    for source in map(ROOT.joinpath, SOURCES):
        for file in sorted(source.rglob("*.sql")) if source.is_dir() else [source]:
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    digest.update(_version(programs).encode())
    folder = KEPT_SERVERS / f"{binaries}-{digest.hexdigest()[:12]}"
    for other in KEPT_SERVERS.glob(f"{binaries}-*"):
        if other != folder:
            stop_kept(other, wait=False)
    return folder


def _version(programs: Path | None) -> str:
    program = Postgres(KEPT_SERVERS, 0, "", programs).command()[0]
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def stop_kept(folder: Path, *, wait: bool = True) -> bool:
    """Stops the servers of a folder and removes it. Without `wait` it does nothing if a run uses them."""
    with contextlib.suppress(FileNotFoundError), (folder / "in-use").open("w") as in_use:
        try:
            fcntl.flock(in_use, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        for answer in folder.glob("*.json"):
            stop_kept_server(answer)
        shutil.rmtree(folder)
        return True
    return False


def stop_kept_server(answer: Path) -> None:
    if answer.exists():
        started = json.loads(answer.read_text())
        ProcessRecord(**started["process"]).stop()
        shutil.rmtree(Postgres(Path(started["home"]), 0, "").folder, ignore_errors=True)
        answer.unlink()


# --- the guard ---


def processes_of(folder: str) -> list[psutil.Process]:
    """All running processes that the run started, found by their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs. A zombie counts as ended: its parent may be pytest, which waits for the guard first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def end_everything(folder: Path) -> None:
    """Stops stacks and servers in order, kills the remaining processes of the run, and removes its folder."""
    for record in folder.rglob("run.json"):
        RunRecord.read(record.parent).stop()
    left = processes_of(str(folder))
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() != "postgres":
                process.terminate()
            elif process.parent() not in left:  # the main process, which ends the others itself
                process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(map(is_alive, left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes_of(str(folder)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    match sys.argv[1:]:
        case ["guard", folder]:
            # A signal from the terminal also reaches the guard. It ignores signals, and waits for the end of its input.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            sys.stdin.read()
            end_everything(Path(folder))
        case ["stop"]:
            stopped = [stop_kept(folder) for folder in KEPT_SERVERS.glob("*-*")]
            print("Stopped the kept test servers." if any(stopped) else "No test servers are kept.")
        case _:
            sys.exit("Usage: python -m tests.servers stop")


if __name__ == "__main__":
    main()
