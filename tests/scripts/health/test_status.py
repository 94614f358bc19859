"""`ballast status`: traffic lights for any database, and the services of a local stack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast
from scripts.health import doctor, traffic_lights
from scripts.health.context import Context
from scripts.schema import sql_files
from tests.conftest import Stack
from tests.service.conftest import MakeApp, log, make_app
from tests.service.outside import running_outside

__all__ = ["log", "make_app"]  # fixtures of the service's tests
OURS = {"migrations", "access", "backup", "erasure", "job", "role", "server", "storage", "structure", "webhook"}


class Elsewhere:
    """Runs the command on a database that does not belong to a local stack."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.home = home

    def execute(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode(), values or None)

    def run(self, *words: str, **changes: str | None) -> Result:
        variables: dict[str, str | None] = {
            "BALLAST_HOME": str(self.home), "BALLAST_PORT_BASE": "40000", "DATABASE_URL": self.url,
        }  # fmt: skip
        return CliRunner().invoke(ballast, ["status", *words], env=variables | changes)

    def check(self, name: str) -> dict[str, Any]:
        shown = json.loads(self.run("--json").stdout)
        (found,) = [each for each in shown["checks"] if each["name"] == name]
        return dict(found)

    def back_up(self) -> None:
        """Records a backup that a drill has proven."""
        self.execute(
            "insert into public.backup_logs (filename, backup_type, status, finished_at, drilled_at, drill_passed) "
            "values ('database/x', 'automated', 'completed', now(), now(), true)"
        )


@pytest.fixture
def elsewhere(populated_database: str, new_database: Callable[..., str], tmp_path: Path) -> Elsewhere:
    return Elsewhere(new_database(populated_database), tmp_path / "home")


def test_a_fresh_stack_shows_its_services_and_no_red_light(fresh_stack: Stack) -> None:
    status = fresh_stack.ballast("status", "--json")
    shown = json.loads(status.stdout)
    assert status.returncode == 0, status.stdout
    assert {part["state"] for part in shown["parts"]} == {"healthy"}
    assert shown["running"]
    assert {check["name"] for check in shown["checks"]} >= OURS | {"disk"}
    assert shown["status"] in {"green", "yellow"}
    plain = fresh_stack.ballast("status")
    assert plain.returncode == 0
    assert all(word in plain.stdout for word in ("postgres", "healthy", "webhook", "migrations"))


def test_without_a_stack_or_a_database_only_the_services_are_shown(tmp_path: Path) -> None:
    result = Elsewhere("", tmp_path / "home").run("--json", DATABASE_URL=None)
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["checks"]) == (1, [])
    assert {part["state"] for part in shown["parts"]} == {"down"}


def test_another_database_shows_no_services_and_no_red_light(elsewhere: Elsewhere) -> None:
    elsewhere.back_up()
    shown = json.loads(elsewhere.run("--json").stdout)
    assert shown["parts"] == []
    assert {check["name"]: check["status"] for check in shown["checks"] if check["status"] == "red"} == {}
    assert elsewhere.run().exit_code == 0


def test_the_option_overrides_the_environment(elsewhere: Elsewhere) -> None:
    result = elsewhere.run("--json", "--database-url", elsewhere.url, DATABASE_URL="postgresql://unknown@127.0.0.1:9/x")
    assert len(json.loads(result.stdout)["checks"]) >= len(OURS)


def test_a_clerk_instance_that_is_not_pinned_is_yellow(elsewhere: Elsewhere) -> None:
    found = elsewhere.check("clerk")
    assert (found["status"], "set clerk_instance_id" in found["advice"]) == ("yellow", True)
    assert_doctor_agrees(elsewhere)
    elsewhere.execute("update app.settings set clerk_instance_id = 'ins_1'")
    assert (elsewhere.check("clerk")["status"], elsewhere.check("clerk")["facts"]) == ("green", {"instance": "ins_1"})


def test_a_missing_backup_is_red_in_production_and_yellow_locally(elsewhere: Elsewhere) -> None:
    result = elsewhere.run()
    assert result.exit_code == 1
    assert "There is no backup" in result.stdout
    found = traffic_lights.run_checks(elsewhere.url, is_local=True, environment={})
    lights = {check.name: check.status for check in found}
    assert lights["backup"] == "yellow"


@pytest.mark.parametrize(("breaking", "name", "words"), [
    ("insert into app.erasure_log (subject_hash, person, requested_by, requested_at) values "
     "(repeat('a', 64), (null, 'user_x', null), 'person', now() - interval '20 days')", "erasure", "resume"),
    ("update app.webhook_events set received_at = now() - interval '2 days' where outcome = 'failed'", "webhook", "ballast inbox retry"),
    ("insert into app.job_runs (name, failures, duration_ms) values ('retention', 3, 1)", "job", "ops.jobs"),
    ("alter table public.specimens disable row level security", "access", "ops.rls_coverage"),
    ("alter table public.audit_logs disable trigger append_only", "structure", "`ballast migrate up`"),
    ("drop index public.specimens_created_by_idx", "structure", "The index specimens_created_by_idx on public.specimens is missing."),
    ("alter default privileges in schema public grant select on tables to anon", "role", "revoke all on tables from anon"),
    ("update app.applied_sources set checksum = 'x' where path like '%/caller.sql'", "migrations", "ballast migrate up"),
    ("update supabase_migrations.schema_migrations set statements = '{x}' where version like '%230100'", "migrations", "ballast migrate status"),
])  # fmt: skip
def test_each_problem_is_red_and_has_advice(elsewhere: Elsewhere, breaking: str, name: str, words: str) -> None:
    """In `status` and in `doctor`."""
    elsewhere.back_up()
    assert elsewhere.run().exit_code == 0
    elsewhere.execute(breaking)
    found = elsewhere.check(name)
    assert (found["status"], words in found["advice"]) == ("red", True), found
    result = elsewhere.run()
    assert (result.exit_code, words in result.stdout) == (1, True)
    assert_doctor_agrees(elsewhere)


def assert_doctor_agrees(elsewhere: Elsewhere) -> None:
    """Each light of `status` is a check of `doctor`: red fails, yellow warns, with the same advice."""
    lights = {
        f"light: {each['name']}": (each["status"], each["advice"])
        for each in json.loads(elsewhere.run("--json").stdout)["checks"]
    }
    found = {each.name: each for each in doctor.read_lights(Context({"DATABASE_URL": elsewhere.url}, None))}
    assert {name: (each.outcome, each.remedy or "OK.") for name, each in found.items()} == {
        name: (doctor.OUTCOMES[status], advice if status != "green" else "OK.")
        for name, (status, advice) in lights.items()
    }


@pytest.mark.parametrize(("breaking", "name"), [
    ("update app.job_schedules set added_at = now() - interval '1 hour'", "job"),
    ("insert into app.refused_deliveries (sender, reason, hour, deliveries) values ('clerk', 'signature', now(), 3)", "webhook"),
    ("update app.settings set operator_email = 'ops@example.com'", "mail"),
    ("insert into app.erasure_log (subject_hash, person, requested_by, requested_at) values "
     "(repeat('a', 64), (null, 'user_x', null), 'clerk', now() - interval '2 hours')", "erasure"),
    ("insert into app.lost_records (kind, relation, error, day, backend, lost) values "
     "('broadcast', 'public.specimens', '23514', current_date, 1, 2)", "realtime"),
])  # fmt: skip
def test_a_yellow_light_is_a_warning_of_the_doctor(elsewhere: Elsewhere, breaking: str, name: str) -> None:
    elsewhere.back_up()
    elsewhere.execute("delete from app.webhook_events where outcome = 'failed'")
    elsewhere.execute("delete from app.email_outbox")
    elsewhere.execute("update app.settings set mail_enabled = false, operator_email = null")
    assert elsewhere.check(name)["status"] == "green"
    elsewhere.execute(breaking)
    assert elsewhere.check(name)["status"] == "yellow"
    assert elsewhere.run().exit_code == 0
    assert_doctor_agrees(elsewhere)


@pytest.mark.parametrize(("free", "light"), [(3e9, "green"), (1e9, "yellow"), (1e8, "red")])
def test_a_local_disk_that_fills_is_reported(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, free: float, light: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    checks = traffic_lights.run_checks(elsewhere.url, is_local=True, environment={})
    [found] = [check for check in checks if check.name == "disk"]
    assert (found.status, found.facts) == (light, {"free": f"{free / 1e9:.1f} GB"})
    assert light == "green" or found.advice.endswith("is almost full: delete files on it.")


def test_your_own_health_view_is_shown(elsewhere: Elsewhere) -> None:
    elsewhere.execute(
        "create view ops.invoice_health as select 3 as overdue, interval '90 minutes' as age, 'yellow' as status, 'Remind [them].' as advice"
    )
    assert elsewhere.check("invoice") == {
        "name": "invoice", "status": "yellow", "advice": "Remind [them].", "facts": {"overdue": 3, "age": 5400.0},
    }  # fmt: skip
    line = next(line for line in elsewhere.run().stdout.splitlines() if "invoice" in line)
    assert all(word in line for word in ("yellow", "overdue 3, age 90 min", "Remind [them]."))


def test_a_database_without_our_schema_has_pending_migrations(new_database: Callable[..., str], tmp_path: Path) -> None:
    fresh = Elsewhere(new_database(), tmp_path / "home")
    result = fresh.run("--json")
    (check,) = json.loads(result.stdout)["checks"]
    assert (result.exit_code, check["name"], check["status"]) == (1, "migrations", "red")
    assert check["facts"]["pending"] == len(sql_files.read_files(sql_files.ROOT).migrations) + len(
        sql_files.read_files(sql_files.ROOT).sources
    )


def test_an_unreachable_database_is_red_and_its_password_is_hidden(tmp_path: Path) -> None:
    result = Elsewhere("postgresql://postgres:tr0ub4dor@127.0.0.1:9/postgres", tmp_path / "home").run()
    assert result.exit_code == 1
    assert "does not answer" in result.stdout
    assert "tr0ub4dor" not in result.output


def test_facts_omit_null_and_zero() -> None:
    facts = {"failed": 0, "oldest": None, "enabled": False, "received_24h": 7}
    assert traffic_lights.format_facts(facts) == "enabled no, received 24h 7"


def test_the_cache_hit_rate_is_shown_if_the_service_is_configured(elsewhere: Elsewhere, stack: Stack) -> None:
    headers = {"Authorization": f"Bearer {stack.token('user_ada', 'org_acme')}"}
    for _ in range(5):
        assert httpx.get(f"{stack.environment['SERVICE_URL']}/api/v1/me", headers=headers).is_success
    shown = json.loads(stack.ballast("status", "--json").stdout)
    [cache] = [check for check in shown["checks"] if check["name"] == "cache"]
    assert cache["facts"]["hits"] >= 4
    assert 0 < int(cache["facts"]["hit_rate"].removesuffix("%")) <= 100
    environment = {name: stack.environment[name] for name in ("SERVICE_URL", "METRICS_TOKEN")}
    shown = json.loads(elsewhere.run("--json", **environment).stdout)
    assert [check["status"] for check in shown["checks"] if check["name"] == "cache"] == ["green"]


@pytest.mark.parametrize(("lines", "status"), [
    (b'ballast_cache_total{what="hits"} 80\nballast_cache_total{what="errors"} 20\n', "yellow"),
    (b'ballast_cache_total{what="hits"} 95\nballast_cache_total{what="errors"} 5\n', "green"),
    (b"", "green"),
    (b"<h1>Welcome</h1>", "yellow"),
    (b'ballast_redis_up{state="hanging"} 0\n', "yellow"),
    (b'ballast_redis_up{state="up"} 1\n', "green"),
])  # fmt: skip
def test_a_cache_whose_redis_fails_is_yellow(lines: bytes, status: str) -> None:
    with running_outside() as service:
        service.answer = lambda *_: (200, {}, lines)
        found = traffic_lights.check_cache({"SERVICE_URL": service.url, "METRICS_TOKEN": "x"})
    assert found is not None
    assert found.status == status


def test_a_hanging_redis_of_the_service_is_called_so(make_app: MakeApp, silent_server: str) -> None:
    app = make_app(UPSTASH_REDIS_REST_URL=silent_server, METRICS_TOKEN="m" * 32)
    with running_outside() as service:
        headers = {"Authorization": f"Bearer {'m' * 32}"}
        service.answer = lambda path, *_: (200, {}, app.test_client().get(path, headers=headers).data)
        found = traffic_lights.check_cache({"SERVICE_URL": service.url, "METRICS_TOKEN": "m" * 32})
    assert found is not None
    assert (found.status, found.advice.startswith("Redis hangs: ")) == ("yellow", True)


def test_a_service_that_does_not_answer_is_yellow() -> None:
    found = traffic_lights.check_cache({"SERVICE_URL": "http://127.0.0.1:9", "METRICS_TOKEN": "x"})
    assert found is not None
    assert (found.status, "METRICS_TOKEN" in found.advice) == ("yellow", True)
