"""Subscribers for `ballast bench realtime`: real clients, in a process of their own so as not to hold up the writer."""

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
# What comes twice comes within this time.
QUIET_SECONDS: Final = 0.3
CHANGES: Final = "Postgres Changes"
BROADCAST: Final = "Broadcast"

PRIVATE: Final[RealtimeChannelOptions] = {"config": {"private": True, "broadcast": None, "presence": None}}

Json = dict[str, Any]
OnEvent = Callable[[Json | None], None]


class SubscribersFailed(Failure):
    """The subscribers' process ended, or they were not all admitted."""


class EventsLost(Failure):
    """A subscriber was not told of each write, once and in order."""


class Event(NamedTuple):
    """A subscriber heard of the project with this number, its title, at this time of the machine's monotonic clock."""

    subscriber: int
    number: int
    at: float


@dataclass(frozen=True)
class Audience:
    """Who listens where: a token for each subscriber; `topic` is that of their organization's broadcasts."""

    name: str
    feature: str
    url: str
    key: str
    topic: str
    tokens: Sequence[str]


class Listeners:
    """Subscribers that listen, as the writer's process sees them."""

    def __init__(self, name: str, pipe: Connection) -> None:
        self._name = name
        self._pipe = pipe
        self._events: list[Event] = []

    def wait(self, writes: int) -> None:
        """Returns once all subscribers heard of so many more writes. Raises EventsLost or SubscribersFailed."""
        for _ in range(writes):
            if not self._pipe.poll(WAIT_SECONDS):
                raise EventsLost(f"{self._name}: an event did not arrive within {WAIT_SECONDS:.0f} s.")
            try:
                self._events += self._pipe.recv()
            except EOFError:
                raise SubscribersFailed(f"{self._name}: the subscribers ended; their own words are above.") from None

    def events(self) -> list[Event]:
        """Everything that was heard, when nothing more is coming. It ends the subscriptions."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which ends us
    asyncio.run(_listen(audience, pipe))


async def _listen(audience: Audience, pipe: Connection) -> None:
    """Sends an empty list when all are subscribed; then events, as many at a time as there are subscribers."""
    heard: list[Event] = []

    def record(subscriber: int, project: Json | None) -> None:
        at, number = time.monotonic(), int(project["title"]) if project else 0
        heard.append(Event(subscriber, number, at))
        if len(heard) == len(audience.tokens):
            send()

    def send() -> None:
        pipe.send(heard)
        heard.clear()

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
    """A client that hears of each project inserted by its title."""
    client = AsyncRealtimeClient(audience.url, audience.key, auto_reconnect=False)
    await client.set_auth(token)
    if audience.feature == CHANGES:
        channel = client.channel("projects").on_postgres_changes(
            RealtimePostgresChangesListenEvent.Insert,
            lambda told: on_event(told["data"].get("record")),
            table="projects",
        )
    else:
        channel = client.channel(audience.topic, PRIVATE)
        channel.on_broadcast("INSERT", lambda told: on_event(told["payload"]["record"]))
    answers: list[tuple[RealtimeSubscribeStates, Exception | None]] = []
    await channel.subscribe(lambda state, error: answers.append((state, error)))
    if answers != [(RealtimeSubscribeStates.SUBSCRIBED, None)]:
        raise SubscribersFailed(f"A subscriber was not admitted: {answers}.")
    return client
