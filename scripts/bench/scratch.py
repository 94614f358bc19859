"""A PostgreSQL that exists for one benchmark: made in a temporary folder, migrated, and removed again."""

from __future__ import annotations

import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts import migrations
from scripts.local.postgres import Postgres, stop


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that goes however the benchmark ends: Ctrl-C, an error, or a polite kill."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="ballast-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # so that PostgreSQL's system user can reach its own folder in it
        yield Path(folder)


@contextmanager
def scratch_postgres(folder: Path, **settings: str) -> Iterator[Postgres]:
    """A migrated server in `folder`, durable as in production, with `settings` on top."""
    server = Postgres(folder / "server", _free_port(), secrets.token_urlsafe(16))
    process = server.start(**settings)
    try:
        migrations.up(server.url())
        yield server
    finally:
        stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
