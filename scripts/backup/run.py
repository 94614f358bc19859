"""`ballast backup run`: one consistent moment of the database, compressed, encrypted and in the store, or nothing."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import IO

from scripts.backup import archive, programs, snapshot
from scripts.backup.backup_log import BackupLog
from scripts.backup.cron_monitors import report_to_monitor
from scripts.backup.manifest import AFTER, BEFORE, DUMP, MANIFEST, SCHEMAS, SEALED_DUMP, File, Manifest
from scripts.backup.progress import Bar
from scripts.backup.snapshot import Globals, Snapshot
from scripts.backup.store import BackupStore, StoreUnavailable
from scripts.errors import Failure
from scripts.schema import database
from service.backup_names import BackupType, filename_of
from service.settings import BACKUP_PLACE

# pg_dump waits so long for a table that a deployment has locked.
LOCK_WAIT = "5min"
INSECURE_ENVIRONMENTS = {"local", "test"}


class BackupUrlMissing(Failure):
    """Nobody says where backups are kept."""

    exit_code = 2


class RecipientsMissing(Failure):
    """Nobody is named who may open a backup, and this is no place for open ones."""

    exit_code = 2


class DumpFailed(Failure):
    """pg_dump ended before it was done."""


@dataclass(frozen=True)
class Task:
    """A backup to make: what of, where to, and for whom. `recipients` are age's public keys; none: not encrypted."""

    url: str
    store: BackupStore
    recipients: tuple[str, ...]
    log: BackupLog
    id: str
    name: str
    backup_type: BackupType

    @property
    def filename(self) -> str:
        return filename_of(self.name)


def open_store(environment: dict[str, str]) -> BackupStore:
    """By BACKUP_URL. Raises BackupUrlMissing, which does not repeat what may hold a password."""
    url = environment.get("BACKUP_URL", "")
    if BACKUP_PLACE.fullmatch(url) is None:
        raise BackupUrlMissing(
            "Where are backups kept? Set BACKUP_URL to s3://bucket/prefix or file:///folder (gs:// and az:// work too);"
            " a user or a password has no place in it."
        )
    return BackupStore(url.rstrip("/"))


def read_recipients(environment: dict[str, str]) -> tuple[str, ...]:
    """By BACKUP_RECIPIENTS. Raises KeyInvalid, and RecipientsMissing where a backup must not lie open."""
    keys = tuple(key.strip() for key in environment.get("BACKUP_RECIPIENTS", "").split(",") if key.strip())
    archive.parse_recipients(keys)
    if not keys and environment.get("ENVIRONMENT", "production") not in INSECURE_ENVIRONMENTS:
        raise RecipientsMissing(
            "Set BACKUP_RECIPIENTS to age's public keys (`age-keygen` makes a pair): unencrypted backups are only made"
            " with ENVIRONMENT=local or test."
        )
    if not keys:
        database.echo_err("BACKUP_RECIPIENTS is not set: whoever reaches the store can read this backup.")
    return keys


def run_backup(task: Task, bar: Bar) -> Manifest:
    """Makes the backup, records it, and returns its manifest. Raises a Failure, and then there is none."""
    try:
        with (
            database.connected(task.url, tell=database.echo_err) as connection,
            snapshot.take_snapshot(connection) as taken,
            report_to_monitor("ballast-backup"),
        ):
            task.log.begin(task.id, task.filename, task.backup_type)
            task.store.require_unused(task.name)
            with _discard_on_failure(task):
                manifest = _store_backup(task, taken, bar)
            task.log.complete(manifest)
            return manifest
    except BaseException as failure:
        # Changes nothing if the run had no row yet.
        task.log.fail(task.id, str(failure) if isinstance(failure, Failure) else type(failure).__name__)
        raise


@contextmanager
def _discard_on_failure(task: Task) -> Iterator[None]:
    """A failed backup leaves nothing in the store."""
    try:
        yield
    except BaseException:
        try:
            task.store.discard(task.name)
        except StoreUnavailable as also:
            database.echo_err(f"{also} `ballast backup prune` removes what is left there.")
        raise


def _store_backup(task: Task, taken: Snapshot, bar: Bar) -> Manifest:
    """Everything into the store, the manifest last."""
    began = time.monotonic()
    chosen = programs.choose_programs(taken.connection)
    bar.start_stage("Counting")
    rows = snapshot.count_rows(taken.connection)
    around = Globals.of(taken.connection)
    bar.start_stage("Dumping", snapshot.estimate_bytes(taken.connection))
    dump = SEALED_DUMP if task.recipients else DUMP
    dump_bytes, dumped = _store_dump(task, taken, chosen, dump, bar)
    bar.start_stage("Finishing")
    files = {dump: dumped}
    for name, text in ((BEFORE, around.before), (AFTER, around.after)):
        files[name] = _store_file(task, name, text.encode())
    manifest = Manifest(
        id=task.id,
        name=task.name,
        backup_type=task.backup_type,
        created_at=taken.taken_at.astimezone(UTC),
        duration_seconds=round(time.monotonic() - began, 3),
        server_version=taken.connection.info.server_version,
        dump_version=chosen.version,
        migration=snapshot.find_newest_migration(taken.connection),
        roles=around.roles,
        rows=rows,
        structure=snapshot.describe_structure(taken.connection),
        audit_seal=snapshot.find_last_seal(taken.connection),
        dump_bytes=dump_bytes,
        files=files,
    )
    task.store.put(task.name, MANIFEST, manifest.model_dump_json(indent=2).encode())
    return manifest


def _store_file(task: Task, name: str, body: bytes) -> File:
    task.store.put(task.name, name, body)
    return File(size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def _store_dump(task: Task, taken: Snapshot, chosen: programs.Programs, file: str, bar: Bar) -> tuple[int, File]:
    """pg_dump's archive into the store: its size before compression, and what the store holds."""
    target, environment = programs.split_password(task.url)
    schemas = [f"--schema={schema}" for schema in SCHEMAS]
    command = [
        *(chosen["pg_dump"], f"--dbname={target}", "--no-password", "--format=custom", "--compress=0"),
        *(f"--snapshot={taken.name}", f"--lock-wait-timeout={LOCK_WAIT}", *schemas),
    ]
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            bufsize=0,
            pipesize=archive.PIECE_BYTES,
        )
        try:
            source = archive.CompressingReader(
                process, lambda code: DumpFailed(_describe_failure(code, words)), bar.advance_to
            )
            with task.store.writer(task.name, file) as writer:
                measured = archive.MeasuringSink(writer)
                archive.seal(source, measured, archive.parse_recipients(task.recipients))
        finally:
            # Its COPY would hold the snapshot for as long as nobody reads.
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    return source.bytes_read, measured.file()


def _describe_failure(code: int, stderr: IO[bytes]) -> str:
    """Only what pg_dump says itself: details of the server's may quote data."""
    stderr.seek(0)
    said = [line for line in stderr.read(10_000).decode(errors="replace").splitlines() if "pg_dump: error: " in line]
    reason = said[0].partition("pg_dump: error: ")[2][:300] if said else "it said nothing"
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"pg_dump {how}: {reason}"
