"""Databases copied from a server like hosted Supabase, without or with our schema, and stores of backups."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pyrage
import pytest
from click.testing import CliRunner, Result

from scripts.backup import programs
from scripts.backup.manifest import MANIFEST
from scripts.backup.store import BackupStore
from scripts.cli import ballast
from scripts.scratch.postgres import Postgres, stop
from tests import people
from tests.conftest import ROOT, Database, free_port_block
from tests.schema import migrate
from tests.servers import MIGRATED_DATABASE, TestRun

OLDEST = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def bare_server(test_run: TestRun, request: pytest.FixtureRequest) -> Postgres:
    """A server that all processes of the test run share. Copy its databases, and never connect to them."""
    return test_run.postgres("bare", request.config.getoption("--postgres"), is_migrated=True)


@contextlib.contextmanager
def maker_of_databases(server: Postgres) -> Iterator[Callable[..., str]]:
    """Provides a function that creates a database and returns its URL for the role postgres.

    The database is like that of a new Supabase project, or a copy of another one.
    """
    made: list[str] = []
    with psycopg.connect(server.url(database="template1"), autocommit=True) as connection:

        def make(template: str = server.url()) -> str:
            made.append(f"scratch_{secrets.token_hex(6)}")
            connection.execute(
                f"create database {made[-1]} template {template.rpartition('/')[2]} strategy file_copy".encode()
            )
            return server.url(database=made[-1])

        yield make
    # As a superuser, for an autovacuum may be at work there.
    with psycopg.connect(server.url("supabase_admin", "template1"), autocommit=True) as admin:
        for name in made:
            admin.execute(f"drop database if exists {name} with (force)".encode())


@pytest.fixture(scope="session")
def lasting_database(bare_server: Postgres) -> Iterator[Callable[..., str]]:
    """Creates databases that several tests share."""
    with maker_of_databases(bare_server) as make:
        yield make


@pytest.fixture
def new_database(bare_server: Postgres) -> Iterator[Callable[..., str]]:
    """Creates databases for one test and drops them afterwards: hundreds would take gigabytes."""
    with maker_of_databases(bare_server) as make:
        yield make


@pytest.fixture(scope="session")
def migrated_database(bare_server: Postgres) -> str:
    """A migrated database that all processes share. Copy it, and never connect to it."""
    return bare_server.url(database=MIGRATED_DATABASE)


@pytest.fixture(scope="session")
def populated_database(lasting_database: Callable[..., str], migrated_database: str) -> str:
    """A migrated database with people of several organizations in every table. Copy it, and never change it."""
    url = lasting_database(migrated_database)
    with psycopg.connect(url) as connection:
        people.fill_database(Database(connection))
        connection.execute("select app.seal_audit()")
    return url


@pytest.fixture(scope="session")
def old(home: Path) -> Iterator[Postgres]:
    """A server of the oldest version that Supabase hosts, with people."""
    if not (OLDEST / "postgres").exists():
        pytest.skip(f"PostgreSQL 15 is not installed in {OLDEST}")
    server = Postgres(home / "old", free_port_block(), "test", OLDEST)
    process = server.start(fsync="off")
    migrate(server.url())
    with psycopg.connect(server.url()) as connection:
        people.fill_database(Database(connection))
    yield server
    stop(process)


@pytest.fixture
def old_database(old: Postgres) -> Iterator[str]:
    """A database of the oldest version, for one test."""
    with maker_of_databases(old) as make:
        yield make()


# Of every vault, so that a backup made once can be put into any of them.
IDENTITY = str(pyrage.x25519.Identity.generate())


@dataclass(frozen=True)
class StoredBackup:
    """The files of a backup that is made once. Tests put copies into their own store and may damage those."""

    name: str
    files: dict[str, bytes]

    @classmethod
    def make(cls, vault: Vault, **changes: str | None) -> StoredBackup:
        manifest = json.loads(vault.run_to_end("run", "--json", **changes).stdout)
        files = (*manifest["files"], MANIFEST)
        return cls(manifest["name"], {file: vault.store.read(manifest["name"], file) for file in files})


@dataclass(frozen=True)
class Vault:
    """A database, a store for its backups, and the command for both. Without a Data API, nothing is recorded."""

    url: str
    backup_url: str
    home: Path
    identity: str = field(default=IDENTITY, repr=False)

    @property
    def environment(self) -> dict[str, str | None]:
        key = pyrage.x25519.Identity.from_str(self.identity)
        return {
            "ENVIRONMENT": "test", "BALLAST_HOME": str(self.home), "DATABASE_URL": self.url, "BACKUP_URL": self.backup_url,
            "BACKUP_RECIPIENTS": str(key.to_public()), "BACKUP_IDENTITY": self.identity, "SUPABASE_URL": None, "SENTRY_DSN": None,
        }  # fmt: skip

    def run(self, *words: str, **changes: str | None) -> Result:
        """Runs `ballast backup …`. A change to None removes a variable."""
        return CliRunner().invoke(ballast, ["backup", *words], env=self.environment | changes)

    def run_to_end(self, *words: str, **changes: str | None) -> Result:
        """Runs `ballast backup …` and requires that it succeeds."""
        result = self.run(*words, **changes)
        assert result.exit_code == 0, result.output
        return result

    def back_up(self) -> str:
        """Makes a backup, and returns its name."""
        return str(json.loads(self.run_to_end("run", "--json").stdout)["name"])

    def keep(self, backup: StoredBackup) -> str:
        """Puts a copy of a backup into the store, and returns its name."""
        for file, body in backup.files.items():
            self.store.put(backup.name, file, body)
        return backup.name

    def start(self, *words: str, **changes: str | None) -> subprocess.Popen[str]:
        """Starts the command in a separate process, so that a test can kill it."""
        variables = os.environ | self.environment | changes
        return subprocess.Popen(
            [sys.executable, "-m", "scripts.cli", "backup", *words],
            cwd=ROOT, env={name: value for name, value in variables.items() if value is not None},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def store(self) -> BackupStore:
        return BackupStore(self.backup_url)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True)


@pytest.fixture
def folder_vault(populated_database: str, new_database: Callable[..., str], tmp_path: Path) -> Vault:
    """A database with backups in a folder."""
    folder = tmp_path / "the backups ü"
    folder.mkdir()
    return Vault(new_database(populated_database), folder.as_uri(), tmp_path)


@pytest.fixture
def bucket_vault(populated_database: str, new_database: Callable[..., str], tmp_path: Path, bucket: str) -> Vault:
    """A database with backups in a bucket, through the S3 protocol."""
    return Vault(new_database(populated_database), f"s3://{bucket}/some/prefix", tmp_path)


@pytest.fixture(params=["folder", "bucket"])
def vault(request: pytest.FixtureRequest) -> Vault:
    """Runs the test with a folder and with a bucket."""
    return request.getfixturevalue(f"{request.param}_vault")  # type: ignore[no-any-return]


NO_DATABASE = "postgresql://unknown@127.0.0.1:1/nothing"


@pytest.fixture
def folder_shelf(tmp_path: Path) -> Vault:
    """A folder for backups without a database, for commands that must only need the store."""
    folder = tmp_path / "a shelf ü"
    folder.mkdir()
    return Vault(NO_DATABASE, folder.as_uri(), tmp_path)


@pytest.fixture
def bucket_shelf(tmp_path: Path, bucket: str) -> Vault:
    """A bucket for backups without a database."""
    return Vault(NO_DATABASE, f"s3://{bucket}/some/prefix", tmp_path)


@pytest.fixture(params=["folder", "bucket"])
def shelf(request: pytest.FixtureRequest) -> Vault:
    """Runs the test with a folder and with a bucket."""
    return request.getfixturevalue(f"{request.param}_shelf")  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def source(
    populated_database: str, lasting_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Vault:
    """The database of the shared backups."""
    home = tmp_path_factory.mktemp("source")
    (home / "backups").mkdir()
    return Vault(lasting_database(populated_database), (home / "backups").as_uri(), home)


@pytest.fixture(scope="session")
def backup(source: Vault) -> StoredBackup:
    """A backup of `inhabited`."""
    return StoredBackup.make(source)


@pytest.fixture(scope="session")
def other_backup(source: Vault) -> StoredBackup:
    """A second backup with the same rows."""
    return StoredBackup.make(source)


@pytest.fixture(scope="session")
def plain_backup(source: Vault) -> StoredBackup:
    """A backup that is not encrypted."""
    return StoredBackup.make(source, BACKUP_RECIPIENTS=None)


@pytest.fixture(scope="session")
def heavy(populated_database: str, lasting_database: Callable[..., str], bare_server: Postgres) -> str:
    """The same database with 64 MB of random text, so that its backup is uploaded in parts. Do not change it."""
    url = lasting_database(populated_database)
    with psycopg.connect(bare_server.url("supabase_admin", url.rpartition("/")[2])) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            "insert into public.audit_logs (action, resource_type, metadata) select 'client.filled', 'test', jsonb_build_object('n', n, "
            "'filling', (select string_agg(md5(random()::text), '') from generate_series(1, 31250 + 0 * n))) from generate_series(1, 64) as n"
        )
    return url


@pytest.fixture
def scratch_at_hand(new_database: Callable[..., str], bare_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes drills and extracts in this process restore into a new database of the running server.

    This saves the second that a temporary server takes to start. Drills and extracts as a process still start one.
    """

    @contextlib.contextmanager
    def at_hand(_folder: Path, _programs: Path | None, **_settings: str) -> Iterator[SimpleNamespace]:
        name = new_database().rpartition("/")[2]
        yield SimpleNamespace(url=lambda user="postgres": bare_server.url(user, name))

    monkeypatch.setattr("scripts.backup.drill.scratch_server", at_hand)


@pytest.fixture
def make_wrapped_programs(tmp_path: Path) -> Callable[..., str]:
    """Creates a folder for PG_BIN in which some programs are scripts. `$REAL` in them is the folder of the real ones."""

    def make(**scripts: str) -> str:
        folder = tmp_path / f"bin-{secrets.token_hex(4)}"
        folder.mkdir()
        real = programs.find_embedded()
        for name in programs.NAMES:
            script = scripts.get(name, f'exec "$REAL/{name}" "$@"')
            version = f'[[ "$*" == --version ]] && exec "$REAL/{name}" --version'
            (folder / name).write_text(f"#!/bin/bash\nREAL={real}\n{version}\n{script}\n")
            (folder / name).chmod(0o755)
        return str(folder)

    return make
