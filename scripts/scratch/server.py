"""Temporary servers: in a temporary folder, on free ports, and always removed at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.scratch.postgres import Postgres, stop

PREFIX = "ballast-scratch-"


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit in the block, so that cleanup runs. Afterwards SIGTERM acts as before."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder that is removed when the block ends, also after Ctrl-C, an error or SIGTERM.

    After kill -9 it stays, with decrypted data and a running server. The next scratch folder removes it, and PostgreSQL
    ends within a minute after its files are gone.
    """
    _remove_abandoned_folders()
    with exit_on_sigterm():
        folder, lock = _create_locked_folder(purpose)
        try:
            folder.chmod(0o755)  # so that the system user of PostgreSQL can enter its own folder in it
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _create_locked_folder(purpose: str) -> tuple[Path, int]:
    """Creates a folder and returns it with the file descriptor that locks it. It gets its name once it is locked."""
    new = Path(tempfile.mkdtemp(prefix="ballast-new-"))
    lock = os.open(new, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return new.rename(new.with_name(f"{PREFIX}{purpose}-{secrets.token_hex(4)}")), lock


def _remove_abandoned_folders() -> None:
    """Removes this user's folders that no process locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is locked, or another process has just removed it
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.geteuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


@contextmanager
def scratch_server(folder: Path, programs: Path | None = None, /, **settings: str) -> Iterator[Postgres]:
    """Runs a server in `folder`, set up like a new Supabase project, with `settings`.

    `programs` is the bin folder of another PostgreSQL than the embedded one. Raises ServerDidNotStart.
    """
    server = Postgres(folder / "server", free_ports(1), secrets.token_urlsafe(16), programs)
    process = server.start(**settings)
    try:
        yield server
    finally:
        stop(process)


def free_ports(number: int) -> int:
    """The first of `number` consecutive free ports, below the range of ports that systems assign themselves."""
    while True:
        first = 20_000 + secrets.randbelow(12_000)
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + number):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
