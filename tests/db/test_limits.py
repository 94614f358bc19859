"""PostgREST's pre-request function: limits the writes per person, and answers 429 with Retry-After above the limit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Claims, Database
from tests.db.test_claims import ODD_CLAIMS, json_values

Connect = Callable[[], psycopg.Connection[Any]]

BURST = 100
REFILL = 20
ADA: Claims = {"sub": "user_ada", "role": "authenticated"}


def request(
    database: Database, claims: Claims | str = ADA, method: str | None = "POST", role: str = "authenticated"
) -> dict[str, Any] | None:
    """Calls app.check_request() first in a transaction, as PostgREST does. Returns the refusal, or None."""
    try:
        with database.connection.transaction(), database.acting(role, claims):
            if method is not None:
                database.execute("select set_config('request.method', %s, true)", method)
            database.execute("select app.check_request()")
    except psycopg.Error as error:
        if error.sqlstate != "PGRST":
            raise
        message, detail = (json.loads(text or "") for text in (error.diag.message_primary, error.diag.message_detail))
        return message | detail  # type: ignore[no-any-return]
    return None


def request_many(database: Database, number: int, claims: Claims | str = ADA) -> list[dict[str, Any] | None]:
    return [request(database, claims) for _ in range(number)]


def make_older(database: Database, seconds: float) -> None:
    database.execute("update app.rate_limits set refilled_at = refilled_at - make_interval(secs => %s)", seconds)


def test_a_burst_of_a_hundred_writes_passes_and_the_next_gets_429_with_retry_after(database: Database) -> None:
    assert request(database) is None
    make_older(database, -3600)  # in the future: nothing refills until then, however slow this test is
    assert not any(request_many(database, BURST - 1))
    assert all(request_many(database, 3))
    database.execute("update app.rate_limits set refilled_at = clock_timestamp() + interval '0.9 seconds'")
    assert request(database) == {
        "code": "PT429", "message": "Too many writes.", "details": None, "hint": "Try again in 1 s.",
        "status": 429, "status_text": "Too Many Requests", "headers": {"Retry-After": "1"},
    }  # fmt: skip


def test_the_bucket_refills_up_to_a_hundred_writes(database: Database) -> None:
    request_many(database, BURST)
    database.execute("update app.rate_limits set tokens = 0, refilled_at = clock_timestamp() - interval '2 seconds'")
    request(database)
    assert REFILL * 2 - 1 <= database.value("select tokens from app.rate_limits") < REFILL * 2
    make_older(database, 3600)
    request(database)
    assert database.value("select tokens from app.rate_limits") == BURST - 1


def test_each_person_has_their_own_bucket(database: Database) -> None:
    database.execute(
        "insert into app.rate_limits select app.rate_limit_caller('user_ada'), 'writes', 0, clock_timestamp()"
    )
    assert request(database)
    assert request(database, ADA | {"sub": "user_ben"}) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_reads_are_not_counted(database: Database, method: str) -> None:
    assert request(database, method=method) is None
    assert database.value("select count(*) from app.rate_limits") == 0


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE", "", None])
def test_every_other_method_is_counted(database: Database, method: str | None) -> None:
    request(database, method=method)
    assert database.value("select tokens from app.rate_limits") == BURST - 1


def test_a_call_of_a_read_only_function_is_not_counted(connect: Connect) -> None:
    """PostgREST calls a stable function by POST, in a read-only transaction."""
    with connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("set transaction read only")
        connection.execute("select set_config('request.jwt.claims', %s, true)", [json.dumps(ADA)])
        connection.execute("select set_config('request.method', 'POST', true)")
        connection.execute("set local role authenticated")
        connection.execute("select app.check_request()")


def test_the_service_is_not_limited(database: Database) -> None:
    assert request(database, ADA | {"role": "service_role"}, role="service_role") is None
    assert database.value("select count(*) from app.rate_limits") == 0


def test_the_bucket_stores_a_hash_instead_of_the_person(database: Database) -> None:
    request(database)
    assert database.value("select caller ~ '^[0-9a-f]{64}$' from app.rate_limits")


def test_odd_claims_never_make_it_raise(database: Database) -> None:
    for claims in ODD_CLAIMS:
        assert request(database, claims) is None, claims[:40]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claims=st.dictionaries(st.sampled_from(["sub", "sts", "o", "fva"]), json_values, max_size=4))
def test_any_claims_pass_or_get_429(database: Database, claims: dict[str, Any]) -> None:
    refused = request(database, json.dumps(claims))
    assert refused is None or refused["status"] == 429


def test_a_fault_in_the_limiter_does_not_refuse_writes(database: Database) -> None:
    database.execute("alter table app.rate_limits rename to rate_limits_elsewhere")
    assert request(database) is None


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_no_api_role_can_access_the_buckets(database: Database, role: str) -> None:
    for privilege in ("select", "insert", "update", "delete"):
        assert not database.value("select has_table_privilege(%s, 'app.rate_limits', %s)", role, privilege)


def test_concurrent_writes_cannot_exceed_the_limit(connect: Connect) -> None:
    person = {"sub": "user_with_many_writes", "role": "authenticated"}

    def write(connection: psycopg.Connection[Any]) -> bool:
        database = Database(connection)
        try:
            with connection.transaction(), database.acting("authenticated", person):
                database.execute("select set_config('request.method', 'POST', true)")
                database.execute("select app.check_request()")
        except psycopg.Error:
            return False
        return True

    def write_many(number: int) -> int:
        with connect() as connection:
            return sum(write(connection) for _ in range(number))

    with connect() as connection:
        began = time.monotonic()
        try:
            with ThreadPoolExecutor(8) as threads:
                passed = sum(threads.map(write_many, [38] * 8))
            assert BURST <= passed <= BURST + REFILL * (time.monotonic() - began) + 1
        finally:
            connection.execute("delete from app.rate_limits")


def test_retention_deletes_buckets_unused_for_an_hour(database: Database) -> None:
    request(database)
    make_older(database, 4000)
    request(database, ADA | {"sub": "user_ben"})
    with database.acting("service_role", {"role": "service_role"}):
        assert database.value("select public.run_retention()")["purged"]["app.rate_limits"] == 1


def test_the_check_takes_less_than_half_a_millisecond(database: Database) -> None:
    with database.acting("authenticated", ADA):
        database.execute("select set_config('request.method', 'POST', true)")
        database.execute("select app.check_request()")
        began = time.monotonic()
        database.execute("select count(app.check_request()) from generate_series(1, 90)")
        assert (time.monotonic() - began) / 90 < 0.0005
