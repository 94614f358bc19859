"""`ballast migrate up` is killed with SIGKILL, between files and inside each one. The next run leaves the same database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scripts.schema import migrations
from scripts.schema.database import connect
from tests.scripts.schema.test_bundle import dump_schema
from tests.scripts.schema.test_migrate import CALLER, FOUNDATION, NOTES, ROWS, Project

ROOT = Path(__file__).parents[3]

# Runs `up`, and kills itself after so many files.
UP = """
import os, signal, sys
from pathlib import Path
from scripts.schema import migrations

applied = []

def count(file):
    applied.append(file)
    if len(applied) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

migrations.up(sys.argv[1], root=Path(sys.argv[2]), on_applied=count)
"""
FILES = {
    "migrations/20260101000000_foundation.sql": FOUNDATION,
    "migrations/20260102000000_more.sql": "create table public.more (id int);\n"
    "alter table public.notes add column more int; insert into public.more values (1);",
    "functions/10_caller.sql": CALLER,
    "functions/20_rows.sql": ROWS,
    "policies/notes.sql": NOTES,
}
# The test holds this lock, so that a file stops at it.
STOP = 42


@pytest.fixture
def project(new_database: Callable[..., str], tmp_path: Path) -> Project:
    """A project whose files have a stop before their last statement."""
    made = Project(tmp_path, new_database())
    for path, text in FILES.items():
        before, mark, last = text.rstrip().rstrip(";").rpartition(";\n")
        made.write(
            path, f"{before}{mark}select pg_advisory_xact_lock_shared({STOP + list(FILES).index(path)});\n{last};"
        )
    return made


@pytest.fixture
def uninterrupted(project: Project, new_database: Callable[..., str]) -> Project:
    made = Project(project.root, new_database())
    made.up()
    return made


def start(project: Project, kill_after: int = 0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", UP, project.url, str(project.root), str(kill_after)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def list_pending(project: Project) -> list[str]:
    states = migrations.list_states(project.url, root=project.root)
    return [state.path for state in states if state.state == "pending"]


def describe(project: Project) -> tuple[str, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The schema, the rows, and what is recorded."""
    sources = "select path, checksum from app.applied_sources order by 1"
    return (
        dump_schema(project.url),
        project.query(f"{sources}"),
        [*project.history(), *project.query("table public.more")],
    )


@pytest.mark.parametrize("number", range(1, len(FILES) + 1))
def test_a_run_that_is_killed_after_a_file_is_continued(project: Project, uninterrupted: Project, number: int) -> None:
    assert start(project, kill_after=number).wait(timeout=60) == -signal.SIGKILL
    assert list_pending(project) == list(FILES)[number:]
    assert project.up().paths == list(FILES)[number:]
    assert describe(project) == describe(uninterrupted)


@pytest.mark.parametrize("number", range(len(FILES)))
def test_a_run_that_is_killed_inside_a_file_is_continued_with_it(
    project: Project, uninterrupted: Project, number: int
) -> None:
    with psycopg.connect(project.url, autocommit=True) as holder:
        holder.execute("select pg_advisory_lock(%s)", [STOP + number])
        running = start(project)
        waits = "select from pg_locks where locktype = 'advisory' and objid = %s and not granted"
        while not holder.execute(waits, [STOP + number]).rowcount:
            assert running.poll() is None, running.communicate()[1]
        os.kill(running.pid, signal.SIGKILL)
        running.wait(timeout=60)
    assert list_pending(project) == list(FILES)[number:]
    assert project.up().paths == list(FILES)[number:]
    assert describe(project) == describe(uninterrupted)


def test_a_run_waits_for_the_server_process_of_a_killed_one(project: Project, uninterrupted: Project) -> None:
    """The server notices after a second that the client is gone. Until then it holds the file's record and its locks."""
    uninterrupted.write("migrations/20260103000000_slow.sql", "create table public.slow (); select pg_sleep(3);")
    running = start(uninterrupted)
    with connect(uninterrupted.url) as watcher:
        while not watcher.execute("select from pg_stat_activity where wait_event = 'PgSleep'").rowcount:
            assert running.poll() is None, running.communicate()[1]
    os.kill(running.pid, signal.SIGKILL)
    running.wait(timeout=60)
    notices: list[str] = []
    assert uninterrupted.up(notify=notices.append).paths == ["migrations/20260103000000_slow.sql"]
    assert notices[0].startswith("The history of migrations waits for a lock; retrying ...")
    assert "(role postgres, ballast, active" in notices[0]
