"""Backups and drills are recorded in the database and shown by the service, on the running stack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from scripts.backup.store import BackupStore
from tests.conftest import ROOT, Stack

Row = dict[str, Any]


@pytest.fixture
def database(stack: Stack) -> Iterator[psycopg.Connection[Row]]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True, row_factory=dict_row) as connection:
        connection.execute("delete from public.backup_logs")
        yield connection
        connection.execute("delete from public.backup_logs")


def rows(database: psycopg.Connection[Row]) -> list[Row]:
    return database.execute("select * from public.backup_logs order by created_at").fetchall()


def health(database: psycopg.Connection[Row]) -> Row:
    [row] = database.execute("select * from ops.backup_health").fetchall()
    return row


def store_of(stack: Stack) -> BackupStore:
    return BackupStore(stack.environment["BACKUP_URL"])


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found
    return found


def test_backups_and_drills_are_recorded_and_health_turns_green(
    stack: Stack, database: psycopg.Connection[Row]
) -> None:
    assert health(database)["status"] == "red"
    made = stack.ballast("backup", "run", "--json")
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)
    [row] = rows(database)
    assert (row["status"], row["backup_type"], row["filename"]) == (
        "completed",
        "manual",
        f"database/{manifest['name']}",
    )
    assert row["size_bytes"] == sum(file["size_bytes"] for file in manifest["files"].values())
    assert row["checksum"] == manifest["files"]["dump.pgc.zst.age"]["sha256"]
    assert row["finished_at"] > row["created_at"]
    assert health(database)["status"] == "yellow"
    drilled = stack.ballast("backup", "drill", "--json")
    assert drilled.returncode == 0, drilled.stdout + drilled.stderr
    [row] = rows(database)
    assert (row["drill_passed"], row["drill_report"]) == (True, json.loads(drilled.stdout))
    healthy = health(database)
    assert (healthy["status"], healthy["last_filename"]) == ("green", row["filename"])
    assert healthy["rto"].total_seconds() == row["drill_report"]["rto_seconds"]


def test_the_reason_of_a_failure_is_recorded_without_secrets(
    stack: Stack, database: psycopg.Connection[Row], tmp_path: Any
) -> None:
    (tmp_path / "a-file").touch()
    changed = Stack(stack.home, stack.environment | {"BACKUP_URL": (tmp_path / "a-file" / "backups").as_uri()})
    assert changed.ballast("backup", "run").returncode == 1
    [row] = rows(database)
    assert row["status"] == "failed"
    assert row["error_message"].startswith("Cannot create the folder in file://")
    assert stack.environment["DATABASE_URL"] not in str(row)
    assert health(database)["last_failure"] == row["error_message"]


def test_the_next_backup_marks_a_killed_one_as_interrupted(stack: Stack, database: psycopg.Connection[Row]) -> None:
    with database.transaction():
        database.execute("lock table public.organizations in access exclusive mode")  # pg_dump waits for it
        running = subprocess.Popen(
            [sys.executable, "-m", "scripts.cli", "backup", "run"], cwd=ROOT, env=os.environ | stack.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as other:
            until(lambda: other.execute("select from public.backup_logs where status = 'started'").rowcount)
            assert stack.ballast("backup", "run").returncode == 1  # one at a time
            running.send_signal(signal.SIGKILL)
            running.wait()
    assert [row["status"] for row in rows(database)] == ["started"]
    until(lambda: not database.execute("select public.backup_is_running() as it").fetchall()[0]["it"])
    assert health(database)["running_since"] is None
    assert stack.ballast("backup", "run").returncode == 0
    assert [row["status"] for row in rows(database)] == ["interrupted", "completed"]


def test_an_operator_starts_a_backup_and_sees_its_result(stack: Stack, database: psycopg.Connection[Row]) -> None:
    url = f"{stack.environment['SERVICE_URL']}/api/v1/backups"
    operator = {"Authorization": f"Bearer {stack.environment['OPERATOR_TOKEN']}"}
    assert httpx.post(url).status_code == 401
    answer = httpx.post(url, headers=operator)
    assert answer.status_code == 202, answer.text
    begun = answer.json()
    assert begun["status"] == "started"

    def find_ended_row() -> Row | None:
        listed = httpx.get(url, headers=operator).json()["backups"]
        return next((row for row in listed if row["id"] == begun["id"] and row["status"] != "started"), None)

    row = until(find_ended_row)
    assert (row["status"], row["filename"]) == ("completed", begun["filename"])
    assert begun["filename"].rpartition("/")[2] in store_of(stack).names()
    verified = stack.ballast("backup", "drill", begun["filename"][-8:])
    assert verified.returncode == 0, verified.stderr


def test_the_scheduler_starts_a_backup(stack: Stack, database: psycopg.Connection[Row]) -> None:
    scheduler = {"Authorization": f"Bearer {stack.environment['JOBS_TOKEN']}"}
    answer = httpx.post(f"{stack.environment['SERVICE_URL']}/jobs/backup", headers=scheduler)
    assert answer.status_code == 200, answer.text
    until(lambda: [row["status"] for row in rows(database)] == ["completed"])
    [row] = rows(database)
    assert (str(row["id"]), row["backup_type"]) == (answer.json()["started"], "automated")
