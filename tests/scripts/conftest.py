"""A PostgreSQL that has what hosted Supabase has and nothing of ours, to copy databases from."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from scripts.local.postgres import Postgres, stop
from tests.conftest import free_port_block


@pytest.fixture(scope="session")
def bare_server(home: Path, request: pytest.FixtureRequest) -> Iterator[Postgres]:
    postgres = Postgres(home / "bare", free_port_block(), "test", request.config.getoption("--postgres"))
    process = postgres.start(fsync="off")
    yield postgres
    stop(process)


@pytest.fixture(scope="session")
def new_database(bare_server: Postgres) -> Iterator[Callable[..., str]]:
    """Makes a database, and returns its URL as the role postgres: as Supabase hands it out, or a copy of another."""
    with psycopg.connect(bare_server.url(database="template1"), autocommit=True) as connection:

        def make(template: str = bare_server.url()) -> str:
            name = f"scratch_{secrets.token_hex(6)}"
            connection.execute(f"create database {name} template {template.rpartition('/')[2]}".encode())
            return bare_server.url(database=name)

        yield make
