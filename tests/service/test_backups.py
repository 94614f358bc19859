"""`/api/v1/backups`: only operators may use it, one backup at a time, each in its own process."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from psycopg.rows import dict_row

from service.backup_names import new_name
from service.backups import BackupRunner
from service.components import Components
from tests.conftest import Stack
from tests.service.conftest import MakeApp
from tests.service.outside import HANG_UP, Outside, rest_answer
from tests.service.test_personal_data import as_caller
from tests.service.test_settings import HTTPS

LOCK = 733140620
OPERATOR_TOKEN = "the operator's token, 32 and more"
CONFIGURATION = {
    "OPERATOR_TOKEN": OPERATOR_TOKEN,
    "DATABASE_URL": "postgresql://postgres:5ecret@db.example:5432/postgres",
    "BACKUP_URL": "s3://backups",
}
OPERATOR = as_caller(OPERATOR_TOKEN)
PATH = "/api/v1/backups"
LogLines = Callable[[], list[dict[str, object]]]
Database = psycopg.Connection[dict[str, Any]]

# A stand-in for the backup command: it records its arguments and then runs END.
STAND_IN = """
import json, os, sys
record = {"arguments": sys.argv[1:], "leads_session": os.getsid(0) == os.getpid(), "input": sys.stdin.read(), "token": os.environ.get("X")}
with open(FOLDER + "/new", "w") as file:
    json.dump(record, file)
os.rename(FOLDER + "/new", FOLDER + "/record")
END
"""


@pytest.fixture
def database(stack: Stack) -> Iterator[Database]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True, row_factory=dict_row) as connection:
        connection.execute("delete from public.backup_logs")
        yield connection
        connection.execute("delete from public.backup_logs")


def with_backup_command(app: Flask, command: tuple[str, ...]) -> FlaskClient:
    built: Components = app.extensions["ballast"]
    runner = BackupRunner(built.data_api.call, built.settings.missing_for_backups(), command)
    app.extensions["ballast"] = dataclasses.replace(built, backups=runner)
    return app.test_client()


@pytest.fixture
def make_client(make_app: MakeApp, stack: Stack, tmp_path: Path) -> Callable[[str], FlaskClient]:
    """Builds clients of the service on the running stack, whose backup process ends with the given statement."""

    def make(end: str = "") -> FlaskClient:
        code = STAND_IN.replace("FOLDER", repr(str(tmp_path))).replace("END", end)
        app = make_app(**(stack.environment | {"OPERATOR_TOKEN": OPERATOR_TOKEN}))
        return with_backup_command(app, (sys.executable, "-c", code))

    return make


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("the condition did not become true within 20 s")


def read_row(database: Database, backup: str) -> dict[str, Any]:
    found = database.execute("select * from public.backup_logs where id = %s", [backup]).fetchone()
    assert found is not None
    return found


# --- permission


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer wrong", OPERATOR_TOKEN, f"bearer  {OPERATOR_TOKEN}", "Bearer \xe9"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_the_operators_token_nothing_is_shown_or_started(make_app: MakeApp, method: str, given: str) -> None:
    client = make_app(**CONFIGURATION).test_client()
    response = client.open(PATH, method=method, headers={"Authorization": given} if given else {})
    assert (response.status_code, response.json["type"]) == (401, "urn:problem:ballast:operator-refused")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Bearer None", f"Bearer {OPERATOR_TOKEN}"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_configured_token_every_request_is_refused(make_app: MakeApp, method: str, given: str) -> None:
    client = make_app(**(CONFIGURATION | {"OPERATOR_TOKEN": None})).test_client()
    response = client.open(PATH, method=method, headers={"Authorization": given} if given else {})
    assert (response.status_code, response.json["type"]) == (401, "urn:problem:ballast:operator-refused")


def test_the_jobs_token_is_not_accepted_as_the_operators_token(make_app: MakeApp, stack: Stack) -> None:
    client = make_app(**(stack.environment | {"OPERATOR_TOKEN": OPERATOR_TOKEN})).test_client()
    assert client.get(PATH, headers=as_caller(stack.environment["JOBS_TOKEN"])).status_code == 401
    assert client.post("/jobs/backup", headers=OPERATOR).status_code == 401


# --- starting


def test_a_backup_runs_in_its_own_process(
    make_client: Callable[..., FlaskClient],
    database: Database,
    tmp_path: Path,
    log_lines: LogLines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("X", "the environment as it is")
    before = datetime.now(UTC)
    answer = make_client().post(PATH, headers=OPERATOR)
    assert answer.status_code == 202
    started = answer.json
    assert started.keys() == {"id", "filename", "backup_type", "status", "created_at"}
    assert (started["backup_type"], started["status"]) == ("manual", "started")
    assert abs(datetime.fromisoformat(started["created_at"]) - before) < timedelta(seconds=10)
    assert read_row(database, started["id"])["filename"] == started["filename"]

    folder, _, name = started["filename"].partition("/")
    assert folder == "database"
    assert re.fullmatch(rf"20\d{{6}}T\d{{6}}Z-{started['id'][:8]}", name)
    record = json.loads(wait_until(lambda: (tmp_path / "record").exists() and (tmp_path / "record").read_text()))
    assert record == {
        "arguments": ["--log", started["id"], "--name", name, "--type", "manual"],
        "leads_session": True, "input": "", "token": "the environment as it is",
    }  # fmt: skip
    ended = wait_until(lambda: [line for line in log_lines() if line["message"] == "backup ended"])
    assert [(line["level"], line["backup"], line["code"]) for line in ended] == [("info", started["id"], 0)]
    assert read_row(database, started["id"])["status"] == "started"  # the process itself records the outcome


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(3)", 3), ("raise RuntimeError", 1), ("os.kill(os.getpid(), 9)", -9)]
)
def test_a_process_that_dies_silently_is_recorded_as_failed(
    make_client: Callable[..., FlaskClient], database: Database, log_lines: LogLines, end: str, code: int
) -> None:
    backup = make_client(end).post(PATH, headers=OPERATOR).json["id"]
    wait_until(lambda: read_row(database, backup)["status"] == "failed")
    assert read_row(database, backup)["error_message"] == f"The backup process ended with code {code}."
    (ended,) = [line for line in log_lines() if line["message"] == "backup ended"]
    assert (ended["level"], ended["code"]) == ("error", code)


def test_a_reason_recorded_by_the_process_is_kept(
    make_client: Callable[..., FlaskClient], stack: Stack, database: Database, log_lines: LogLines
) -> None:
    end = f"""
import psycopg
with psycopg.connect({stack.environment["DATABASE_URL"]!r}) as connection:
    connection.execute("select public.end_backup(%s, 'failed', error_message => 'The disk is full.')", [sys.argv[2]])
sys.exit(4)
"""
    backup = make_client(end).post(PATH, headers=OPERATOR).json["id"]
    wait_until(lambda: [line for line in log_lines() if line["message"] == "backup ended"])
    time.sleep(0.5)
    assert (read_row(database, backup)["status"], read_row(database, backup)["error_message"]) == (
        "failed",
        "The disk is full.",
    )


def test_a_process_that_cannot_start_is_recorded_as_failed(
    make_app: MakeApp, stack: Stack, database: Database, tmp_path: Path
) -> None:
    app = make_app(**(stack.environment | {"OPERATOR_TOKEN": OPERATOR_TOKEN}))
    answer = with_backup_command(app, (str(tmp_path / "nothing"),)).post(PATH, headers=OPERATOR)
    assert (answer.status_code, answer.json["title"]) == (500, "Internal Server Error")
    recorded = database.execute("select status, error_message from public.backup_logs").fetchall()
    assert recorded == [{"status": "failed", "error_message": "The backup process could not be started."}]


def test_a_second_backup_is_refused_while_one_runs(
    make_client: Callable[..., FlaskClient], stack: Stack, database: Database, tmp_path: Path
) -> None:
    client = make_client()
    with psycopg.connect(stack.environment["DATABASE_URL"]) as elsewhere:
        elsewhere.execute("select pg_try_advisory_xact_lock(%s)", [LOCK])
        answer = client.post(PATH, headers=OPERATOR)
    assert (answer.status_code, answer.json["type"]) == (409, "urn:problem:ballast:backup-running")
    assert database.execute("select from public.backup_logs").rowcount == 0
    assert not (tmp_path / "record").exists()
    assert [client.post(PATH, headers=OPERATOR).status_code for _ in range(2)] == [202, 409]


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({"DATABASE_URL": None}, ["DATABASE_URL"]),
        ({"BACKUP_URL": None}, ["BACKUP_URL"]),
        ({"DATABASE_URL": None, "BACKUP_URL": None}, ["DATABASE_URL", "BACKUP_URL"]),
        (HTTPS | {"ENVIRONMENT": "production", "BACKUP_URL": None}, ["BACKUP_URL", "BACKUP_RECIPIENTS"]),
    ],
)
def test_missing_variables_are_named(make_app: MakeApp, environment: dict[str, str | None], missing: list[str]) -> None:
    answer = make_app(**(CONFIGURATION | environment)).test_client().post(PATH, headers=OPERATOR)
    assert (answer.status_code, answer.json["type"]) == (503, "urn:problem:ballast:backups-unconfigured")
    assert answer.json["missing"] == missing
    assert all(name in answer.json["detail"] for name in missing)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_database_no_backup_is_started(make_app: MakeApp, method: str, tmp_path: Path) -> None:
    client = with_backup_command(
        make_app(**CONFIGURATION), (sys.executable, "-c", f"open({str(tmp_path / 'record')!r}, 'w')")
    )
    answer = client.open(PATH, method=method, headers=OPERATOR)
    assert (answer.status_code, answer.json["type"]) == (503, "urn:problem:ballast:database-unavailable")
    time.sleep(0.3)
    assert not (tmp_path / "record").exists()


def test_a_database_outage_during_a_backup_is_survived(
    make_app: MakeApp, outside: Outside, log_lines: LogLines
) -> None:
    started = {
        "id": str(uuid4()),
        "filename": "database/20261124T120000Z-1a2b3c4d",
        "backup_type": "manual",
        "status": "started",
    }
    outside.answer = lambda path, *_: rest_answer(started) if path.endswith("/request_backup") else HANG_UP
    app = make_app(**CONFIGURATION, SUPABASE_URL=outside.url)
    client = with_backup_command(app, (sys.executable, "-c", "raise SystemExit(5)"))
    assert client.post(PATH, headers=OPERATOR).status_code == 202
    wait_until(lambda: [path for path in outside.requests if path.endswith("/end_backup")])
    assert [line["code"] for line in log_lines() if line["message"] == "backup ended"] == [5]


def test_neither_the_log_nor_responses_contain_a_secret(
    make_client: Callable[..., FlaskClient], make_app: MakeApp, stack: Stack, database: Database, log_lines: LogLines
) -> None:
    answers = [make_app(**(CONFIGURATION | {"BACKUP_URL": None})).test_client().post(PATH, headers=OPERATOR)]
    client = make_client("sys.exit(3)")
    answers += [client.post(PATH, headers=OPERATOR), client.get(PATH, headers=OPERATOR), client.post(PATH)]
    wait_until(lambda: [line for line in log_lines() if line["message"] == "backup ended"])
    output = json.dumps(log_lines()) + "".join(answer.text for answer in answers)
    password = stack.environment["DATABASE_URL"].partition("@")[0].rpartition(":")[2]
    for secret in (OPERATOR_TOKEN, stack.environment["SUPABASE_SECRET_KEY"], password, "5ecret"):
        assert secret not in output


# --- listing


def test_backups_are_listed_newest_first(make_client: Callable[..., FlaskClient], database: Database) -> None:
    client = make_client()
    assert client.get(PATH, headers=OPERATOR).json == {"backups": []}
    database.execute(
        "insert into public.backup_logs (filename, backup_type, status, created_at) "
        "select 'database/' || n, 'automated', 'completed', now() - n * interval '1 day' from generate_series(1, 150) as n"
    )
    listed = client.get(PATH, headers=OPERATOR).json["backups"]
    assert [each["filename"] for each in listed] == [f"database/{number}" for number in range(1, 101)]
    assert listed[0].keys() == {
        "id", "filename", "backup_type", "status", "size_bytes", "duration_seconds", "checksum", "error_message",
        "created_at", "drilled_at", "drill_passed",
    }  # fmt: skip


# --- names


def test_names_contain_the_time_in_utc() -> None:
    backup = UUID("1a2b3c4d-0000-4000-8000-000000000000")
    noon = datetime(2026, 11, 24, 13, 0, 0, 999999, timezone(timedelta(hours=1)))
    assert new_name(backup, noon) == "20261124T120000Z-1a2b3c4d"
