"""ops.server_health: what fills the disk of the server, or ends connections and writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from scripts.schema import migrations
from scripts.scratch.postgres import Postgres, stop
from tests.conftest import Database, free_port_block

CONNECTIONS = 20


def verdict(database: Database) -> tuple[str, str]:
    [found] = database.rows("select status, advice from ops.health where subject = 'server'")
    return found[0], found[1]


def read_light(url: str) -> tuple[str, str]:
    with psycopg.connect(url) as connection:
        return verdict(Database(connection))


def change_setting(admin: psycopg.Connection, name: str, value: str) -> None:
    """Changes a setting of the server, and waits until new sessions have it."""
    admin.execute(f"alter system set {name} = '{value}'".encode())
    admin.execute("select pg_reload_conf()")
    found = None
    while found != value:
        with psycopg.connect(admin.info.dsn, password=admin.info.password) as connection:
            [[found]] = connection.execute(f"show {name}".encode()).fetchall()


@pytest.fixture
def small_server(home: Path, starts_servers: None, request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A migrated server of its own, because slots and settings belong to a whole server."""
    postgres = Postgres(home / "small", free_port_block(), "test", request.config.getoption("--postgres"))
    process = postgres.start(fsync="off", max_connections=str(CONNECTIONS))
    try:
        migrations.up(postgres.url())
        yield postgres
    finally:
        stop(process)


def test_a_server_without_trouble_is_green(database: Database) -> None:
    assert database.rows("select * from ops.server_faults") == []
    assert verdict(database) == ("green", "OK.")


def test_a_slot_that_nothing_reads_is_yellow_then_red_until_it_is_dropped(small_server: Postgres) -> None:
    with psycopg.connect(small_server.url("supabase_admin"), autocommit=True) as admin:
        admin.execute("select pg_create_logical_replication_slot('forgotten', 'pgoutput')")
        assert read_light(small_server.url())[0] == "green"
        for number in range(5):  # a segment has 16 MB
            admin.execute(f"select pg_logical_emit_message(false, 'test', '{number}'), pg_switch_wal()")
        status, advice = read_light(small_server.url())
        assert status == "yellow"
        assert "The replication slot forgotten holds back" in advice
        assert "nothing reads it" in advice
        change_setting(admin, "max_wal_size", "32MB")
        assert read_light(small_server.url())[0] == "red"
        change_setting(admin, "max_slot_wal_keep_size", "16MB")
        admin.execute("checkpoint")
        status, advice = read_light(small_server.url())
        assert (status, "The replication slot forgotten lost WAL that its reader needs." in advice) == ("red", True)
        remedy = "select pg_drop_replication_slot('forgotten')"
        assert f"run `{remedy}`" in advice
        admin.execute(remedy)
    assert read_light(small_server.url()) == ("green", "OK.")


def test_connections_near_the_limit_are_yellow_then_red(small_server: Postgres) -> None:
    most = CONNECTIONS - 3
    with ExitStack() as stack, psycopg.connect(small_server.url(), autocommit=True) as connection:

        def connect_until(number: int) -> tuple[str, str]:
            while (
                connection.execute(
                    "select count(*) from pg_stat_activity where backend_type = 'client backend'"
                ).fetchall()[0][0]
                < number
            ):
                stack.enter_context(psycopg.connect(small_server.url()))
            return verdict(Database(connection))

        assert connect_until(most // 2)[0] == "green"
        status, advice = connect_until(most - 2)
        assert (status, f"of {most} connections are in use." in advice, "pooler" in advice) == ("yellow", True, True)
        assert connect_until(most)[0] == "red"


def test_a_database_that_became_read_only_is_red(small_server: Postgres) -> None:
    with psycopg.connect(small_server.url(), autocommit=True) as connection:
        connection.execute("alter database postgres set default_transaction_read_only = on")
    status, advice = read_light(small_server.url())
    assert status == "red"
    assert "New sessions are read-only, so every write fails." in advice
    assert "enlarge the disk in the dashboard" in advice


@pytest.mark.parametrize(("filled", "light"), [(0.5, "green"), (0.85, "yellow"), (0.95, "red")])
def test_a_disk_of_known_size_that_fills_is_reported(superuser: Database, filled: float, light: str) -> None:
    assert superuser.rows("select disk_gb from app.settings") == [(None,)]
    used = "(select sum(pg_database_size(oid)) from pg_database) + (select sum(size) from pg_ls_waldir())"
    superuser.execute(f"update app.settings set disk_gb = ({used}) / 1e9 / %s where true", filled)
    status, advice = verdict(superuser)
    assert status == light
    assert light == "green" or ("The databases and the WAL take" in advice and "enlarge the disk" in advice)


@pytest.mark.parametrize(("age", "light"), [(900_000_000, "green"), (1_100_000_000, "yellow"), (1_600_000_000, "red")])
def test_old_transaction_ids_are_reported_before_writes_stop(superuser: Database, age: int, light: str) -> None:
    superuser.execute(
        "update pg_database set datfrozenxid = (((pg_current_xact_id()::text::bigint & 4294967295) - %s + 4294967296) % 4294967296)::text::xid "
        "where datname = current_database()".replace("% 4294967296", "%% 4294967296"),
        age,
    )
    status, advice = verdict(superuser)
    assert status == light
    assert (light == "green") or "transactions old. At 2 billion PostgreSQL stops accepting writes." in advice


def test_an_invalid_index_is_reported_although_no_file_made_it(superuser: Database) -> None:
    superuser.execute("create index left_over on public.specimens (title)")
    assert verdict(superuser) == ("green", "OK.")
    superuser.execute("update pg_index set indisvalid = false where indexrelid = 'public.left_over'::regclass")
    status, advice = verdict(superuser)
    assert (status, "The index public.left_over is invalid" in advice) == ("yellow", True)
    assert "Run `reindex index concurrently public.left_over`, or drop it." in advice
