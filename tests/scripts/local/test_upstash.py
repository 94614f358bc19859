"""Unmodified Upstash clients work against the local Redis."""

from __future__ import annotations

import httpx
import pytest
from upstash_redis import Redis
from upstash_redis.errors import UpstashError

from tests.conftest import Stack


@pytest.fixture
def redis(stack: Stack) -> Redis:
    client = Redis(stack.environment["UPSTASH_REDIS_REST_URL"], stack.environment["UPSTASH_REDIS_REST_TOKEN"])
    client.delete("text", "counter", "list", "hash", "missing")
    return client


@pytest.mark.parametrize("text", ["plain", "Zoë ✓", "", "OK", "null", '{"a": 1}', "line\nbreak"])
def test_stored_texts_are_returned_unchanged(redis: Redis, text: str) -> None:
    assert redis.set("text", text, ex=60) is True
    assert redis.get("text") == text
    assert 0 < redis.ttl("text") <= 60


def test_replies_have_their_types(redis: Redis) -> None:
    assert redis.get("missing") is None
    assert redis.incrby("counter", 41) == 41
    assert redis.rpush("list", "a", "b") == 2
    assert redis.lrange("list", 0, -1) == ["a", "b"]
    redis.hset("hash", values={"field": "value"})
    assert redis.hgetall("hash") == {"field": "value"}


def test_a_pipeline_returns_the_reply_to_each_command(redis: Redis) -> None:
    pipeline = redis.pipeline()
    pipeline.set("counter", 1)
    pipeline.incr("counter")
    pipeline.get("counter")
    assert pipeline.exec() == [True, 2, "2"]


def test_a_transaction_returns_the_reply_to_each_command(redis: Redis) -> None:
    transaction = redis.multi()
    transaction.incr("counter")
    transaction.lrange("list", 0, -1)
    assert transaction.exec() == [1, []]


def test_a_script_with_a_flag_of_upstash_runs(redis: Redis) -> None:
    script = "#!lua flags=allow-key-locking\nreturn redis.call('incrby', KEYS[1], ARGV[1])"
    assert redis.eval(script, keys=["counter"], args=["5"]) == 5


def test_an_error_is_reported_and_leaves_the_connection_usable(redis: Redis) -> None:
    redis.set("text", "not a list")
    with pytest.raises(UpstashError, match="WRONGTYPE"):
        redis.rpush("text", "a")
    assert redis.get("text") == "not a list"


def test_a_wrong_token_is_refused(stack: Stack) -> None:
    with pytest.raises(UpstashError, match="Unauthorized"):
        Redis(stack.environment["UPSTASH_REDIS_REST_URL"], "wrong", rest_retries=0).get("text")


@pytest.mark.parametrize("body", ["", "{", "{}", "[]", "5", "null"])
def test_a_malformed_command_is_refused(stack: Stack, body: str) -> None:
    headers = {"Authorization": f"Bearer {stack.environment['UPSTASH_REDIS_REST_TOKEN']}"}
    for path in ("/", "/pipeline", "/multi-exec"):
        if path != "/" and body == "[]":
            continue  # an empty list of commands is valid
        answer = httpx.post(stack.environment["UPSTASH_REDIS_REST_URL"] + path, content=body, headers=headers)
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), path
