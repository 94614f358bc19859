"""`/jobs` with JOBS_TOKEN: a scheduler lists the jobs and runs them."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service import bearer, sentry
from service.components import Components, components
from service.data_api import CallFailed
from service.jobs import Report, compare_with_schedule, find_jobs
from service.problems import Problem

jobs = Blueprint("jobs", __name__, url_prefix="/jobs")


class JobUnknown(Problem, status=404, slug="job-unknown", title="There is no such job"):
    """service/jobs has no job with this name."""


@jobs.get("")
def index() -> ResponseReturnValue:
    """The jobs that a scheduler calls, and where service/jobs and the database differ."""
    _require_token()
    return jsonify(compare_with_schedule(components().data_api))


@jobs.post("/<name>")
def run(name: str) -> ResponseReturnValue:
    """Runs a job and answers with its report."""
    _require_token()
    job = find_jobs().get(name)
    if job is None:
        raise JobUnknown(f"Use one of these names: {', '.join(find_jobs())}.")
    began = time.monotonic()
    try:
        report = _require_report(job.run(components()))
    except Exception as failure:
        record_run(components(), name, {"error": type(failure).__name__}, ok=False, began=began)
        raise
    record_run(components(), name, report, ok=True, began=began)
    return jsonify(report)


def record_run(app_components: Components, name: str, report: Report, *, ok: bool, began: float) -> None:
    """Records a job's outcome in ops.jobs and Sentry. If recording fails, the job still counts as done."""
    seconds = time.monotonic() - began
    every_minutes = None
    with suppress(CallFailed):
        outcome = {"name": name, "report": report, "ok": ok, "duration_ms": round(seconds * 1000)}
        clock = datetime.now(UTC).isoformat()  # the database compares it with its own
        every_minutes = app_components.data_api.call("record_job", outcome | {"clock": clock})
    if not ok or every_minutes is not None:
        sentry.check_in(name, seconds, every_minutes if isinstance(every_minutes, int) else None, ok=ok)


def _require_report(report: object) -> Report:
    """`report`, if it can be recorded: an object that JSON can express. Raises TypeError and ValueError."""
    if not isinstance(report, dict):
        raise TypeError("the job returned no report")
    json.dumps(report, allow_nan=False)
    return report


def _require_token() -> None:
    bearer.require(components().settings.jobs_token, "job-refused", "JOBS_TOKEN")
