"""`POST /jobs/<name>` with the jobs' token: a scheduler asks for work."""

from __future__ import annotations

import time
from contextlib import suppress

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service import bearer, sentry
from service.components import Components, components
from service.data_api import CallFailed
from service.jobs import JOBS, Report
from service.problems import Problem

jobs = Blueprint("jobs", __name__, url_prefix="/jobs")


class JobUnknown(Problem, status=404, slug="job-unknown", title="There is no such job"):
    """There is no job of this name."""


@jobs.post("/<name>")
def run(name: str) -> ResponseReturnValue:
    """Runs a job and answers with its report."""
    bearer.require(components().settings.jobs_token, "job-refused", "JOBS_TOKEN")
    if name not in JOBS:
        raise JobUnknown(f"The jobs are {', '.join(JOBS)}.")
    began = time.monotonic()
    try:
        report = JOBS[name](components())
    except Exception as failure:
        record(components(), name, {"error": type(failure).__name__}, ok=False, began=began)
        raise
    record(components(), name, report, ok=True, began=began)
    return jsonify(report)


def record(tools: Components, name: str, report: Report, *, ok: bool, began: float) -> None:
    """Tells ops.jobs and Sentry how a job ended. What it did is done, whether or not that can be recorded."""
    seconds = time.monotonic() - began
    every_minutes = None
    with suppress(CallFailed):
        outcome = {"name": name, "report": report, "ok": ok, "duration_ms": round(seconds * 1000)}
        every_minutes = tools.data_api.call("record_job", outcome)
    if not ok or every_minutes is not None:
        sentry.check_in(name, seconds, every_minutes if isinstance(every_minutes, int) else None, ok=ok)
