"""A circuit breaker for Redis: while Redis is unreachable, requests do not each wait two seconds for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from upstash_redis import Redis

from service.logs import log

# The pause after a failure. It doubles with each further failure, up to the maximum.
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0

Answer = TypeVar("Answer")


class RedisUnavailable(Exception):
    """Redis did not answer, answered nonsense, or failed so recently that it was not asked. Continue without it."""


class Breaker:
    """One per process, shared by all threads.

    Requests in flight when Redis fails wait for their timeout. Afterwards a single probe at a time is let through.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._failures = 0
        self._paused_until = 0.0

    def call(self, operation: Callable[[Redis], Answer]) -> Answer:
        """Returns what `operation(redis)` returns. Raises RedisUnavailable."""
        if self._is_paused():
            raise RedisUnavailable("paused after a failure")
        try:
            answer = operation(self._redis)
        except Exception as error:  # the package does not validate answers: a malformed one may raise anything
            self._record_failure(error)
            raise RedisUnavailable(type(error).__name__) from None
        self._record_success()
        return answer

    def _is_paused(self) -> bool:
        with self._lock:
            now = monotonic()
            if now < self._paused_until:
                return True
            if self._failures:  # this request is the probe: the others stay paused until it returns
                self._paused_until = now + MAX_PAUSE_SECONDS
            return False

    def _record_failure(self, error: Exception) -> None:
        with self._lock:
            now = monotonic()
            if not self._failures:
                log.warning("redis does not answer", extra={"reason": type(error).__name__})
            # Of the requests that failed together, only the first counts as a failure.
            pause = min(FIRST_PAUSE_SECONDS * 2.0**self._failures, MAX_PAUSE_SECONDS)
            if not self._failures or self._paused_until - now > pause:
                self._failures += 1
                self._paused_until = now + pause

    def _record_success(self) -> None:
        if self._failures:
            with self._lock:
                log.info("redis answers again")
                self._failures, self._paused_until = 0, 0.0
