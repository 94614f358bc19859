"""Redis behind a circuit breaker: what cannot be reached is not asked by every request, each waiting two seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from upstash_redis import Redis

from service.logs import log

# How long Redis is left alone after a failure: twice as long each time, for as long as it fails.
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0

Answer = TypeVar("Answer")


class RedisUnavailable(Exception):
    """Redis did not answer, or not in its form, or has not lately. Carry on without it."""


class Breaker:
    """One per process, shared by all threads. Who is under way when Redis fails waits; then one at a time tries."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._failures = 0
        self._paused_until = 0.0

    def ask(self, question: Callable[[Redis], Answer]) -> Answer:
        """What `question` makes of Redis. Raises RedisUnavailable."""
        if self._is_paused():
            raise RedisUnavailable("not asked")
        try:
            answer = question(self._redis)
        except Exception as error:  # the package trusts the form of an answer, and raises whatever it stumbles over
            self._record_failure(error)
            raise RedisUnavailable(type(error).__name__) from None
        self._record_success()
        return answer

    def _is_paused(self) -> bool:
        with self._lock:
            now = monotonic()
            if now < self._paused_until:
                return True
            if self._failures:  # this request tries; the others wait for what becomes of it
                self._paused_until = now + MAX_PAUSE_SECONDS
            return False

    def _record_failure(self, error: Exception) -> None:
        with self._lock:
            now = monotonic()
            if not self._failures:
                log.warning("redis does not answer", extra={"reason": type(error).__name__})
            # Of those that were under way together, the first counts.
            pause = min(FIRST_PAUSE_SECONDS * 2.0**self._failures, MAX_PAUSE_SECONDS)
            if not self._failures or self._paused_until - now > pause:
                self._failures += 1
                self._paused_until = now + pause

    def _record_success(self) -> None:
        if self._failures:
            with self._lock:
                log.info("redis answers again")
                self._failures, self._paused_until = 0, 0.0
