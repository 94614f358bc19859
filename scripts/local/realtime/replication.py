"""Logical replication: streams every committed change of a publication's tables, in order.

Formats: "Streaming Replication Protocol" and "Logical Replication Message Formats" in PostgreSQL's manual.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Literal

import psycopg
from psycopg import pq

log = logging.getLogger(__name__)
Kind = Literal["INSERT", "UPDATE", "DELETE"]
Row = dict[str, str | None]
Connection = psycopg.AsyncConnection[Any]

RECONNECT_SECONDS = 0.5
# Also the longest delay of a commit: PostgreSQL 18 was seen to hold a commit back until the client sent something.
STATUS_SECONDS = 0.1
CONNECT_SECONDS = 5
# If the stream is further behind than this, it restarts, and subscribers read again.
MAX_QUEUE = 100_000
# A policy that waits for a lock, or forever, must not delay the changes of other subscribers for longer.
ASK_OPTIONS = "-c statement_timeout=10s"
KINDS: dict[bytes, Kind] = {b"I": "INSERT", b"U": "UPDATE", b"D": "DELETE"}
POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
WAL_HEADER_BYTES = 25
slots = count()


class StreamEnded(Exception):
    """The server ended the stream, or refused to start it."""


@dataclass(frozen=True)
class Relation:
    """A table in the stream. `key` has the columns of its replica identity."""

    oid: int
    schema: str
    name: str
    columns: tuple[str, ...]
    key: frozenset[str]


@dataclass(frozen=True)
class Change:
    """A written row. Values are in Postgres' text format. A large value that did not change is missing."""

    kind: Kind
    relation: Relation
    new: Row | None
    old: Row | None
    xid: int
    committed_at: datetime


class Decoder:
    """Decodes pgoutput messages (version 1) to changes. It keeps the tables and the current transaction."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}
        self._xid = 0
        self._committed_at = POSTGRES_EPOCH

    def change(self, message: bytes) -> Change | None:
        """The change in a message; None for other messages."""
        kind, reader = message[:1], _Reader(message, 1)
        if kind == b"B":
            _, microseconds, self._xid = reader.take(">qqI")
            self._committed_at = POSTGRES_EPOCH + timedelta(microseconds=microseconds)
        elif kind == b"R":
            relation = _relation(reader)
            self._relations[relation.oid] = relation
        elif kind in KINDS:
            return self._row(KINDS[kind], reader)
        return None

    def _row(self, kind: Kind, reader: _Reader) -> Change:
        relation = self._relations[reader.take(">I")[0]]
        new = old = None
        while not reader.at_end:
            part = reader.bytes(1)
            row = reader.row(relation.columns)
            if part == b"N":
                new = row
            else:  # K: only the columns of the key have values; O: all columns have
                old = row if part == b"O" else {name: row[name] for name in row if name in relation.key}
        if kind == "UPDATE" and old is None and new is not None:
            old = {name: new[name] for name in new if name in relation.key}  # the key has not changed
        return Change(kind, relation, new, old, self._xid, self._committed_at)


class Stream:
    """Streams one publication as long as the task runs, and reconnects after restarts of the server.

    `deliver` is called with each change and a connection for queries, once the transaction is visible there. The stream
    may deliver a commit before it is visible (measured: 5 % of commits). `when_ready` is called at each (re)start, and
    `ready` is set while the stream runs. Commits while there is no stream are lost: clients are notified of the
    restart, and read again.
    """

    def __init__(
        self,
        url: str,
        publication: str,
        deliver: Callable[[Connection, Change], Awaitable[None]],
        when_ready: Callable[[], None],
        ready: asyncio.Event,
    ) -> None:
        self.ready = ready
        self._url = url
        self._publication = publication
        self._deliver = deliver
        self._when_ready = when_ready

    async def run(self) -> None:
        """Streams until cancelled."""
        while True:
            try:
                await self._session()
            except* Exception as group:  # after any error the stream restarts
                names = {type(error).__name__ for error in group.exceptions}
                log.warning("The stream of %s failed (%s): reconnecting.", self._publication, ", ".join(names))
            finally:
                self.ready.clear()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _session(self) -> None:
        async with (
            _connect(self._url, options=ASK_OPTIONS) as asking,
            _connect(self._url, replication="database") as streaming,
        ):
            wal = _WalStream(streaming.pgconn)
            slot = f"realtime_{os.getpid()}_{next(slots)}"
            await wal.command(
                f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT", pq.ExecStatus.TUPLES_OK
            )
            await wal.command(
                f"START_REPLICATION SLOT {slot} LOGICAL 0/0"
                f" (proto_version '1', publication_names '{self._publication}')",
                pq.ExecStatus.COPY_BOTH,
            )
            self.ready.set()
            self._when_ready()
            queue = asyncio.Queue[bytes]()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(wal.read(queue))
                tasks.create_task(self._work(queue, asking))

    async def _work(self, queue: asyncio.Queue[bytes], asking: Connection) -> None:
        decoder, visible = Decoder(), None
        while True:
            change = decoder.change(await queue.get())
            if change is None:
                continue
            try:
                if change.xid != visible:
                    await asking.execute("select realtime.wait_until_visible(%s::text::xid8)", [str(change.xid)])
                    visible = change.xid
                await self._deliver(asking, change)
            except Exception as error:
                if asking.closed:
                    raise
                table, name = f"{change.relation.schema}.{change.relation.name}", type(error).__name__
                log.error("A change of %s could not be delivered: %s.", table, name)  # noqa: TRY400 - a message may hold values


@asynccontextmanager
async def _connect(url: str, **how: str) -> AsyncIterator[Connection]:
    """Closes the connection without further commands: a streaming connection accepts none."""
    address = psycopg.conninfo.make_conninfo(url, connect_timeout=CONNECT_SECONDS, **how)
    connection = await psycopg.AsyncConnection.connect(address, autocommit=True)
    try:
        yield connection
    finally:
        await connection.close()


class _WalStream:
    """A replication connection. It uses libpq directly, because psycopg does not support COPY BOTH."""

    def __init__(self, connection: pq.abc.PGconn) -> None:
        self._connection = connection
        self._received = 0

    async def command(self, text: str, expected: pq.ExecStatus) -> None:
        """Raises StreamEnded with the server's message. The server may wait for open transactions that write."""
        self._connection.send_query(text.encode())
        while self._connection.is_busy():
            await self._arrival()
        result = self._connection.get_result()
        if result is None or result.status != expected:
            raise StreamEnded((result.error_message if result else b"").decode(errors="replace"))
        if expected != pq.ExecStatus.COPY_BOTH:
            while self._connection.get_result() is not None:
                pass

    async def read(self, queue: asyncio.Queue[bytes]) -> None:
        """Queues the messages of the stream, and confirms them: without a confirmation the server cannot stop."""
        last_status = time.monotonic()
        while True:
            size, data = self._connection.get_copy_data(1)
            if size < 0:
                raise StreamEnded("the server ended the stream")
            asked = False
            if size > 0:
                message = bytes(data)
                asked = self._note(message)
                if queue.qsize() > MAX_QUEUE:
                    raise StreamEnded("too far behind")
                if message[:1] == b"w":
                    queue.put_nowait(message[WAL_HEADER_BYTES:])
            if asked or time.monotonic() - last_status > STATUS_SECONDS:
                self._confirm()
                last_status = time.monotonic()
            if size == 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(STATUS_SECONDS):
                        await self._arrival()

    def _note(self, message: bytes) -> bool:
        """Records the position of the stream. Returns whether the server asks for a confirmation."""
        (position,) = struct.unpack_from(">Q", message, 1)
        self._received = max(self._received, position)
        return message[:1] == b"k" and message[17] == 1

    def _confirm(self) -> None:
        status = struct.pack(">cQQQqB", b"r", self._received, self._received, self._received, 0, 0)
        self._connection.put_copy_data(status)
        self._connection.flush()

    async def _arrival(self) -> None:
        """Waits until the server has sent data."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._connection.socket, arrived.set)
        try:
            await arrived.wait()
        finally:
            loop.remove_reader(self._connection.socket)
        self._connection.consume_input()


class _Reader:
    """Reads values from a message, one after the other."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._at = start

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def bytes(self, length: int) -> bytes:
        self._at += length
        return self._data[self._at - length : self._at]

    def text(self) -> str:
        """Reads text that ends with a zero byte."""
        end = self._data.index(b"\0", self._at)
        text = self._data[self._at : end].decode()
        self._at = end + 1
        return text

    def row(self, columns: tuple[str, ...]) -> Row:
        row: Row = {}
        self.take(">H")
        for name in columns:
            form = self.bytes(1)
            if form == b"t":
                row[name] = self.bytes(self.take(">I")[0]).decode()
            elif form == b"n":
                row[name] = None
        return row


def _relation(reader: _Reader) -> Relation:
    (oid,) = reader.take(">I")
    schema, name = reader.text(), reader.text()
    _, number = reader.take(">cH")
    columns, key = [], set()
    for _ in range(number):
        (flags,) = reader.take(">B")
        columns.append(reader.text())
        reader.take(">II")
        if flags & 1:
            key.add(columns[-1])
    return Relation(oid, schema or "pg_catalog", name, tuple(columns), frozenset(key))
