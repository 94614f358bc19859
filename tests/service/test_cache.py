"""The cache: a hit costs one round trip, no answer is older than a change, and no failure reaches the caller."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jwt
import pytest
from flask.testing import FlaskClient
from upstash_redis import Redis

from scripts.cli.clerk import send as send_event
from service import breaker, cache
from service.breaker import Breaker
from service.cache import Cache, Scopes
from service.components import components
from tests.conftest import Stack
from tests.service.conftest import UNUSED_URL, Growth, MakeApp
from tests.service.outside import (
    HANG_UP,
    Answer,
    Issuer,
    Outside,
    event,
    rest_answer,
    running_outside,
    sign,
    stored_answer,
)

KIND = "test:1"
ADA = Scopes(users=["user_ada"])
BOTH = Scopes(users=["user_ada"], organizations=["org_acme"])
URL = "/api/v1/me"


class Database:
    """A stand-in for the database: holds one value and counts its reads."""

    def __init__(self) -> None:
        self.value = 0
        self.calls = 0
        self.seconds = 0.0
        self._lock = threading.Lock()

    def read(self) -> dict[str, Any]:
        with self._lock:
            self.calls += 1
            value = self.value
        time.sleep(self.seconds)
        return {"value": value}


def redis_at(url: str, token: str | None = None, seconds: float = 2) -> Redis:
    redis = Redis(url, token or "test", rest_retries=0, allow_telemetry=False, read_your_writes=False)
    redis._http._client = httpx.Client(timeout=seconds, limits=httpx.Limits(max_connections=None))
    return redis


@pytest.fixture
def redis(stack: Stack) -> Redis:
    environment = stack.environment
    return redis_at(environment["UPSTASH_REDIS_REST_URL"], environment["UPSTASH_REDIS_REST_TOKEN"])


@pytest.fixture
def namespace() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def redis_cache(redis: Redis, namespace: str) -> Cache:
    return Cache(Breaker(redis), namespace)


@pytest.fixture
def database() -> Database:
    return Database()


def with_scopes(scopes: Scopes) -> Callable[[object], Scopes]:
    return lambda _: scopes


def fetch(redis_cache: Cache, database: Database, inputs: tuple[object, ...] = ("user_ada",), **options: bool) -> Any:
    return redis_cache.fetch(KIND, inputs, database.read, with_scopes(BOTH), **options)["value"]


# --- what is cached, and for how long ---


def test_a_second_reader_gets_the_cached_answer(redis_cache: Cache, database: Database, cache_growth: Growth) -> None:
    assert [fetch(redis_cache, database) for _ in range(3)] == [0, 0, 0]
    assert database.calls == 1
    assert cache_growth() == {"hits": 2, "misses": 1}


def test_other_inputs_versions_or_installations_have_separate_answers(
    redis_cache: Cache, redis: Redis, database: Database
) -> None:
    for inputs in (("user_ada", True), ("user_ada", False), ("user_ada", None), ("user_ben", True)):
        fetch(redis_cache, database, inputs=inputs)
    redis_cache.fetch("test:2", ("user_ada", True), database.read, with_scopes(ADA))
    Cache(Breaker(redis), "another").fetch(KIND, ("user_ada", secrets.token_hex(4)), database.read, with_scopes(ADA))
    assert database.calls == 6


@pytest.mark.parametrize("changed", [{"users": ["user_ada"]}, {"organizations": ["org_acme"]}], ids=str)
def test_a_change_of_a_scope_invalidates_the_answer(
    redis_cache: Cache, database: Database, changed: dict[str, list[str]]
) -> None:
    fetch(redis_cache, database)
    database.value = 1
    redis_cache.invalidate(**changed)
    assert [fetch(redis_cache, database), fetch(redis_cache, database)] == [1, 1]
    assert database.calls == 2


def test_a_change_of_another_scope_does_not_invalidate_it(redis_cache: Cache, database: Database) -> None:
    fetch(redis_cache, database)
    redis_cache.invalidate(users=["user_ben", "org_acme"], organizations=["org_globex", "user_ada"])
    fetch(redis_cache, database)
    assert database.calls == 1


def test_an_answer_computed_across_a_change_is_not_stored(redis_cache: Cache, database: Database) -> None:
    def read() -> dict[str, Any]:
        found = database.read()
        if database.calls == 1:
            database.value = 1
            redis_cache.invalidate(organizations=["org_acme"])
        return found

    first = redis_cache.fetch(KIND, ("x",), read, with_scopes(BOTH))
    assert (first["value"], redis_cache.fetch(KIND, ("x",), read, with_scopes(BOTH))["value"]) == (0, 1)


def test_a_refresh_reads_the_database_and_updates_the_cache(redis_cache: Cache, database: Database) -> None:
    fetch(redis_cache, database)
    database.value = 1
    assert [
        fetch(redis_cache, database),
        fetch(redis_cache, database, refresh=True),
        fetch(redis_cache, database),
    ] == [0, 1, 1]


def test_a_failure_is_not_cached(redis_cache: Cache, database: Database) -> None:
    def fail() -> dict[str, Any]:
        raise LookupError("banned")

    with pytest.raises(LookupError):
        redis_cache.fetch(KIND, ("user_ada",), fail, with_scopes(ADA))
    began = time.monotonic()
    assert fetch(redis_cache, database) == 0
    assert time.monotonic() - began < 0.5


def test_a_value_without_scopes_is_not_cached(redis_cache: Cache, database: Database) -> None:
    for _ in range(2):
        redis_cache.fetch(KIND, ("user_ada",), database.read, lambda _: None)
    assert database.calls == 2


def test_an_answer_expires(
    redis_cache: Cache, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LIFE_SECONDS", 0.2)
    fetch(redis_cache, database)
    time.sleep(0.3)
    fetch(redis_cache, database)
    assert database.calls == 2


def test_lifetimes_vary_and_stay_near_a_minute(redis_cache: Cache, database: Database, redis: Redis) -> None:
    for number in range(20):
        fetch(redis_cache, database, inputs=(number,))
    lives = [redis.pttl(key) for key in redis.keys(f"{redis_cache._prefix}:test:1:*")]
    assert len(lives) == 20
    assert 50_000 < min(lives) < max(lives) <= 66_000
    assert max(lives) - min(lives) > 2_000


def test_redis_stores_no_ids_and_every_key_expires(redis_cache: Cache, database: Database, redis: Redis) -> None:
    fetch(redis_cache, database)
    redis_cache.invalidate(*BOTH)
    keys = redis.keys(f"{redis_cache._prefix}:*")
    assert len(keys) == 4
    assert not [key for key in keys if "ada" in key or "acme" in key]
    assert [key for key in keys if redis.ttl(key) < 0] == [f"{redis_cache._prefix}:clock"]


def test_old_answers_do_not_return_after_redis_lost_its_data(
    redis_cache: Cache, database: Database, redis: Redis
) -> None:
    def read() -> dict[str, Any]:
        found = database.read()
        if database.calls == 1:
            redis.delete(*redis.keys(f"{redis_cache._prefix}:*"))
            database.value = 1
            redis_cache.invalidate(*ADA)
        return found

    redis_cache.fetch(KIND, ("user_ada",), read, with_scopes(ADA))
    assert redis_cache.fetch(KIND, ("user_ada",), read, with_scopes(ADA))["value"] == 1


# --- concurrency ---


def test_no_reader_sees_a_value_older_than_an_earlier_invalidation(
    stack: Stack, namespace: str, cache_growth: Growth
) -> None:
    """Threads of two processes read while a third process writes and invalidates.

    A read of the database takes 4 ms, so that it often overlaps with a write.
    """
    environment = stack.environment
    caches = [
        Cache(Breaker(redis_at(environment["UPSTASH_REDIS_REST_URL"], environment["UPSTASH_REDIS_REST_TOKEN"])), namespace)
        for _ in range(3)
    ]  # fmt: skip
    database = Database()
    database.seconds = 0.004
    invalidated = 0
    stale: list[tuple[int, int]] = []
    reads = 0
    deadline = time.monotonic() + 60

    def should_continue() -> bool:
        """Runs until enough reads, writes and hits have happened, even on a busy machine."""
        return (reads <= 300 or invalidated <= 30 or cache_growth()["hits"] <= 20) and time.monotonic() < deadline

    def write() -> None:
        nonlocal invalidated
        while should_continue():
            database.value += 1
            caches[2].invalidate(**({"users": ["user_ada"]} if database.value % 2 else {"organizations": ["org_acme"]}))
            invalidated = database.value
            time.sleep(0.02)

    def read(redis_cache: Cache) -> None:
        nonlocal reads
        while should_continue():
            expected = invalidated
            found = fetch(redis_cache, database)
            reads += 1
            if found < expected:
                stale.append((found, expected))

    with ThreadPoolExecutor(13) as threads:
        threads.submit(write)
        for number in range(12):
            threads.submit(read, caches[number % 2])
    assert stale == []
    assert invalidated > 20
    assert reads > 100
    assert cache_growth()["hits"] > 10


# --- Redis fails ---


@pytest.fixture
def failing(outside: Outside) -> Cache:
    return Cache(Breaker(redis_at(outside.url, seconds=0.3)), "test")


NONSENSE = {
    "hangs up": HANG_UP,
    "an error": rest_answer({"error": "ERR out of memory"}, 400),
    "not JSON": (200, {}, b"<html>"),
    "502": (502, {}, b"<html>"),
    "not a list": rest_answer({"result": 5}),
    "null": rest_answer({"result": None}),
    "no result": rest_answer({}),
    "a list": rest_answer([]),
    "another list": rest_answer({"result": ["aGl0", "MQ=="]}),
    "three of them": rest_answer({"result": ["MQ==", "e30=", ""]}),
    "no clock": rest_answer({"result": ["eA==", "e30="]}),
    "no value": rest_answer({"result": ["MQ==", None]}),
    "not base64": rest_answer({"result": ["1", "{}"]}),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_a_malformed_answer_of_redis_is_ignored(
    failing: Cache, outside: Outside, database: Database, cache_growth: Growth, answer: Answer | None
) -> None:
    outside.answer = lambda *_: answer
    assert [fetch(failing, database) for _ in range(5)] == [0] * 5
    assert (database.calls, cache_growth()) == (5, {"errors": 5})


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", "null", '{"value": ', "[" * 50_000])
def test_a_malformed_cached_value_is_computed_again(
    redis_cache: Cache, redis: Redis, database: Database, text: str
) -> None:
    def scopes(value: object) -> Scopes | None:
        return ADA if isinstance(value, dict) and "value" in value else None

    redis_cache.fetch(KIND, ("user_ada",), database.read, scopes)
    [key] = redis.keys(f"{redis_cache._prefix}:test:*")
    redis.eval("return redis.call('HSET', KEYS[1], 'value', ARGV[1])", [key], [text])
    assert redis_cache.fetch(KIND, ("user_ada",), database.read, scopes) == {"value": 0}
    assert redis_cache.fetch(KIND, ("user_ada",), database.read, scopes) == {"value": 0}
    assert database.calls == 2


def test_a_slow_redis_delays_only_one_request(failing: Cache, outside: Outside, database: Database) -> None:
    outside.answer = lambda *_: time.sleep(2) or HANG_UP  # type: ignore[func-returns-value]
    began = time.monotonic()
    for _ in range(50):
        fetch(failing, database)
    assert time.monotonic() - began < 0.7  # the pause is a second
    assert len(outside.requests) == 1


def test_each_pause_is_longer_and_ends_with_one_probe(
    outside: Outside, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 0.05)
    failing = Cache(Breaker(redis_at(outside.url)), "test")
    outside.answer = lambda *_: HANG_UP
    ends = time.monotonic() + 1
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: _until(ends, lambda: fetch(failing, database)), range(8)))
    assert 3 <= len(outside.requests) <= 8 + 6  # 8 in flight at first, then one probe after 0.05, 0.1, 0.2, 0.4, 0.8 s


def _until(ends: float, act: Callable[[], object]) -> None:
    while time.monotonic() < ends:
        act()
        time.sleep(0.001)


def test_redis_is_used_again_after_it_recovers(
    stack: Stack, outside: Outside, database: Database, cache_growth: Growth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 0.05)
    with relay(stack, outside) as link:
        redis_cache = Cache(Breaker(link.redis()), secrets.token_hex(4))
        fetch(redis_cache, database)
        link.cut = True
        assert [fetch(redis_cache, database) for _ in range(3)] == [0, 0, 0]
        link.cut = False
        time.sleep(0.1)
        fetch(redis_cache, database)
    assert (cache_growth()["hits"], database.calls) == (1, 4)


class Link:
    """A connection to the stack's Redis that can be cut."""

    def __init__(self, stack: Stack, outside: Outside) -> None:
        self.cut = False
        self._stack, self._outside = stack, outside
        self._http = httpx.Client(base_url=stack.environment["UPSTASH_REDIS_REST_URL"])
        outside.answer = self._answer

    def redis(self) -> Redis:
        return redis_at(self._outside.url, self._stack.environment["UPSTASH_REDIS_REST_TOKEN"])

    def _answer(self, path: str, headers: Any, body: bytes) -> Answer | None:
        if self.cut:
            return HANG_UP
        passed = {name: headers[name] for name in ("Authorization", "Upstash-Encoding", "Content-Type")}
        answer = self._http.post(path, content=body, headers=passed)
        return answer.status_code, {}, answer.content


class relay:  # noqa: N801 - used like a function
    def __init__(self, stack: Stack, outside: Outside) -> None:
        self._link = Link(stack, outside)

    def __enter__(self) -> Link:
        return self._link

    def __exit__(self, *_: object) -> None:
        self._link._http.close()


def test_a_change_that_redis_missed_is_seen_here_at_once_and_elsewhere_after_expiry(
    stack: Stack,
    outside: Outside,
    redis: Redis,
    namespace: str,
    database: Database,
    cache_growth: Growth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "LIFE_SECONDS", 1.0)
    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 0.01)
    elsewhere = Cache(Breaker(redis), namespace)
    with relay(stack, outside) as link:
        here = Cache(Breaker(link.redis()), namespace)
        assert (fetch(here, database), fetch(elsewhere, database)) == (0, 0)
        link.cut = True
        database.value = 1
        here.invalidate(*ADA)
        changed_at = time.monotonic()
        assert fetch(here, database) == 1
        link.cut = False
        while fetch(elsewhere, database) != 1:
            assert fetch(here, database) == 1
            assert time.monotonic() < changed_at + 1.1 + 0.5  # an answer's longest life, plus time for a slow machine
        assert fetch(here, database) == 1
        time.sleep(max(0.0, changed_at + 1.2 - time.monotonic()))
        hits = cache_growth()["hits"]
        fetch(here, database)
        assert cache_growth()["hits"] == hits + 1  # it trusts Redis again


def test_an_answers_lifetime_starts_before_the_database_is_read(
    redis_cache: Cache, database: Database, redis: Redis
) -> None:
    database.seconds = 0.5
    fetch(redis_cache, database)
    [key] = redis.keys(f"{redis_cache._prefix}:test:*")
    assert redis.pttl(key) <= 66_000 - 500


# --- /api/v1/me ---


def as_caller(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **{name.replace("_", "-"): value for name, value in headers.items()}}


class Sessions:
    """A stand-in for the database: start_session() uses the token's claims, receive_clerk_event() the changed ids set here."""

    def __init__(self) -> None:
        self.calls = 0
        self.name = "Ada"
        self.seconds = 0.0
        self.refusal: Answer | None = None
        self.organizations = ["org_test"]
        self.changed_users: list[str] = []
        self.changed_organizations: list[str] = []

    def answer(self, path: str, headers: Any, _: bytes) -> Answer:
        if path.endswith("receive_clerk_event"):
            return stored_answer(users=self.changed_users, organizations=self.changed_organizations)
        self.calls += 1
        name = self.name
        time.sleep(self.seconds)
        if self.refusal:
            return self.refusal
        claims = jwt.decode(headers["Authorization"].removeprefix("Bearer "), options={"verify_signature": False})
        return rest_answer({
            "profile": {"clerk_user_id": claims["sub"], "full_name": name},
            "second_factor": claims["fva"][1] >= 0,
            "organizations": [{"clerk_org_id": each} for each in self.organizations],
        })  # fmt: skip


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def client(make_app: MakeApp, stack: Stack, issuer: Issuer, sessions: Sessions) -> Iterator[FlaskClient]:
    """The service with the stack's Redis and a stand-in for the database that counts calls."""
    names = ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN")
    with running_outside() as database:
        database.answer = sessions.answer
        redis = {name: stack.environment[name] for name in names}
        app = make_app(SUPABASE_URL=database.url, CLERK_ISSUER=issuer.url, **redis)
        yield app.test_client()


def new_person() -> str:
    return f"user_{secrets.token_hex(8)}"


def test_a_second_me_request_is_answered_from_the_cache(
    client: FlaskClient, issuer: Issuer, sessions: Sessions
) -> None:
    user_id = new_person()
    answers = [client.get(URL, headers=as_caller(issuer.token(sub=user_id))) for _ in range(3)]
    assert [answer.json["profile"]["clerk_user_id"] for answer in answers] == [user_id] * 3
    assert sessions.calls == 1


@pytest.mark.parametrize("subject", ["person", "organization"])
def test_a_change_by_an_event_is_visible_at_once(
    client: FlaskClient, issuer: Issuer, sessions: Sessions, subject: str
) -> None:
    user_id = new_person()
    client.get(URL, headers=as_caller(issuer.token(sub=user_id)))
    sessions.name = "Countess"
    if subject == "person":
        sessions.changed_users = ["user_other", user_id]
    else:
        sessions.changed_organizations = ["org_test"]
    body = event()
    assert client.post("/webhooks/clerk", data=body, headers=sign(body)).status_code == 200
    found = client.get(URL, headers=as_caller(issuer.token(sub=user_id))).json
    assert found["profile"]["full_name"] == "Countess"


def test_no_cache_bypasses_the_cache(client: FlaskClient, issuer: Issuer, sessions: Sessions) -> None:
    token = issuer.token(sub=new_person())
    for _ in range(2):
        client.get(URL, headers=as_caller(token, Cache_Control="no-cache"))
    assert sessions.calls == 2


def test_another_second_factor_or_organization_has_a_separate_answer(
    client: FlaskClient, issuer: Issuer, sessions: Sessions
) -> None:
    sessions.organizations.append("org_other")
    user_id = new_person()
    for fva in ([0, 0], [0, -1]):
        for active in ("org_test", "org_other"):
            token = issuer.token(sub=user_id, fva=fva, o={"id": active, "rol": "admin", "slg": "x"})
            assert client.get(URL, headers=as_caller(token)).json["second_factor"] is (fva == [0, 0])
    assert sessions.calls == 4


def test_a_session_with_an_unknown_active_organization_is_not_cached(
    client: FlaskClient, issuer: Issuer, sessions: Sessions
) -> None:
    sessions.organizations = []
    token = issuer.token(sub=new_person())
    for _ in range(2):
        client.get(URL, headers=as_caller(token))
    assert sessions.calls == 2


def test_a_refusal_is_not_cached(client: FlaskClient, issuer: Issuer, sessions: Sessions) -> None:
    sessions.refusal = rest_answer({"code": "PT403", "message": "banned", "hint": None}, 403)
    token = issuer.token(sub=new_person())
    assert client.get(URL, headers=as_caller(token)).status_code == 403
    sessions.refusal = None
    assert client.get(URL, headers=as_caller(token)).status_code == 200


def test_a_cached_session_does_not_admit_an_invalid_token(client: FlaskClient, issuer: Issuer) -> None:
    user_id = new_person()
    assert client.get(URL, headers=as_caller(issuer.token(sub=user_id))).status_code == 200
    refused = [issuer.token(sub=user_id, exp=1), issuer.token(sub=user_id, sts="pending"), "nonsense"]
    assert [client.get(URL, headers=as_caller(token)).status_code for token in refused] == [401, 403, 401]


def test_redis_never_stores_a_token(client: FlaskClient, issuer: Issuer, redis: Redis) -> None:
    token = issuer.token(sub=new_person())
    client.get(URL, headers=as_caller(token))
    with client.application.app_context():
        prefix = components().cache._prefix
    values = [redis.hgetall(key) for key in redis.keys(f"{prefix}:session:*")]
    assert values
    assert token not in str(values)


def test_me_works_without_redis(make_app: MakeApp, outside: Outside, issuer: Issuer, sessions: Sessions) -> None:
    outside.answer = sessions.answer
    client = make_app(
        SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url, UPSTASH_REDIS_REST_URL=UNUSED_URL
    ).test_client()
    token = issuer.token(sub=new_person())
    assert [client.get(URL, headers=as_caller(token)).status_code for _ in range(3)] == [200] * 3
    assert sessions.calls == 3


def test_a_removed_member_loses_access_within_two_seconds_of_the_webhook(online: FlaskClient, stack: Stack) -> None:
    user_id, organization_id = new_person(), "org_acme"
    send(stack, "user.created", id=user_id)
    membership = {
        "id": f"orgmem_{secrets.token_hex(6)}",
        "role": "org:admin",
        "public_user_data": {"user_id": user_id},
        "organization": {"id": organization_id},
    }
    send(stack, "organizationMembership.created", **membership)
    headers = as_caller(stack.token(user_id, organization_id))
    assert [each["clerk_org_id"] for each in online.get(URL, headers=headers).json["organizations"]] == [
        organization_id
    ]
    send(stack, "organizationMembership.deleted", **membership)
    began = time.monotonic()
    assert online.get(URL, headers=headers).json["organizations"] == []
    assert time.monotonic() - began < 2


def send(stack: Stack, kind: str, **data: object) -> None:
    """Sends a signed event to the stack's service. Raises NotStored."""
    send_event(stack.environment, kind, data)


def test_a_person_who_requested_erasure_is_not_answered_from_the_cache(online: FlaskClient, stack: Stack) -> None:
    user_id = new_person()
    send(stack, "user.created", id=user_id)
    headers = as_caller(stack.token(user_id))
    assert online.get(URL, headers=headers).status_code == 200
    asked = online.post("/api/v1/gdpr/erasure", headers=headers, json={"confirmation": "erase my account"})
    assert asked.status_code == 202
    assert online.get(URL, headers=headers).status_code == 403
