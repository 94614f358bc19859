"""Slow clients, over real sockets to gunicorn: other people's requests and webhooks are answered meanwhile."""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.gunicorn_worker import RECEIVE_SECONDS, SEND_SECONDS
from service.streaming import PER_PERSON
from tests.service.outside import Answer, Issuer, event, rest_answer, running_outside, sign, stored_answer
from tests.service.test_audit_csv import FULL_PAGE, SESSION, UNKNOWN_ORGANIZATION_URL
from tests.service.test_gunicorn import HEADERS, Running, start_gunicorn

WORKERS = 2
CLIENTS = 40  # more than twice the threads
EXPORT_URL = "/api/v1/gdpr/export"
EXPORT = {
    "export_id": "00000000-0000-4000-8000-000000000000",
    "schema_version": 1,
    "generated_at": "2026-01-31T00:00:00+00:00",
    "domains": [{"name": "notes", "description": "Notes"}],
}
EXPORT_PAGE = [{"domain": "notes", "content": '"' + "x" * 500_000 + '"', "entries": 1, "next": {"more": True}}]


def endless(path: str, *_: Any) -> Answer:
    """A database whose audit trail and whose export never end."""
    answers = {
        "start_session": SESSION, "audit_page": FULL_PAGE, "begin_export": EXPORT, "export_page": EXPORT_PAGE,
        "end_export": None,
    }  # fmt: skip
    function = path.rpartition("/")[2]
    return rest_answer(answers[function]) if function in answers else stored_answer()


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_outside() as server:
        yield Issuer(server)


@pytest.fixture
def service(tmp_path: Path, issuer: Issuer) -> Iterator[Running]:
    with start_gunicorn(tmp_path, CLERK_ISSUER=issuer.url) as running:
        running.database.answer = endless
        yield running


class SlowClient:
    """A connection with small buffers. It reads only what a test asks for."""

    def __init__(self, service: Running) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = urlsplit(service.url)
        self.socket.connect((address.hostname, address.port))
        self.socket.settimeout(20)
        self.received = b""

    def ask(self, path: str, token: str) -> None:
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())

    def head(self) -> str:
        while b"\r\n\r\n" not in self.received:
            piece = self.socket.recv(100)
            assert piece, "closed without an answer"
            self.received += piece
        return self.received.partition(b"\r\n\r\n")[0].decode()

    def read_body(self) -> None:
        """Reads the body, and keeps what comes after it."""
        length = re.search(r"Content-Length: (\d+)", self.head())
        assert length
        head_and_body = self.received.index(b"\r\n\r\n") + 4 + int(length[1])
        while len(self.received) < head_and_body:
            self.received += self.socket.recv(100)
        self.received = self.received[head_and_body:]

    def status(self) -> int:
        return int(self.head().split()[1])


@contextmanager
def slow_clients(service: Running, number: int = CLIENTS) -> Iterator[list[SlowClient]]:
    with ExitStack() as sockets:
        clients = [SlowClient(service) for _ in range(number)]
        for client in clients:
            sockets.enter_context(client.socket)
        yield clients


def require_prompt_answers(service: Running) -> None:
    """Asserts that new connections get an answer within a second each, on both workers."""

    def ask(number: int) -> tuple[int, float]:
        body = event()
        began = time.monotonic()
        with httpx.Client() as client:
            answer = (
                client.get(f"{service.url}/healthz")
                if number % 2
                else client.post(f"{service.url}/webhooks/clerk", content=body, headers=sign(body))
            )
        return answer.status_code, time.monotonic() - began

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(ask, range(12)))
    assert {status for status, _ in answers} == {200}
    assert max(seconds for _, seconds in answers) < 1


def tokens(issuer: Issuer, people: int) -> list[str]:
    return [issuer.token(sub=f"user_{number % people}") for number in range(CLIENTS)]


def test_the_limit_follows_gunicorns_threads(tmp_path: Path, issuer: Issuer) -> None:
    arguments = {"GUNICORN_CMD_ARGS": "--workers 1 --threads 3"}
    with start_gunicorn(tmp_path, CLERK_ISSUER=issuer.url, **arguments) as service, slow_clients(service, 2) as clients:
        service.database.answer = endless
        statuses = []
        for number, client in enumerate(clients):
            client.ask(UNKNOWN_ORGANIZATION_URL, issuer.token(sub=f"user_{number}"))
            statuses.append(client.status())
    assert statuses == [200, 429]


@pytest.mark.parametrize("path", [UNKNOWN_ORGANIZATION_URL, EXPORT_URL], ids=["audit.csv", "export"])
@pytest.mark.parametrize(
    "people", [pytest.param(1, marks=pytest.mark.thorough), CLIENTS], ids=["one person", "many people"]
)
def test_slow_downloads_do_not_stop_the_service(service: Running, issuer: Issuer, path: str, people: int) -> None:
    with slow_clients(service) as clients:
        for client, token in zip(clients, tokens(issuer, people), strict=True):
            client.ask(path, token)
        statuses = Counter(client.status() for client in clients)
        require_prompt_answers(service)
    most = WORKERS * (PER_PERSON if people == 1 else 4)  # half of the 8 threads
    assert statuses.keys() == {200, 429}
    assert PER_PERSON <= statuses[200] <= most
    refused = next(client.head() for client in clients if client.status() == 429)
    assert re.search("Retry-After: 10?\r", refused)
    assert "application/problem+json" in refused


@pytest.mark.thorough
def test_a_client_that_reads_a_byte_a_second_is_disconnected_and_its_place_is_free_again(
    service: Running, issuer: Issuer
) -> None:
    with slow_clients(service, 2 * PER_PERSON * WORKERS) as clients:
        for client in clients:
            client.ask(UNKNOWN_ORGANIZATION_URL, issuer.token())
        downloads = [client for client in clients if client.status() == 200]
        assert downloads
        began = time.monotonic()
        while downloads and time.monotonic() - began < 4 * SEND_SECONDS:
            time.sleep(1)
            downloads = [client for client in downloads if not is_reset_after_a_byte(client)]
        assert downloads == []
        with slow_clients(service, 1) as [another]:
            another.ask(UNKNOWN_ORGANIZATION_URL, issuer.token())
            assert another.status() == 200


def is_reset_after_a_byte(client: SlowClient) -> bool:
    client.socket.recv(1)
    state = select.poll()
    state.register(client.socket, 0)
    return any(happened & select.POLLHUP for _, happened in state.poll(0))


@pytest.mark.thorough
def test_a_client_that_disconnects_frees_its_place(service: Running, issuer: Issuer) -> None:
    for _ in range(4 * PER_PERSON * WORKERS):
        with slow_clients(service, 1) as [client]:
            client.ask(UNKNOWN_ORGANIZATION_URL, issuer.token())
            assert client.status() == 200
        wait_until_no_page_is_read(service)


def wait_until_no_page_is_read(service: Running) -> None:
    """Waits until the last download has ended."""
    deadline = time.monotonic() + 10
    before = -1
    while before != len(service.database.requests):
        assert time.monotonic() < deadline
        before = len(service.database.requests)
        time.sleep(0.3)


SLOW_BODY = b"POST /webhooks/clerk HTTP/1.1\r\n" + HEADERS + b"Content-Length: 1000\r\n\r\n "
SLOW_LARGE_BODY = SLOW_BODY.replace(b"1000", b"400000")
SLOW_CHUNKS = b"POST /webhooks/clerk HTTP/1.1\r\n" + HEADERS + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"
SLOW_SECOND = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nG"
SLOW = {
    "nothing": b"", "head": b"G", "body": SLOW_BODY, "large body": SLOW_LARGE_BODY, "chunks": SLOW_CHUNKS,
    "second request": SLOW_SECOND,
}  # fmt: skip


@pytest.mark.parametrize(
    "sent",
    [pytest.param(sent, marks=[pytest.mark.thorough] if name != "body" else []) for name, sent in SLOW.items()],
    ids=SLOW,
)
def test_clients_that_send_slowly_delay_no_one(service: Running, sent: bytes) -> None:
    with slow_clients(service) as clients:
        for client in clients:
            client.socket.sendall(sent)
        require_prompt_answers(service)


@pytest.mark.thorough
@pytest.mark.parametrize("sent", [SLOW["head"], SLOW_BODY, SLOW_CHUNKS], ids=["head", "body", "chunks"])
def test_clients_that_send_slowly_are_disconnected(service: Running, sent: bytes) -> None:
    with slow_clients(service, 8) as clients:
        for client in clients:
            client.socket.sendall(sent)
        time.sleep(RECEIVE_SECONDS)
        for client in clients:
            answer = b"".join(iter(lambda client=client: client.socket.recv(1000), b""))
            assert re.match(rb"HTTP/1.1 40[01] |$", answer)


@pytest.mark.thorough
def test_clients_that_do_not_close_a_finished_connection_delay_no_one(service: Running) -> None:
    with slow_clients(service) as clients:
        for client in clients:
            client.socket.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        require_prompt_answers(service)
        assert {client.status() for client in clients} == {200}


@pytest.mark.thorough
def test_a_late_request_body_is_not_taken_for_the_next_request(service: Running) -> None:
    with slow_clients(service, 1) as [client]:
        client.socket.sendall(SLOW_BODY)
        time.sleep(RECEIVE_SECONDS + 1)
        assert client.status() == 401  # the signature of a body that was cut off
        client.socket.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"HTTP/1.1" not in b"".join(iter(lambda: client.socket.recv(1000), b""))


def test_one_persons_requests_leave_threads_while_the_database_is_slow(service: Running, issuer: Issuer) -> None:
    is_over = threading.Event()

    def slow(path: str, *rest: Any) -> Answer:
        if path.endswith("start_session"):
            is_over.wait(7)
        return endless(path, *rest)

    service.database.answer = slow
    with slow_clients(service) as clients:
        for client in clients:
            client.ask("/api/v1/me", issuer.token())
        ready, _, _ = select.select([client.socket for client in clients], [], [], 5)
        require_prompt_answers(service)
        is_over.set()
        statuses = Counter(client.status() for client in clients)
    assert ready
    assert statuses.keys() == {200, 429}


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.thorough), 7, pytest.param(1000, marks=pytest.mark.thorough)]
)
def test_a_request_that_arrives_in_pieces_is_answered(service: Running, step: int) -> None:
    body = event(text="x" * 300)
    head = "".join(f"{name}: {value}\r\n" for name, value in sign(body).items())
    request = f"POST /webhooks/clerk HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with slow_clients(service, 1) as [client]:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # the second one on the same connection
            client.received = b""
            for start in range(0, len(request), step):
                client.socket.sendall(request[start : start + step])
                time.sleep(0.001)
            assert client.status() == 200
            client.read_body()


def test_requests_that_arrive_together_are_all_answered(service: Running) -> None:
    with slow_clients(service, 1) as [client]:
        client.socket.sendall(3 * b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(3):
            assert client.status() == 200
            client.read_body()


def test_a_client_that_waits_for_100_continue_is_answered(service: Running) -> None:
    body = event()
    head = "".join(f"{name}: {value}\r\n" for name, value in sign(body).items())
    request = (
        f"POST /webhooks/clerk HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with slow_clients(service, 1) as [client]:
        client.socket.sendall(request.encode())
        assert client.status() == 100
        client.received = client.received.partition(b"\r\n\r\n")[2]
        client.socket.sendall(body)
        assert client.status() == 200
