"""`ballast backup run`: a backup is one complete snapshot, and a failed run leaves nothing that looks like a backup."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import psycopg
import pyrage
import pytest

from scripts.backup import programs, snapshot, structure
from scripts.backup.progress import NoProgress
from scripts.backup.restore_engine import Backup
from scripts.schema import migrations
from scripts.schema.database import connect
from scripts.scratch.postgres import Postgres, stop
from service import object_store
from tests.conftest import free_port_block
from tests.relay import Relay, relay_to
from tests.scripts.conftest import Vault
from tests.service.outside import running_outside

# Drills in this process use the running server, because these tests are not about the server of a drill.
pytestmark = pytest.mark.usefixtures("scratch_at_hand")

FILES = ("after.sql", "before.sql", "dump.pgc.zst.age", "manifest.json", "structure.json.age")
# Writes half of a dump. In what follows, $PPID is the `ballast` command.
HALF = '"$REAL/pg_dump" "$@" | head -c 300000;'


def objects(vault: Vault) -> list[str]:
    """Lists every path in the store, including the staging files of a folder."""
    folder = vault.store.folder
    if folder is not None:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    store = object_store.open_object_store(vault.backup_url, attempt_seconds=5, retries=0)
    return sorted(each["path"] for batch in store.list() for each in batch)


def uploads(vault: Vault) -> list[str]:
    """Lists multipart uploads that were neither completed nor aborted."""
    if vault.store.folder is not None:
        return []
    answer = boto3.client("s3").list_multipart_uploads(Bucket=urlsplit(vault.backup_url).netloc)
    return [each["Key"] for each in answer.get("Uploads", [])]


def sessions(vault: Vault) -> list[tuple[str, ...]]:
    """Lists the other sessions in the database."""
    with vault.connect() as connection:
        return connection.execute(
            "select application_name, state, wait_event, left(query, 80) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
        ).fetchall()


def has_left_nothing(vault: Vault) -> bool:
    """Waits until the store is empty and the database has no other session: the server notices the end of pg_dump late."""
    deadline = time.monotonic() + 30
    while (left := (objects(vault), uploads(vault), sessions(vault))) != ([], [], []) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left == ([], [], [])


# --- what is stored ---


def test_a_backup_is_five_files_and_the_manifest_describes_the_others(vault: Vault) -> None:
    manifest = json.loads(vault.run_to_end("run", "--json").stdout)
    assert objects(vault) == [f"database/{manifest['name']}/{file}" for file in FILES]
    assert manifest["files"].keys() == set(FILES) - {"manifest.json"}
    for file, described in manifest["files"].items():
        body = vault.store.read(manifest["name"], file)
        assert (len(body), hashlib.sha256(body).hexdigest()) == (described["size_bytes"], described["sha256"])
    stored = json.loads(vault.store.read(manifest["name"], "manifest.json"))
    assert len(stored.pop("checksum")) == 64
    assert stored == manifest


def test_the_manifest_counts_and_describes_the_database(folder_vault: Vault) -> None:
    manifest = json.loads(folder_vault.run_to_end("run", "--json").stdout)
    with folder_vault.connect() as connection:
        assert manifest["rows"] == snapshot.count_rows(connection)
        assert manifest["structure"] == structure.hash_definitions(structure.describe(connection))
        [[migration, seal]] = connection.execute(
            "select (select max(version) from supabase_migrations.schema_migrations), "
            "(select encode(seal, 'hex') from app.audit_seals order by sequence desc limit 1)"
        ).fetchall()
        assert manifest["server_version"] == connection.info.server_version
    assert (manifest["migration"], manifest["audit_seal"]["seal"]) == (migration, seal)
    assert {"postgres", "anon", "authenticated", "service_role"} <= set(manifest["roles"])
    assert sum(manifest["rows"].values()) > 100
    assert manifest["structure"].keys() >= {"table", "policy", "grant", "function", "trigger", "constraint", "index"}


@pytest.mark.parametrize(
    "setting",
    [
        "TimeZone = 'Pacific/Kiritimati'", "DateStyle = 'German'", "IntervalStyle = 'iso_8601'",
        "search_path = app, public, ops, extensions", "quote_all_identifiers = on", "standard_conforming_strings = off",
    ],
)  # fmt: skip
def test_settings_of_the_session_do_not_change_the_description(populated_database: str, setting: str) -> None:
    with connect(populated_database) as connection:
        described = structure.describe(connection)
        connection.execute(f"set {setting}")
        assert structure.describe(connection) == described


def test_only_the_key_decrypts_a_backup(folder_vault: Vault) -> None:
    name = folder_vault.back_up()
    sealed = folder_vault.store.read(name, "dump.pgc.zst.age")
    assert sealed.startswith(b"age-encryption.org/v1")
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(sealed, [pyrage.x25519.Identity.generate()])
    assert pyrage.decrypt(sealed, [pyrage.x25519.Identity.from_str(folder_vault.identity)])


def test_each_of_several_recipients_can_decrypt_a_backup(folder_vault: Vault) -> None:
    offline = pyrage.x25519.Identity.generate()
    both = f"{folder_vault.environment['BACKUP_RECIPIENTS']}, {offline.to_public()}"
    folder_vault.run_to_end("run", BACKUP_RECIPIENTS=both)
    for identity in (folder_vault.identity, str(offline)):
        folder_vault.run_to_end("drill", BACKUP_IDENTITY=f"# made by age-keygen\n{identity}\n")


def test_simultaneous_backups_do_not_overwrite_each_other(vault: Vault) -> None:
    first = vault.back_up()
    again = vault.run("run", "--name", first, "--log", "00000000-0000-0000-0000-000000000000")
    assert again.exit_code == 1
    assert "already exists" in again.stderr
    assert vault.store.names() == [first]
    vault.run_to_end("drill", first)
    assert len({vault.back_up() for _ in range(3)}) == 3


def test_counts_match_the_dump_during_concurrent_writes(
    folder_vault: Vault, make_wrapped_programs: Callable[..., str]
) -> None:
    done = threading.Event()
    written = 0

    def hammer() -> None:
        nonlocal written
        with folder_vault.connect() as connection:
            while not done.is_set():
                connection.execute(
                    "insert into public.specimens (organization_id, title) select id, 'Hammered' from public.organizations"
                )
                connection.execute("delete from public.specimens where title = 'Hammered' and random() < 0.3")
                written += 1

    writers = [threading.Thread(target=hammer) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        late = make_wrapped_programs(pg_dump='sleep 0.5; exec "$REAL/pg_dump" "$@"')
        names = [json.loads(folder_vault.run_to_end("run", "--json", PG_BIN=late).stdout)["name"] for _ in range(2)]
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert written > 20
    for name in names:
        checks = {
            check["name"]: check
            for check in json.loads(folder_vault.run_to_end("drill", name, "--json").stdout)["checks"]
        }
        assert checks["row counts"]["passed"]
    first, second = (folder_vault.store.manifest(name).rows for name in names)
    assert first != second


def test_one_line_describes_the_new_backup(folder_vault: Vault) -> None:
    output = folder_vault.run_to_end("run").stdout
    assert output.startswith(folder_vault.store.names()[0])
    assert " rows, " in output


# --- what is refused ---


def test_production_refuses_unencrypted_backups(folder_vault: Vault) -> None:
    for environment in ("production", "staging", None):
        refused = folder_vault.run("run", ENVIRONMENT=environment, BACKUP_RECIPIENTS=None)
        assert refused.exit_code == 2
        assert "Set BACKUP_RECIPIENTS" in refused.stderr
    assert objects(folder_vault) == []


def test_elsewhere_an_unencrypted_backup_causes_a_warning_and_can_be_restored(folder_vault: Vault) -> None:
    made = folder_vault.run_to_end("run", BACKUP_RECIPIENTS=None)
    assert "BACKUP_RECIPIENTS is not set" in made.stderr
    assert "not encrypted" in made.stdout
    folder_vault.run_to_end("drill", BACKUP_IDENTITY=None)


@pytest.mark.parametrize("key", ["age1nonsense", "AGE-SECRET-KEY-1NONSENSE", "ssh-ed25519 AAAA"])
def test_a_wrong_recipient_is_refused_and_not_repeated(folder_vault: Vault, key: str) -> None:
    refused = folder_vault.run("run", BACKUP_RECIPIENTS=key)
    assert refused.exit_code == 2
    assert key not in refused.output
    assert objects(folder_vault) == []


def test_a_missing_backup_url_names_the_variable_to_set(folder_vault: Vault) -> None:
    refused = folder_vault.run("run", BACKUP_URL=None)
    assert refused.exit_code == 2
    assert "Set BACKUP_URL" in refused.stderr


def test_a_database_without_our_schemas_is_not_backed_up(folder_vault: Vault, new_database: Callable[..., str]) -> None:
    refused = folder_vault.run("run", DATABASE_URL=new_database())
    assert refused.exit_code == 1
    assert "ballast migrate up" in refused.stderr
    assert objects(folder_vault) == []


def test_a_role_under_row_level_security_cannot_make_a_backup(folder_vault: Vault, bare_server: Postgres) -> None:
    """As with --enable-row-security, the dump would contain 0 rows and look successful."""
    database = folder_vault.url.rpartition("/")[2]
    with psycopg.connect(bare_server.url("supabase_admin", database), autocommit=True) as admin:
        if not admin.execute("select from pg_roles where rolname = 'weak'").rowcount:
            admin.execute("create role weak login password 'test'")
            admin.execute("grant pg_read_all_data to weak")
    refused = folder_vault.run("run", DATABASE_URL=bare_server.url("weak", database))
    assert refused.exit_code == 1
    assert "The role weak may not see all rows of this database: connect as postgres" in refused.stderr
    assert has_left_nothing(folder_vault)


def test_only_one_backup_runs_at_a_time(folder_vault: Vault) -> None:
    with folder_vault.connect() as connection, connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", [snapshot.ADVISORY_LOCK])
        refused = folder_vault.run("run")
    assert refused.exit_code == 1
    assert "Another backup of this database is running" in refused.stderr
    assert objects(folder_vault) == []
    folder_vault.back_up()


def test_no_password_appears_in_a_command_line() -> None:
    target, environment = programs.split_password(
        "postgresql://postgres:5ecret@db.example:5432/postgres?sslmode=require"
    )
    assert "5ecret" not in target
    assert "sslmode=require" in target
    assert environment["PGPASSWORD"] == "5ecret"


# --- what fails ---


@pytest.mark.parametrize(
    ("pg_dump", "reason"),
    [
        (f"{HALF} kill -9 $$", "signal 9"),
        (f"{HALF} exit 1", "code 1"),
        ('"$REAL/pg_dump" "$@"; exit 3', "code 3"),
        ("echo 'pg_dump: error: no space' >&2; echo 'DETAIL: ada@example.com' >&2; exit 1", "code 1: no space"),
        ("exit 0", "printed no error"),
    ],
    ids=["killed", "half", "complete but failed", "with an error message", "empty"],
)
def test_a_failed_dump_does_not_become_a_backup(
    vault: Vault, make_wrapped_programs: Callable[..., str], pg_dump: str, reason: str
) -> None:
    failed = vault.run("run", PG_BIN=make_wrapped_programs(pg_dump=pg_dump))
    assert failed.exit_code == 1
    assert reason in failed.stderr
    assert "ada@example.com" not in failed.output
    assert has_left_nothing(vault)
    vault.back_up()


def test_an_unreachable_store_ends_the_run(folder_vault: Vault, aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    failed = folder_vault.run("run", BACKUP_URL="s3://bucket")
    assert failed.exit_code == 1
    assert "Cannot list database in s3://bucket: Connect." in failed.stderr
    assert has_left_nothing(folder_vault)


def test_a_refusal_by_the_store_reveals_no_keys(folder_vault: Vault, aws: pytest.MonkeyPatch) -> None:
    with running_outside() as outside:
        outside.answer = lambda *_: (403, {}, b"<Error><AWSAccessKeyId>the-key-id</AWSAccessKeyId>5ecret</Error>")
        aws.setenv("AWS_ENDPOINT_URL", outside.url)
        failed = folder_vault.run("run", BACKUP_URL="s3://bucket")
    assert failed.exit_code == 1
    assert "403" in failed.stderr
    assert not [word for word in ("the-key-id", "5ecret") if word in failed.output]


def test_a_full_disk_leaves_nothing(heavy: str, folder_vault: Vault) -> None:
    """Limits files to 8 MB, so that a write fails as it does on a full disk."""
    full = Vault(heavy, folder_vault.backup_url, folder_vault.home, folder_vault.identity)
    variables = {name: value for name, value in (os.environ | full.environment).items() if value is not None}
    failed = subprocess.run(
        ["bash", "-c", 'ulimit -f 8192; exec "$0" "$@"', sys.executable, "-m", "scripts.cli", "backup", "run"],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert failed.returncode == 1, failed.stderr
    assert "Cannot write dump.pgc.zst.age" in failed.stderr
    assert has_left_nothing(full)


def test_a_failed_encryption_leaves_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(reader: io.BytesIO, writer: io.BytesIO, _keys: object) -> None:
        writer.write(reader.read(8192))
        raise pyrage.EncryptError("no more entropy")

    monkeypatch.setattr(pyrage, "encrypt_io", fail)
    failed = vault.run("run")
    assert failed.exit_code == 1
    assert "no more entropy" in failed.stderr
    assert has_left_nothing(vault)


@pytest.fixture
def cable(bucket_vault: Vault, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """A relay in front of the bucket that can be cut."""
    with relay_to(urlsplit(s3).port or 0) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
        yield relay


def test_a_network_failure_during_an_upload_leaves_no_backup(
    heavy: str,
    bucket_vault: Vault,
    cable: Relay,
    monkeypatch: pytest.MonkeyPatch,
    s3: str,
) -> None:
    large = Vault(heavy, bucket_vault.backup_url, bucket_vault.home, bucket_vault.identity)
    cable.on_data = lambda data: cable.cut() if b"partNumber=2" in data else None
    failed = large.run("run")
    assert failed.exit_code == 1
    assert "Cannot write dump.pgc.zst.age" in failed.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert objects(large) == []
    assert sessions(large) == []


def test_a_short_network_failure_is_retried(bucket_vault: Vault, cable: Relay) -> None:
    was_cut = threading.Event()

    def cut_once(data: bytes) -> None:
        if b"before.sql" in data and not was_cut.is_set():
            was_cut.set()
            cable.cut()
            cable.repair()

    cable.on_data = cut_once
    bucket_vault.run_to_end("drill", bucket_vault.back_up())
    assert was_cut.is_set()


@pytest.mark.thorough
def test_a_restart_of_the_database_ends_the_run(
    home: Path, folder_vault: Vault, make_wrapped_programs: Callable[..., str]
) -> None:
    server = Postgres(home / "restarted", free_port_block(), "test")
    process = server.start(fsync="off")
    try:
        migrations.up(server.url())
        vault = Vault(server.url(), folder_vault.backup_url, folder_vault.home)
        running = vault.start(
            "run",
            PG_BIN=make_wrapped_programs(
                pg_dump=f'touch "{folder_vault.home}/dumping"; sleep 2; exec "$REAL/pg_dump" "$@"'
            ),
        )
        while not (folder_vault.home / "dumping").exists():
            time.sleep(0.02)
        stop(process)
        process = server.start(fsync="off")
        _, output = running.communicate(timeout=60)
        assert running.returncode == 1, output
        assert "pg_dump exited with code 1" in output
        assert has_left_nothing(vault)
        vault.back_up()
    finally:
        stop(process)


# --- kill -9 ---


def verify(vault: Vault) -> list[str]:
    """Returns every backup in the store, and verifies that each is complete."""
    names = vault.store.names()
    for name in names:
        manifest = vault.store.manifest(name)
        backup = Backup(vault.store, manifest, [pyrage.x25519.Identity.from_str(vault.identity)], vault.home)
        backup.decrypt_into(io.BytesIO(), backup.fetch_dump(NoProgress()), NoProgress())
        assert backup.read_file("before.sql")
        assert backup.read_file("after.sql")
        assert backup.read_definitions()
    return names


STAGES = ("partNumber=1&", "manifest.json")
MORE_STAGES = ("partNumber=2&", "before.sql", "after.sql", "structure.json")


@pytest.mark.parametrize(
    "stage", [*STAGES, *(pytest.param(stage, marks=pytest.mark.thorough) for stage in MORE_STAGES)]
)
def test_a_run_killed_at_any_stage_of_an_upload_leaves_no_backup(
    heavy: str,
    bucket_vault: Vault,
    cable: Relay,
    monkeypatch: pytest.MonkeyPatch,
    s3: str,
    stage: str,
) -> None:
    large = Vault(heavy, bucket_vault.backup_url, bucket_vault.home, bucket_vault.identity)
    running = large.start("run")
    killed = threading.Event()

    def kill(data: bytes) -> None:
        if data.startswith(b"PUT") and stage.encode() in data.partition(b"\r\n")[0] and not killed.is_set():
            running.send_signal(signal.SIGKILL)
            killed.set()
            raise OSError  # so that the request does not arrive

    cable.on_data = kill
    running.communicate(timeout=60)
    assert killed.is_set()
    assert running.returncode == -signal.SIGKILL
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert verify(large) == []
    deadline = time.monotonic() + 20
    while sessions(large) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sessions(large) == []
    name = large.back_up()
    assert verify(large) == [name]


def test_a_run_killed_during_the_dump_leaves_no_backup(
    folder_vault: Vault, make_wrapped_programs: Callable[..., str]
) -> None:
    running = folder_vault.start("run", PG_BIN=make_wrapped_programs(pg_dump=f"{HALF} kill -9 $PPID; sleep 0.2"))
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
    assert verify(folder_vault) == []
    assert sessions(folder_vault) == []
    name = folder_vault.back_up()
    assert verify(folder_vault) == [name]


def test_a_folder_has_only_complete_backups_after_a_kill_at_any_time(folder_vault: Vault) -> None:
    began = time.monotonic()
    folder_vault.start("run").communicate(timeout=60)
    usual = time.monotonic() - began
    for share in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        running = folder_vault.start("run")
        time.sleep(usual * share)
        running.kill()
        running.communicate(timeout=60)
        verify(folder_vault)
    name = folder_vault.back_up()
    assert name in verify(folder_vault)


def test_a_terminated_run_cleans_up(folder_vault: Vault, make_wrapped_programs: Callable[..., str]) -> None:
    running = folder_vault.start("run", PG_BIN=make_wrapped_programs(pg_dump=f"{HALF} kill -TERM $PPID; sleep 20"))
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert has_left_nothing(folder_vault)


# --- the alarm ---


@dataclass
class Sentry:
    """A Sentry server that records the lines of each envelope."""

    dsn: str
    lines: list[bytes] = field(default_factory=list)

    def receive(self, _path: str, _headers: object, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.lines += (gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body).splitlines()
        return 200, {}, b"{}"

    def check_ins(self) -> list[tuple[str, str]]:
        """Returns the monitor and status of each check-in."""
        items = [json.loads(line) for line in self.lines if b"monitor_slug" in line]
        return [(item["monitor_slug"], item["status"]) for item in items]


@pytest.fixture
def sentry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sentry]:
    with running_outside() as server:
        recorder = Sentry(f"http://public@127.0.0.1:{urlsplit(server.url).port}/1")
        server.answer = recorder.receive
        monkeypatch.setenv("SENTRY_DSN", recorder.dsn)
        yield recorder


def test_successes_and_failures_are_reported_to_sentry(
    folder_vault: Vault, sentry: Sentry, make_wrapped_programs: Callable[..., str]
) -> None:
    name = json.loads(folder_vault.run_to_end("run", "--json", SENTRY_DSN=sentry.dsn).stdout)["name"]
    folder_vault.run("run", SENTRY_DSN=sentry.dsn, PG_BIN=make_wrapped_programs(pg_dump="exit 1"))
    folder_vault.run_to_end("drill", name, SENTRY_DSN=sentry.dsn)
    folder_vault.run("drill", "nothing", SENTRY_DSN=sentry.dsn)
    assert sentry.check_ins() == [
        (f"ballast-{monitor}", status)
        for monitor, end in [("backup", "ok"), ("backup", "error"), ("restore-drill", "ok"), ("restore-drill", "error")]
        for status in ("in_progress", end)
    ]
    sent = b"".join(sentry.lines)
    secret = (
        folder_vault.identity,
        "postgresql://",
        os.uname().nodename,
        "example.com",
        str(folder_vault.home),
        "pg_dump",
    )
    assert not [word for word in secret if word.encode() in sent]


@pytest.mark.parametrize(
    "wrong",
    [
        {"SENTRY_DSN": "https://key@127.0.0.1/s3cret"},
        {"SENTRY_DSN": "s3cret"},
        {"SUPABASE_URL": "ftp://s3cret", "SUPABASE_SECRET_KEY": "s3cret"},
        {"SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SECRET_KEY": "s3crét"},
    ],
    ids=["DSN without a project", "no DSN", "URL", "key"],
)
def test_a_backup_is_made_even_if_a_variable_for_its_report_is_malformed(
    folder_vault: Vault, wrong: dict[str, str]
) -> None:
    run = folder_vault.run_to_end("run", **wrong)
    assert "is malformed" in run.stderr
    assert "s3c" not in run.stderr


# --- the programs ---


class Server:
    """The attributes of a connection that the choice of programs reads."""

    def __init__(self, version: int, *, tls: bool = False) -> None:
        self.info = type("Info", (), {"server_version": version * 10_000})
        self.pgconn = type("Pgconn", (), {"ssl_in_use": tls})


@pytest.fixture
def install_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts programs of these versions on PATH and hides all others except the embedded ones."""

    def install(*versions: int) -> None:
        for version in versions:
            folder = tmp_path / str(version)
            folder.mkdir()
            for name in programs.NAMES:
                (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}.1'\n")
                (folder / name).chmod(0o755)
        monkeypatch.setattr(programs, "FOLDER_PATTERNS", ())
        monkeypatch.setenv("PATH", os.pathsep.join(str(tmp_path / str(version)) for version in versions))

    return install


def test_the_oldest_suitable_programs_are_chosen(install_programs: Callable[..., None]) -> None:
    install_programs(17, 15, 16, 14)
    assert programs.choose_programs(Server(15)).version == 15  # type: ignore[arg-type]
    assert programs.choose_programs(Server(16)).version == 16  # type: ignore[arg-type]
    assert programs.choose_programs(Server(15), at_least=17).version == 17  # type: ignore[arg-type]


def test_programs_without_tls_are_not_used_for_a_server_with_tls(install_programs: Callable[..., None]) -> None:
    install_programs(15)
    assert programs.choose_programs(Server(17)).folder == programs.find_embedded()  # type: ignore[arg-type]
    with pytest.raises(
        programs.ProgramsMissing, match=r"17 or newer with TLS .*18 in .* without TLS.*postgresql-client-17"
    ):
        programs.choose_programs(Server(17, tls=True))  # type: ignore[arg-type]


def test_pg_bin_is_the_only_folder_searched(
    install_programs: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_programs(15, 17)
    monkeypatch.setenv("PG_BIN", str(tmp_path / "17"))
    assert programs.choose_programs(Server(15)).version == 17  # type: ignore[arg-type]
    monkeypatch.setenv("PG_BIN", str(tmp_path / "nothing"))
    with pytest.raises(programs.ProgramsMissing, match="found: none"):
        programs.choose_programs(Server(15))  # type: ignore[arg-type]
