"""Where drills, extracts and upgrade checks restore: on another server, or with another PostgreSQL than the embedded one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.backup.borrowed import borrow_database
from scripts.backup.checksum import add_checksum
from scripts.cli import ballast
from scripts.scratch import os_user
from scripts.scratch.postgres import Postgres, stop
from tests import people
from tests.conftest import Database, free_port_block
from tests.schema import migrate
from tests.scripts.conftest import StoredBackup, Vault

OLDEST = Path("/usr/lib/postgresql/15/bin")
# The dump contains these, and only PostgreSQL 15 has the extensions here.
SECRETS = """
    create table app.secrets (id uuid primary key default extensions.uuid_generate_v4(), hash bytea);
    create function app.hash() returns bytea language sql return extensions.digest('a'::text, 'sha256');
    insert into app.secrets (hash) values (app.hash())"""
UPGRADE_CHECKS = {"row counts", "structure", "functions", "migrations", "data", "types", "other tenants denied"}
# Everything of a server that a borrowed database could leave behind or change.
TRACES = (
    "select datname::text from pg_database order by 1",
    "select to_jsonb(r) - 'oid' from pg_authid as r order by rolname",
    "select m.roleid::regrole::text, m.member::regrole::text, m.admin_option from pg_auth_members as m order by 1, 2, 3",
    "select setrole::regrole::text, setconfig from pg_db_role_setting order by 1, 2",
)


@pytest.fixture(scope="module")
def oldest(home: Path) -> Iterator[Postgres]:
    """A server of the oldest version that Supabase hosts, with extensions that the embedded one lacks."""
    if not (OLDEST / "postgres").exists():
        pytest.skip(f"PostgreSQL 15 is not installed in {OLDEST}")
    server = Postgres(home / "oldest", free_port_block(), "test", OLDEST)
    process = server.start(fsync="off")
    migrate(server.url())
    with psycopg.connect(server.url()) as connection:
        people.fill_database(Database(connection))
        connection.execute(SECRETS.encode())
    yield server
    stop(process)


@pytest.fixture(scope="module")
def foreign(home: Path) -> Iterator[str]:
    """The URL of a new server that knows nothing of Supabase: postgres is its superuser, and the only role."""
    server = Postgres(home / "foreign", free_port_block(), "test")
    os_user.make_folder(server.folder)
    password = server.folder / "password"
    password.write_text("test")
    os_user.give(password)
    subprocess.run(
        [server.program("initdb"), "-D", server.folder / "data", "-U", "postgres", "--pwfile", password, "--auth=scram-sha-256", "--no-sync"],
        check=True, capture_output=True, cwd="/", **os_user.find_identity(),
    )  # fmt: skip
    process = subprocess.Popen(
        server.command(fsync="off", log_min_messages="panic"), cwd="/", stderr=subprocess.DEVNULL, **os_user.find_identity()
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            psycopg.connect(server.url("postgres")).close()
            break
        except psycopg.OperationalError:
            time.sleep(0.1)
    yield server.url("postgres")
    stop(process)


@pytest.fixture(scope="module")
def elsewhere(home: Path) -> Iterator[str]:
    """The URL of a superuser on a server like Supabase's, which no other test uses."""
    server = Postgres(home / "elsewhere", free_port_block(), "test")
    process = server.start(fsync="off")
    yield server.url("supabase_admin")
    stop(process)


@pytest.fixture
def old_vault(oldest: Postgres, folder_shelf: Vault) -> Vault:
    return Vault(oldest.url(), folder_shelf.backup_url, folder_shelf.home)


def traces(url: str) -> list[list[tuple[Any, ...]]]:
    with psycopg.connect(url) as connection:
        return [connection.execute(question.encode()).fetchall() for question in TRACES]


def lose_the_dump(vault: Vault, name: str) -> None:
    """So that a command that reads the dump fails with another reason."""
    place = vault.store.path(name, vault.store.manifest(name).dump)
    assert place is not None
    place.unlink()


def forge(vault: Vault, name: str, **changes: Any) -> None:
    place = vault.store.path(name, "manifest.json")
    assert place is not None
    place.write_bytes(add_checksum(json.dumps(json.loads(place.read_text()) | changes).encode()))


def check_upgrade(vault: Vault, *words: str) -> Result:
    return CliRunner().invoke(ballast, ["upgrade-check", *words], env=vault.environment)


def list_passed(checked: Result) -> set[str]:
    """The checks that an upgrade passed. The test tables are not declared in the checkout, so some do not."""
    assert checked.stdout.startswith("{"), checked.output
    [checks] = json.loads(checked.stdout).values()
    return {check["name"] for check in checks if check["passed"]}


# --- another PostgreSQL ---


@pytest.mark.thorough
def test_an_installed_postgres_proves_a_backup_with_its_extensions(old_vault: Vault, tmp_path: Path) -> None:
    name = old_vault.back_up()
    assert [each.name for each in old_vault.store.manifest(name).extensions] == ["pgcrypto", "uuid-ossp"]
    report = json.loads(old_vault.run_to_end("drill", "--json", "--postgres", str(OLDEST)).stdout)
    assert (report["passed"], report["server_version"] // 10_000) == (True, 15)
    with old_vault.connect() as connection:
        [[organization]] = connection.execute("select id::text from public.organizations limit 1").fetchall()
    output = tmp_path / "rows.sql"
    words = ["--organization", organization, "--output", str(output), "--postgres", str(OLDEST)]
    old_vault.run_to_end("extract", "latest", *words)
    assert organization in output.read_text()
    assert list_passed(check_upgrade(old_vault, "--json", "--postgres", str(OLDEST))) >= UPGRADE_CHECKS


def test_a_folder_without_a_server_is_reported(folder_shelf: Vault, backup: StoredBackup, tmp_path: Path) -> None:
    folder_shelf.keep(backup)
    refused = folder_shelf.run("drill", "--postgres", str(tmp_path))
    assert refused.exit_code == 1
    assert "has no initdb and no postgres: name the bin folder" in refused.stderr


# --- what is missing ---


def test_a_missing_extension_is_reported_before_the_dump_is_read(old_vault: Vault, tmp_path: Path) -> None:
    lose_the_dump(old_vault, name := old_vault.back_up())
    commands = [["drill"], ["extract", name, "--organization", "org_acme", "--output", str(tmp_path / "rows")]]
    for refused in [*(old_vault.run(*words) for words in commands), check_upgrade(old_vault)]:
        assert refused.exit_code == 1
        assert (
            "the extension pgcrypto 1.3 is not available; the extension uuid-ossp 1.1 is not available"
            in refused.stderr
        )
        assert "do not rely on it" not in refused.stderr
    assert name not in old_vault.store.drills()


@pytest.mark.usefixtures("scratch_at_hand")
def test_an_older_version_of_an_extension_is_reported(folder_shelf: Vault, backup: StoredBackup) -> None:
    name = folder_shelf.keep(backup)
    forge(folder_shelf, name, extensions=[{"name": "citext", "namespace": "extensions", "version": "1.10"}])
    lose_the_dump(folder_shelf, name)
    refused = folder_shelf.run("drill")
    assert re.search(r"the extension citext has the version 1\.\d instead of 1\.10\. Install it there", refused.stderr)


def test_an_extension_in_another_schema_is_reported(
    folder_shelf: Vault, new_database: Callable[..., str], backup: StoredBackup
) -> None:
    name = folder_shelf.keep(backup)
    forge(folder_shelf, name, extensions=[{"name": "citext", "namespace": "extensions", "version": "1.0"}])
    lose_the_dump(folder_shelf, name)
    target = new_database()
    with psycopg.connect(target) as connection:
        connection.execute("create extension citext schema public")
    refused = folder_shelf.run("restore", name, "--to", target)
    assert "the extension citext is in the schema public instead of extensions" in refused.stderr


def test_an_extension_that_the_role_may_not_create_is_reported(
    folder_shelf: Vault, new_database: Callable[..., str], backup: StoredBackup, bare_server: Postgres
) -> None:
    name = folder_shelf.keep(backup)
    forge(folder_shelf, name, extensions=[{"name": "moddatetime", "namespace": "extensions", "version": "1.0"}])
    lose_the_dump(folder_shelf, name)
    target = new_database()
    with psycopg.connect(bare_server.url("supabase_admin", target.rpartition("/")[2])) as admin:
        admin.execute("drop event trigger lend_superuser; drop event trigger take_superuser_back")
    refused = folder_shelf.run("restore", name, "--to", target)
    assert refused.exit_code == 1
    assert "moddatetime cannot be created: permission denied to create extension" in refused.stderr
    with psycopg.connect(target) as connection:
        assert connection.execute("select from pg_extension where extname = 'moddatetime'").rowcount == 0


def test_an_older_server_is_refused_in_words(
    oldest: Postgres, folder_shelf: Vault, backup: StoredBackup, tmp_path: Path
) -> None:
    name = folder_shelf.keep(backup)
    lose_the_dump(folder_shelf, name)
    with psycopg.connect(oldest.url("supabase_admin"), autocommit=True) as admin:
        admin.execute("create database target")
    try:
        words = ["--organization", "org_acme", "--output", str(tmp_path / "rows")]
        answers = [
            folder_shelf.run("restore", name, "--to", oldest.url(database="target")),
            folder_shelf.run("drill", "--postgres", str(OLDEST)),
            folder_shelf.run("drill", "--server", oldest.url("supabase_admin")),
            folder_shelf.run("extract", name, *words, "--server", oldest.url("supabase_admin")),
            check_upgrade(folder_shelf, "--postgres", str(OLDEST)),
        ]
    finally:
        with psycopg.connect(oldest.url("supabase_admin"), autocommit=True) as admin:
            admin.execute("drop database target")
    for refused in answers:
        assert refused.exit_code == 1
        assert "PostgreSQL 15 cannot take a backup of PostgreSQL 18. Use a server of PostgreSQL 18" in refused.stderr, (
            refused.output
        )


# --- another server ---


@pytest.mark.parametrize("kind", ["like Supabase", "foreign"])
def test_a_backup_is_proven_on_a_server_that_stays_as_it_was(
    folder_vault: Vault, elsewhere: str, foreign: str, tmp_path: Path, kind: str
) -> None:
    server = foreign if kind == "foreign" else elsewhere
    with folder_vault.connect() as connection:
        connection.execute("create extension moddatetime schema extensions")
        connection.execute(
            "create trigger stamp before update on public.specimens for each row execute function extensions.moddatetime(updated_at)"
        )
        [[organization]] = connection.execute("select id::text from public.organizations limit 1").fetchall()
    folder_vault.back_up()
    before = traces(server)
    report = json.loads(folder_vault.run_to_end("drill", "--json", "--server", server).stdout)
    assert report["passed"]
    output = tmp_path / "rows.sql"
    words = ["--organization", organization, "--output", str(output), "--server", server]
    folder_vault.run_to_end("extract", "latest", *words)
    assert organization in output.read_text()
    assert traces(server) == before


def test_an_upgrade_is_checked_on_a_server_that_stays_as_it_was(folder_vault: Vault, elsewhere: str) -> None:
    folder_vault.back_up()
    before = traces(elsewhere)
    assert list_passed(check_upgrade(folder_vault, "--json", "--server", elsewhere)) >= UPGRADE_CHECKS
    assert traces(elsewhere) == before


@pytest.mark.parametrize(
    "statement",
    ["set role supabase_admin", "set session authorization supabase_admin", "reset role; create role probe superuser"],
)
def test_what_is_restored_does_not_get_the_rights_of_the_superuser(elsewhere: str, statement: str) -> None:
    """A forged backup could otherwise run programs on the server."""
    with borrow_database(elsewhere, []) as borrowed, psycopg.connect(borrowed.url) as connection:
        assert connection.execute("select current_user::text").fetchall() == [("postgres",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@pytest.mark.parametrize("end", [pytest.param(signal.SIGINT, marks=pytest.mark.thorough), signal.SIGTERM])
def test_an_interrupted_drill_drops_its_database(
    folder_vault: Vault, elsewhere: str, make_wrapped_programs: Callable[..., str], end: signal.Signals
) -> None:
    folder_vault.back_up()
    before = traces(elsewhere)
    stuck = make_wrapped_programs(
        pg_restore=f'[[ "$*" == *--list* ]] && exec "$REAL/pg_restore" "$@"; touch "{folder_vault.home}/restoring"; exec sleep 60'
    )
    running = folder_vault.start("drill", "--server", elsewhere, PG_BIN=stuck)
    while not (folder_vault.home / "restoring").exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    assert traces(elsewhere) != before
    running.send_signal(end)
    running.communicate(timeout=120)
    assert traces(elsewhere) == before


def test_a_failed_drill_drops_its_database(folder_shelf: Vault, elsewhere: str, backup: StoredBackup) -> None:
    lose_the_dump(folder_shelf, folder_shelf.keep(backup))
    before = traces(elsewhere)
    failed = folder_shelf.run("drill", "--server", elsewhere)
    assert failed.exit_code == 1
    assert "is not proven" in failed.stderr
    assert traces(elsewhere) == before


def test_only_a_superuser_borrows_a_database(folder_shelf: Vault, bare_server: Postgres, backup: StoredBackup) -> None:
    folder_shelf.keep(backup)
    refused = folder_shelf.run("drill", "--server", bare_server.url())
    assert refused.exit_code == 2
    assert "The role postgres of --server is not a superuser" in refused.stderr


def test_a_server_and_programs_exclude_each_other(folder_shelf: Vault, bare_server: Postgres) -> None:
    for words in (["drill"], ["extract", "latest", "--organization", "o", "--output", "nowhere"]):
        refused = folder_shelf.run(*words, "--server", bare_server.url(), "--postgres", "/usr")
        assert refused.exit_code == 2
        assert "Choose one of --server and --postgres" in refused.stderr
