"""Work that a scheduler asks for: `POST /jobs/<name>` with the jobs' token. Each is short, and may run at any time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from service.backups import BackupRunning, BackupsUnconfigured
from service.bearer import carries
from service.clerk_api import ClerkCallFailed
from service.data_api import CallFailed
from service.me import DatabaseUnavailable
from service.parts import Parts, parts
from service.problems import Problem

jobs = Blueprint("jobs", __name__, url_prefix="/jobs")

WORK_SECONDS = 20.0

Report = dict[str, Any]


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
    if not carries(parts().settings.jobs_token):
        raise JobRefused("Send the jobs' token: Authorization: Bearer <JOBS_TOKEN>.")
    if name not in JOBS:
        raise JobUnknown(f"The jobs are {', '.join(JOBS)}.")
    try:
        return jsonify(JOBS[name](parts()))
    except CallFailed as failure:
        raise DatabaseUnavailable("The job is not done: run it again.") from failure


def retention(tools: Parts) -> Report:
    """Purges what is old: {done, purged: {table: rows}, dropped_audit_months}. Not done: run it again."""
    deadline = time.monotonic() + WORK_SECONDS
    purged: Counter[str] = Counter()
    while True:
        step = tools.data_api.call("run_retention", {})
        if not isinstance(step, dict):
            raise TypeError("run_retention() returned no object")
        purged.update(step["purged"])
        if step["done"] or time.monotonic() > deadline:
            return step | {"purged": dict(purged)}


def erasures(tools: Parts) -> Report:
    """Carries on with erasures: how many are running, erased, complete, or waiting for the next run."""
    return tools.eraser.carry_out_pending()


def name_changes(tools: Parts) -> Report:
    """Tells Clerk of names that people gave themselves: how many it took (told), refused, did not answer (failed)."""
    report: Counter[str] = Counter(told=0, refused=0, failed=0)
    for change in _list(tools.data_api.call("claim_name_changes", {})):
        error, is_final = None, False
        try:
            tools.clerk.rename_user(change["clerk_user_id"], change["first_name"], change["last_name"])
            report["told"] += 1
        except ClerkCallFailed as failure:
            error, is_final = failure.code, failure.is_refusal
            report["refused" if is_final else "failed"] += 1
        outcome = {"error": error, "is_final": is_final}
        named = {name: change[name] for name in ("clerk_user_id", "changed_at")}
        tools.data_api.call("end_name_change", named | outcome)
    return dict(report)


def backup(tools: Parts) -> Report:
    """Starts a backup: the id of the one it started, or running where one is, or the variables that are not set."""
    try:
        return {"started": tools.backups.start("automated")["id"]}
    except BackupRunning:
        return {"running": True}
    except BackupsUnconfigured as refusal:
        return {"unconfigured": refusal.missing}


def _list(answer: object) -> list[dict[str, Any]]:
    if not isinstance(answer, list):
        raise TypeError("the database returned no list")
    return answer


JOBS: dict[str, Callable[[Parts], Report]] = {
    "retention": retention,
    "erasures": erasures,
    "name-changes": name_changes,
    "backup": backup,
}
