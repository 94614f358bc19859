"""The local scheduler: when it calls each job, and what it logs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from scripts.local.scheduler import Scheduler
from scripts.scratch.postgres import Postgres
from tests.service.outside import Outside, running_outside
from tests.shipped_jobs import SHIPPED_JOBS

JOBS = set(SHIPPED_JOBS)


@pytest.fixture
def service() -> Iterator[Outside]:
    with running_outside() as outside:
        outside.answer = lambda *_: (200, {}, b"{}")
        yield outside


def make_scheduler(server: Postgres, service: Outside, log: list[str]) -> Scheduler:
    environment = {
        "BALLAST_HOME": str(server.home), "DATABASE_URL": server.url(), "SERVICE_URL": service.url, "JOBS_TOKEN": "the token",
    }  # fmt: skip
    return Scheduler(environment, log.append)


def take_called_jobs(service: Outside) -> set[str]:
    names = {path.removeprefix("/jobs/") for path in service.requests}
    service.requests.clear()
    return names & JOBS


def test_every_job_is_called_at_the_start_and_then_in_its_interval(server: Postgres, service: Outside) -> None:
    log: list[str] = []
    scheduler = make_scheduler(server, service, log)
    scheduler.call_due_jobs(1000)
    assert take_called_jobs(service) == JOBS
    for now, due in {
        1059: set(),
        1060: {"mail", "erasures"},
        1300: {"mail", "retry-events", "erasures", "name-changes"},
        4600: JOBS - {"partitions", "retention"},
        1000 + 86_400: JOBS,
    }.items():
        scheduler.call_due_jobs(now)
        assert take_called_jobs(service) == due
    assert log == []


def test_jobs_are_called_with_the_token_and_their_results_are_logged(server: Postgres, service: Outside) -> None:
    tokens = set()

    def answer(path: str, headers: dict[str, str], _body: bytes) -> tuple[int, dict[str, str], bytes]:
        tokens.add(headers["Authorization"])
        if path == "/jobs/seals":
            return 503, {}, json.dumps({"title": "The store does not answer"}).encode()
        return 200, {}, json.dumps({"sent": 2 if path == "/jobs/mail" else 0, "done": True}).encode()

    log: list[str] = []
    service.answer = answer
    make_scheduler(server, service, log).call_due_jobs(0)
    assert tokens == {"Bearer the token"}
    assert log == ["mail: {'sent': 2, 'done': True}", "seals: 503 The store does not answer"]


@pytest.mark.parametrize("answer", [(200, {}, b"<h1>Not JSON</h1>"), None])
def test_a_job_without_a_valid_answer_is_called_again_at_its_next_turn(
    server: Postgres, service: Outside, answer: tuple[int, dict[str, str], bytes] | None
) -> None:
    log: list[str] = []
    scheduler = make_scheduler(server, service, log)
    service.answer = lambda *_: answer
    scheduler.call_due_jobs(0)
    assert len(log) >= len(JOBS)
    assert all(" (" in line for line in log)
    take_called_jobs(service)
    scheduler.call_due_jobs(60)
    assert take_called_jobs(service) == {"mail", "erasures"}
