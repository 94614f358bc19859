"""`POST /jobs/<name>`: who may run a job, and what it reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from service.jobs import JOBS
from tests.conftest import Stack
from tests.service.conftest import ENVIRONMENT, MakeApp
from tests.service.outside import Outside
from tests.service.test_backups import until, with_command
from tests.service.test_personal_data import as_caller


@pytest.fixture
def database(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


def run(client: FlaskClient, stack: Stack, job: str) -> Any:
    response = client.post(f"/jobs/{job}", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert response.status_code == 200, response.json
    return response.json


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer wrong", ENVIRONMENT["JOBS_TOKEN"], f"bearer  {ENVIRONMENT['JOBS_TOKEN']}", "Bearer \xe9"],
)
def test_without_the_token_no_job_runs(offline: FlaskClient, given: str) -> None:
    response = offline.post("/jobs/retention", headers={"Authorization": given} if given else {})
    assert (response.status_code, response.json["type"]) == (401, "urn:problem:ballast:job-refused")


def test_an_unknown_job_is_told_which_there_are(offline: FlaskClient) -> None:
    response = offline.post("/jobs/nothing", headers=as_caller(ENVIRONMENT["JOBS_TOKEN"] or ""))
    assert response.status_code == 404
    assert all(job in response.json["detail"] for job in JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_without_a_database_is_not_done(make_app: MakeApp, tmp_path: Path, job: str) -> None:
    folder = tmp_path.as_uri()
    client = make_app(DATABASE_URL="postgresql://nobody", BACKUP_URL=folder).test_client()
    response = client.post(f"/jobs/{job}", headers=as_caller(ENVIRONMENT["JOBS_TOKEN"] or ""))
    kind = "sample-unavailable" if job == "reconcile-sample" else "database-unavailable"
    assert (response.status_code, response.json["type"]) == (503, f"urn:problem:ballast:{kind}")


def test_retention_goes_on_until_all_is_purged(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    run(online, stack, "retention")  # what other tests left
    database.execute(
        "insert into app.webhook_events (message_id, type, event, outcome, applied_at) "
        "select 'msg_old_' || n, 'email.created', '{}', 'ignored', now() - interval '31 days' from generate_series(1, 30000) as n"
    )
    report = run(online, stack, "retention")
    assert report == {"done": True, "purged": {"app.webhook_events": 30000}, "dropped_audit_months": 0}
    assert run(online, stack, "retention")["purged"] == {}


def test_a_name_that_a_person_changed_is_at_clerk_and_stays(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    sent = stack.ballast(
        "clerk",
        "send",
        "user.created",
        "--data",
        json.dumps({"id": "user_rename", "first_name": "Old", "last_name": "Name"}),
    )
    assert sent.returncode == 0
    with database.transaction():
        claims = json.dumps({"sub": "user_rename", "role": "authenticated"})
        database.execute("select set_config('request.jwt.claims', %s, true)", [claims])
        database.execute("set local role authenticated")
        database.execute("update public.profiles set full_name = 'New Name of Two' where id = app.user_id()")
    assert run(online, stack, "name-changes") == {"told": 1, "refused": 0, "failed": 0}
    assert run(online, stack, "name-changes") == {"told": 0, "refused": 0, "failed": 0}
    # The next message of Clerk's agrees.
    assert stack.ballast("clerk", "send", "user.updated", "--data", '{"id": "user_rename"}').returncode == 0
    told = database.execute(
        "select fields ->> 'full_name' from app.clerk_records where clerk_id = 'user_rename'"
    ).fetchall()
    shown = database.execute("select full_name from public.profiles where clerk_user_id = 'user_rename'").fetchall()
    assert told == shown == [("New Name of Two",)]


@pytest.mark.parametrize(
    ("status", "report", "due"), [(422, "refused", False), (503, "failed", True), (401, "failed", True)]
)
def test_what_clerk_does_not_take_is_kept(
    make_app: MakeApp,
    stack: Stack,
    database: psycopg.Connection[Any],
    outside: Outside,
    status: int,
    report: str,
    due: bool,
) -> None:
    database.execute(
        "insert into app.name_changes (person_id) select id from public.profiles where clerk_user_id = 'user_ada'"
    )
    outside.answer = lambda *_: (status, {}, b"{}")
    client = make_app(**(stack.environment | {"CLERK_API_URL": outside.url})).test_client()
    assert run(client, stack, "name-changes") == {"told": 0, "refused": 0, "failed": 0} | {report: 1}
    kept = database.execute("delete from app.name_changes returning error, next_attempt_at < 'infinity'").fetchall()
    assert kept == [(str(status), due)]


def test_a_backup_is_begun_and_not_a_second_one(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any], tmp_path: Path
) -> None:
    database.execute("delete from public.backup_logs")
    told = f"import sys; open({str(tmp_path / 'told')!r}, 'w').write(' '.join(sys.argv[1:]) + ' end')"
    client = with_command(make_app(**stack.environment), (sys.executable, "-c", told))
    report = run(client, stack, "backup")
    assert run(client, stack, "backup") == {"running": True}
    deleted = database.execute("delete from public.backup_logs returning id::text, backup_type, status").fetchall()
    assert deleted == [(report["started"], "automated", "started")]
    arguments = until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text())
    assert arguments.startswith(f"--log {report['started']} --name 20")
    assert until(lambda: (tmp_path / "told").read_text().endswith(" --type automated end"))


def test_where_backups_are_not_configured_the_job_says_what_is_missing(make_app: MakeApp, stack: Stack) -> None:
    client = make_app(**(stack.environment | {"DATABASE_URL": None, "BACKUP_URL": None})).test_client()
    assert run(client, stack, "backup") == {"unconfigured": ["DATABASE_URL", "BACKUP_URL"]}


def test_failed_events_that_are_due_are_applied_again(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    database.execute(
        "insert into app.webhook_events (message_id, type, event, outcome, error, attempts, next_attempt_at) "
        "select 'msg_retry_' || n, 'session.created', '{\"type\": \"session.created\", \"data\": {}}', 'failed', 'XX000', 1, "
        "now() + (n - 3) * interval '1 minute' from generate_series(1, 4) as n"
    )
    report = run(online, stack, "retry-events")
    assert report == {"ignored": 3}
    left = database.execute("delete from app.webhook_events where message_id like 'msg_retry_%' returning outcome")
    assert sorted(left.fetchall()) == [("failed",), ("ignored",), ("ignored",), ("ignored",)]
    assert run(online, stack, "retry-events") == {}


def test_the_months_ahead_have_partitions(online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]) -> None:
    [[name]] = database.execute(
        "select max(inhrelid::regclass::text) from pg_inherits where inhparent = 'public.audit_logs'::regclass "
        "and inhrelid::regclass::text ~ '_[0-9]+$'"
    ).fetchall()
    database.execute(f"drop table {name}")
    assert run(online, stack, "partitions") == {"made": 1}
    assert run(online, stack, "partitions") == {"made": 0}


def test_seals_are_kept_beside_the_backups_and_each_once(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any], tmp_path: Path
) -> None:
    client = make_app(**(stack.environment | {"BACKUP_URL": tmp_path.as_uri()})).test_client()
    # Where the next range begins: it must not come into one that is sealed.
    database.execute(
        "insert into public.audit_logs (action, resource_type, created_at) "
        "select 'x', 'x', coalesce(max(range_end), now() - interval '1 hour') from app.audit_seals"
    )
    # In the first hour of a month the entry is of the month before, which has no partition on a new stack.
    database.execute("select app.make_audit_partitions()")
    stored = run(client, stack, "seals")["stored"]
    assert stored >= 1
    stored += run(client, stack, "seals")["stored"]  # what became complete meanwhile, and nothing again
    kept = [json.loads(file.read_text())["seal"] for file in sorted((tmp_path / "seals").iterdir())]
    assert len(kept) == stored
    verified = stack.ballast("audit", "verify", *(word for seal in kept for word in ("--seal", seal)))
    assert verified.returncode == 0, verified.stderr


def test_seals_that_cannot_be_stored_are_a_failed_job(make_app: MakeApp, stack: Stack, tmp_path: Path) -> None:
    client = make_app(**(stack.environment | {"BACKUP_URL": (tmp_path / "not-mounted").as_uri()})).test_client()
    response = client.post("/jobs/seals", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert (response.status_code, response.json["type"]) == (503, "urn:problem:ballast:store-unavailable")
    without = make_app(**(stack.environment | {"BACKUP_URL": None})).test_client()
    assert run(without, stack, "seals") == {"stored": 0, "unconfigured": ["BACKUP_URL"]}


def test_an_event_that_was_applied_late_ends_what_the_cache_knew(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    client = make_app(**stack.environment).test_client()
    sent = stack.ballast("clerk", "send", "user.created", "--data", '{"id": "user_late", "first_name": "Early"}')
    assert sent.returncode == 0
    headers = as_caller(stack.token("user_late"))

    def name() -> str:
        return str(client.get("/api/v1/me", headers=headers).json["profile"]["full_name"]).split()[0]

    assert name() == "Early"
    # As if the database had failed to apply what came a moment later.
    database.execute(
        "insert into app.webhook_events (message_id, type, event, outcome, error, attempts, next_attempt_at) "
        "select 'msg_late', 'user.updated', jsonb_set(e.event, '{data}', e.event -> 'data' || %s) || %s, 'failed', 'XX000', 1, now() "
        "from app.webhook_events as e where e.type = 'user.created' and e.event -> 'data' ->> 'id' = 'user_late'",
        [
            json.dumps({"first_name": "Late", "updated_at": 2_000_000_000_000}),
            json.dumps({"type": "user.updated", "timestamp": 2_000_000_000_000}),
        ],
    )
    assert name() == "Early"
    assert run(client, stack, "retry-events") == {"processed": 1}
    assert name() == "Late"


def test_a_sample_is_compared_with_clerk_and_only_counted(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    client = make_app(**stack.environment).test_client()
    assert stack.ballast("clerk", "reconcile", "--fix", "--yes-delete-many").returncode == 0
    report = run(client, stack, "reconcile-sample")
    assert report["differing"] == {}
    assert report["compared"].keys() == {"user", "organization", "membership", "invitation"}
    name = database.execute("select email from public.profiles where clerk_user_id = 'user_ada'").fetchone()
    database.execute("update public.profiles set email = 'other@example.com' where clerk_user_id = 'user_ada'")
    try:
        assert run(client, stack, "reconcile-sample")["differing"] == {"stale": 1}
        [[status, advice]] = database.execute(
            "select status, advice from ops.jobs where name = 'reconcile-sample'"
        ).fetchall()
        assert (status, "ballast clerk reconcile" in advice) == ("yellow", True)
    finally:
        database.execute("update public.profiles set email = %s where clerk_user_id = 'user_ada'", name)
    run(client, stack, "reconcile-sample")
    assert database.execute("select status from ops.jobs where name = 'reconcile-sample'").fetchall() == [("green",)]


def test_without_a_database_url_no_sample_is_compared(make_app: MakeApp, stack: Stack) -> None:
    client = make_app(**(stack.environment | {"DATABASE_URL": None, "BACKUP_URL": None})).test_client()
    assert run(client, stack, "reconcile-sample") == {"compared": {}, "differing": {}, "unconfigured": ["DATABASE_URL"]}
