"""Servers that exist for one benchmark: made in a temporary folder on free ports, and removed again."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts import migrations
from scripts.failure import Failure
from scripts.local.postgres import Postgres, stop
from scripts.local.processes import free_ports
from scripts.local.stack import CHECKOUT, LAST_PORT_OFFSET, Secrets, Stack


class StackDidNotStart(Failure):
    """`ballast up` gave up; its own words say why."""


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
    server = Postgres(folder / "server", free_ports(1), secrets.token_urlsafe(16))
    process = server.start(**settings)
    try:
        migrations.up(server.url())
        yield server
    finally:
        stop(process)


@contextmanager
def scratch_stack(folder: Path, service_workers: int) -> Iterator[Stack]:
    """A whole running stack in `folder`. Raises StackDidNotStart."""
    home = folder / "stack"
    stack = Stack(home, free_ports(LAST_PORT_OFFSET) - 1, Secrets.of(home))
    try:
        started = _ballast(stack, "up", "--detach", GUNICORN_CMD_ARGS=f"--workers={service_workers}")
        if started.returncode:
            raise StackDidNotStart(started.stderr.strip() or started.stdout.strip())
        yield stack
    finally:
        _ballast(stack, "down")


def _ballast(stack: Stack, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    place = {"BALLAST_HOME": str(stack.home), "BALLAST_PORT_BASE": str(stack.port_base)}
    return subprocess.run(
        [sys.executable, "-m", "scripts.cli", *words],
        cwd=CHECKOUT,
        env=os.environ | place | variables,
        capture_output=True,
        text=True,
        check=False,
    )
