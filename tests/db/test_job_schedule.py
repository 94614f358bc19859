"""`ops.schedule_jobs()`: the jobs that it schedules, with stand-ins for pg_cron, pg_net and Supabase's vault."""

from __future__ import annotations

import re

import psycopg
import pytest

from service.jobs import JOBS
from tests.conftest import ROOT, Database

STAND_INS = """
    create schema cron;
    create table cron.job (name text primary key, schedule text, command text);
    create function cron.schedule(name text, schedule text, command text) returns bigint language sql
    as $$ insert into cron.job values ($1, $2, $3) on conflict (name) do update set schedule = $2, command = $3 returning 1 $$;
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
    assert {job for (job,) in scheduled} == JOBS.keys() - {"backup"}
    commands = database.rows("select name, command from cron.job")
    assert {name for name, _ in commands} == {f"ballast {job}" for (job,) in scheduled}
    for _, command in commands:
        assert "the token" not in command
        database.execute(command)
    calls = database.rows("select url, headers ->> 'Authorization' from net.calls")
    assert set(calls) == {(f"https://api.example.com/jobs/{job}", "Bearer the token") for (job,) in scheduled}


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
    every = "select name, extract(epoch from every)::integer / 60 from ops.job_schedule where schedule is not null"
    assert documented == dict(database.rows(every))
