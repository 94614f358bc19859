"""The service under gunicorn with the repository's configuration, over a socket."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from scripts.local.processes import GRACE_SECONDS
from scripts.local.stack import product_variables
from service.signed_webhooks import MAX_BODY_BYTES
from tests.conftest import free_port_block
from tests.service.conftest import ENVIRONMENT, LEGAL
from tests.service.outside import Answer, Issuer, Outside, event, running_outside, sign, stored_answer

ROOT = Path(__file__).parents[2]


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    database: Outside
    log: Path

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def start_gunicorn(folder: Path, **changes: str) -> Iterator[Running]:
    with running_outside() as database, (folder / "log").open("w") as log:
        database.answer = lambda *_: stored_answer()
        url = f"http://127.0.0.1:{free_port_block() + 1}"
        process = subprocess.Popen(
            [Path(sys.executable).with_name("gunicorn")],
            cwd=ROOT, stderr=log, text=True,
            env=os.environ | product_variables() | ENVIRONMENT | {"SUPABASE_URL": database.url, "SERVICE_URL": url, "PORT": "1", "TMPDIR": str(folder)} | changes,
        )  # fmt: skip
        try:
            wait_until_alive(url)
            yield Running(process, url, database, folder / "log")
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with start_gunicorn(tmp_path_factory.mktemp("gunicorn")) as service:
        yield service


def wait_until_alive(url: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert httpx.get(f"{url}/healthz").status_code == 200
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("gunicorn did not answer")


def in_chunks(size: int) -> Iterator[bytes]:
    """A body that httpx sends without a Content-Length."""
    for start in range(0, size, 65_536):
        yield b" " * min(65_536, size - start)


def test_a_signed_event_is_accepted(running: Running) -> None:
    body = event()
    assert httpx.post(f"{running.url}/webhooks/clerk", content=body, headers=sign(body)).status_code == 200


def test_a_body_over_512_kb_without_a_declared_size_is_refused(running: Running) -> None:
    url, headers = f"{running.url}/webhooks/clerk", sign(b"")
    sizes = (MAX_BODY_BYTES, MAX_BODY_BYTES + 1, 3 * MAX_BODY_BYTES)
    answers = [httpx.post(url, content=in_chunks(size), headers=headers) for size in sizes]
    assert [answer.status_code for answer in answers] == [401, 413, 413]
    assert answers[1].headers["Content-Type"] == "application/problem+json"


def test_an_event_sent_in_chunks_is_accepted(running: Running) -> None:
    body = event(text="x" * 100_000)
    chunks = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    assert httpx.post(f"{running.url}/webhooks/clerk", content=chunks, headers=sign(body)).status_code == 200


def test_a_local_service_listens_on_the_loopback_address_only(running: Running) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.url.replace("127.0.0.1", "127.0.0.2"))


HEADERS = b"Host: x\r\nsvix-id: a\r\nsvix-timestamp: 1\r\nsvix-signature: v1,AAAA\r\n"


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Transfer-Encoding: chunked", b"zz\r\nabc\r\n"),
        (b"Transfer-Encoding: chunked", b"5\r\nabc"),
        (b"Transfer-Encoding: chunked", b"3\r\nabcdef\r\n0\r\n\r\n"),
        (b"Content-Length: 1000", b"abc"),
        (b"Content-Length: -1", b"abc"),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"abc"),
    ],
)
def test_an_incomplete_body_is_a_client_error(running: Running, framing: bytes, body: bytes) -> None:
    answer = send_bytes(running, b"POST /webhooks/clerk HTTP/1.1\r\n" + HEADERS + framing + b"\r\n\r\n" + body)
    assert re.match(rb"HTTP/1.1 40[01] ", answer)


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /?email=ada@example.com HTTP/9.9\r\n\r\n",
        b"GET /ada@example.com/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nada@example.com: x\r\n\r\n",
    ],
)
def test_a_malformed_request_is_logged_without_its_content_and_sender(running: Running, request_text: bytes) -> None:
    assert send_bytes(running, request_text).startswith(b"HTTP/1.1 400 ")
    assert running.lines()[-1]["message"] == "Invalid request"
    assert "example.com" not in running.log.read_text()


def send_bytes(running: Running, request: bytes) -> bytes:
    """Sends exactly these bytes, closes the sending side, and returns the answer."""
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_every_log_line_is_json_and_each_request_has_one(running: Running) -> None:
    httpx.get(f"{running.url}/healthz?token=5ecret", headers={"X-Request-Id": "mine"})
    requests = [line for line in running.lines() if line.get("request_id") == "mine"]
    assert [(line["route"], line["status"]) for line in requests] == [("/healthz", 200)]
    assert "5ecret" not in running.log.read_text()


def test_a_token_that_is_too_large_is_refused_with_the_reason(tmp_path: Path, issuer: Issuer) -> None:
    with start_gunicorn(tmp_path, CLERK_ISSUER=issuer.url) as service:
        headers = {"Authorization": f"Bearer {issuer.token(custom='x' * 8192)}"}
        answer = httpx.get(f"{service.url}/api/v1/me", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (431, "urn:problem:ballast:token-too-large")
    assert answer.json()["limit"] == 8192


def test_a_request_in_flight_is_finished_when_the_service_stops(tmp_path: Path) -> None:
    asked = threading.Event()

    def slow(*_: object) -> Answer:
        asked.set()
        time.sleep(1)
        return stored_answer()

    with start_gunicorn(tmp_path) as service, ThreadPoolExecutor() as threads:
        service.database.answer = slow
        body = event()
        url = f"{service.url}/webhooks/clerk"
        answer = threads.submit(httpx.post, url, content=body, headers=sign(body), timeout=20)
        assert asked.wait(10)
        service.process.send_signal(signal.SIGTERM)
        assert answer.result().status_code == 200
        assert service.process.wait(10) == 0


def metrics_folders(place: Path) -> list[str]:
    return [each.name for each in place.iterdir() if each.name.startswith("ballast-metrics-")]


@pytest.mark.thorough
def test_the_metrics_folder_is_removed_with_the_service(tmp_path: Path) -> None:
    with start_gunicorn(tmp_path):
        assert len(metrics_folders(tmp_path)) == 1
    assert metrics_folders(tmp_path) == []


@pytest.mark.thorough
def test_metrics_left_by_a_killed_service_are_removed_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "counts"
    changes = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with start_gunicorn(tmp_path, **changes) as service:
        for worker in psutil.Process(service.process.pid).children():
            worker.kill()
        service.process.kill()
        service.process.wait()
    (folder / "counter_1.db").touch()
    with start_gunicorn(tmp_path, **changes):
        assert not (folder / "counter_1.db").exists()
    assert not folder.exists()
    assert metrics_folders(tmp_path) == []


def test_the_local_stack_waits_longer_than_a_request_may_take() -> None:
    assert int(read_setting("graceful_timeout")) < GRACE_SECONDS


def read_setting(name: str, **changes: str) -> str:
    """The value of a gunicorn setting."""
    environment = (
        product_variables()
        | ENVIRONMENT
        | {
            "SUPABASE_URL": "https://project.supabase.co",
            "CLERK_ISSUER": "https://clerk.app.example",
            "CLERK_API_URL": "https://api.clerk.com",
            "UPSTASH_REDIS_REST_URL": "https://cache.upstash.io",
        }
    )
    shown = subprocess.run(
        [Path(sys.executable).with_name("gunicorn"), "--print-config"],
        cwd=ROOT, env=environment | changes, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    found = re.search(rf"^{name}\s*= (.*)$", shown.stdout, re.MULTILINE)
    assert found, shown.stdout
    return found[1]


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({"ENVIRONMENT": "local", "SERVICE_URL": "http://127.0.0.1:54323", "PORT": "9"}, "127.0.0.1:54323"),
        ({"ENVIRONMENT": "local", "PORT": "9000"}, "127.0.0.1:9000"),
        ({"ENVIRONMENT": "test"}, "127.0.0.1:8000"),
        (
            LEGAL | {"ENVIRONMENT": "production", "SERVICE_URL": "https://api.app.example", "PORT": "9000"},
            "0.0.0.0:9000",
        ),
        ({"ENVIRONMENT": "staging"}, "0.0.0.0:8000"),
    ],
)
def test_the_address_is_read_from_environment_variables(environment: dict[str, str], address: str) -> None:
    assert read_setting("bind", **environment) == f"['{address}']"
