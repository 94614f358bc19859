"""Temporary servers: in a temporary folder, on free ports, and always removed at the end."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.scratch.postgres import Postgres, stop


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
    """A folder that is removed when the block ends, also after Ctrl-C, an error or SIGTERM."""
    with (
        exit_on_sigterm(),
        tempfile.TemporaryDirectory(prefix=f"ballast-{purpose}-", ignore_cleanup_errors=True) as folder,
    ):
        Path(folder).chmod(0o755)  # so that the system user of PostgreSQL can enter its own folder in it
        yield Path(folder)


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
