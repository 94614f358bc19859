"""`ops.schedule_jobs()`: the jobs that it schedules, with stand-ins for pg_cron, pg_net and Supabase's vault."""

from __future__ import annotations

import re

import psycopg
import pytest

from service.jobs import find_jobs
from tests.conftest import ROOT, Database

STAND_INS = """
    create schema cron;
    create table cron.job (jobname text primary key, schedule text, command text);
    create function cron.schedule(name text, schedule text, command text) returns bigint language sql
    as $$ insert into cron.job values ($1, $2, $3) on conflict (jobname) do update set schedule = $2, command = $3 returning 1 $$;
    create function cron.unschedule(job_name text) returns boolean language sql as $$ delete from cron.job where jobname = $1 returning true $$;
    create schema vault;
    create table vault.decrypted_secrets (name text, decrypted_secret text);
    insert into vault.decrypted_secrets values ('jobs_token', 'the token');
    create schema net;
    create table net.calls (url text, headers jsonb);
    create function net.http_post(url text, body jsonb default '{}', params jsonb default '{}', headers jsonb default '{}', timeout_milliseconds int default 5000)
    returns bigint language sql as $$ insert into net.calls values ($1, $4) returning 1 $$;
"""


def test_each_job_is_scheduled_once_and_calls_the_service_with_the_token(database: Database) -> None:
    database.execute(STAND_INS)
    for url in ("https://old.example.com", "https://api.example.com"):
        scheduled = database.rows("select job from ops.schedule_jobs(%s)", url)
    assert {job for (job,) in scheduled} == find_jobs().keys() - {"backup"}
    commands = database.rows("select jobname, command from cron.job")
    assert {name for name, _ in commands} == {f"ballast {job}" for (job,) in scheduled}
    for _, command in commands:
        assert "the token" not in command
        database.execute(command)
    calls = database.rows("select url, headers ->> 'Authorization' from net.calls")
    assert set(calls) == {(f"https://api.example.com/jobs/{job}", "Bearer the token") for (job,) in scheduled}


def test_the_schedule_of_a_removed_job_is_removed(database: Database) -> None:
    database.execute(STAND_INS)
    database.execute("select cron.schedule('ballast vacuum', '0 1 * * *', 'vacuum')")
    schedule_reminders(database)
    database.execute("select from ops.schedule_jobs('https://api.example.com')")
    jobs = "select jobname from cron.job where jobname in ('ballast vacuum', 'ballast send-reminders') order by 1"
    assert database.rows(jobs) == [("ballast send-reminders",), ("ballast vacuum",)]
    database.execute("delete from app.job_schedules where name = 'send-reminders'")
    database.execute("select from ops.schedule_jobs('https://api.example.com')")
    assert database.rows(jobs) == [("ballast vacuum",)]


def schedule_reminders(database: Database, schedule: str = "0 8 * * *") -> None:
    database.execute(
        "select app.schedule_job('send-reminders', interval '1 day', %s, 'Reminds clients of invoices.')", schedule
    )


def test_a_products_job_stays_and_a_removed_job_of_ballast_goes(database: Database) -> None:
    file = (ROOT / "functions/7_service/job_schedules.sql").read_text()
    before = database.rows("select name, added_at from app.job_schedules order by name")
    schedule_reminders(database, "0 9 * * *")
    schedule_reminders(database)
    [entry] = [line for line in file.splitlines() if line.startswith("  ('seals', ")]
    database.connection.execute(file.replace(f"{entry}\n", "").encode())
    after = database.rows("select name, added_at from app.job_schedules where name <> 'send-reminders' order by name")
    assert after == [row for row in before if row[0] != "seals"]
    assert database.rows("select every = '1 day', schedule from ops.job_schedule where name = 'send-reminders'") == [
        (True, "0 8 * * *")
    ]


@pytest.mark.parametrize("name", ["backup", "Send", "send_reminders", ""])
def test_a_name_that_no_job_can_have_is_refused(database: Database, name: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        database.execute("select app.schedule_job(%s, '1 day', '0 8 * * *', 'Reminds clients.')", name)


@pytest.mark.parametrize("schedule", ["daily", "0 8 * *", "0 8 * * *\n* * * * *", "30 seconds"])
def test_what_is_not_a_cron_schedule_is_refused(database: Database, schedule: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        schedule_reminders(database, schedule)


def test_without_the_extensions_the_error_explains_how_to_enable_them(database: Database) -> None:
    with pytest.raises(psycopg.DatabaseError, match="pg_cron, pg_net or the vault is not installed"):
        database.execute("select ops.schedule_jobs('https://api.example.com')")


@pytest.mark.parametrize(
    "url", ["", "api.example.com", "https://api.example.com/", "https://a'); drop table x; --", "https://a b", None]
)
def test_a_url_that_is_not_valid_is_refused(database: Database, url: str | None) -> None:
    database.execute(STAND_INS)
    with pytest.raises(psycopg.DatabaseError, match="without a path"):
        database.execute("select ops.schedule_jobs(%s)", url)


def test_docs_jobs_states_the_interval_of_each_job(database: Database) -> None:
    minutes = {"every minute": 1, "every 5 minutes": 5, "hourly": 60, "daily": 24 * 60}
    page = (ROOT / "docs/jobs.md").read_text()
    lines = re.findall(r"^\| `([a-z-]+)` \| ([a-z0-9 ]+) \|", page, re.MULTILINE)
    documented = {name: minutes[interval] for name, interval in lines}
    every = "select name, extract(epoch from every)::integer / 60 from app.job_schedules where shipped"
    assert documented == dict(database.rows(every))
