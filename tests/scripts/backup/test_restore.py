"""`ballast backup restore` and `drill`: a restore is complete or changes nothing, and a drill detects a bad backup."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pyrage
import pytest
from psycopg import sql

from scripts.backup import snapshot
from scripts.backup.checksum import add_checksum
from scripts.schema import migrations
from scripts.scratch.postgres import Postgres
from tests import events, people
from tests.conftest import Database
from tests.people import ADA, ADA_EMAILS, BEN, Sender
from tests.relay import relay_to
from tests.scripts.conftest import StoredBackup, Vault
from tests.tenant_tables import TABLES

CHECKS = ["row counts", "structure", "functions", "audit seal", "erasures replayed"]
Change = Callable[[dict[str, Any]], None]
# For tests that are not about the server of a drill.
at_hand = pytest.mark.usefixtures("scratch_at_hand")


def contents(url: str) -> dict[str, str]:
    """Hashes the contents of each of our tables, except app.recorded_objects, which a restore renews."""
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(
                sql.SQL("select md5(coalesce(string_agg(t::text, ',' order by t::text), '')) from only {} as t").format(
                    sql.Identifier(*table.split("."))
                )
            ).fetchall()[0][0]
            for table in snapshot.count_rows(connection)
            if table != "app.recorded_objects"
        }


def run_drill(vault: Vault, *words: str, **changes: str | None) -> dict[str, Any]:
    """The report of a drill, and each of its checks by name."""
    result = vault.run("drill", *words, "--json", **changes)
    report: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if report["passed"] else 1), result.output
    return report | {"checks": {check["name"]: check for check in report["checks"]}}


def list_failed(report: dict[str, Any]) -> list[str]:
    return [name for name, check in report["checks"].items() if not check["passed"]]


def rewrite(vault: Vault, name: str, change: Change) -> None:
    """Changes the manifest of a backup in a folder."""
    place = vault.store.path(name, "manifest.json")
    assert place is not None
    manifest = json.loads(place.read_text())
    change(manifest)
    place.write_bytes(add_checksum(json.dumps(manifest).encode()))


@pytest.fixture
def empty(new_database: Callable[..., str]) -> str:
    """A database like that of a new Supabase project."""
    return new_database()


# --- restore ---


def test_a_restore_brings_everything_back(vault: Vault, empty: str) -> None:
    name = vault.back_up()
    before = contents(vault.url)
    restored = vault.run_to_end("restore", name, "--to", empty, "--json")
    assert [(check["name"], check["passed"]) for check in json.loads(restored.stdout)] == [
        (check, True) for check in CHECKS
    ]
    assert contents(empty) == before
    with psycopg.connect(empty) as connection:
        assert people.scan(Database(connection), ADA)
        [[statistics]] = connection.execute("select count(*) from pg_stats where schemaname = 'public'").fetchall()
    assert statistics > 20


def test_a_transferred_ownership_lasts_after_a_restore(folder_shelf: Vault, empty: str, backup: StoredBackup) -> None:
    """An event that names another creator would otherwise make that person the owner."""
    folder_shelf.run_to_end("restore", folder_shelf.keep(backup), "--to", empty)
    with psycopg.connect(empty) as connection:
        database = Database(connection)
        late = events.organization("org_acme", created_by=BEN, updated_at=events.START + events.MINUTE)
        Sender(database, 9000).send("organization.updated", late)
        creator = "select fields ->> 'created_by' from app.clerk_records where kind = 'organization' and clerk_id = 'org_acme'"
        assert database.value(creator) == BEN
        role = "select role from public.organization_memberships where organization_id = ops.organization_id('org_acme') and user_id = ops.person_id(%s)"
        assert database.value(role, ADA) == "owner"
        database.execute("delete from app.ownerships")
        database.execute("select app.project_roles(ops.organization_id('org_acme'))")
        assert database.value(role, ADA) == "admin"


def test_an_id_may_be_latest_or_its_last_characters(
    folder_shelf: Vault, new_database: Callable[..., str], backup: StoredBackup, other_backup: StoredBackup
) -> None:
    names = [folder_shelf.keep(backup), folder_shelf.keep(other_backup)]
    for wanted in ("latest", names[1], names[1][-8:]):
        folder_shelf.run_to_end("restore", wanted, "--to", new_database())
    unknown = folder_shelf.run("restore", "20200101T000000Z-00000000", "--to", new_database())
    assert unknown.exit_code == 1
    assert "ballast backup list" in unknown.stderr


def test_restored_tables_stay_closed_to_anonymous_callers(
    folder_shelf: Vault, empty: str, backup: StoredBackup
) -> None:
    """A new project grants anon everything on new tables of public, and a dump does not revoke that."""
    with psycopg.connect(empty) as connection:
        connection.execute("create table public.test_trap (id int)")
        assert connection.execute("select has_table_privilege('anon', 'public.test_trap', 'select')").fetchone() == (
            True,
        )
        connection.rollback()
    folder_shelf.run_to_end("restore", folder_shelf.keep(backup), "--to", empty)
    with psycopg.connect(empty) as connection:
        open_to_anon = connection.execute(
            "select c.relname from pg_class as c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v') "
            "and has_table_privilege('anon', c.oid, 'select, insert, update, delete')"
        ).fetchall()
        assert open_to_anon == []
        connection.execute("create function public.test_later() returns int language sql as 'select 1'")
        connection.execute("create table public.test_later (id int)")
        new = connection.execute(
            "select has_function_privilege('anon', 'public.test_later()', 'execute'), has_table_privilege('anon', 'public.test_later', 'select')"
        ).fetchall()
    assert new == [(False, False)]


def test_policies_on_others_tables_and_publications_are_restored(
    folder_shelf: Vault, empty: str, backup: StoredBackup
) -> None:
    question = (
        "select (select count(*) from pg_policies where schemaname = 'realtime'), "
        "(select array_agg(tablename::text order by tablename) from pg_publication_tables where pubname = 'supabase_realtime')"
    )
    with psycopg.connect(empty) as connection:
        assert connection.execute(question).fetchall() == [(0, None)]
    folder_shelf.run_to_end("restore", folder_shelf.keep(backup), "--to", empty)
    with psycopg.connect(empty) as connection:
        assert connection.execute(question).fetchall() == [
            (2, [*(["projects"] if "projects" in TABLES else []), "specimens"])
        ]


def test_a_restore_prints_the_next_steps(folder_shelf: Vault, empty: str, backup: StoredBackup) -> None:
    output = folder_shelf.run_to_end("restore", folder_shelf.keep(backup), "--to", empty).stderr
    for words in ("FLUSHDB", "ballast person resume", "ballast migrate up", "Clerk"):
        assert words in output


def test_no_migration_is_pending_after_a_restore(folder_shelf: Vault, empty: str, backup: StoredBackup) -> None:
    folder_shelf.run_to_end("restore", folder_shelf.keep(backup), "--to", empty)
    assert migrations.up(empty, dry_run=True).is_empty


def test_existing_data_is_only_replaced_on_request(
    folder_vault: Vault, new_database: Callable[..., str], backup: StoredBackup
) -> None:
    name = folder_vault.keep(backup)
    target = new_database(folder_vault.url)
    with psycopg.connect(target) as connection:
        connection.execute("update public.specimens set title = 'Later'")
        connection.execute("create table public.test_newer (id int)")
    before = contents(target)
    project = target.rpartition("/")[2]
    refused = folder_vault.run("restore", name, "--to", target)
    assert refused.exit_code == 1
    assert f"--replace {project}" in refused.stderr
    mistyped = folder_vault.run("restore", name, "--to", target, "--replace", "postgres")
    assert mistyped.exit_code == 2
    assert repr(project) in mistyped.stderr
    assert contents(target) == before
    folder_vault.run_to_end("restore", name, "--to", target, "--replace", project)
    assert contents(target) == contents(folder_vault.url)


def test_every_kind_of_object_is_replaced(folder_vault: Vault, new_database: Callable[..., str]) -> None:
    with folder_vault.connect() as connection:
        connection.execute("""
            create type public.test_pair as (a integer, b text); create type public.test_kind as enum ('a');
            create domain public.test_word as text check (value <> ''); create type public.test_span as range (subtype = integer);
            create sequence public.test_ids; create collation public.plain from "C";
            create text search configuration public.simple_words (copy = simple);
            create text search dictionary public.words (template = simple);
            create function public.test_same(integer, integer) returns boolean language sql immutable return $1 = $2;
            create operator public.=== (function = public.test_same, leftarg = integer, rightarg = integer);
            create aggregate public.test_total (integer) (sfunc = int4pl, stype = integer);
            create procedure public.test_nothing() language sql begin atomic end;
            create table public.test_parent (id integer, word public.test_word) partition by range (id);
            create table public.test_child partition of public.test_parent for values from (0) to (9);
            create materialized view public.test_counted as select count(*) from public.test_parent;
            create statistics public.related on id, word from public.test_parent
            """)
    name = folder_vault.back_up()
    target = new_database(folder_vault.url)
    folder_vault.run_to_end("restore", name, "--to", target, "--replace", target.rpartition("/")[2])


@pytest.mark.parametrize(
    ("host", "user", "project"),
    [
        ("db.abcdefghijklmnopqrst.supabase.co", "postgres", "abcdefghijklmnopqrst"),
        ("aws-0-eu-central-1.pooler.supabase.com", "postgres.abcdefghijklmnopqrst", "abcdefghijklmnopqrst"),
        ("127.0.0.1", "postgres", "postgres"),
    ],
)
def test_a_project_is_identified_by_its_supabase_reference(host: str, user: str, project: str) -> None:
    from scripts.backup.restore import find_project  # noqa: PLC0415

    connection: Any = type(
        "Connection", (), {"info": type("Info", (), {"host": host, "user": user, "dbname": "postgres"})}
    )
    assert find_project(connection) == project


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("end", ["exit 1", "kill -9 $PPID", "exit 0"])
def test_an_aborted_restore_changes_nothing(
    folder_vault: Vault,
    new_database: Callable[..., str],
    make_wrapped_programs: Callable[..., str],
    end: str,
    replaced: bool,
    backup: StoredBackup,
) -> None:
    """After half of the dump, pg_restore fails, the command is killed, or pg_restore exits with 0."""
    name = folder_vault.keep(backup)
    target = new_database(folder_vault.url) if replaced else new_database()
    before = contents(target)
    half = f'[[ "$*" == *--list* ]] && exec "$REAL/pg_restore" "$@"; "$REAL/pg_restore" "$@" | head -c 400000; {end}'
    words = ["--replace", target.rpartition("/")[2]] if replaced else []
    running = folder_vault.start("restore", name, "--to", target, *words, PG_BIN=make_wrapped_programs(pg_restore=half))
    _, output = running.communicate(timeout=60)
    assert running.returncode == (-signal.SIGKILL if "kill" in end else 1), output
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with psycopg.connect(target) as connection:
            if not connection.execute(
                "select from pg_stat_activity where application_name = 'ballast' and datname = current_database()"
            ).rowcount:
                break
        time.sleep(0.1)
    assert contents(target) == before
    folder_vault.run_to_end("restore", name, "--to", target, *words)
    assert contents(target) == contents(folder_vault.url)


def test_the_reason_of_a_refusal_is_reported_without_data(
    folder_shelf: Vault, new_database: Callable[..., str], bare_server: Postgres, backup: StoredBackup
) -> None:
    target = new_database()
    with psycopg.connect(bare_server.url("supabase_admin", target.rpartition("/")[2])) as admin:
        admin.execute("create schema app")
        admin.execute("create schema hidden")
    refused = folder_shelf.run("restore", folder_shelf.keep(backup), "--to", target)
    assert refused.exit_code == 1
    assert 'Nothing was restored. schema "app" already exists (42P06).' in refused.stderr
    with psycopg.connect(target) as connection:
        assert snapshot.count_rows(connection) == {}


SECRET_TITLE = "Of ada@example.com\nCONTEXT:  COPY profiles, line 7"


@dataclass(frozen=True)
class BadRow:
    """A backup of a database with a row in public.projects that no server accepts. `row` counts in the dump's order."""

    vault: Vault
    name: str
    row: int


@pytest.fixture
def make_bad_row(folder_vault: Vault, bare_server: Postgres) -> Callable[..., BadRow]:
    """Inserts a project after these statements, and backs up after others. A superuser runs them, without triggers."""

    def make(before: str, metadata: str, after: str = "") -> BadRow:
        url = bare_server.url("supabase_admin", folder_vault.url.rpartition("/")[2])
        with psycopg.connect(url) as admin:
            admin.execute("set session_replication_role = replica")
            admin.execute(before.encode())
            others = "insert into public.projects (organization_id, title) select id, 'Later' from public.organizations"
            admin.execute(others.encode())
            [[place]] = admin.execute(
                "insert into public.projects (organization_id, title, metadata) values (gen_random_uuid(), %s, %s) returning ctid::text",
                [SECRET_TITLE, metadata],
            ).fetchall()
            admin.execute(others.encode())
            [[row]] = admin.execute("select count(*) from public.projects where ctid <= %s", [place]).fetchall()
            admin.execute(after.encode())
        return BadRow(folder_vault, folder_vault.back_up(), row)

    return make


def assert_refused(bad: BadRow, empty: str, reason: str) -> None:
    """A restore and a drill both report the reason, and no data."""
    expected = f"Nothing was restored. {reason.format(row=bad.row)}"
    refused = bad.vault.run("restore", bad.name, "--to", empty)
    assert (refused.exit_code, refused.stderr.splitlines()[-1]) == (1, f"ballast: {expected}")
    report = run_drill(bad.vault, bad.name)
    assert [(check["passed"], check["detail"]) for check in report["checks"].values()] == [(False, expected)]
    for output in (refused.output, json.dumps(report)):
        assert "ada@" not in output
        assert "profiles" not in output
    with psycopg.connect(empty) as connection:
        assert snapshot.count_rows(connection) == {}


@at_hand
def test_a_restore_names_the_row_that_is_nested_too_deeply(make_bad_row: Callable[..., BadRow], empty: str) -> None:
    loosened = "set max_stack_depth = '7MB'; alter table public.projects drop constraint projects_metadata_check"
    bad = make_bad_row(loosened, '{"a":' * 30_000 + "1" + "}" * 30_000)
    assert_refused(bad, empty, "Row {row} of public.projects, column metadata: stack depth limit exceeded (54001).")


@at_hand
@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("title < 'O'", 'new row for relation "projects" violates check constraint "probe" (23514)'),
        ("title = 'Later' or title::integer > 0", "invalid input syntax for type integer: … (22P02)"),
        ("public.test_probe(title)", "a function raised an error (P0001)"),
    ],
)
def test_a_restore_names_the_row_that_a_check_refuses(
    make_bad_row: Callable[..., BadRow], empty: str, check: str, reason: str
) -> None:
    function = """
        create function public.test_probe(title text) returns boolean language plpgsql as $$
        begin if title <> 'Later' then raise '% is wrong', title; end if; return true; end $$"""
    # The dump of a constraint that is not valid would add it after the rows.
    constraint = f"alter table public.projects add constraint probe check ({check}) not valid"
    valid = "update pg_constraint set convalidated = true where conname = 'probe'"
    bad = make_bad_row(f"delete from public.projects; {function}", "{}", f"{constraint}; {valid}")
    assert_refused(bad, empty, f"Row {{row}} of public.projects: {reason}.")


@at_hand
def test_a_restore_names_the_table_of_a_dangling_reference(make_bad_row: Callable[..., BadRow], empty: str) -> None:
    violated = (
        'insert or update on table "projects" violates foreign key constraint "projects_organization_id_fkey" (23503).'
    )
    assert_refused(make_bad_row("", "{}"), empty, violated)


@pytest.mark.parametrize("file", ["before.sql", "after.sql"])
@pytest.mark.parametrize("command", ["\\! touch pwned", "select 1 \\g |touch pwned", "\\unrestrict x\n\\! touch pwned"])
def test_a_forged_script_runs_no_shell_command(
    folder_shelf: Vault,
    empty: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    command: str,
    backup: StoredBackup,
) -> None:
    """A writer to the store can forge a script with its manifest. The restoring machine has the keys."""
    monkeypatch.chdir(tmp_path)
    name = folder_shelf.keep(backup)
    place = folder_shelf.store.path(name, file)
    assert place is not None
    body = f"{place.read_text()}{command}\n".encode()
    place.write_bytes(body)
    described = {"size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    rewrite(folder_shelf, name, lambda manifest: manifest["files"].update({file: described}))
    refused = folder_shelf.run("restore", name, "--to", empty)
    assert refused.exit_code == 1
    assert "Nothing was restored." in refused.stderr
    assert not (tmp_path / "pwned").exists()
    with psycopg.connect(empty) as connection:
        assert snapshot.count_rows(connection) == {}


def test_a_pg_restore_with_cve_2025_8714_is_refused(
    folder_shelf: Vault, empty: str, make_wrapped_programs: Callable[..., str], backup: StoredBackup
) -> None:
    name = folder_shelf.keep(backup)
    # This psql has already exited, so closing the pipe to it fails. That must not hide the reason.
    old = make_wrapped_programs(pg_restore='"$REAL/pg_restore" "$@" | sed "/restrict /d"', psql="exit 0")
    refused = folder_shelf.run("restore", name, "--to", empty, PG_BIN=old)
    assert refused.exit_code == 1
    assert "CVE-2025-8714" in refused.stderr


def test_a_network_failure_during_the_download_restores_nothing(
    heavy: str,
    bucket_vault: Vault,
    empty: str,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = Vault(heavy, bucket_vault.backup_url, bucket_vault.home, bucket_vault.identity)
    name = large.back_up()
    with relay_to(urlsplit(s3).port or 0) as cable:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cable.port}")
        request = b"GET /" + urlsplit(large.backup_url).netloc.encode()

        def cut_soon(data: bytes) -> None:
            if data.startswith(request) and b"dump.pgc" in data:
                threading.Timer(0.02, cable.cut).start()

        cable.on_data = cut_soon
        failed_ = large.run("restore", name, "--to", empty)
    assert failed_.exit_code == 1
    assert "Cannot read dump.pgc.zst.age" in failed_.stderr
    with psycopg.connect(empty) as connection:
        assert snapshot.count_rows(connection) == {}


def test_default_privileges_of_other_roles_are_not_restored(
    folder_vault: Vault, empty: str, bare_server: Postgres
) -> None:
    """In hosted Supabase, supabase_admin has some in public. A dump contains them, but postgres may not restore them."""
    for url in (folder_vault.url, empty):
        with psycopg.connect(bare_server.url("supabase_admin", url.rpartition("/")[2])) as admin:
            admin.execute(
                "alter default privileges for role supabase_admin in schema public grant all on tables to anon, authenticated"
            )
    folder_vault.run_to_end("restore", folder_vault.back_up(), "--to", empty)


# --- erasures ---


@at_hand
def test_people_erased_since_the_backup_are_erased_again(folder_vault: Vault, empty: str, backup: StoredBackup) -> None:
    name = folder_vault.keep(backup)
    with folder_vault.connect() as connection:
        [[person]] = connection.execute(
            "select id::text from public.profiles where clerk_user_id = %s", [ADA]
        ).fetchall()
        # The erasure is in the live database, and in the ledger next to the backups.
        [[receipt]] = connection.execute("select app.begin_erasure(%s, 'administrator')", [ADA]).fetchall()
        step: dict[str, Any] = {"state": "running"}
        while step["state"] == "running":
            [[step]] = connection.execute("select public.continue_erasure(%s)", [receipt]).fetchall()
    folder = folder_vault.store.folder
    assert folder is not None
    (folder / "erasures").mkdir()
    (folder / f"erasures/{receipt}.json").write_text(json.dumps(step))
    folder_vault.run_to_end("restore", name, "--to", empty)
    with psycopg.connect(empty) as connection:
        left = people.scan(Database(connection), person, ADA, *ADA_EMAILS)
        assert left.keys() <= {"app.erasure_log"}  # until `ballast person resume` has deleted her in Clerk
        assert connection.execute("select state from app.erasure_log").fetchall() == [("erased",)]
    report = run_drill(folder_vault, name)
    detail = report["checks"]["erasures replayed"]["detail"]
    assert detail == "entries in the ledger: 1; people in the backup, erased again: 1"


def test_an_unreadable_ledger_fails_a_check(folder_shelf: Vault, empty: str, backup: StoredBackup) -> None:
    name = folder_shelf.keep(backup)
    folder = folder_shelf.store.folder
    assert folder is not None
    (folder / "erasures").mkdir()
    (folder / "erasures/broken.json").write_text("{")
    restored = folder_shelf.run("restore", name, "--to", empty)
    assert restored.exit_code == 1
    assert "Cannot read erasures/broken.json" in re.sub(r"\s+", " ", restored.stdout)


# --- drill ---


def test_a_drill_reports_its_checks_and_rto_and_rpo(vault: Vault) -> None:
    name = vault.back_up()
    report = run_drill(vault)
    assert (report["backup"], report["passed"]) == (name, True)
    assert list(report["checks"]) == [*CHECKS, "other tenants denied", "clocks"]
    assert 0 < report["rto_seconds"] < 60
    assert 0 < report["rpo_seconds"] < 60
    [kept] = vault.store.drills()[name]
    assert json.loads(vault.store.read(name, kept))["passed"] is True


def test_a_drill_leaves_no_server_and_no_files_behind(
    folder_shelf: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path, backup: StoredBackup
) -> None:
    place = home / "drills"
    place.mkdir()
    place.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(place))
    folder_shelf.keep(backup)
    running = folder_shelf.start("drill", TMPDIR=str(place))
    assert running.wait(60) == 0
    assert list(place.iterdir()) == []


def test_a_drill_without_a_backup_fails(folder_shelf: Vault) -> None:
    none = folder_shelf.run("drill")
    assert none.exit_code == 1
    assert "no backup 'latest'" in none.stderr


@at_hand
def test_a_missing_key_names_the_option_to_use(folder_shelf: Vault, tmp_path: Path, backup: StoredBackup) -> None:
    folder_shelf.keep(backup)
    without = folder_shelf.run("drill", BACKUP_IDENTITY=None)
    assert without.exit_code == 2
    assert "--identity" in without.stderr
    key = tmp_path / "key.txt"
    key.write_text(f"# created: today\n{folder_shelf.identity}\n")
    folder_shelf.run_to_end("drill", "--identity", str(key), BACKUP_IDENTITY=None)


@at_hand
def test_a_backup_for_another_key_is_not_proven(folder_shelf: Vault, tmp_path: Path, backup: StoredBackup) -> None:
    folder_shelf.keep(backup)
    other = Vault(folder_shelf.url, folder_shelf.backup_url, tmp_path, str(pyrage.x25519.Identity.generate()))
    report = run_drill(other)
    assert list_failed(report) == ["restore"]
    assert "not encrypted for this key" in report["checks"]["restore"]["detail"]


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
@at_hand
def test_a_damaged_dump_is_never_restored(
    folder_shelf: Vault, empty: str, damage: str, where: float, backup: StoredBackup
) -> None:
    name = folder_shelf.keep(backup)
    place = folder_shelf.store.path(name, "dump.pgc.zst.age")
    assert place is not None
    body = bytearray(place.read_bytes())
    position = int(len(body) * where)
    if damage == "cut":
        del body[position:]
    else:
        body[position] ^= 1
    place.write_bytes(body)
    refused = folder_shelf.run("restore", name, "--to", empty)
    assert refused.exit_code == 1
    assert "dump.pgc.zst.age" in refused.stderr
    assert "is damaged" in refused.stderr
    # This also holds if the manifest was changed to match.
    described = {"size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    rewrite(folder_shelf, name, lambda manifest: manifest["files"].update({"dump.pgc.zst.age": described}))
    assert list_failed(run_drill(folder_shelf, name)) == ["restore"]
    assert folder_shelf.run("restore", name, "--to", empty).exit_code == 1
    with psycopg.connect(empty) as connection:
        assert snapshot.count_rows(connection) == {}


@at_hand
def test_the_manifest_of_another_backup_is_rejected(
    folder_shelf: Vault, backup: StoredBackup, other_backup: StoredBackup
) -> None:
    first, second = folder_shelf.keep(backup), folder_shelf.keep(other_backup)
    places = [folder_shelf.store.path(name, "manifest.json") for name in (first, second)]
    shutil.copy(*places)  # type: ignore[arg-type]
    swapped = folder_shelf.run("drill", second)
    assert swapped.exit_code == 1
    assert f"is that of {first}" in swapped.stderr
    rewrite(folder_shelf, second, lambda manifest: manifest.update(name=second))
    assert list_failed(run_drill(folder_shelf, second)) == ["restore"]


def test_an_invalid_manifest_is_reported(folder_shelf: Vault, backup: StoredBackup) -> None:
    name = folder_shelf.keep(backup)
    rewrite(folder_shelf, name, lambda manifest: manifest.pop("rows"))
    damaged = folder_shelf.run("drill", name)
    assert damaged.exit_code == 1
    assert f"manifest of {name} is damaged: rows: Field required" in damaged.stderr


FORGERIES: dict[str, tuple[Change, str, str]] = {
    "a missing row": (lambda m: m["rows"].update({"public.specimens": m["rows"]["public.specimens"] + 1}), "row counts", "public.specimens has"),
    "a missing table": (lambda m: m["rows"].update({"public.gone": 3}), "row counts", "public.gone has 0 rows instead of 3"),
    "a missing policy": (lambda m: m["structure"]["policy"].update({"gone on public.specimens": "0" * 16}), "structure", "policy gone on public.specimens is missing"),
    "a new grant": (lambda m: m["structure"]["grant"].pop("select on public.specimens to authenticated"), "structure", "is new"),
    "a changed function": (lambda m: m["structure"]["function"].update({"app.user_id()": "0" * 16}), "structure", "function app.user_id() differs"),
    "another migration": (lambda m: m.update(migration="20200101000000"), "structure", "the migration is"),
    "another seal": (lambda m: m["audit_seal"].update(seal="0" * 64), "audit seal", "not the one"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
@at_hand
def test_a_drill_detects_any_difference(folder_shelf: Vault, forgery: str, backup: StoredBackup) -> None:
    change, check, detail = FORGERIES[forgery]
    name = folder_shelf.keep(backup)
    rewrite(folder_shelf, name, change)
    report = run_drill(folder_shelf, name)
    assert list_failed(report) == [check]
    assert detail in report["checks"][check]["detail"]
    [kept] = folder_shelf.store.drills()[name]
    assert json.loads(folder_shelf.store.read(name, kept))["passed"] is False


WEAKNESSES = {
    "create policy \"open to all\" on public.specimens for select to authenticated using (true)": "other tenants denied",
    "alter table public.specimens disable row level security": "other tenants denied",
    "create function app.broken() returns bigint language sql set search_path = pg_catalog as 'select count(*) from public.test_to_go'; "
    "drop table public.test_to_go": "functions",
}  # fmt: skip


@pytest.mark.parametrize("weakness", WEAKNESSES)
@at_hand
def test_a_drill_detects_faults_of_the_original_database(folder_vault: Vault, weakness: str) -> None:
    with folder_vault.connect() as connection:
        connection.execute("create table public.test_to_go (id int)")
        connection.execute(weakness.encode())
    folder_vault.back_up()
    assert list_failed(run_drill(folder_vault)) == [WEAKNESSES[weakness]]


@at_hand
def test_a_view_that_postgres_prints_differently_after_a_restore_is_the_same(folder_vault: Vault) -> None:
    with folder_vault.connect() as connection:
        connection.execute(
            "create view ops.odd as select 'a'::text as name, p.id from public.specimens as p union all select 'b'::text, o.id from public.organizations as o"
        )
    folder_vault.back_up()
    assert list_failed(run_drill(folder_vault)) == []


# --- other versions of PostgreSQL ---


@at_hand
def test_a_backup_of_an_older_server_is_proven_on_a_newer_one(old: Postgres, folder_vault: Vault) -> None:
    vault = Vault(old.url(), folder_vault.backup_url, folder_vault.home, folder_vault.identity)
    name = vault.back_up()
    assert (vault.store.manifest(name).dump_version, vault.store.manifest(name).server_version // 10_000) == (15, 15)
    report = run_drill(vault)
    assert list_failed(report) == [], report["checks"]


def test_programs_of_a_newer_version_support_an_older_server(
    old: Postgres, folder_vault: Vault, make_wrapped_programs: Callable[..., str]
) -> None:
    """Only the newest client is installed: pg_restore 18 sets a parameter that a server of version 15 rejects."""
    vault = Vault(old.url(), folder_vault.backup_url, folder_vault.home, folder_vault.identity)
    newest = make_wrapped_programs()
    name = json.loads(vault.run_to_end("run", "--json", PG_BIN=newest).stdout)["name"]
    assert vault.store.manifest(name).dump_version == 18
    before = contents(old.url())
    vault.run_to_end("restore", name, "--to", old.url(), "--replace", "postgres", PG_BIN=newest)
    assert contents(old.url()) == before
