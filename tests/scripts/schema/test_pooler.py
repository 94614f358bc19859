"""Commands through PgBouncer in transaction mode: they work, or are refused with the reason and what to use instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast
from scripts.schema import migrations, sql_files
from scripts.scratch.postgres import Postgres
from tests.pooler import Pooler, pooler_to
from tests.schema import remove
from tests.scripts.conftest import Vault

pytestmark = pytest.mark.thorough

# What another client of the pool may have left behind in the session that we get next.
LEFT_BEHIND = """
    set search_path = pg_temp;
    set datestyle = 'German';
    set timezone = 'Europe/Berlin';
    set statement_timeout = '1min';
    set lock_timeout = '1min';
    set row_security = off;
    set default_transaction_isolation = 'serializable';
"""
# PgBouncer itself sets the name of the application.
CHANGED = """
    select name, setting from pg_settings
    where source = 'session' and setting is distinct from reset_val and name <> 'application_name'
    order by name
"""

LOCKS = """
    select count(*) from pg_locks as l join pg_database as d on d.oid = l.database
    where l.locktype = 'advisory' and d.datname = current_database()
"""


@pytest.fixture
def pooler(bare_server: Postgres, tmp_path: Path) -> Iterator[Pooler]:
    with pooler_to(bare_server, tmp_path / "pooler") as pooler:
        yield pooler


@pytest.fixture
def url(pooler: Pooler, new_database: Callable[..., str], migrated_database: str) -> str:
    """A migrated database, through a pooler whose sessions have other settings."""
    direct = new_database(migrated_database)
    remove(direct)
    url = pooler.url(database=direct.rpartition("/")[2])
    pooler.run_in_each_session(url, LEFT_BEHIND)
    return url


def run(url: str, *words: str) -> Result:
    return CliRunner().invoke(ballast, [*words, "--database-url", url])


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        return connection.execute(statement.encode()).fetchall()


def test_pending_files_are_applied_and_other_clients_get_no_setting_of_ours(
    pooler: Pooler, new_database: Callable[..., str]
) -> None:
    url = pooler.url(database=new_database().rpartition("/")[2])
    pooler.run_in_each_session(url, LEFT_BEHIND)
    before = pooler.run_in_each_session(url, CHANGED)
    assert run(url, "migrate", "up").exit_code == 0
    states = {state.state for state in migrations.list_states(url)}
    assert states == {"applied", "current"}
    assert query(url, "select count(*) from supabase_migrations.schema_migrations") == [
        (len(sql_files.read_files(sql_files.ROOT).migrations),)
    ]
    # Each file begins with `reset all`, so settings that another client left behind may be gone.
    for pid, settings in pooler.run_in_each_session(url, CHANGED).items():
        assert set(settings) <= set(before[pid])


@pytest.mark.parametrize("words", [("up",), ("up", "--dry-run"), ("check",), ("status",)], ids=" ".join)
def test_a_current_database_is_found_current(url: str, pooler: Pooler, words: tuple[str, ...]) -> None:
    before = pooler.run_in_each_session(url, CHANGED)
    result = run(url, "migrate", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "pending" not in result.stdout
    assert pooler.run_in_each_session(url, CHANGED) == before


def test_a_second_deployment_waits_for_the_first(url: str, pooler: Pooler) -> None:
    with psycopg.connect(url, prepare_threshold=None) as first:
        notices: list[str] = []
        migrations.lock(first, notices.append)
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as second:
            locked = second.execute("select pg_try_advisory_xact_lock(%s)", [migrations.ADVISORY_LOCK]).fetchone()
    assert (notices, locked) == ([], (False,))
    assert query(url, LOCKS) == [(0,)]


def test_a_backup_is_refused_and_leaves_nothing_in_the_sessions(url: str, pooler: Pooler, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    vault = Vault(url, (tmp_path / "backups").as_uri(), tmp_path)
    before = pooler.run_in_each_session(url, CHANGED)
    result = vault.run("run")
    assert result.exit_code == 1
    assert "a pooler in transaction mode" in result.stderr
    assert "session pooler (on Supabase, port 5432, not 6543)" in result.stderr
    assert list((tmp_path / "backups").iterdir()) == []
    assert pooler.run_in_each_session(url, CHANGED) == before


def test_a_restore_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    result = Vault(url, (tmp_path / "backups").as_uri(), tmp_path).run("restore", "latest", "--to", url)
    assert result.exit_code == 1
    assert "a pooler in transaction mode" in result.stderr


def test_a_session_pooler_is_accepted_for_backups(
    bare_server: Postgres, populated_database: str, new_database: Callable[..., str], tmp_path: Path
) -> None:
    direct = new_database(populated_database)
    (tmp_path / "backups").mkdir()
    with pooler_to(bare_server, tmp_path / "pooler", pool_mode="session", sessions=6) as pooler:
        vault = Vault(pooler.url(database=direct.rpartition("/")[2]), (tmp_path / "backups").as_uri(), tmp_path)
        vault.back_up()
    assert Vault(direct, vault.backup_url, tmp_path).run("verify").exit_code == 0


def test_status_and_doctor_read_through_the_pooler(url: str, pooler: Pooler) -> None:
    before = pooler.run_in_each_session(url, CHANGED)
    for words in (("status",), ("doctor",)):
        printed = run(url, *words).output
        assert "refused a statement" not in printed
        assert "does not answer" not in printed
    assert pooler.run_in_each_session(url, CHANGED) == before


@pytest.mark.parametrize("words", [("up",), ("check",)], ids=" ".join)
def test_a_pooler_with_a_single_session_is_refused_and_serves_others_again(
    bare_server: Postgres,
    migrated_database: str,
    tmp_path: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(migrations, "SESSION_SECONDS", 1)
    with pooler_to(bare_server, tmp_path / "pooler", sessions=1) as pooler:
        url = pooler.url(database=migrated_database.rpartition("/")[2])
        result = run(url, "migrate", *words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "no second session for 1 s, and the deployment needs two: use the direct connection" in result.stderr
        assert query(url, "select 1") == [(1,)]
