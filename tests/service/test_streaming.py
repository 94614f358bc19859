"""Downloads: each one gives its place back however it ends, and none lasts forever."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from flask import Flask, Response
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder, run_wsgi_app

from service import streaming
from service.streaming import PER_PERSON, PIECE_BYTES, DownloadsLimited, DownloadTooSlow, take_slot
from service.threads import Threads
from tests.service.conftest import MakeApp

Pieces = Callable[[], Iterator[bytes]]


def three() -> Iterator[bytes]:
    yield from (b"a" * PIECE_BYTES, b"b", b"c")


def failing_at_once() -> Iterator[bytes]:
    raise ZeroDivisionError
    yield b""


def failing_midway() -> Iterator[bytes]:
    yield b"a"
    raise ZeroDivisionError


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def app(make_app: MakeApp, threads: Threads) -> Flask:
    """The service with downloads of different fates."""
    app = make_app()

    def add(name: str, pieces: Pieces) -> None:
        def view() -> Response:
            with take_slot(threads, "ada") as slot:
                return slot.send(pieces(), "text/plain", "file.txt")

        app.add_url_rule(f"/{name}", name, view)

    for pieces in (three, failing_at_once, failing_midway):
        add(pieces.__name__, pieces)
    return app


def free_places(threads: Threads) -> int:
    """How many more downloads one person may begin."""
    number = 0
    with ExitStack() as slots, suppress(DownloadsLimited):
        for _ in range(2 * PER_PERSON):
            slots.enter_context(take_slot(threads, "ada"))
            number += 1
    return number


def begin(app: Flask, path: str, method: str = "GET") -> Any:
    """The body as a server gets it, before its first piece."""
    return run_wsgi_app(app, EnvironBuilder(path, method=method).get_environ())[0]


def test_a_complete_download_frees_its_place(app: Flask, threads: Threads) -> None:
    body = begin(app, "/three")
    assert free_places(threads) == PER_PERSON - 1
    assert len(b"".join(body)) == PIECE_BYTES + 2
    body.close()
    assert free_places(threads) == PER_PERSON


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_client_that_disconnects_frees_its_place(app: Flask, threads: Threads, taken: int) -> None:
    body = begin(app, "/three")
    for _ in range(taken):
        next(body)
    body.close()
    assert free_places(threads) == PER_PERSON


@pytest.mark.parametrize("path", ["/three", "/failing_midway"])
def test_a_head_request_frees_its_place(app: Flask, threads: Threads, path: str) -> None:
    body = begin(app, path, "HEAD")
    assert list(body) == []
    body.close()
    assert free_places(threads) == PER_PERSON


def test_a_download_that_fails_at_once_is_an_ordinary_problem_and_frees_its_place(app: Flask, threads: Threads) -> None:
    assert app.test_client().get("/failing_at_once").status_code == 500
    assert free_places(threads) == PER_PERSON


def test_a_download_that_fails_midway_frees_its_place(app: Flask, threads: Threads) -> None:
    body = begin(app, "/failing_midway")
    with pytest.raises(ZeroDivisionError):
        list(body)
    assert free_places(threads) == PER_PERSON


def test_an_error_after_the_download_was_prepared_frees_its_place(app: Flask, threads: Threads) -> None:
    with app.test_request_context(), suppress(ZeroDivisionError), take_slot(threads, "ada") as slot:
        slot.send(three(), "text/plain", "file.txt")
        raise ZeroDivisionError
    assert free_places(threads) == PER_PERSON


def test_an_error_before_the_download_frees_its_place(threads: Threads) -> None:
    with pytest.raises(ZeroDivisionError), take_slot(threads, "ada"):
        raise ZeroDivisionError
    with take_slot(threads, "ada"):
        pass
    assert free_places(threads) == PER_PERSON


def test_a_download_ends_at_its_deadline(
    app: Flask, threads: Threads, monkeypatch: pytest.MonkeyPatch, log: io.StringIO
) -> None:
    now = 0.0
    monkeypatch.setattr(streaming, "monotonic", lambda: now)
    body = begin(app, "/three")
    now = streaming.STREAM_SECONDS + 1
    with pytest.raises(DownloadTooSlow):
        list(body)
    assert free_places(threads) == PER_PERSON
    assert "download aborted" in [json.loads(line)["message"] for line in log.getvalue().splitlines()]


@given(pieces=st.lists(st.binary(max_size=5), max_size=5), factor=st.integers(1, 60_000))
def test_any_content_is_sent_unchanged_in_small_pieces(offline_app: Flask, pieces: list[bytes], factor: int) -> None:
    large = [b"first", *(piece * factor for piece in pieces)]
    with offline_app.test_request_context():
        with take_slot(Threads(), "ada") as slot:
            response = slot.send((piece for piece in large), "text/plain", "file.txt")
        sent = list(response.iter_encoded())
    assert b"".join(sent) == b"".join(large)
    assert max(map(len, sent)) <= PIECE_BYTES


@pytest.mark.parametrize(("total", "downloads", "requests"), [(8, 4, 6), (16, 8, 14), (4, 2, 2), (2, 1, 1), (1, 1, 1)])
def test_the_limits_follow_the_number_of_threads(total: int, downloads: int, requests: int) -> None:
    threads = Threads()
    threads.total = total
    assert (threads.most_downloads, threads.most_requests_per_person) == (downloads, requests)


def test_another_person_gets_a_place_while_one_has_all_of_theirs(threads: Threads) -> None:
    mine = [take_slot(threads, "ada") for _ in range(PER_PERSON)]
    with pytest.raises(DownloadsLimited) as refused:
        take_slot(threads, "ada")
    theirs = [take_slot(threads, f"person {number}") for number in range(threads.most_downloads - PER_PERSON)]
    with pytest.raises(DownloadsLimited) as refused_to_all:
        take_slot(threads, "eve")
    assert (refused.value.more["limit"], refused_to_all.value.more["limit"]) == ("person", "all")
    assert len(mine + theirs) == threads.most_downloads
