"""What the database answered a moment ago, kept in Redis: read in one round trip, and never older than the last change.

Every change has a number, counted up in one key (the clock). A change of a person or an organization (a scope) leaves
its number with the scope; an answer keeps the clock as it was before the database was asked, and the scopes that it
speaks of. It is fresh while none of them has a later number. So an answer that was computed across a change is never
taken as fresh, and nothing ever has to be looked for. Without Redis the database is asked: slower, and right.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from upstash_redis import Redis

from service import metrics
from service.breaker import Breaker, RedisUnavailable
from service.logs import log

LIFE_SECONDS = 60.0
JITTER = 0.1  # of its life: what was made together does not end together
# The longest that a call of the database takes (service/data_api.py): who holds the lease for longer has died.
LEASE_SECONDS = 14.0
WAIT_SECONDS = 3.0
POLL_SECONDS = 0.03
# A change is remembered for longer than any answer lives that was computed before it.
CHANGES_LIVE_SECONDS = 3600
# A change that Redis did not hear of is told again, until the answers from before it have ended by themselves.
TELL_AGAIN_SECONDS = 1.0
TOLD_IN_VAIN_SECONDS = 120.0

# The clock begins at the time of day, so that it does not go back when Redis loses what it knew.
CLOCK = """
local function clock(key)
  local now = redis.call('GET', key)
  if not now then
    local time = redis.call('TIME')
    now = time[1] .. string.format('%06d', time[2])
    redis.call('SET', key, now)
  end
  return now
end
local function changed(scope, at)
  local number = redis.call('GET', scope)
  return number and tonumber(number) > tonumber(at)
end
"""
# Keys: answer, lease, clock. Arguments: the lease's mark and life in ms, whether an answer is wanted at all.
READ = (
    CLOCK
    + """
local now = clock(KEYS[3])
if ARGV[3] == '0' then return {'compute', now, ''} end
local kept = redis.call('HMGET', KEYS[1], 'clock', 'scopes', 'value')
if kept[1] and tonumber(kept[1]) <= tonumber(now) then
  local fresh = true
  for scope in string.gmatch(kept[2], '%S+') do
    if changed(scope, kept[1]) then fresh = false end
  end
  if fresh then return {'hit', now, kept[3]} end
end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {'compute', now, ''} end
return {'wait', now, ''}
"""
)
# Keys: answer, lease, clock, scopes. Arguments: the lease's mark, the clock before, the answer's life in ms, itself.
STORE = (
    CLOCK
    + """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
if tonumber(clock(KEYS[3])) < tonumber(ARGV[2]) then return 0 end
local scopes = {}
for i = 4, #KEYS do
  if changed(KEYS[i], ARGV[2]) then return 0 end
  scopes[#scopes + 1] = KEYS[i]
end
redis.call('HSET', KEYS[1], 'clock', ARGV[2], 'scopes', table.concat(scopes, ' '), 'value', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
)
# Keys: lease. Argument: its mark.
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
# Keys: clock, scopes. Argument: how long the change is remembered, in seconds.
CHANGE = (
    CLOCK
    + """
clock(KEYS[1])
redis.call('INCR', KEYS[1])
local now = redis.call('GET', KEYS[1])
for i = 2, #KEYS do redis.call('SET', KEYS[i], now, 'EX', ARGV[1]) end
return #KEYS - 1
"""
)

Value = TypeVar("Value")


class Scope(NamedTuple):
    """What an answer speaks of and a change is about. `id` is Clerk's; Redis sees a hash of it."""

    kind: str
    id: str


def person(user_id: str) -> Scope:
    return Scope("person", user_id)


def organization(clerk_org_id: str) -> Scope:
    return Scope("organization", clerk_org_id)


@dataclass(frozen=True)
class Shelf(Generic[Value]):
    """A kind of answer. A new shape gets a new version: for a while, processes of two releases share a Redis."""

    name: str
    version: int


class _Flight:
    """An answer that this process is computing, for those of its threads that want it too."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.kept = False


class _Turn(Generic[Value]):
    """A computation without Redis: it begins when the one before has ended, and is for all who came before it began."""

    def __init__(self, before: _Turn[Value] | _Flight | None) -> None:
        self.before = before
        self.landed = threading.Event()
        self.found: list[Value] = []


class Cache:
    """One per process, shared by all threads. `namespace` keeps installations apart that share a Redis."""

    def __init__(self, breaker: Breaker, namespace: str) -> None:
        self._breaker = breaker
        self._prefix = f"ballast:{_hash(namespace)[:12]}"
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self._next: dict[str, _Turn[Any]] = {}
        self._running: dict[str, _Turn[Any]] = {}
        self._untold: dict[str, float] = {}
        self._counts: Counter[str] = Counter(hits=0, misses=0, errors=0, changes=0)

    def fetch(
        self,
        shelf: Shelf[Value],
        facts: tuple[object, ...],
        compute: Callable[[], Value],
        scopes: Callable[[Value], Iterable[Scope] | None],
        *,
        anew: bool = False,
    ) -> Value:
        """What `compute` returns, or returned lately under the same `facts`. Raises what it raises; keeps no failure.

        `facts` are all that the answer depends on but the database. `scopes` says what a value speaks of; None, that it
        is not to be kept, or taken. With `anew` it is computed in any case.
        """
        key = f"{self._prefix}:{shelf.name}:{shelf.version}:{_hash(json.dumps(facts))}"
        mark = secrets.token_hex(8)
        give_up = monotonic() + WAIT_SECONDS
        while True:
            try:
                state, clock, text = self._read(key, mark, anew=anew)
            except RedisUnavailable:
                self._count("errors")
                return self._together(key, compute, scopes)
            if state == "hit":
                value = _parsed(text)
                if value is not None and scopes(value) is not None:
                    self._count("hits")
                    return value  # type: ignore[no-any-return]
                self._count("errors")
                break
            if state == "compute" or monotonic() > give_up:
                break
            if not self._waited(key, give_up):
                break
        self._count("misses")
        return self._computed(key, mark, clock, compute, scopes)

    def changed(self, *scopes: Scope) -> None:
        """Answers about these that were computed before now are not taken any more, here or in another process."""
        keys = [self._scope_key(scope) for scope in dict.fromkeys(scopes)]
        if not keys:
            return
        self._count("changes", len(keys))
        try:
            self._breaker.ask(partial(self._change, keys=keys))
        except RedisUnavailable:
            self._tell_again(keys)

    def stats(self) -> dict[str, int]:
        """Since the process began: hits, misses (the database was asked), errors (so it was, past Redis), changes."""
        with self._lock:
            return dict(self._counts)

    def _read(self, key: str, mark: str, *, anew: bool) -> tuple[str, str, str]:
        if self._untold:
            raise RedisUnavailable("a change is yet to be told")
        keys = [key, f"{key}:lease", f"{self._prefix}:clock"]
        arguments = [mark, str(int(LEASE_SECONDS * 1000)), "0" if anew else "1"]

        def question(redis: Redis) -> tuple[str, str, str]:
            state, clock, text = redis.eval(READ, keys, arguments)
            if state not in {"hit", "compute", "wait"} or not isinstance(text, str) or not str(clock).isdigit():
                raise ValueError("not what the script returns")
            return state, clock, text

        return self._breaker.ask(question)

    def _waited(self, key: str, give_up: float) -> bool:
        """Waits for whoever computes the answer. False: they found none to keep."""
        with self._lock:
            flight = self._flights.get(key)
        if flight is None:
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            return True
        return not flight.landed.wait(max(0.0, give_up - monotonic())) or flight.kept

    def _together(
        self, key: str, compute: Callable[[], Value], scopes: Callable[[Value], Iterable[Scope] | None]
    ) -> Value:
        """Computes once for all threads that wait. Nobody is given what was begun before they asked."""
        with self._lock:
            leads = key not in self._next
            if leads:
                self._next[key] = _Turn(self._running.get(key) or self._flights.get(key))
            turn: _Turn[Value] = self._next[key]
        if not leads:
            turn.landed.wait(WAIT_SECONDS)
            return turn.found[0] if turn.found else compute()
        if turn.before is not None:
            turn.before.landed.wait(WAIT_SECONDS)
            turn.before = None
        with self._lock:
            del self._next[key]
            self._running[key] = turn
        try:
            value = compute()
            if scopes(value) is not None:
                turn.found = [value]
            return value
        finally:
            with self._lock:
                if self._running.get(key) is turn:
                    del self._running[key]
            turn.landed.set()

    def _computed(
        self,
        key: str,
        mark: str,
        clock: str,
        compute: Callable[[], Value],
        scopes: Callable[[Value], Iterable[Scope] | None],
    ) -> Value:
        flight = _Flight()
        with self._lock:
            self._flights.setdefault(key, flight)
        found: Iterable[Scope] | None = None
        try:
            value = compute()
            found = scopes(value)
            flight.kept = found is not None
            return value
        finally:
            if found is None:
                self._release(key, mark)
            else:
                self._store(key, mark, clock, value, found)
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.landed.set()

    def _store(self, key: str, mark: str, clock: str, value: object, scopes: Iterable[Scope]) -> None:
        keys = [key, f"{key}:lease", f"{self._prefix}:clock", *(self._scope_key(scope) for scope in scopes)]
        life = LIFE_SECONDS * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
        arguments = [mark, clock, str(int(life * 1000)), json.dumps(value)]
        self._told(lambda redis: redis.eval(STORE, keys, arguments))

    def _release(self, key: str, mark: str) -> None:
        self._told(lambda redis: redis.eval(RELEASE, [f"{key}:lease"], [mark]))

    def _told(self, command: Callable[[Redis], Any]) -> None:
        try:
            self._breaker.ask(command)
        except RedisUnavailable:
            self._count("errors")

    def _change(self, redis: Redis, keys: list[str]) -> None:
        told = redis.eval(CHANGE, [f"{self._prefix}:clock", *keys], [str(CHANGES_LIVE_SECONDS)])
        if told != len(keys):
            raise ValueError("not what the script returns")

    def _tell_again(self, keys: list[str]) -> None:
        with self._lock:
            is_first = not self._untold
            self._untold.update(dict.fromkeys(keys, monotonic()))
        if is_first:
            threading.Thread(target=self._tell, name="cache", daemon=True).start()

    def _tell(self) -> None:
        """Ends when Redis knows of every change, or when nothing from before is left in it."""
        while True:
            time.sleep(TELL_AGAIN_SECONDS)
            with self._lock:
                told = dict(self._untold)
            try:
                self._breaker.ask(partial(self._change, keys=list(told)), insist=True)
            except RedisUnavailable:
                told = {key: at for key, at in told.items() if monotonic() - at > TOLD_IN_VAIN_SECONDS}
            with self._lock:
                for key, at in told.items():
                    if self._untold.get(key) == at:
                        del self._untold[key]
                if not self._untold:
                    log.info("the cache knows of all changes")
                    return

    def _scope_key(self, scope: Scope) -> str:
        return f"{self._prefix}:{scope.kind}:{_hash(scope.id)}"

    def _count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self._counts[what] += by
        metrics.CACHE.labels(what).inc(by)


def _hash(text: str) -> str:
    """Of an id that nobody can guess: 128 bits tell all of them apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
