"""`ballast doctor`: every check passes on a running stack, and finds the problem that a test creates."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast
from scripts.cli.doctor import local_stack
from scripts.health import checks_database, checks_service
from scripts.health.context import Context, Finding
from scripts.health.doctor import CHECKS, run_check
from tests.conftest import ROOT, Stack
from tests.schema import remove
from tests.scripts.backup.test_clocks import fake_clock
from tests.scripts.health.conftest import list_role_keys_of_the_product
from tests.service.outside import Answer, Outside, OutsideHandler, rest_answer, running_outside

UNUSED_URL = "http://127.0.0.1:9"
PLACE = ("BALLAST_HOME", "BALLAST_PORT_BASE")
Examine = Callable[..., Finding]


def jwt(role: object) -> str:
    """Returns an unsigned JWT, as an older Supabase key or a session token, with this role."""
    claims = base64.urlsafe_b64encode(json.dumps({"role": role}).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJIUzI1NiJ9.{claims}.signature"


@pytest.fixture
def outside() -> Iterator[Outside]:
    with running_outside() as server:
        yield server


@pytest.fixture
def examine(fresh_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Runs one check on the running stack with changed variables; None removes a variable."""
    for name in PLACE:
        monkeypatch.setenv(name, fresh_stack.environment[name])

    def examine_with(check: str, *, url: str | None = None, session_token: str | None = None, may_write: bool = False, **changes: str | None) -> Finding:  # fmt: skip
        changed = fresh_stack.environment | changes
        environment = {name: value for name, value in changed.items() if value is not None}
        return run_check(
            check,
            Context(
                environment, url, session_token=session_token, local=local_stack(environment, url), may_write=may_write
            ),
        )

    return examine_with


def require_failure(finding: Finding, *words: str) -> None:
    """Asserts that the check failed with these words, and has a remedy."""
    assert finding.outcome == "failed", finding
    assert finding.remedy, finding
    assert all(word in f"{finding.found} {finding.remedy}" for word in words), finding


# --- all checks ---


def test_a_running_stack_passes_every_check(fresh_stack: Stack) -> None:
    result = fresh_stack.ballast("doctor", "--write", "--json")
    findings = json.loads(result.stdout)
    outside = findings[: len(CHECKS)]
    assert [each for each in outside if each["outcome"] != "passed"] == []
    assert [each["name"] for each in outside] == list(CHECKS)
    lights = findings[len(CHECKS) :]
    assert {each["name"] for each in lights} >= {"light: webhook", "light: job", "light: role", "light: cache"}
    assert [each for each in lights if each["outcome"] not in {"passed", "warning"}] == []
    assert result.returncode == 0


def test_no_output_contains_a_secret(fresh_stack: Stack) -> None:
    result = fresh_stack.ballast("doctor")
    assert result.returncode == 0, result.stdout
    hidden = [
        value for name, value in fresh_stack.environment.items()
        if name.endswith(("_KEY", "_TOKEN", "_SECRETS", "_IDENTITY", "DATABASE_URL")) and "PUBLISHABLE" not in name
    ]  # fmt: skip
    assert len(hidden) >= 8
    assert [value for value in hidden if value in result.stdout + result.stderr] == []


@pytest.mark.thorough
def test_checks_without_their_variables_are_skipped_with_a_reason(hosted_database: str, tmp_path: Path) -> None:
    url = f"{hosted_database}?sslmode=disable"
    place = {"BALLAST_HOME": str(tmp_path / "home"), "BALLAST_PORT_BASE": "40000", "DATABASE_URL": url}
    result: Result = CliRunner().invoke(ballast, ["doctor", "--json"], env=place)
    findings = {each["name"]: each for each in json.loads(result.stdout)}
    passed = {name for name, each in findings.items() if each["outcome"] == "passed"}
    assert {name for name in passed if not name.startswith("light: ")} == {
        "migrations",
        "mail kinds",
        "advisors",
        "pg_dump",
        "clocks",
    }
    assert {name for name, each in findings.items() if each["outcome"] == "failed"} == {"settings", "light: backup"}
    assert findings["backup store"]["found"] == "BACKUP_URL is not set."
    assert result.exit_code == 1
    plain = CliRunner().invoke(ballast, ["doctor"], env=place)
    assert all(word in plain.stdout for word in ("skipped", "failed", "→ Set them as .env.example describes"))


def test_without_a_database_its_checks_are_skipped(tmp_path: Path) -> None:
    context = Context({}, None)
    assert {run_check(name, context).outcome for name in CHECKS if name != "settings"} == {"skipped"}


def test_a_secret_in_an_error_response_is_redacted(examine: Examine, fresh_stack: Stack, outside: Outside) -> None:
    secret = fresh_stack.environment["SUPABASE_SECRET_KEY"]
    outside.answer = lambda *_: rest_answer({"message": f"unknown key {secret}"}, 401)
    finding = examine("secret key", SUPABASE_URL=outside.url)
    require_failure(finding, "unknown key …")
    assert secret not in str(finding)


def test_an_unreachable_database_is_reported_without_its_password(examine: Examine) -> None:
    finding = examine("pg_dump", url="postgresql://postgres:tr0ub4dor@127.0.0.1:9/postgres")
    require_failure(finding, "does not answer")
    assert "tr0ub4dor" not in str(finding)


# --- one broken part at a time ---


@pytest.mark.parametrize(("check", "changes", "words"), [
    ("settings", {"JOBS_TOKEN": "short-one"}, ["JOBS_TOKEN", ".env.example"]),
    ("settings", {"SUPABASE_URL": None, "CLERK_ISSUER": ""}, ["SUPABASE_URL is missing", "CLERK_ISSUER is missing"]),
    ("keys", {"SUPABASE_PUBLISHABLE_KEY": "sb_secret_something"}, ["SUPABASE_PUBLISHABLE_KEY", "revoke"]),
    ("keys", {"SUPABASE_PUBLISHABLE_KEY": jwt("service_role")}, ["SUPABASE_PUBLISHABLE_KEY", "revoke"]),
    ("keys", {"SUPABASE_SECRET_KEY": "sb_publishable_something"}, ["SUPABASE_SECRET_KEY is not a secret key"]),
    ("keys", {"SUPABASE_SECRET_KEY": jwt("anon")}, ["SUPABASE_SECRET_KEY is not a secret key"]),
    ("keys", {"SUPABASE_SECRET_KEY": "eyJnothing"}, ["SUPABASE_SECRET_KEY is not a secret key"]),
    ("keys", {"ENVIRONMENT": "production"}, ["development instance", "sk_live_"]),
    ("Clerk's keys", {"CLERK_ISSUER": UNUSED_URL}, ["ConnectError"]),
    ("publishable key", {"SUPABASE_PUBLISHABLE_KEY": "sb_publishable_wrong"}, ["SUPABASE_PUBLISHABLE_KEY"]),
    ("publishable key", {"SUPABASE_URL": UNUSED_URL}, ["ConnectError"]),
    ("secret key", {"SUPABASE_SECRET_KEY": "sb_secret_wrong_wrong"}, ["SUPABASE_SECRET_KEY"]),
    ("JWT templates", {"CLERK_SECRET_KEY": "sk_test_wrong_wrong"}, ["401", "CLERK_SECRET_KEY"]),
    ("JWT templates", {"CLERK_API_URL": UNUSED_URL}, ["ConnectError"]),
    ("backup store", {"BACKUP_URL": "file:///nowhere/at/all"}, ["BACKUP_URL", "The folder /nowhere/at/all does not exist: create it"]),
    ("recipients", {"BACKUP_RECIPIENTS": "age1nonsense"}, ["Recipient 1", "age"]),
    ("recipients", {"BACKUP_RECIPIENTS": None, "ENVIRONMENT": "production"}, ["no backup is created", "age-keygen"]),
    ("service", {"SERVICE_URL": UNUSED_URL}, ["ConnectError"]),
    ("webhook secret", {"CLERK_WEBHOOK_SECRETS": "whsec_" + "QUFB" * 8}, ["secret 1 of 1", "401", "CLERK_WEBHOOK_SECRETS"]),
    ("webhook secret", {"CLERK_WEBHOOK_SECRETS": "whsec_!"}, ["not base64"]),
    ("jobs", {"JOBS_TOKEN": "a" * 32}, ["rejects JOBS_TOKEN with 40"]),
    ("Redis", {"UPSTASH_REDIS_REST_TOKEN": "wrong-wrong"}, ["Upstash"]),
    ("Redis", {"UPSTASH_REDIS_REST_URL": UNUSED_URL}, ["ConnectError"]),
], ids=str)  # fmt: skip
def test_a_wrong_variable_is_found(
    examine: Examine, check: str, changes: dict[str, str | None], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
    assert examine(check).outcome == "passed"
    finding = examine(check, **changes)
    require_failure(finding, *words)
    assert "short-one" not in str(finding)


def test_older_keys_that_are_jwts_are_recognized(examine: Examine) -> None:
    keys = {"SUPABASE_PUBLISHABLE_KEY": jwt("anon"), "SUPABASE_SECRET_KEY": jwt("service_role")}
    assert examine("keys", **keys).outcome == "passed"


def test_of_two_webhook_secrets_the_wrong_one_is_named(examine: Examine, fresh_stack: Stack) -> None:
    both = f"{fresh_stack.environment['CLERK_WEBHOOK_SECRETS']}, whsec_{'QUFB' * 8}"
    require_failure(examine("webhook secret", CLERK_WEBHOOK_SECRETS=both), "secret 2 of 2")


def test_a_ping_changes_nothing_but_the_inbox(examine: Examine, fresh_stack: Stack) -> None:
    query = "select type, outcome from app.webhook_events where message_id like 'msg_ballast_doctor_%' and received_at > now() - interval '1 minute'"
    with psycopg.connect(fresh_stack.environment["DATABASE_URL"], autocommit=True) as connection:
        before = connection.execute(query).fetchall()
        assert examine("webhook secret").outcome == "passed"
        assert connection.execute(query).fetchall()[len(before) :] == [("ballast.ping", "ignored")]


@pytest.mark.parametrize(("check", "variable", "answer", "words"), [
    ("Clerk's keys", "CLERK_ISSUER", rest_answer({"keys": []}), ["no key for RS256"]),
    ("Clerk's keys", "CLERK_ISSUER", rest_answer({"keys": [{"kty": "EC", "kid": "a"}]}), ["no key for RS256"]),
    ("Clerk's keys", "CLERK_ISSUER", (404, {}, b"<html>"), ["404", "Frontend API URL"]),
    ("publishable key", "SUPABASE_URL", rest_answer([{"role": "owner"}]), ["Anonymous callers", "drifted"]),
    ("publishable key", "SUPABASE_URL", (502, {}, b"<html>bad gateway"), ["502"]),
    ("secret key", "SUPABASE_URL", rest_answer({"code": "PGRST202", "message": "no function"}, 404), ["no function", "migrate up"]),
    ("third-party auth", "SUPABASE_URL", rest_answer({"code": "PGRST301", "message": "No suitable key"}, 401), ["No suitable key", "Third-party auth"]),
    ("third-party auth", "SUPABASE_URL", rest_answer({"code": "PGRST303", "message": "JWT issued at future"}, 401), ["for its time", "clock skew"]),
    ("third-party auth", "SUPABASE_URL", rest_answer({"code": "PGRST303", "message": "JWT expired"}, 401), ["for its time", "clock skew"]),
    ("Clerk roles", "CLERK_API_URL", rest_answer({"errors": []}, 401), ["Clerk returns 401", "CLERK_SECRET_KEY"]),
    ("JWT templates", "CLERK_API_URL", rest_answer([{"name": "odd", "claims": {"role": "service_role"}}]), ["authenticated", "odd"]),
    ("JWT templates", "CLERK_API_URL", rest_answer([{"name": "odd", "claims": {"role": "{{user.public_metadata.role}}"}}]), ["odd", "remove"]),
    ("Clerk instance", "CLERK_API_URL", rest_answer({"object": "instance"}), ["Clerk returns 200", "CLERK_API_URL"]),
    ("Clerk instance", "CLERK_API_URL", rest_answer({"errors": []}, 401), ["Clerk returns 401", "CLERK_SECRET_KEY"]),
    ("JWT templates", "CLERK_API_URL", rest_answer({"data": []}), ["Clerk returns 200", "CLERK_API_URL"]),
    ("JWT templates", "CLERK_API_URL", (502, {}, b"<html>bad gateway"), ["502"]),
    ("exposed schemas", "SUPABASE_URL", rest_answer([]), ["exposes the schema app", "exposed schemas"]),
    ("exposed schemas", "SUPABASE_URL", rest_answer({"code": "42501", "message": "permission denied"}, 403), ["exposes the schema app"]),
    ("service", "SERVICE_URL", rest_answer({"detail": "No answer from: data_api."}, 503), ["No answer from: data_api."]),
    ("service", "SERVICE_URL", rest_answer({"status": "ok", "down": ["redis"]}), ["without a cache", "UPSTASH"]),
    ("service", "SERVICE_URL", rest_answer({"status": "ok", "down": ["redis"], "redis": "hanging"}), ["Redis hangs"]),
    ("webhook secret", "SERVICE_URL", rest_answer({"outcome": "ignored"}), ["wrong signature gets 200"]),
    ("webhook secret", "SERVICE_URL", rest_answer({}), ["not the webhook route of the service"]),
    ("jobs", "SERVICE_URL", rest_answer({}), ["without a token"]),
    ("Redis", "UPSTASH_REDIS_REST_URL", rest_answer({"result": "PANG"}), ["Upstash"]),
], ids=str)  # fmt: skip
def test_a_wrong_server_is_found(
    examine: Examine, outside: Outside, check: str, variable: str, answer: Answer, words: list[str]
) -> None:
    outside.answer = lambda *_: answer
    require_failure(examine(check, **{variable: outside.url}), *words)


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ({"undeclared": ["remind-clients"]}, ["does not declare: remind-clients", "app.schedule_job"]),
        ({"missing": ["remind-clients"]}, ["the service does not have: remind-clients", "app.job_schedules"]),
    ],
)
def test_a_job_that_only_the_service_or_only_the_database_has_is_found(
    examine: Examine, outside: Outside, jobs: dict[str, list[str]], words: list[str]
) -> None:
    listed = {"scheduled": [], "undeclared": [], "missing": []} | jobs
    outside.answer = lambda _, headers, __: rest_answer(listed) if "Authorization" in headers else (401, {}, b"{}")
    require_failure(examine("jobs", SERVICE_URL=outside.url), *words)


def test_a_redis_that_accepts_and_never_answers_is_called_hanging(
    examine: Examine, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks_service, "TIMEOUT", httpx.Timeout(0.5))
    require_failure(examine("Redis", UPSTASH_REDIS_REST_URL=silent_server), "Redis hangs", "did not answer", "restart")
    require_failure(examine("Redis", UPSTASH_REDIS_REST_URL=UNUSED_URL), "ConnectError")


@pytest.mark.parametrize(("minutes", "words"), [(-10, "behind that of Clerk"), (10, "ahead of that of Clerk")])
def test_a_clock_that_differs_from_clerks_is_called_clock_skew(
    examine: Examine, outside: Outside, monkeypatch: pytest.MonkeyPatch, minutes: int, words: str
) -> None:
    agreed = examine("clocks")
    assert (agreed.outcome, agreed.found) == (
        "passed",
        "These clocks agree: this machine, the database, the service, Clerk.",
    )
    clerks_time = format_datetime(datetime.now(UTC) - timedelta(minutes=minutes))
    monkeypatch.setattr(OutsideHandler, "date_time_string", lambda *_: clerks_time)
    finding = examine("clocks", CLERK_ISSUER=outside.url)
    require_failure(finding, "Clock skew", words, "NTP")
    assert all(name in finding.found for name in ("this machine", "the database", "the service"))


@pytest.mark.thorough
def test_a_machine_whose_clock_is_wrong_is_named_alone(fresh_stack: Stack) -> None:
    """The whole command, with a clock that is 10 minutes behind."""
    result = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "doctor", "--json"],
        env={**os.environ, **fresh_stack.environment, **fake_clock("-10m")}, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    [clocks] = [each for each in json.loads(result.stdout) if each["name"] == "clocks"]
    assert (result.returncode, clocks["outcome"]) == (1, "failed")
    assert re.fullmatch(
        r"Clock skew: the clock of this machine is (59\d|60\d) seconds behind that of Clerk\.", clocks["found"]
    )


def test_a_token_that_supabase_does_not_trust_is_found(examine: Examine) -> None:
    require_failure(examine("third-party auth", session_token="e30.e30.e30"), "CLERK_ISSUER", "Third-party auth")


@pytest.mark.parametrize("role", ["service_role", "admin", None, ["authenticated"]])
def test_a_session_token_with_another_role_is_found(examine: Examine, role: object) -> None:
    assert examine("role claim", session_token=jwt("authenticated")).outcome == "passed"
    require_failure(examine("role claim", session_token=jwt(role)), json.dumps(role), "Customize session token")


@pytest.mark.parametrize(
    ("keys", "found", "remedy"),
    [
        (["org:admin", "org:member"], "No role in Clerk maps to viewer", "may_be_invited = false where key = 'viewer'"),
        (["org:admin", "org:captain", "org:member", "org:viewer"], "Not mapped, .*: org:captain", "values \\('org:captain', 'member'"),
    ],
)  # fmt: skip
def test_roles_that_clerk_and_the_database_do_not_share_are_warned_of(
    examine: Examine, fresh_stack: Stack, outside: Outside, keys: list[str], found: str, remedy: str
) -> None:
    others = list_role_keys_of_the_product(fresh_stack)
    assert examine("Clerk roles").found == f"{3 + len(others)} in Clerk, each mapped."
    listed = [{"key": key} for key in keys + others]
    outside.answer = lambda *_: rest_answer({"data": listed, "total_count": len(listed)})
    finding = examine("Clerk roles", CLERK_API_URL=outside.url)
    assert finding.outcome == "warning"
    assert re.search(found, finding.found)
    assert re.search(remedy, finding.remedy)


def test_jwt_templates_with_the_expected_role_pass(examine: Examine, outside: Outside) -> None:
    claims: list[dict[str, object]] = [{"role": "authenticated"}, {"aud": "elsewhere"}]
    outside.answer = lambda *_: rest_answer([{"name": f"t{i}", "claims": each} for i, each in enumerate(claims)])
    assert examine("JWT templates", CLERK_API_URL=outside.url).found == "2 in Clerk; none sets another role."


def test_outside_the_local_stack_a_session_token_is_required(examine: Examine) -> None:
    finding = examine("third-party auth", ENVIRONMENT="test")
    assert (finding.outcome, "--session-token" in finding.found) == ("skipped", True)


def test_a_missing_pg_dump_is_found(examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    require_failure(examine("pg_dump"), "No pg_dump", "postgresql-client")


def test_a_bucket_is_written_only_with_write(
    examine: Examine, bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/some/prefix"
    read = examine("backup store", BACKUP_URL=url)
    assert (read.outcome, "not tested" in read.found) == ("passed", True)
    written = examine("backup store", may_write=True, BACKUP_URL=url)
    assert (written.outcome, "writable" in written.found) == ("passed", True)
    require_failure(examine("backup store", BACKUP_URL=f"s3://{bucket}-missing/x"), "BACKUP_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", UNUSED_URL)
    require_failure(examine("backup store", BACKUP_URL=url), "BACKUP_URL", "AWS_")


def test_a_write_test_leaves_no_file(examine: Examine, tmp_path: Path) -> None:
    assert examine("backup store", may_write=True, BACKUP_URL=tmp_path.as_uri()).outcome == "passed"
    assert list(tmp_path.iterdir()) == []


def test_a_single_recipient_gets_a_warning(examine: Examine, fresh_stack: Stack) -> None:
    one = fresh_stack.environment["BACKUP_RECIPIENTS"]
    assert "Add a second" in examine("recipients", ENVIRONMENT="production").found
    assert examine("recipients", ENVIRONMENT="production", BACKUP_RECIPIENTS=f"{one},{one}").found == "2 recipients."


# --- a database that is not the stack's ---


@pytest.fixture
def hosted_database(populated_database: str, new_database: Callable[..., str]) -> str:
    url = new_database(populated_database)
    remove(url)
    return url


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def test_a_database_that_is_behind_or_has_drifted_is_found(
    examine: Examine, hosted_database: str, new_database: Callable[..., str]
) -> None:
    assert examine("migrations", url=hosted_database).outcome == "passed"
    require_failure(examine("migrations", url=new_database()), "Not applied: migrations/", "more", "ballast migrate up")
    execute(hosted_database, "grant select on public.profiles to anon")
    require_failure(
        examine("migrations", url=hosted_database), "grant select on public.profiles to anon", "ballast migrate check"
    )
    execute(
        hosted_database,
        "update supabase_migrations.schema_migrations set statements = '{x}' where version like '%110100'",
    )
    assert examine("migrations", url=hosted_database).outcome == "failed"


def test_a_kind_of_mail_without_matching_templates_is_found(
    examine: Examine, hosted_database: str, new_database: Callable[..., str]
) -> None:
    assert examine("mail kinds", url=new_database()).outcome == "skipped"
    assert examine("mail kinds", url=hosted_database).outcome == "passed"
    execute(hosted_database, "select app.register_mail_kind('reminder')")
    require_failure(examine("mail kinds", url=hosted_database), "reminder.txt: the file is missing", "app.mail_kinds")
    execute(hosted_database, "delete from app.mail_kinds where kind = 'reminder'")
    execute(hosted_database, "update app.mail_kinds set data_function = 'app.gone' where kind = 'role_changed'")
    require_failure(examine("mail kinds", url=hosted_database), "the data of role_changed is gone")


def test_findings_of_the_advisors_are_reported(examine: Examine, hosted_database: str) -> None:
    execute(hosted_database, "create table public.test_naked (id integer primary key)")
    execute(hosted_database, "grant select on public.test_naked to anon")
    require_failure(examine("advisors", url=f"{hosted_database}?sslmode=disable"), "test_naked", "Advisors")


def test_the_advisors_are_asked_without_a_password_among_the_arguments(
    examine: Examine, hosted_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tmp_path / "arguments"
    program = tmp_path / "supabase"
    program.write_text(f'#!/bin/sh\necho "$@" > {arguments}\nexec {checks_database.ADVISORS} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(checks_database, "ADVISORS", program)
    assert ":test@" in hosted_database
    assert examine("advisors", url=f"{hosted_database}?sslmode=disable").outcome == "passed"
    assert "--remote=postgresql://postgres@127.0.0.1:" in arguments.read_text()


@pytest.mark.parametrize(
    ("check", "name"),
    [("secret key", "SUPABASE_SECRET_KEY"), ("jobs", "JOBS_TOKEN"), ("Redis", "UPSTASH_REDIS_REST_TOKEN")],
)
@pytest.mark.parametrize("value", ["s3crét", "s3c\nret"])
def test_a_malformed_secret_fails_its_check_and_is_not_shown(
    examine: Examine, check: str, name: str, value: str
) -> None:
    finding = examine(check, **{name: value})
    assert finding.outcome == "failed"
    assert "s3c" not in f"{finding.found}{finding.remedy}"


def test_an_instance_that_is_not_pinned_is_found(examine: Examine, fresh_stack: Stack, hosted_database: str) -> None:
    instance = examine("Clerk instance")
    assert (instance.outcome, "Not pinned" in instance.found) == ("passed", True)  # the local stack
    headers = {"Authorization": f"Bearer {fresh_stack.environment['CLERK_SECRET_KEY']}"}
    expected = httpx.get(f"{fresh_stack.environment['CLERK_API_URL']}/v1/instance", headers=headers).json()["id"]
    finding = examine("Clerk instance", url=hosted_database)
    require_failure(finding, "No Clerk instance is pinned", f"set clerk_instance_id = '{expected}'")
    execute(hosted_database, "update app.settings set clerk_instance_id = 'ins_other'")
    require_failure(examine("Clerk instance", url=hosted_database), "ins_other is pinned", expected)
    execute(hosted_database, f"update app.settings set clerk_instance_id = '{expected}'")
    assert examine("Clerk instance", url=hosted_database).outcome == "passed"


def test_the_environment_is_restored(examine: Examine) -> None:
    before: dict[str, Any] = dict(os.environ)
    for check in ("settings", "backup store"):
        examine(check)
    assert dict(os.environ) == before
