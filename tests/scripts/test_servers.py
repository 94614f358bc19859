"""The servers that the processes of a test run share: started once, and stopped after the run or kept for the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import servers
from tests.conftest import ROOT
from tests.servers import MARK, TestRun, processes_of, stop_kept


@pytest.fixture(autouse=True)
def _own_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the variable after the test, because `TestRun.begin` changes it."""
    monkeypatch.setenv(MARK, os.environ[MARK])


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"the condition was not met within {seconds:g} s"
        time.sleep(0.05)
    return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("words", "started"),
    [
        pytest.param(["tests/db/test_limits.py"], "server/data/postmaster.pid", id="a server"),
        pytest.param(
            ["tests/scripts/local/test_upstash.py", "tests/db/test_limits.py", "--numprocesses", "2"],
            "stack/run.json",
            id="a stack, two processes",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_killed_run_leaves_no_process_and_no_folder(
    home: Path, number: signal.Signals, words: list[str], started: str
) -> None:
    place = Path(tempfile.mkdtemp(dir=home))
    place.chmod(0o755)
    pytest_process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--quiet", *words],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(place)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    [folder] = wait_until(lambda: [each for each in place.glob("ballast-tests-*") if (each / started).exists()])
    assert processes_of(str(folder))
    pytest_process.send_signal(number)
    pytest_process.wait(60)
    wait_until(lambda: not folder.exists())
    assert processes_of(str(folder)) == []


def test_a_server_that_two_processes_need_is_started_once(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from tests.servers import TestRun

def start(home):
    time.sleep(0.5)
    with (home.parent / "starts").open("a") as file:
        file.write("started ")
    return {"port": 1}

print(TestRun(Path(sys.argv[1])).once("server", start))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["{'port': 1}"] * 2
    assert (tmp_path / "starts").read_text() == "started "


def test_only_one_process_at_a_time_has_its_turn(tmp_path: Path) -> None:
    first = TestRun(tmp_path)
    first.take_turn()
    program = "import sys; from pathlib import Path; from tests.servers import TestRun; TestRun(Path(sys.argv[1])).take_turn()"
    second = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1.5)
    first.end_turn()
    assert second.wait(30) == 0


def test_a_kept_server_is_used_by_the_next_run_and_stopped_on_request(home: Path) -> None:
    kept = home / "kept"
    ports = []
    for _ in range(2):
        run = TestRun.begin(kept)
        try:
            postgres = run.postgres("bare", None, is_migrated=False)
        finally:
            assert run.in_use is not None
            run.in_use.close()
            run.end()
        postgres.require_answer()
        ports.append(postgres.port)
    assert ports[0] == ports[1]
    assert stop_kept(kept)
    assert not kept.exists()
    listening = [
        each.laddr.port for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN and each.laddr
    ]
    assert ports[0] not in listening


def test_a_kept_server_that_has_ended_is_replaced(home: Path) -> None:
    kept = home / "replaced"
    run = TestRun.begin(kept)
    try:
        postgres = run.postgres("bare", None, is_migrated=False)
        running = psutil.process_iter(["cmdline"])  # None for a zombie
        [killed] = [each for each in running if f"{postgres.folder}/data" in " ".join(each.info["cmdline"] or [])]
        killed.kill()
        wait_until(lambda: not killed.is_running() or killed.status() == psutil.STATUS_ZOMBIE)
        run.postgres("bare", None, is_migrated=False).require_answer()
    finally:
        assert run.in_use is not None
        run.in_use.close()
        run.end()
        stop_kept(kept)


@pytest.mark.parametrize("changed", ["migrations/1_a.sql", "functions/a/b.sql", "policies/a.sql"])
def test_kept_servers_of_other_sources_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    for name in ("migrations/1_a.sql", "functions/a/b.sql", "policies/a.sql", *servers.SOURCES[3:]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("select 1;")
    monkeypatch.setattr(servers, "ROOT", tmp_path)
    monkeypatch.setattr(servers, "KEPT_SERVERS", tmp_path / "kept")
    before = servers.folder_to_keep(None)
    assert servers.folder_to_keep(None) == before
    before.mkdir(parents=True)
    (tmp_path / changed).write_text("select 2;")
    assert servers.folder_to_keep(None) != before
    assert not before.exists(), "servers of the previous sources still run"
