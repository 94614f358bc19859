"""Subscribers for `./scripts/bench realtime`: real clients, in a separate process so that they do not delay the writer."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from realtime import (
    AsyncRealtimeClient,
    RealtimeChannelOptions,
    RealtimePostgresChangesListenEvent,
    RealtimeSubscribeStates,
)

from scripts.errors import Failure

WAIT_SECONDS: Final = 30.0
# A duplicate event arrives within this time.
QUIET_SECONDS: Final = 0.3
CHANGES: Final = "Postgres Changes"
BROADCAST: Final = "Broadcast"

PRIVATE: Final[RealtimeChannelOptions] = {"config": {"private": True, "broadcast": None, "presence": None}}

Json = dict[str, Any]
OnEvent = Callable[[Json | None], None]


class SubscribersFailed(Failure):
    """The process of the subscribers ended, or not all of them could subscribe."""


class EventsLost(Failure):
    """A subscriber did not receive each write once and in order."""


class Event(NamedTuple):
    """A subscriber received the project with this number as title, at this time of the monotonic clock."""

    subscriber: int
    number: int
    at: float


@dataclass(frozen=True)
class Audience:
    """The subscribers, with one token each, and the server. `topic` is for the broadcasts of their organization."""

    name: str
    feature: str
    url: str
    key: str
    topic: str
    tokens: Sequence[str]


class Listeners:
    """The writer's view of the subscribers."""

    def __init__(self, name: str, pipe: Connection) -> None:
        self._name = name
        self._pipe = pipe
        self._events: list[Event] = []

    def wait(self, writes: int) -> None:
        """Waits until all subscribers received `writes` more writes. Raises EventsLost or SubscribersFailed."""
        for _ in range(writes):
            if not self._pipe.poll(WAIT_SECONDS):
                raise EventsLost(f"{self._name}: an event did not arrive within {WAIT_SECONDS:.0f} s.")
            try:
                self._events += self._pipe.recv()
            except EOFError:
                raise SubscribersFailed(f"{self._name}: the subscribers failed; the error is above.") from None

    def events(self) -> list[Event]:
        """Waits for duplicates, ends the subscriptions and returns all events."""
        time.sleep(QUIET_SECONDS)
        self._pipe.send("end")
        with suppress(EOFError):
            while True:
                self._events += self._pipe.recv()
        return self._events


@contextmanager
def start_listeners(audience: Audience) -> Iterator[Listeners]:
    """Starts the subscribers and waits until all of them are subscribed. Raises SubscribersFailed."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(audience, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends when the process does
    try:
        listening = Listeners(audience.name, ours)
        listening.wait(1)
        yield listening
    finally:
        ours.close()
        process.terminate()
        process.join()


def _run(audience: Audience, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the benchmark ends this process
    asyncio.run(_listen(audience, pipe))


async def _listen(audience: Audience, pipe: Connection) -> None:
    """Sends an empty list when all are subscribed; then events, as many at a time as there are subscribers."""
    received: list[Event] = []

    def record(subscriber: int, project: Json | None) -> None:
        at, number = time.monotonic(), int(project["title"]) if project else 0
        received.append(Event(subscriber, number, at))
        if len(received) == len(audience.tokens):
            send()

    def send() -> None:
        pipe.send(received)
        received.clear()

    clients = [
        await _subscribe(audience, token, functools.partial(record, subscriber))
        for subscriber, token in enumerate(audience.tokens)
    ]
    send()
    await asyncio.to_thread(pipe.recv)
    send()
    pipe.close()
    for client in clients:
        await client.close()


async def _subscribe(audience: Audience, token: str, on_event: OnEvent) -> AsyncRealtimeClient:
    """Subscribes a client to inserted projects."""
    client = AsyncRealtimeClient(audience.url, audience.key, auto_reconnect=False)
    await client.set_auth(token)
    if audience.feature == CHANGES:
        channel = client.channel("projects").on_postgres_changes(
            RealtimePostgresChangesListenEvent.Insert,
            lambda message: on_event(message["data"].get("record")),
            table="projects",
        )
    else:
        channel = client.channel(audience.topic, PRIVATE)
        channel.on_broadcast("INSERT", lambda message: on_event(message["payload"]["record"]))
    answers: list[tuple[RealtimeSubscribeStates, Exception | None]] = []
    await channel.subscribe(lambda state, error: answers.append((state, error)))
    if answers != [(RealtimeSubscribeStates.SUBSCRIBED, None)]:
        raise SubscribersFailed(f"A subscriber could not subscribe: {answers}.")
    return client
