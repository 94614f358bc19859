"""Temporary servers for one benchmark, in a temporary folder and on free ports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.errors import Failure
from scripts.local.stack import CHECKOUT, LAST_PORT_OFFSET, Secrets, Stack
from scripts.scratch.postgres import Postgres
from scripts.scratch.server import free_ports, scratch_server
from tests.schema import migrate


class StackDidNotStart(Failure):
    """`ballast up` failed; the message is its error."""


@contextmanager
def scratch_postgres(folder: Path, **settings: str) -> Iterator[Postgres]:
    """Starts a migrated server in `folder` with `settings`. Its writes are durable, as in production."""
    with scratch_server(folder, **settings) as server:
        migrate(server.url())
        yield server


@contextmanager
def scratch_stack(folder: Path, service_workers: int) -> Iterator[Stack]:
    """Starts a whole stack in `folder`. Raises StackDidNotStart."""
    home = folder / "stack"
    stack = Stack(home, free_ports(LAST_PORT_OFFSET) - 1, Secrets.of(home))
    try:
        workers = f"--workers={service_workers}"
        quiet = {"TRUSTED_PROXIES": "1", "BALLAST_JOBS": "off"}
        started = _ballast(stack, "up", "--detach", GUNICORN_CMD_ARGS=workers, **quiet)
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
