"""The example world of tests/people.py, in one database per process. Each test runs in a transaction that is rolled back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from tests import people
from tests.conftest import Database, OwnDatabase, ServerElsewhere, own_database


@pytest.fixture(scope="session")
def world_url(server: OwnDatabase | ServerElsewhere) -> Iterator[str | None]:
    """A database that contains the world. None for a server elsewhere, which has only one database."""
    with contextlib.ExitStack() as stack:
        if isinstance(server, ServerElsewhere):
            yield None
            return
        url = stack.enter_context(own_database(server)).url()
        with psycopg.connect(url) as connection:
            people.fill_database(Database(connection))
        yield url


@pytest.fixture
def world(server: OwnDatabase | ServerElsewhere, world_url: str | None) -> Iterator[Database]:
    with psycopg.connect(world_url or server.url()) as connection, connection.transaction(force_rollback=True):
        database = Database(connection)
        if world_url is None:
            people.fill_database(database)
        yield database


@pytest.fixture
def superuser(server: OwnDatabase | ServerElsewhere) -> Iterator[Database]:
    """Like `database`, but as supabase_admin: for tests that first break something only a superuser can break."""
    try:
        connection = psycopg.connect(server.url("supabase_admin"))
    except psycopg.OperationalError:
        pytest.skip(
            "this server does not accept supabase_admin with the password of postgres; hosted Supabase never does"
        )
    with connection, connection.transaction(force_rollback=True):
        yield Database(connection)


@pytest.fixture(scope="session")
def starts_servers(request: pytest.FixtureRequest) -> None:
    """Skips tests that start their own server when the suite runs against a server elsewhere."""
    if request.config.getoption("--server-url"):
        pytest.skip("the test starts its own server, with our bootstrap")
