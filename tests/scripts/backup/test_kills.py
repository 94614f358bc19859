"""kill -9, and a full disk of the database: nothing half-done counts, and the next command works and cleans up."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from scripts.backup import snapshot
from scripts.scratch.postgres import Postgres, stop
from scripts.scratch.server import PREFIX, free_ports
from tests.scripts.backup.test_folders import mounted
from tests.scripts.conftest import StoredBackup, Vault

pytestmark = pytest.mark.thorough

HALF = '[[ "$*" == *--list* ]] && exec "$REAL/pg_restore" "$@"; "$REAL/pg_restore" "$@" | head -c 400000;'
# In these scripts, $PPID is the `ballast` command.
STAGES = {
    "while it reads the contents": 'kill -9 $PPID; exec "$REAL/pg_restore" "$@"',
    "in the middle of the restore": f"{HALF} kill -9 $PPID",
    "after the last row": '"$REAL/pg_restore" "$@"; [[ "$*" == *--list* ]] || kill -9 $PPID',
}


@pytest.fixture
def temporary(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for temporary files. Servers that a killed command left in it are stopped."""
    folder = home / "temporary"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    stop_servers(folder)


def stop_servers(folder: Path) -> None:
    """Stops the servers of killed commands."""
    for file in folder.rglob("postmaster.pid"):
        os.kill(int(file.read_text().splitlines()[0]), signal.SIGQUIT)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("verb", ["drill", "extract"])
def test_a_killed_command_leaves_no_result_and_the_next_one_removes_its_files(
    folder_shelf: Vault,
    temporary: Path,
    make_wrapped_programs: Callable[..., str],
    backup: StoredBackup,
    verb: str,
    stage: str,
) -> None:
    name, output = folder_shelf.keep(backup), folder_shelf.home / "acme.sql"
    words = (
        ("drill", name) if verb == "drill" else ("extract", name, "--organization", "org_acme", "--output", str(output))
    )
    killed = folder_shelf.start(*words, PG_BIN=make_wrapped_programs(pg_restore=STAGES[stage]))
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert folder_shelf.store.drills() == {}
    assert not output.exists()
    assert folder_shelf.store.names() == [name]
    [left] = temporary.glob(f"{PREFIX}{verb}-*")
    stop_servers(left)
    following = folder_shelf.start("drill", name, "--json")
    report, errors = following.communicate(timeout=120)
    assert following.returncode == 0, errors
    assert json.loads(report)["passed"] is True
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_running_command_is_kept(
    folder_shelf: Vault, temporary: Path, make_wrapped_programs: Callable[..., str], backup: StoredBackup
) -> None:
    name, go = folder_shelf.keep(backup), temporary / "go"
    waiting = f'until [[ -e {go} ]]; do sleep 0.05; done; exec "$REAL/pg_restore" "$@"'
    running = folder_shelf.start("drill", name, PG_BIN=make_wrapped_programs(pg_restore=waiting))
    while not list(temporary.rglob("postmaster.pid")) and running.poll() is None:
        time.sleep(0.05)
    assert folder_shelf.start("verify", name).wait(60) == 0
    assert len(list(temporary.glob(f"{PREFIX}drill-*"))) == 1
    go.touch()
    output, errors = running.communicate(timeout=120)
    assert running.returncode == 0, output + errors


def test_a_database_whose_disk_is_full_is_unchanged_by_a_restore(heavy: str, folder_vault: Vault, home: Path) -> None:
    """The disk holds a new server, but not 64 MB of rows besides."""
    name = Vault(heavy, folder_vault.backup_url, folder_vault.home).back_up()
    with mounted(home / "full-disk", "105m") as disk:
        disk.chmod(0o755)
        server = Postgres(disk / "server", free_ports(1), "test")
        process = server.start(
            fsync="off", max_wal_size="32MB", min_wal_size="32MB", wal_level="minimal", max_wal_senders="0"
        )
        try:
            failed = folder_vault.run("restore", name, "--to", server.url())
            with psycopg.connect(server.url()) as connection:
                assert snapshot.count_rows(connection) == {}
        finally:
            stop(process)
    assert failed.exit_code == 1
    assert "Nothing was restored. The disk of the server is full: free some space there" in failed.stderr
