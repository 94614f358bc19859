"""The small world of tests/people.py, in a database of this process; every test opens a transaction on it, which is rolled back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from tests import people
from tests.conftest import Database, OwnDatabase, ServerElsewhere, own_database


@pytest.fixture(scope="session")
def world_url(server: OwnDatabase | ServerElsewhere) -> Iterator[str | None]:
    """A database with the world in it; None on a server elsewhere, where there is one database only."""
    with contextlib.ExitStack() as stack:
        if isinstance(server, ServerElsewhere):
            yield None
            return
        url = stack.enter_context(own_database(server)).url()
        with psycopg.connect(url) as connection:
            people.world(Database(connection))
        yield url


@pytest.fixture
def world(server: OwnDatabase | ServerElsewhere, world_url: str | None) -> Iterator[Database]:
    with psycopg.connect(world_url or server.url()) as connection, connection.transaction(force_rollback=True):
        database = Database(connection)
        if world_url is None:
            people.world(database)
        yield database


@pytest.fixture
def superuser(server: OwnDatabase | ServerElsewhere) -> Iterator[Database]:
    """A connection like `database`, as supabase_admin: for tests that first break what only a superuser can break."""
    try:
        connection = psycopg.connect(server.url("supabase_admin"))
    except psycopg.OperationalError:
        pytest.skip(
            "this server has no superuser supabase_admin with the password of postgres; hosted Supabase has none"
        )
    with connection, connection.transaction(force_rollback=True):
        yield Database(connection)


@pytest.fixture(scope="session")
def starts_servers(request: pytest.FixtureRequest) -> None:
    """For tests that need a server of their own: such a test says nothing about a server elsewhere."""
    if request.config.getoption("--server-url"):
        pytest.skip("the test starts a server of its own, with our bootstrap")
