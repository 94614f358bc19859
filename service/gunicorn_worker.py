"""gunicorn's threaded worker, with deadlines: a client that sends or reads too slowly does not keep its thread."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import struct
from collections import deque
from enum import Enum, auto
from errno import EPIPE
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

# For the whole request, from its first byte. A signed webhook has at most 512 kB.
RECEIVE_SECONDS = 10.0
# For each piece of a response: service/streaming.py makes them small.
SEND_SECONDS = 10.0
# After the last response, for the client to close its side.
LINGER_SECONDS = 2.0
PEEK_BYTES = DISCARD_BYTES = 64 * 1024
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})", re.IGNORECASE)
# A chunked body, and one that the client sends only after "100 Continue".
UNKNOWN_BODY = re.compile(rb"\r\n(transfer-encoding|expect):", re.IGNORECASE)
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Arrived(Enum):
    """How much of a request has arrived. UNKNOWN: only a thread that reads it, and may have to wait, can find out."""

    NOTHING = auto()
    PART = auto()
    ALL = auto()
    UNKNOWN = auto()


def _find_request(found: bytes) -> Arrived:
    head, end, body = found.partition(b"\r\n\r\n")
    if not end:
        return Arrived.PART
    length = CONTENT_LENGTH.search(head)
    size = int(length[1]) if length else 0
    if UNKNOWN_BODY.search(head) or size > PEEK_BYTES:
        return Arrived.UNKNOWN
    return Arrived.ALL if len(body) >= size else Arrived.PART


class ClientSocket(socket.socket):
    """A connection to a client. A too slow client looks disconnected to gunicorn; the worker then closes it."""

    receive_until = inf
    is_late = False
    is_finished = False
    seen = 0

    def peek(self) -> Arrived:
        """What has arrived of the next request. After PART only further bytes wake the poller."""
        try:
            found = super().recv(PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return Arrived.NOTHING
        except OSError:
            return Arrived.ALL
        if not found:  # the client has closed its side
            return Arrived.ALL
        is_growing, self.seen = len(found) > self.seen, len(found)
        arrived = _find_request(found)
        if arrived is Arrived.PART and (not is_growing or self.seen == PEEK_BYTES):
            return Arrived.UNKNOWN  # the system ignores SO_RCVLOWAT, or has no room for more
        if arrived is Arrived.PART:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self.seen + 1)
        return arrived

    def begin(self) -> None:
        """Starts the deadline for reading a request. If it has passed, only bytes that have arrived are read."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self.seen = 0
        self.receive_until = monotonic() + (0 if self.is_late else RECEIVE_SECONDS)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As of a socket. Returns b"", which means the end, at `receive_until` at the latest."""
        left = max(0.001, self.receive_until - monotonic())
        limit = self.gettimeout()
        self.settimeout(left if limit is None else min(left, limit))
        try:
            return super().recv(size, flags)
        except TimeoutError:
            self.is_late = True
            return b""

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As of a socket. Raises BrokenPipeError if the client does not take `data` in SEND_SECONDS."""
        self._send_in_time(super().sendall, data, flags)

    def send(self, data: Any, flags: int = 0) -> int:
        """As of a socket. Raises BrokenPipeError if the client takes nothing in SEND_SECONDS."""
        return int(self._send_in_time(super().send, data, flags))

    def finish(self) -> None:
        """Ends the sending side. What the client still sends is discarded, and then the connection is closed."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_WR)
            self.is_finished = True

    def setblocking(self, flag: bool) -> None:
        """As of a socket. Does nothing on a closed one, which gunicorn closes once more."""
        if self.fileno() != -1:
            super().setblocking(flag)

    def _send_in_time(self, send: Any, data: Any, flags: int) -> Any:
        self.settimeout(SEND_SECONDS)
        try:
            return send(data, flags)
        except TimeoutError:
            self.is_late = True
            # Otherwise the kernel would keep what it buffered until the client has taken that.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            raise BrokenPipeError(EPIPE, "the client reads too slowly") from None


class Worker(ThreadWorker):  # type: ignore[misc]
    """Waits for clients in the poller, where gunicorn's own worker lets threads wait.

    There a thread waits for a request to arrive, and the main thread, which accepts connections, waits two seconds for
    a client to close its side after a response. Here a request gets a thread when it has arrived completely. If that
    cannot be known, as for chunked requests, it gets one of at most half of the threads.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unknown: set[Any] = set()
        self._next_unknown: deque[Any] = deque()

    def enqueue_req(self, conn: Any) -> None:
        """Called with a new connection, and with one on which bytes have arrived."""
        if not isinstance(conn.sock, ClientSocket):
            conn.sock = ClientSocket(fileno=conn.sock.detach())
        if conn.sock.is_finished:
            self._drain(conn)
            return
        has_read_ahead = conn.initialized and conn.parser.unreader.buf.getvalue()
        arrived = Arrived.UNKNOWN if has_read_ahead else conn.sock.peek()
        if arrived is Arrived.NOTHING:
            self._wait(conn, monotonic() + self.cfg.keepalive)
        elif arrived is Arrived.PART:
            conn.sock.receive_until = min(conn.sock.receive_until, monotonic() + RECEIVE_SECONDS)
            self._wait(conn, conn.sock.receive_until)
        elif arrived is Arrived.ALL:
            self._answer(conn)
        else:
            self._next_unknown.append(conn)
            self._answer_unknown()

    def handle(self, conn: Any) -> bool:
        """Answers one request, in a thread. Returns whether the connection stays open."""
        conn.sock.begin()
        is_kept = super().handle(conn) and not conn.sock.is_late
        if conn.sock.is_late:
            conn.close()
        elif not is_kept:
            conn.sock.finish()
        return is_kept

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Called in the main thread when handle() has returned."""
        self._unknown.discard(conn)
        self._answer_unknown()
        conn.sock.receive_until = inf
        if conn.sock.is_finished and self.alive:
            self._wait(conn, monotonic() + LINGER_SECONDS)
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Closes the connections that have waited for too long."""
        for conn in [each for each in self.pending_conns if each.timeout <= monotonic()]:
            self.pending_conns.remove(conn)
            self.poller.unregister(conn.sock)
            if conn.sock.seen:  # for a problem document, if at least the head has arrived
                conn.sock.is_late = True
                self._answer(conn)
            else:
                self._close(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Called when the worker stops: connections on which nothing arrived must not delay that."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _answer(self, conn: Any) -> None:
        conn.data_ready = True
        super().enqueue_req(conn)

    def _answer_unknown(self) -> None:
        while self._next_unknown and len(self._unknown) < max(1, self.cfg.threads // 2):
            conn = self._next_unknown.popleft()
            self._unknown.add(conn)
            self._answer(conn)

    def _wait(self, conn: Any, until: float) -> None:
        conn.sock.setblocking(False)
        conn.timeout = until
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def _drain(self, conn: Any) -> None:
        """Discards what a client sends after its last response. With unread bytes, a close would discard it."""
        try:
            is_open = bool(conn.sock.recv(DISCARD_BYTES))
        except OSError:
            is_open = False
        if is_open:
            self._wait(conn, conn.timeout)
        else:
            self._close(conn)

    def _close(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()
