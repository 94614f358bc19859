"""Every command refuses a role from which policies hide rows, and names the role to use: a full table would look empty."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from scripts.cli import ballast
from scripts.scratch.postgres import Postgres

RIGHTS = {
    "a role of the Data API": "grant anon to {role}",
    "a role that reads all data": "grant pg_read_all_data to {role}",
    "a member of the owner": "grant postgres to {role}",
    "a read-only member of the owner": "grant postgres to {role}; alter role {role} set default_transaction_read_only = on",
}
COMMANDS = (
    "migrate up", "migrate status", "migrate check", "backup run", "status", "doctor", "inbox list", "audit verify", "person export user_ada",
)  # fmt: skip


@pytest.fixture(params=RIGHTS)
def role(request: pytest.FixtureRequest, bare_server: Postgres) -> Iterator[str]:
    name = f"role_{secrets.token_hex(4)}"
    with psycopg.connect(bare_server.url("supabase_admin", "template1"), autocommit=True) as admin:
        admin.execute(f"create role {name} login password '{bare_server.password}'".encode())
        admin.execute(RIGHTS[request.param].format(role=name).encode())
        yield name
        admin.execute(f"drop role {name}".encode())


def test_every_command_names_the_owner(
    role: str, bare_server: Postgres, new_database: Callable[..., str], migrated_database: str, tmp_path: Path
) -> None:
    database = new_database(migrated_database).rpartition("/")[2]
    environment = {
        "DATABASE_URL": bare_server.url(role, database),
        "ENVIRONMENT": "test",
        "BALLAST_HOME": str(tmp_path),
        "BACKUP_URL": tmp_path.as_uri(),
    }
    for command in COMMANDS:
        result = CliRunner().invoke(ballast, command.split(), env=environment)
        printed = " ".join(result.output.split())
        assert result.exit_code == 1, command
        assert f"The role {role} may not see all rows of this database: connect as postgres" in printed, command
