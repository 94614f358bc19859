"""`POST /jobs/<name>` with the jobs' token: a scheduler asks for work."""

from __future__ import annotations

import time
from contextlib import suppress
from http import HTTPStatus

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service import sentry
from service.bearer import carries
from service.components import Components, components
from service.data_api import CallFailed
from service.jobs import JOBS, Report
from service.problems import DatabaseUnavailable, Problem

jobs = Blueprint("jobs", __name__, url_prefix="/jobs")


class JobRefused(Problem):
    """The request does not carry the jobs' token."""

    status = HTTPStatus.UNAUTHORIZED
    slug = "job-refused"
    title = "Only the scheduler may run jobs"
    headers = {"WWW-Authenticate": "Bearer"}  # noqa: RUF012 - never changed


class JobUnknown(Problem):
    """There is no job of this name."""

    status = HTTPStatus.NOT_FOUND
    slug = "job-unknown"
    title = "There is no such job"


@jobs.post("/<name>")
def run(name: str) -> ResponseReturnValue:
    """Runs a job and answers with its report."""
    if not carries(components().settings.jobs_token):
        raise JobRefused("Send the jobs' token: Authorization: Bearer <JOBS_TOKEN>.")
    if name not in JOBS:
        raise JobUnknown(f"The jobs are {', '.join(JOBS)}.")
    began = time.monotonic()
    try:
        report = JOBS[name](components())
    except Exception as failure:
        record(components(), name, {"error": type(failure).__name__}, ok=False, began=began)
        if isinstance(failure, CallFailed):
            raise DatabaseUnavailable("The job is not done: run it again.") from failure
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
