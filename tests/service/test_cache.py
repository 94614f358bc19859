"""The cache: one round trip, never older than a change, never an error."""

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
from tests.service.conftest import UNUSED_URL, Grown, MakeApp
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
    """What is cached: one value, which counts who reads it."""

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
def cache_under_test(redis: Redis, namespace: str) -> Cache:
    return Cache(Breaker(redis), namespace)


@pytest.fixture
def database() -> Database:
    return Database()


def about(scopes: Scopes) -> Callable[[object], Scopes]:
    return lambda _: scopes


def fetch(cache_under_test: Cache, database: Database, facts: tuple[object, ...] = ("user_ada",), **how: bool) -> Any:
    return cache_under_test.fetch(KIND, facts, database.read, about(BOTH), **how)["value"]


# --- what is kept, and for whom ---


def test_a_second_reader_is_not_the_databases_business(
    cache_under_test: Cache, database: Database, cache_growth: Grown
) -> None:
    assert [fetch(cache_under_test, database) for _ in range(3)] == [0, 0, 0]
    assert database.calls == 1
    assert cache_growth() == {"hits": 2, "misses": 1}


def test_other_facts_another_version_or_another_installation_have_answers_of_their_own(
    cache_under_test: Cache, redis: Redis, database: Database
) -> None:
    for facts in (("user_ada", True), ("user_ada", False), ("user_ada", None), ("user_ben", True)):
        fetch(cache_under_test, database, facts=facts)
    cache_under_test.fetch("test:2", ("user_ada", True), database.read, about(ADA))
    Cache(Breaker(redis), "another").fetch(KIND, ("user_ada", secrets.token_hex(4)), database.read, about(ADA))
    assert database.calls == 6


@pytest.mark.parametrize("changed", [{"users": ["user_ada"]}, {"organizations": ["org_acme"]}], ids=str)
def test_a_change_of_what_an_answer_speaks_of_ends_it(
    cache_under_test: Cache, database: Database, changed: dict[str, list[str]]
) -> None:
    fetch(cache_under_test, database)
    database.value = 1
    cache_under_test.invalidate(**changed)
    assert [fetch(cache_under_test, database), fetch(cache_under_test, database)] == [1, 1]
    assert database.calls == 2


def test_a_change_of_something_else_does_not(cache_under_test: Cache, database: Database) -> None:
    fetch(cache_under_test, database)
    cache_under_test.invalidate(users=["user_ben", "org_acme"], organizations=["org_globex", "user_ada"])
    fetch(cache_under_test, database)
    assert database.calls == 1


def test_an_answer_computed_across_a_change_is_not_taken(cache_under_test: Cache, database: Database) -> None:
    def read() -> dict[str, Any]:
        found = database.read()
        if database.calls == 1:
            database.value = 1
            cache_under_test.invalidate(organizations=["org_acme"])
        return found

    first = cache_under_test.fetch(KIND, ("x",), read, about(BOTH))
    assert (first["value"], cache_under_test.fetch(KIND, ("x",), read, about(BOTH))["value"]) == (0, 1)


def test_who_asks_anew_is_answered_by_the_database_and_others_hear_of_it(
    cache_under_test: Cache, database: Database
) -> None:
    fetch(cache_under_test, database)
    database.value = 1
    assert [
        fetch(cache_under_test, database),
        fetch(cache_under_test, database, refresh=True),
        fetch(cache_under_test, database),
    ] == [0, 1, 1]


def test_a_failure_is_not_kept_and_holds_nobody_up(cache_under_test: Cache, database: Database) -> None:
    def fail() -> dict[str, Any]:
        raise LookupError("banned")

    with pytest.raises(LookupError):
        cache_under_test.fetch(KIND, ("user_ada",), fail, about(ADA))
    began = time.monotonic()
    assert fetch(cache_under_test, database) == 0
    assert time.monotonic() - began < 0.5


def test_what_is_not_to_be_kept_is_not(cache_under_test: Cache, database: Database) -> None:
    for _ in range(2):
        cache_under_test.fetch(KIND, ("user_ada",), database.read, lambda _: None)
    assert database.calls == 2


def test_an_answer_ends_by_itself(
    cache_under_test: Cache, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LIFE_SECONDS", 0.2)
    fetch(cache_under_test, database)
    time.sleep(0.3)
    fetch(cache_under_test, database)
    assert database.calls == 2


def test_lives_differ_and_none_is_much_longer_than_a_minute(
    cache_under_test: Cache, database: Database, redis: Redis
) -> None:
    for number in range(20):
        fetch(cache_under_test, database, facts=(number,))
    lives = [redis.pttl(key) for key in redis.keys(f"{cache_under_test._prefix}:test:1:*")]
    assert len(lives) == 20
    assert 50_000 < min(lives) < max(lives) <= 66_000
    assert max(lives) - min(lives) > 2_000


def test_redis_hears_of_nobody_by_id_and_forgets(cache_under_test: Cache, database: Database, redis: Redis) -> None:
    fetch(cache_under_test, database)
    cache_under_test.invalidate(*BOTH)
    keys = redis.keys(f"{cache_under_test._prefix}:*")
    assert len(keys) == 4
    assert not [key for key in keys if "ada" in key or "acme" in key]
    assert [key for key in keys if redis.ttl(key) < 0] == [f"{cache_under_test._prefix}:clock"]


def test_a_redis_that_lost_everything_does_not_bring_old_answers_back(
    cache_under_test: Cache, database: Database, redis: Redis
) -> None:
    def read() -> dict[str, Any]:
        found = database.read()
        if database.calls == 1:
            redis.delete(*redis.keys(f"{cache_under_test._prefix}:*"))
            database.value = 1
            cache_under_test.invalidate(*ADA)
        return found

    cache_under_test.fetch(KIND, ("user_ada",), read, about(ADA))
    assert cache_under_test.fetch(KIND, ("user_ada",), read, about(ADA))["value"] == 1


# --- many at once ---


def test_no_reader_ever_sees_what_was_before_a_change_that_was_told_before_it_asked(
    stack: Stack, namespace: str, cache_growth: Grown
) -> None:
    """Threads of two processes read while a third writes and tells. The database has two clocks, which an answer reads
    with a pause between them, as slow transactions do."""
    environment = stack.environment
    caches = [
        Cache(Breaker(redis_at(environment["UPSTASH_REDIS_REST_URL"], environment["UPSTASH_REDIS_REST_TOKEN"])), namespace)
        for _ in range(3)
    ]  # fmt: skip
    database = Database()
    database.seconds = 0.004
    told = 0
    stale: list[tuple[int, int]] = []
    reads = 0
    gives_up = time.monotonic() + 60

    def goes_on() -> bool:
        """For so long that there is something to see, however busy the machine is."""
        return (reads <= 300 or told <= 30 or cache_growth()["hits"] <= 20) and time.monotonic() < gives_up

    def write() -> None:
        nonlocal told
        while goes_on():
            database.value += 1
            caches[2].invalidate(**({"users": ["user_ada"]} if database.value % 2 else {"organizations": ["org_acme"]}))
            told = database.value
            time.sleep(0.02)

    def read(cache_under_test: Cache) -> None:
        nonlocal reads
        while goes_on():
            least = told
            found = fetch(cache_under_test, database)
            reads += 1
            if found < least:
                stale.append((found, least))

    with ThreadPoolExecutor(13) as threads:
        threads.submit(write)
        for number in range(12):
            threads.submit(read, caches[number % 2])
    assert stale == []
    assert told > 20
    assert reads > 100
    assert cache_growth()["hits"] > 10


# --- Redis fails ---


@pytest.fixture
def failing(outside: Outside) -> Cache:
    return Cache(Breaker(redis_at(outside.url, seconds=0.3)), "test")


NONSENSE = {
    "hangs up": HANG_UP,
    "an error": rest_answer({"error": "ERR out of memory"}, 400),
    "no JSON": (200, {}, b"<html>"),
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
def test_nonsense_is_no_answer_and_no_error(
    failing: Cache, outside: Outside, database: Database, cache_growth: Grown, answer: Answer | None
) -> None:
    outside.answer = lambda *_: answer
    assert [fetch(failing, database) for _ in range(5)] == [0] * 5
    assert (database.calls, cache_growth()) == (5, {"errors": 5})


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", "null", '{"value": ', "[" * 50_000])
def test_a_kept_value_that_is_none_is_computed_anew(
    cache_under_test: Cache, redis: Redis, database: Database, text: str
) -> None:
    def scopes(value: object) -> Scopes | None:
        return ADA if isinstance(value, dict) and "value" in value else None

    cache_under_test.fetch(KIND, ("user_ada",), database.read, scopes)
    [key] = redis.keys(f"{cache_under_test._prefix}:test:*")
    redis.eval("return redis.call('HSET', KEYS[1], 'value', ARGV[1])", [key], [text])
    assert cache_under_test.fetch(KIND, ("user_ada",), database.read, scopes) == {"value": 0}
    assert cache_under_test.fetch(KIND, ("user_ada",), database.read, scopes) == {"value": 0}
    assert database.calls == 2


def test_a_slow_redis_is_waited_for_once(failing: Cache, outside: Outside, database: Database) -> None:
    outside.answer = lambda *_: time.sleep(2) or HANG_UP  # type: ignore[func-returns-value]
    began = time.monotonic()
    for _ in range(50):
        fetch(failing, database)
    assert time.monotonic() - began < 0.7  # the pause is a second
    assert len(outside.requests) == 1


def test_each_pause_is_longer_and_one_reader_ends_it(
    outside: Outside, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 0.05)
    failing = Cache(Breaker(redis_at(outside.url)), "test")
    outside.answer = lambda *_: HANG_UP
    ends = time.monotonic() + 1
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: _until(ends, lambda: fetch(failing, database)), range(8)))
    assert 3 <= len(outside.requests) <= 8 + 6  # those under way at first, then after 0.05, 0.1, 0.2, 0.4, 0.8 s


def _until(ends: float, act: Callable[[], object]) -> None:
    while time.monotonic() < ends:
        act()
        time.sleep(0.001)


def test_redis_is_used_again_once_it_answers(
    stack: Stack, outside: Outside, database: Database, cache_growth: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_SECONDS", 0.05)
    with relay(stack, outside) as link:
        cache_under_test = Cache(Breaker(link.redis()), secrets.token_hex(4))
        fetch(cache_under_test, database)
        link.cut = True
        assert [fetch(cache_under_test, database) for _ in range(3)] == [0, 0, 0]
        link.cut = False
        time.sleep(0.1)
        fetch(cache_under_test, database)
    assert (cache_growth()["hits"], database.calls) == (1, 4)


class Link:
    """A way to the stack's Redis that can be cut."""

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


class relay:  # noqa: N801 - reads as a function
    def __init__(self, stack: Stack, outside: Outside) -> None:
        self._link = Link(stack, outside)

    def __enter__(self) -> Link:
        return self._link

    def __exit__(self, *_: object) -> None:
        self._link._http.close()


def test_a_change_that_redis_missed_is_known_here_at_once_and_elsewhere_when_older_answers_have_expired(
    stack: Stack,
    outside: Outside,
    redis: Redis,
    namespace: str,
    database: Database,
    cache_growth: Grown,
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
            assert time.monotonic() < changed_at + 1.1 + 0.5  # an answer's longest life, and a slow machine
        assert fetch(here, database) == 1
        time.sleep(max(0.0, changed_at + 1.2 - time.monotonic()))
        hits = cache_growth()["hits"]
        fetch(here, database)
        assert cache_growth()["hits"] == hits + 1  # it trusts Redis again


def test_an_answers_life_starts_before_the_database_is_asked(
    cache_under_test: Cache, database: Database, redis: Redis
) -> None:
    database.seconds = 0.5
    fetch(cache_under_test, database)
    [key] = redis.keys(f"{cache_under_test._prefix}:test:*")
    assert redis.pttl(key) <= 66_000 - 500


# --- /api/v1/me ---


def as_caller(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **{name.replace("_", "-"): value for name, value in headers.items()}}


class Sessions:
    """The database as far as sessions go: start_session() answers by the token's claims, receive_clerk_event() by what was set."""

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
    """The service with the stack's Redis and a database that counts."""
    names = ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN")
    with running_outside() as database:
        database.answer = sessions.answer
        redis = {name: stack.environment[name] for name in names}
        app = make_app(SUPABASE_URL=database.url, CLERK_ISSUER=issuer.url, **redis)
        yield app.test_client()


def new_person() -> str:
    return f"user_{secrets.token_hex(8)}"


def test_me_is_answered_without_the_database_the_second_time(
    client: FlaskClient, issuer: Issuer, sessions: Sessions
) -> None:
    user_id = new_person()
    answers = [client.get(URL, headers=as_caller(issuer.token(sub=user_id))) for _ in range(3)]
    assert [answer.json["profile"]["clerk_user_id"] for answer in answers] == [user_id] * 3
    assert sessions.calls == 1


@pytest.mark.parametrize("subject", ["person", "organization"])
def test_what_an_event_changed_is_seen_at_once(
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


def test_no_cache_asks_the_database(client: FlaskClient, issuer: Issuer, sessions: Sessions) -> None:
    token = issuer.token(sub=new_person())
    for _ in range(2):
        client.get(URL, headers=as_caller(token, Cache_Control="no-cache"))
    assert sessions.calls == 2


def test_another_second_factor_or_organization_is_another_answer(
    client: FlaskClient, issuer: Issuer, sessions: Sessions
) -> None:
    sessions.organizations.append("org_other")
    user_id = new_person()
    for fva in ([0, 0], [0, -1]):
        for active in ("org_test", "org_other"):
            token = issuer.token(sub=user_id, fva=fva, o={"id": active, "rol": "admin", "slg": "x"})
            assert client.get(URL, headers=as_caller(token)).json["second_factor"] is (fva == [0, 0])
    assert sessions.calls == 4


def test_a_session_whose_active_organization_the_database_does_not_know_is_not_kept(
    client: FlaskClient, issuer: Issuer, sessions: Sessions
) -> None:
    sessions.organizations = []
    token = issuer.token(sub=new_person())
    for _ in range(2):
        client.get(URL, headers=as_caller(token))
    assert sessions.calls == 2


def test_a_refusal_is_not_kept(client: FlaskClient, issuer: Issuer, sessions: Sessions) -> None:
    sessions.refusal = rest_answer({"code": "PT403", "message": "banned", "hint": None}, 403)
    token = issuer.token(sub=new_person())
    assert client.get(URL, headers=as_caller(token)).status_code == 403
    sessions.refusal = None
    assert client.get(URL, headers=as_caller(token)).status_code == 200


def test_a_kept_session_does_not_let_in_whose_token_is_not_good(client: FlaskClient, issuer: Issuer) -> None:
    user_id = new_person()
    assert client.get(URL, headers=as_caller(issuer.token(sub=user_id))).status_code == 200
    refused = [issuer.token(sub=user_id, exp=1), issuer.token(sub=user_id, sts="pending"), "nonsense"]
    assert [client.get(URL, headers=as_caller(token)).status_code for token in refused] == [401, 403, 401]


def test_redis_never_holds_a_token(client: FlaskClient, issuer: Issuer, redis: Redis) -> None:
    token = issuer.token(sub=new_person())
    client.get(URL, headers=as_caller(token))
    with client.application.app_context():
        prefix = components().cache._prefix
    values = [redis.hgetall(key) for key in redis.keys(f"{prefix}:session:*")]
    assert values
    assert token not in str(values)


def test_without_redis_me_is_answered_all_the_same(
    make_app: MakeApp, outside: Outside, issuer: Issuer, sessions: Sessions
) -> None:
    outside.answer = sessions.answer
    client = make_app(
        SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url, UPSTASH_REDIS_REST_URL=UNUSED_URL
    ).test_client()
    token = issuer.token(sub=new_person())
    assert [client.get(URL, headers=as_caller(token)).status_code for _ in range(3)] == [200] * 3
    assert sessions.calls == 3


def test_who_is_removed_from_an_organization_has_lost_it_two_seconds_after_the_webhook(
    online: FlaskClient, stack: Stack
) -> None:
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


def test_who_asks_to_be_erased_is_not_answered_from_the_cache(online: FlaskClient, stack: Stack) -> None:
    user_id = new_person()
    send(stack, "user.created", id=user_id)
    headers = as_caller(stack.token(user_id))
    assert online.get(URL, headers=headers).status_code == 200
    asked = online.post("/api/v1/gdpr/erasure", headers=headers, json={"confirmation": "erase my account"})
    assert asked.status_code == 202
    assert online.get(URL, headers=headers).status_code == 403
