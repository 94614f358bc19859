"""Caches database answers in Redis for a minute, and never serves one that is older than a change.

One counter, the clock, numbers all changes. Each person or organization (a scope) stores the number of its last change.
Each answer stores the clock as it was before the database was asked. An answer is fresh while none of its scopes has a
later number.

Example: the clock is 7. A reader reads 7, asks the database for Ada's session, and stores the answer with 7. Then her
organization changes: the clock becomes 8, and so does the organization's number. The next reader finds 8 > 7 and asks
the database again. If the change comes while the first reader is still asking, that reader's answer is not stored.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from upstash_redis import Redis

from service import metrics
from service.breaker import Breaker, RedisUnavailable

LIFE_SECONDS = 60.0
JITTER = 0.1  # as a share of the life, so that answers stored together do not expire together
# A change must be remembered for longer than any answer computed before it can live.
CHANGE_LIFE_SECONDS = 3600

# KEYS[1] is the clock. It starts at the current time in µs, so that it does not go back when Redis loses its data.
SHARED = """
local function clock()
  local now = redis.call('GET', KEYS[1])
  if not now then
    local time = redis.call('TIME')
    now = time[1] .. string.format('%06d', time[2])
    redis.call('SET', KEYS[1], now)
  end
  return now
end
local function is_fresh(at, scopes)
  if tonumber(at) > tonumber(clock()) then return false end
  for scope in string.gmatch(scopes, '%S+') do
    local changed = redis.call('GET', scope)
    if changed and tonumber(changed) > tonumber(at) then return false end
  end
  return true
end
"""
# KEYS: clock, answer. Returns the clock, and the answer if it is fresh.
READ = f"""{SHARED}
local kept = redis.call('HMGET', KEYS[2], 'clock', 'scopes', 'value')
if kept[1] and is_fresh(kept[1], kept[2]) then return {{clock(), kept[3]}} end
return {{clock(), ''}}
"""
# KEYS: clock, answer. ARGV: the clock from before the database was asked, scopes, the answer, its life in ms.
STORE = f"""{SHARED}
if not is_fresh(ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[2], 'clock', ARGV[1], 'scopes', ARGV[2], 'value', ARGV[3])
return redis.call('PEXPIRE', KEYS[2], ARGV[4])
"""
# KEYS: clock, scopes. ARGV: how long the change is remembered, in seconds.
CHANGE = f"""{SHARED}
clock()
redis.call('INCR', KEYS[1])
local now = redis.call('GET', KEYS[1])
for i = 2, #KEYS do redis.call('SET', KEYS[i], now, 'EX', ARGV[1]) end
return #KEYS - 1
"""

Value = TypeVar("Value")


class Scopes(NamedTuple):
    """The people and organizations that an answer depends on, by Clerk id. Redis gets only hashes of the ids."""

    users: Collection[str] = ()
    organizations: Collection[str] = ()


class Cache:
    """One per process, shared by all threads. `namespace` separates installations that share a Redis."""

    def __init__(self, breaker: Breaker, namespace: str) -> None:
        self._breaker = breaker
        self._prefix = f"ballast:{_hash(namespace)[:12]}"
        self._bypassed_until = 0.0

    def fetch(
        self,
        kind: str,
        inputs: Sequence[object],
        compute: Callable[[], Value],
        scopes: Callable[[Value], Scopes | None],
        *,
        refresh: bool = False,
    ) -> Value:
        """Returns the cached value for `kind` and `inputs`, or what `compute` returns. Raises what `compute` raises.

        `kind` contains a version, such as session:1, because two releases share a Redis during a deployment. `inputs`
        is everything that the answer depends on apart from the database. `scopes(value)` returns the people and
        organizations that a value depends on; None means that it must not be stored or served. `refresh` always
        computes.
        """
        key = f"{self._prefix}:{kind}:{_hash(json.dumps(inputs))}"
        began = monotonic()
        try:
            clock, text = self._read(key)
        except RedisUnavailable:
            metrics.CACHE.labels("errors").inc()
            return compute()
        cached = None if refresh else _parse(text)
        if cached is not None and scopes(cached) is not None:
            metrics.CACHE.labels("hits").inc()
            return cached  # type: ignore[no-any-return]
        metrics.CACHE.labels("misses").inc()
        value = compute()
        value_scopes = scopes(value)
        if value_scopes is not None:
            self._store(key, clock, value_scopes, json.dumps(value), began)
        return value

    def invalidate(self, users: Collection[str] = (), organizations: Collection[str] = ()) -> None:
        """Invalidates all answers that depend on these, in every process. Call it after the change is committed.

        If Redis cannot be reached, this process bypasses the cache until every older answer has expired.
        """
        keys = self._scope_keys(Scopes(users, organizations))
        if not keys:
            return
        metrics.CACHE.labels("changes").inc(len(keys))
        try:
            self._breaker.call(partial(self._change, keys))
        except RedisUnavailable:
            metrics.CACHE.labels("errors").inc()
            self._bypassed_until = monotonic() + LIFE_SECONDS * (1 + JITTER)

    def _read(self, key: str) -> tuple[str, str]:
        if monotonic() < self._bypassed_until:
            raise RedisUnavailable("an invalidation did not reach it")

        def read(redis: Redis) -> tuple[str, str]:
            clock, text = redis.eval(READ, [self._clock, key])
            if not (isinstance(clock, str) and clock.isdigit() and isinstance(text, str)):
                raise ValueError("unexpected result of the script")
            return clock, text

        return self._breaker.call(read)

    def _store(self, key: str, clock: str, scopes: Scopes, text: str, began: float) -> None:
        # Its life starts before the database is asked: this bounds how long a change that Redis missed goes unnoticed.
        life = LIFE_SECONDS * random.uniform(1 - JITTER, 1 + JITTER) - (monotonic() - began)  # noqa: S311 - no secret
        arguments = [clock, " ".join(self._scope_keys(scopes)), text, str(max(1, int(life * 1000)))]
        try:
            self._breaker.call(lambda redis: redis.eval(STORE, [self._clock, key], arguments))
        except RedisUnavailable:
            metrics.CACHE.labels("errors").inc()

    def _change(self, keys: list[str], redis: Redis) -> None:
        if redis.eval(CHANGE, [self._clock, *keys], [str(CHANGE_LIFE_SECONDS)]) != len(keys):
            raise ValueError("unexpected result of the script")

    @property
    def _clock(self) -> str:
        return f"{self._prefix}:clock"

    def _scope_keys(self, scopes: Scopes) -> list[str]:
        users = (f"{self._prefix}:person:{_hash(each)}" for each in scopes.users)
        organizations = (f"{self._prefix}:organization:{_hash(each)}" for each in scopes.organizations)
        return list(dict.fromkeys([*users, *organizations]))


def _hash(text: str) -> str:
    """128 bits, enough to distinguish all ids. An id has too many random characters to be guessed from its hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
