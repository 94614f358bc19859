"""Calls the service's jobs when they are due. In a hosted project, pg_cron does this."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import click
import httpx
import psycopg

PAUSE_SECONDS = 1.0
# A file in the stack's folder, by which `ballast status` knows that the scheduler works.
HEARTBEAT = "scheduler.beat"
MAX_SILENCE_SECONDS = 90
# A job takes up to half a minute.
TIMEOUT = httpx.Timeout(60)


class Scheduler:
    """Calls each job at the start, then in the interval of ops.job_schedule. A failed job waits for its next turn."""

    def __init__(self, environment: Mapping[str, str], log: Callable[[str], None]) -> None:
        with psycopg.connect(environment["DATABASE_URL"]) as connection:
            rows = connection.execute("select name, every from ops.job_schedule where schedule is not null").fetchall()
        self._every: dict[str, timedelta] = dict(rows)
        self._due = dict.fromkeys(self._every, 0.0)
        self._log = log
        self._heartbeat = Path(environment["BALLAST_HOME"]) / HEARTBEAT
        authorization = {"Authorization": f"Bearer {environment['JOBS_TOKEN']}"}
        self._http = httpx.Client(base_url=environment["SERVICE_URL"], headers=authorization, timeout=TIMEOUT)

    def call_due_jobs(self, now: float) -> None:
        """Calls the due jobs one after the other. `now` is in seconds, of a monotonic clock."""
        for job, every in self._every.items():
            self._heartbeat.touch()
            if self._due[job] <= now:
                self._due[job] = now + every.total_seconds()
                self._call(job)

    def _call(self, job: str) -> None:
        try:
            answer = self._http.post(f"/jobs/{job}")
            report = answer.json()
        except (httpx.HTTPError, ValueError) as failure:
            self._log(f"{job}: no answer ({type(failure).__name__})")
            return
        if not answer.is_success:
            self._log(f"{job}: {answer.status_code} {report.get('title', '')}")
        elif any(value for value in report.values() if value is not True):
            self._log(f"{job}: {report}")


def main() -> None:
    """Runs until it is stopped."""
    scheduler = Scheduler(os.environ, click.echo)
    while True:
        scheduler.call_due_jobs(time.monotonic())
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
