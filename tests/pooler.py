"""PgBouncer in front of a server: in transaction mode it is like the port 6543 of hosted Supabase."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scripts.scratch import os_user
from scripts.scratch.postgres import Postgres, stop
from scripts.scratch.server import free_ports

ROOT = Path(__file__).parents[1]
SETTINGS = """\
[databases]
* = host=127.0.0.1 port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = plain
auth_file = {users}
pool_mode = {pool_mode}
default_pool_size = {sessions}
ignore_startup_parameters = extra_float_digits
"""


@dataclass(frozen=True)
class Pooler:
    """A running pooler with `sessions` sessions of the server for each role and database."""

    port: int
    password: str
    sessions: int

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        return f"postgresql://{user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def run_in_each_session(self, url: str, statement: str) -> dict[int, list[tuple[Any, ...]]]:
        """Runs a statement in every session, and returns its rows by server process."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(psycopg.connect(url, prepare_threshold=None)) for _ in range(self.sessions)]
            found = {}
            for client in clients:  # each keeps its transaction, and so its session
                [[pid]] = client.execute("select pg_backend_pid()").fetchall()
                cursor = client.execute(statement.encode())
                found[pid] = cursor.fetchall() if cursor.description else []
        return found


def find_pgbouncer() -> str:
    """Returns the path of PgBouncer. Without it the test is skipped; with PGBOUNCER_REQUIRED (.ci/run) it fails."""
    found = subprocess.run([ROOT / "scripts/ci/install-pgbouncer"], capture_output=True, text=True, check=False)
    if found.returncode:
        (pytest.fail if os.environ.get("PGBOUNCER_REQUIRED") else pytest.skip)(found.stderr.strip())
    return found.stdout.strip()


@contextlib.contextmanager
def pooler_to(server: Postgres, folder: Path, *, pool_mode: str = "transaction", sessions: int = 3) -> Iterator[Pooler]:
    """Runs a pooler to the server, with its files in `folder`."""
    program, pooler = find_pgbouncer(), Pooler(free_ports(1), server.password, sessions)
    folder = os_user.find_reachable(folder)
    os_user.make_folder(folder)
    files = {
        "users.txt": "".join(f'"{name}" "{server.password}"\n' for name in ("postgres", "authenticator")),
        "pgbouncer.ini": SETTINGS.format(
            port=server.port,
            listen_port=pooler.port,
            users=folder / "users.txt",
            pool_mode=pool_mode,
            sessions=sessions,
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
        os_user.give(folder / name)
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(folder / "pgbouncer.ini")], stdout=log, stderr=log, cwd="/", **os_user.find_identity()
        )
    try:
        wait_until_ready(pooler, process)
        yield pooler
    finally:
        stop(process)


def wait_until_ready(pooler: Pooler, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        # Not a session of the server: a database with one cannot be copied.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", pooler.port), timeout=2):
            return
        time.sleep(0.05)
    raise AssertionError("PgBouncer did not start.")
