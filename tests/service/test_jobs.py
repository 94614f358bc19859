"""`POST /jobs/<name>`: who may run a job, and what it reports."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from service import jobs
from service.audit_store import AuditStore
from service.jobs import find_jobs
from tests.conftest import Stack
from tests.service.conftest import ENVIRONMENT, MakeApp
from tests.service.outside import Outside
from tests.service.test_backups import wait_until, with_backup_command
from tests.service.test_personal_data import as_caller
from tests.shipped_jobs import SHIPPED_JOBS


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


def test_the_answer_to_an_unknown_job_lists_the_jobs(offline: FlaskClient) -> None:
    response = offline.post("/jobs/nothing", headers=as_caller(ENVIRONMENT["JOBS_TOKEN"] or ""))
    assert response.status_code == 404
    assert all(job in response.json["detail"] for job in find_jobs())


def list_jobs(client: FlaskClient, stack: Stack) -> Any:
    return client.get("/jobs", headers=as_caller(stack.environment["JOBS_TOKEN"])).json


def test_a_scheduler_gets_the_jobs_that_the_service_and_the_database_have(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    assert online.get("/jobs").status_code == 401
    listed = list_jobs(online, stack)
    assert set(SHIPPED_JOBS) <= set(listed["scheduled"])
    assert listed == {"scheduled": listed["scheduled"], "undeclared": [], "missing": []}
    database.execute("update app.job_schedules set name = 'renamed' where name = 'seals'")
    try:
        left = [name for name in listed["scheduled"] if name != "seals"]
        assert list_jobs(online, stack) == {"scheduled": left, "undeclared": ["seals"], "missing": ["renamed"]}
    finally:
        database.execute("update app.job_schedules set name = 'seals' where name = 'renamed'")


@pytest.mark.parametrize(("module", "problem"), [("no_run", "add run\\(components\\)"), ("Not-A-Job", "only a-z")])
def test_a_module_that_is_not_a_job_stops_the_start_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, problem: str
) -> None:
    (tmp_path / f"{module}.py").write_text('"""Counts."""')
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(tmp_path)])
    with pytest.raises(jobs.JobInvalid, match=f"^service/jobs/{module}.py is not a job: .*{problem}"):
        find_jobs.__wrapped__()


@pytest.mark.parametrize("job", [*SHIPPED_JOBS, "backup"])
def test_a_job_fails_without_a_database(make_app: MakeApp, tmp_path: Path, job: str) -> None:
    folder = tmp_path.as_uri()
    client = make_app(DATABASE_URL="postgresql://unknown", BACKUP_URL=folder).test_client()
    response = client.post(f"/jobs/{job}", headers=as_caller(ENVIRONMENT["JOBS_TOKEN"] or ""))
    kind = "sample-unavailable" if job == "reconcile-sample" else "database-unavailable"
    assert (response.status_code, response.json["type"]) == (503, f"urn:problem:ballast:{kind}")


def test_retention_runs_until_everything_expired_is_deleted(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    run(online, stack, "retention")  # what other tests left
    database.execute(
        "insert into app.webhook_events (message_id, type, event, outcome, applied_at) "
        "select 'msg_old_' || n, 'email.created', '{}', 'ignored', now() - interval '31 days' from generate_series(1, 30000) as n"
    )
    report = run(online, stack, "retention")
    assert report == {"done": True, "purged": {"app.webhook_events": 30000}, "failed": {}, "dropped_audit_months": 0}
    assert run(online, stack, "retention")["purged"] == {}


def test_a_name_changed_here_reaches_clerk_and_stays(
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
    assert run(online, stack, "name-changes") == {"renamed": 1, "refused": 0, "failed": 0}
    assert run(online, stack, "name-changes") == {"renamed": 0, "refused": 0, "failed": 0}
    # The next Clerk event has the new name.
    assert stack.ballast("clerk", "send", "user.updated", "--data", '{"id": "user_rename"}').returncode == 0
    recorded = database.execute(
        "select fields ->> 'full_name' from app.clerk_records where clerk_id = 'user_rename'"
    ).fetchall()
    shown = database.execute("select full_name from public.profiles where clerk_user_id = 'user_rename'").fetchall()
    assert recorded == shown == [("New Name of Two",)]


@pytest.mark.parametrize(
    ("status", "report", "due"), [(422, "refused", False), (503, "failed", True), (401, "failed", True)]
)
def test_a_name_change_that_clerk_rejects_is_kept(
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
    assert run(client, stack, "name-changes") == {"renamed": 0, "refused": 0, "failed": 0} | {report: 1}
    pending = database.execute("delete from app.name_changes returning error, next_attempt_at < 'infinity'").fetchall()
    assert pending == [(str(status), due)]


def test_the_backup_job_starts_one_backup_at_a_time(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any], tmp_path: Path
) -> None:
    database.execute("delete from public.backup_logs")
    code = f"import sys; open({str(tmp_path / 'record')!r}, 'w').write(' '.join(sys.argv[1:]) + ' end')"
    client = with_backup_command(make_app(**stack.environment), (sys.executable, "-c", code))
    report = run(client, stack, "backup")
    assert run(client, stack, "backup") == {"running": True}
    deleted = database.execute("delete from public.backup_logs returning id::text, backup_type, status").fetchall()
    assert deleted == [(report["started"], "automated", "started")]
    arguments = wait_until(lambda: (tmp_path / "record").exists() and (tmp_path / "record").read_text())
    assert arguments.startswith(f"--log {report['started']} --name 20")
    assert wait_until(lambda: (tmp_path / "record").read_text().endswith(" --type automated end"))


def test_the_backup_job_names_missing_variables(make_app: MakeApp, stack: Stack) -> None:
    client = make_app(**(stack.environment | {"DATABASE_URL": None, "BACKUP_URL": None})).test_client()
    assert run(client, stack, "backup") == {"unconfigured": ["DATABASE_URL", "BACKUP_URL"]}


def test_failed_events_are_retried_when_due(
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


def test_an_event_that_fails_every_time_does_not_stop_the_retries_of_others(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    database.execute(
        "create function public.test_cancel() returns trigger language plpgsql as "
        "$$ begin if new.clerk_id = 'role_bad' then raise query_canceled; end if; return new; end $$"
    )
    database.execute(
        "create trigger cancel before insert on app.clerk_records for each row execute function public.test_cancel()"
    )
    database.execute(
        "insert into app.webhook_events (message_id, type, event, outcome, attempts, next_attempt_at) "
        "select 'msg_retry_' || n, 'role.created', jsonb_build_object('type', 'role.created', 'data', "
        "jsonb_build_object('id', case when n = 1 then 'role_bad' else 'role_' || n end, 'updated_at', 1760000000000)), 'failed', 1, "
        "now() - interval '1 hour' / n from generate_series(1, 3) as n"
    )
    try:
        assert run(online, stack, "retry-events") == {"failed": 1, "processed": 2}
        [[attempts, error]] = database.execute(
            "select attempts, error from app.webhook_events where message_id = 'msg_retry_1' and next_attempt_at > now()"
        )
        assert (attempts, error[:6]) == (2, "57014:")
    finally:
        database.execute("drop function public.test_cancel() cascade")
        database.execute("delete from app.webhook_events where message_id like 'msg_retry_%'")
        database.execute("delete from app.clerk_records where clerk_id like 'role__'")


def test_the_coming_months_have_partitions(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    [[name]] = database.execute(
        "select max(inhrelid::regclass::text) from pg_inherits where inhparent = 'public.audit_logs'::regclass "
        "and inhrelid::regclass::text ~ '_[0-9]+$'"
    ).fetchall()
    database.execute(f"drop table {name}")
    assert run(online, stack, "partitions") == {"made": 1}
    assert run(online, stack, "partitions") == {"made": 0}


def test_each_seal_is_stored_once_with_the_backups(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any], tmp_path: Path
) -> None:
    client = make_app(**(stack.environment | {"BACKUP_URL": tmp_path.as_uri()})).test_client()
    # The entry's time is the start of the next range, because a sealed range accepts no new entries.
    database.execute(
        "insert into public.audit_logs (action, resource_type, created_at) "
        "select 'x', 'x', coalesce(max(range_end), now() - interval '1 hour') from app.audit_seals"
    )
    # In the first hour of a month the entry belongs to the previous month, which has no partition on a new stack.
    database.execute("select app.make_audit_partitions()")
    stored = run(client, stack, "seals")["stored"]
    assert stored >= 1
    stored += run(client, stack, "seals")["stored"]  # new seals only, none a second time
    files = sorted((tmp_path / "seals").iterdir())
    seals = [json.loads(file.read_text()) for file in files]
    assert [file.stem for file in files] == [f"{each['sequence']:012}-{each['seal']}" for each in seals]
    assert len(seals) == stored
    shown = stack.ballast("audit", "verify", "--json", *(word for each in seals for word in ("--seal", each["seal"])))
    assert not [problem for problem in json.loads(shown.stdout)["problems"] if "seal" in problem]


def test_the_seals_job_fails_if_the_chain_lacks_the_newest_stored_seal(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """Someone removed or rewrote seals, or a backup was restored. An operator who knows why accepts it."""
    client = make_app(**(stack.environment | {"BACKUP_URL": tmp_path.as_uri()})).test_client()
    run(client, stack, "seals")
    store = AuditStore(tmp_path.as_uri())
    newest = store.seals()[-1].sequence
    cut = f"{newest + 1:012}-{'0' * 64}"
    (tmp_path / "seals" / f"{cut}.json").write_text("{}")
    response = client.post("/jobs/seals", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert (response.status_code, response.json["type"]) == (409, "urn:problem:ballast:seals-diverged")
    assert store.seals()[-1].name == cut
    store.accept({"seals": [cut], "interventions": [], "reason": "test", "accepted_at": "2026-01-01T00:00:00Z"})
    assert run(client, stack, "seals")["stored"] >= 1


def test_a_month_is_dropped_after_its_receipt_is_stored(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any], tmp_path: Path
) -> None:
    run(make_app(**stack.environment).test_client(), stack, "retention")  # what other tests left
    database.execute(
        "insert into public.audit_logs (action, resource_type, created_at) values ('x.y', 'x', '2019-05-05')"
    )
    database.execute("select app.make_audit_partitions()")
    missing = make_app(**(stack.environment | {"BACKUP_URL": (tmp_path / "not-mounted").as_uri()})).test_client()
    response = missing.post("/jobs/retention", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert (response.status_code, response.json["type"]) == (503, "urn:problem:ballast:store-unavailable")
    assert database.execute("select to_regclass('app.audit_logs_2019_05')").fetchall() != [(None,)]
    client = make_app(**(stack.environment | {"BACKUP_URL": tmp_path.as_uri()})).test_client()
    report = run(client, stack, "retention")
    assert (report["done"], report["dropped_audit_months"]) == (True, 1)
    assert database.execute("select to_regclass('app.audit_logs_2019_05')").fetchall() == [(None,)]
    [receipt] = [json.loads(file.read_text()) for file in (tmp_path / "audit-receipts").iterdir()]
    assert (receipt["kind"], receipt["entries"], receipt["range_start"][:10]) == ("retention", 1, "2019-05-01")


def test_the_seals_job_fails_if_seals_cannot_be_stored(make_app: MakeApp, stack: Stack, tmp_path: Path) -> None:
    client = make_app(**(stack.environment | {"BACKUP_URL": (tmp_path / "not-mounted").as_uri()})).test_client()
    response = client.post("/jobs/seals", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert (response.status_code, response.json["type"]) == (503, "urn:problem:ballast:store-unavailable")
    without = make_app(**(stack.environment | {"BACKUP_URL": None})).test_client()
    assert run(without, stack, "seals") == {"stored": 0, "unconfigured": ["BACKUP_URL"]}


def test_a_retried_event_invalidates_the_cache(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    client = make_app(**stack.environment).test_client()
    sent = stack.ballast("clerk", "send", "user.created", "--data", '{"id": "user_late", "first_name": "Early"}')
    assert sent.returncode == 0
    headers = as_caller(stack.token("user_late"))

    def name() -> str:
        return str(client.get("/api/v1/me", headers=headers).json["profile"]["full_name"]).split()[0]

    assert name() == "Early"
    # Simulates a later event that the database failed to apply.
    soon = (int(time.time()) + 3600) * 1000
    database.execute(
        "insert into app.webhook_events (message_id, type, event, outcome, error, attempts, next_attempt_at) "
        "select 'msg_late', 'user.updated', jsonb_set(e.event, '{data}', e.event -> 'data' || %s) || %s, 'failed', 'XX000', 1, now() "
        "from app.webhook_events as e where e.type = 'user.created' and e.event -> 'data' ->> 'id' = 'user_late'",
        [
            json.dumps({"first_name": "Late", "updated_at": soon}),
            json.dumps({"type": "user.updated", "timestamp": soon}),
        ],
    )
    assert name() == "Early"
    assert run(client, stack, "retry-events") == {"processed": 1}
    assert name() == "Late"


def test_the_sample_job_counts_differences_and_changes_nothing(
    make_app: MakeApp, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    client = make_app(**stack.environment).test_client()
    assert stack.ballast("clerk", "reconcile", "--fix", "--yes-delete-many").returncode == 0
    report = run(client, stack, "reconcile-sample")
    assert report["differing"] == {}
    assert report["compared"].keys() >= {"user", "organization", "membership", "invitation", "role", "subscription"}
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


def test_the_sample_job_names_a_missing_database_url(make_app: MakeApp, stack: Stack) -> None:
    client = make_app(**(stack.environment | {"DATABASE_URL": None, "BACKUP_URL": None})).test_client()
    assert run(client, stack, "reconcile-sample") == {"compared": {}, "differing": {}, "unconfigured": ["DATABASE_URL"]}
