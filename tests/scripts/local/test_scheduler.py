"""The local scheduler: which jobs it calls when, and what it says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from scripts.local.scheduler import Scheduler
from scripts.scratch.postgres import Postgres
from tests.service.outside import Outside, running_outside

JOBS = {"mail", "retry-events", "erasures", "name-changes", "seals", "reconcile-sample", "partitions", "retention"}


@pytest.fixture
def service() -> Iterator[Outside]:
    with running_outside() as outside:
        outside.answer = lambda *_: (200, {}, b"{}")
        yield outside


def make_scheduler(server: Postgres, service: Outside, said: list[str]) -> Scheduler:
    environment = {"DATABASE_URL": server.url(), "SERVICE_URL": service.url, "JOBS_TOKEN": "the token"}
    return Scheduler(environment, said.append)


def take_calls(service: Outside) -> set[str]:
    names = {path.removeprefix("/jobs/") for path in service.requests}
    service.requests.clear()
    return names


def test_every_job_is_due_at_the_start_and_then_as_often_as_it_should_be(server: Postgres, service: Outside) -> None:
    said: list[str] = []
    scheduler = make_scheduler(server, service, said)
    scheduler.call_due_jobs(1000)
    assert take_calls(service) == JOBS
    for now, due in {
        1059: set(),
        1060: {"mail"},
        1300: {"mail", "retry-events", "erasures", "name-changes"},
        4600: JOBS - {"partitions", "retention"},
        1000 + 86_400: JOBS,
    }.items():
        scheduler.call_due_jobs(now)
        assert take_calls(service) == due
    assert said == []


def test_it_carries_the_token_and_tells_what_was_done(server: Postgres, service: Outside) -> None:
    tokens = set()

    def answer(path: str, headers: dict[str, str], _body: bytes) -> tuple[int, dict[str, str], bytes]:
        tokens.add(headers["Authorization"])
        if path == "/jobs/seals":
            return 503, {}, json.dumps({"title": "The store does not answer"}).encode()
        return 200, {}, json.dumps({"sent": 2 if path == "/jobs/mail" else 0, "done": True}).encode()

    said: list[str] = []
    service.answer = answer
    make_scheduler(server, service, said).call_due_jobs(0)
    assert tokens == {"Bearer the token"}
    assert said == ["mail: {'sent': 2, 'done': True}", "seals: 503 The store does not answer"]


@pytest.mark.parametrize("answer", [(200, {}, b"<h1>Not JSON</h1>"), None])
def test_a_service_that_does_not_answer_is_asked_again_at_the_next_turn(
    server: Postgres, service: Outside, answer: tuple[int, dict[str, str], bytes] | None
) -> None:
    said: list[str] = []
    scheduler = make_scheduler(server, service, said)
    service.answer = lambda *_: answer
    scheduler.call_due_jobs(0)
    assert len(said) == len(JOBS)
    assert all(" (" in line for line in said)
    take_calls(service)
    scheduler.call_due_jobs(60)
    assert take_calls(service) == {"mail"}
