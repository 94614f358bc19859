"""Answers of the database, kept in Redis for a minute and never served across a change.

Changes are numbered by one counter, the clock. A changed person or organization (a scope) keeps the number of its last
change; an answer keeps the clock as it was before the database was asked. It is fresh while no scope that it speaks of
has a later number.

Example: the clock is 7. A reader notes 7, asks the database for Ada's session, and stores the answer with 7. Then her
organization changes: the clock becomes 8, and so does the organization's number. The next reader finds 8 > 7 and asks
the database. Had the change come while the first reader was asking, its answer would not have been stored at all.
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
JITTER = 0.1  # of its life, so that answers made together do not end together
# A change is remembered for longer than any answer lives that was computed before it.
CHANGE_LIFE_SECONDS = 3600

# KEYS[1] is the clock. It starts at the time of day, so that it does not go back when Redis loses its data.
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
# KEYS: clock, answer. ARGV: the clock before the database was asked, scopes, the answer, its life in ms.
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
    """Whom an answer speaks of, by Clerk's ids. Redis sees hashes of them."""

    users: Collection[str] = ()
    organizations: Collection[str] = ()


class Cache:
    """One per process, shared by all threads. `namespace` keeps installations apart that share a Redis."""

    def __init__(self, breaker: Breaker, namespace: str) -> None:
        self._breaker = breaker
        self._prefix = f"ballast:{_hash(namespace)[:12]}"
        self._bypassed_until = 0.0

    def fetch(
        self,
        kind: str,
        facts: Sequence[object],
        compute: Callable[[], Value],
        scopes: Callable[[Value], Scopes | None],
        *,
        refresh: bool = False,
    ) -> Value:
        """What `compute` returns, or returned lately under the same `kind` and `facts`. Raises what `compute` raises.

        `kind` has a version, such as session:1: for a while, processes of two releases share a Redis. `facts` are all
        that the answer depends on besides the database. `scopes` says whom a value speaks of; None means that it must
        not be stored or served. With `refresh` the value is computed in any case.
        """
        key = f"{self._prefix}:{kind}:{_hash(json.dumps(facts))}"
        began = monotonic()
        try:
            clock, text = self._read(key)
        except RedisUnavailable:
            metrics.CACHE.labels("errors").inc()
            return compute()
        kept = None if refresh else _parse(text)
        if kept is not None and scopes(kept) is not None:
            metrics.CACHE.labels("hits").inc()
            return kept  # type: ignore[no-any-return]
        metrics.CACHE.labels("misses").inc()
        value = compute()
        about = scopes(value)
        if about is not None:
            self._store(key, clock, about, json.dumps(value), began)
        return value

    def invalidate(self, users: Collection[str] = (), organizations: Collection[str] = ()) -> None:
        """Ends all answers about these, in every process. Call it after the change is committed.

        If Redis cannot be reached, this process does without the cache until the answers from before have expired.
        """
        keys = self._scope_keys(Scopes(users, organizations))
        if not keys:
            return
        metrics.CACHE.labels("changes").inc(len(keys))
        try:
            self._breaker.ask(partial(self._change, keys))
        except RedisUnavailable:
            metrics.CACHE.labels("errors").inc()
            self._bypassed_until = monotonic() + LIFE_SECONDS * (1 + JITTER)

    def _read(self, key: str) -> tuple[str, str]:
        if monotonic() < self._bypassed_until:
            raise RedisUnavailable("a change did not reach it")

        def read(redis: Redis) -> tuple[str, str]:
            clock, text = redis.eval(READ, [self._clock, key])
            if not (isinstance(clock, str) and clock.isdigit() and isinstance(text, str)):
                raise ValueError("not what the script returns")
            return clock, text

        return self._breaker.ask(read)

    def _store(self, key: str, clock: str, scopes: Scopes, text: str, began: float) -> None:
        # Its life starts before the database is asked, which bounds how long a change is unknown that Redis missed.
        life = LIFE_SECONDS * random.uniform(1 - JITTER, 1 + JITTER) - (monotonic() - began)  # noqa: S311 - no secret
        arguments = [clock, " ".join(self._scope_keys(scopes)), text, str(max(1, int(life * 1000)))]
        try:
            self._breaker.ask(lambda redis: redis.eval(STORE, [self._clock, key], arguments))
        except RedisUnavailable:
            metrics.CACHE.labels("errors").inc()

    def _change(self, keys: list[str], redis: Redis) -> None:
        if redis.eval(CHANGE, [self._clock, *keys], [str(CHANGE_LIFE_SECONDS)]) != len(keys):
            raise ValueError("not what the script returns")

    @property
    def _clock(self) -> str:
        return f"{self._prefix}:clock"

    def _scope_keys(self, scopes: Scopes) -> list[str]:
        users = (f"{self._prefix}:person:{_hash(each)}" for each in scopes.users)
        organizations = (f"{self._prefix}:organization:{_hash(each)}" for each in scopes.organizations)
        return list(dict.fromkeys([*users, *organizations]))


def _hash(text: str) -> str:
    """128 bits, which tell all ids apart. An id has too many random characters to be guessed from its hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
