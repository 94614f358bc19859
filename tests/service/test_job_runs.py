"""Every job run is recorded in the database: ops.jobs shows when a job last ran and its outcome."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from service.components import Components
from service.data_api import CallFailed
from service.jobs import retention
from tests.conftest import Stack
from tests.service.conftest import MakeApp
from tests.service.test_personal_data import as_caller


@pytest.fixture
def database(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection
        connection.execute("delete from app.job_runs")


def read_report(database: psycopg.Connection[Any], job: str) -> tuple[Any, ...] | None:
    return database.execute("select failures, last_report from ops.jobs where name = %s", [job]).fetchone()


def test_a_run_is_recorded_with_its_report(
    online: FlaskClient, stack: Stack, database: psycopg.Connection[Any]
) -> None:
    answer = online.post("/jobs/erasures", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert answer.status_code == 200
    assert read_report(database, "erasures") == (0, answer.json)
    (recent,) = database.execute(
        "select last_run_at > now() - interval '1 minute' and duration_ms < 60000 from app.job_runs where name = 'erasures'"
    ).fetchone() or (None,)
    assert recent is True
    [[skew]] = database.execute("select clock_skew from app.job_runs where name = 'erasures'").fetchall()
    assert abs(skew.total_seconds()) < 30


@pytest.mark.parametrize(("failure", "status"), [(CallFailed("f", "57014"), 503), (ZeroDivisionError("Ada"), 500)])
def test_a_failed_run_is_recorded_with_its_error_class_only(
    make_app: MakeApp,
    stack: Stack,
    database: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    status: int,
) -> None:
    def fails(_: Components) -> dict[str, Any]:
        raise failure

    monkeypatch.setattr(retention, "run", fails)
    client = make_app(**stack.environment).test_client()
    answer = client.post("/jobs/retention", headers=as_caller(stack.environment["JOBS_TOKEN"]))
    assert answer.status_code == status
    assert read_report(database, "retention") == (1, {"error": type(failure).__name__})


@pytest.mark.parametrize(
    ("report", "error"),
    [(None, "TypeError"), ({"at": date(2026, 1, 31)}, "TypeError"), ({"rate": math.nan}, "ValueError")],
)
def test_a_run_without_a_report_that_can_be_recorded_has_failed(
    make_app: MakeApp,
    stack: Stack,
    database: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    report: object,
    error: str,
) -> None:
    monkeypatch.setattr(retention, "run", lambda _: report)
    client = make_app(**stack.environment).test_client()
    assert client.post("/jobs/retention", headers=as_caller(stack.environment["JOBS_TOKEN"])).status_code == 500
    assert read_report(database, "retention") == (1, {"error": error})
