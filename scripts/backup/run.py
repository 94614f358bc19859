"""`ballast backup run`: stores a compressed, encrypted dump of one snapshot. A failed run leaves no files behind."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from typing import IO
from uuid import UUID

from scripts.backup import archive, programs, snapshot, structure
from scripts.backup.backup_log import BackupLog
from scripts.backup.cron_monitors import report_to_monitor
from scripts.backup.manifest import (
    AFTER,
    BEFORE,
    DUMP,
    ENCRYPTED_DUMP,
    ENCRYPTED_STRUCTURE,
    SCHEMAS,
    STRUCTURE,
    File,
    Manifest,
)
from scripts.backup.progress import Bar
from scripts.backup.snapshot import Globals, Snapshot
from scripts.backup.store import BackupStore, StoreUnavailable
from scripts.errors import Failure
from scripts.schema import database
from service.backup_names import BackupType, filename_of, new_name
from service.settings import BACKUP_PLACE

# How long pg_dump waits for a table that a deployment has locked.
LOCK_WAIT = "5min"
INSECURE_ENVIRONMENTS = {"local", "test"}


class BackupUrlMissing(Failure):
    """BACKUP_URL is missing or malformed."""

    exit_code = 2


class RecipientsMissing(Failure):
    """BACKUP_RECIPIENTS is missing where unencrypted backups are not allowed."""

    exit_code = 2


class DumpFailed(Failure):
    """pg_dump failed."""


@dataclass(frozen=True)
class Task:
    """A backup to make. `recipients` are age public keys; without any, the backup is not encrypted.

    Without a name, the backup is named by the time of its snapshot.
    """

    url: str
    store: BackupStore
    recipients: tuple[str, ...]
    log: BackupLog
    id: str
    backup_type: BackupType
    name: str = ""

    @property
    def filename(self) -> str:
        return filename_of(self.name)


def open_store(environment: dict[str, str]) -> BackupStore:
    """Opens the store at BACKUP_URL. Raises BackupUrlMissing, without the URL: it may contain a password."""
    url = environment.get("BACKUP_URL", "")
    if BACKUP_PLACE.fullmatch(url) is None:
        raise BackupUrlMissing(
            "BACKUP_URL is missing or malformed. Set BACKUP_URL to s3://bucket/prefix or file:///folder (gs:// and az://"
            " work too), without a user or a password."
        )
    return BackupStore(url.rstrip("/"))


def read_recipients(environment: dict[str, str]) -> tuple[str, ...]:
    """Reads BACKUP_RECIPIENTS. Raises KeyInvalid, and RecipientsMissing where backups must be encrypted."""
    keys = tuple(key.strip() for key in environment.get("BACKUP_RECIPIENTS", "").split(",") if key.strip())
    archive.parse_recipients(keys)
    if not keys and environment.get("ENVIRONMENT", "production") not in INSECURE_ENVIRONMENTS:
        raise RecipientsMissing(
            "BACKUP_RECIPIENTS is not set, and only ENVIRONMENT=local and test allow unencrypted backups."
            " Set BACKUP_RECIPIENTS to age public keys; `age-keygen` makes a pair."
        )
    if not keys:
        database.echo_err(
            "BACKUP_RECIPIENTS is not set: this backup is not encrypted, and all users of the store can read it."
        )
    return keys


def run_backup(task: Task, bar: Bar) -> Manifest:
    """Makes and records a backup, and returns its manifest. If it raises, no backup was made."""
    try:
        with (
            database.connect(task.url, notify=database.echo_err, own_session=True) as connection,
            snapshot.take_snapshot(connection) as taken,
            report_to_monitor("ballast-backup"),
        ):
            task = replace(task, name=task.name or new_name(UUID(task.id), taken.taken_at))
            task.log.begin(task.id, task.filename, task.backup_type)
            task.store.create_folder()
            task.store.require_unused(task.name)
            with _discard_on_failure(task):
                manifest = _store_backup(task, taken, bar)
            task.log.complete(manifest)
            return manifest
    except BaseException as failure:
        # Has no effect if the run had no row yet.
        task.log.fail(task.id, str(failure) if isinstance(failure, Failure) else type(failure).__name__)
        raise


@contextmanager
def _discard_on_failure(task: Task) -> Iterator[None]:
    """Deletes the files of a failed backup from the store."""
    try:
        yield
    except BaseException:
        try:
            task.store.discard(task.name)
        except StoreUnavailable as also:
            database.echo_err(f"{also} Run `ballast backup prune` in a day to remove the files that are left.")
        raise


def _store_backup(task: Task, taken: Snapshot, bar: Bar) -> Manifest:
    """Stores the dump, the definitions, the two scripts and, last, the manifest."""
    began = time.monotonic()
    chosen = programs.choose_programs(taken.connection)
    bar.start_stage("Counting")
    rows = snapshot.count_rows(taken.connection)
    scripts = Globals.of(taken.connection)
    for missing in scripts.missing:
        database.echo_err(
            f"Not in the backup: {missing}, which objects of the backup need or are used by. Create it by hand when you"
            " restore: docs/recovery.md#what-is-backed-up."
        )
    bar.start_stage("Dumping", snapshot.estimate_bytes(taken.connection))
    dump = ENCRYPTED_DUMP if task.recipients else DUMP
    dump_bytes, dumped = _store_dump(task, taken, chosen, dump, bar)
    bar.start_stage("Finishing")
    files = {dump: dumped}
    for name, text in ((BEFORE, scripts.before), (AFTER, scripts.after)):
        files[name] = _store_file(task, name, text.encode())
    definitions = structure.describe(taken.connection)
    name = ENCRYPTED_STRUCTURE if task.recipients else STRUCTURE
    files[name] = _store_file(task, name, _encrypt(structure.JSON.dump_json(definitions), task.recipients))
    manifest = Manifest(
        id=task.id,
        name=task.name,
        backup_type=task.backup_type,
        created_at=taken.taken_at.astimezone(UTC),
        duration_seconds=round(time.monotonic() - began, 3),
        server_version=taken.connection.info.server_version,
        dump_version=chosen.version,
        migration=snapshot.find_newest_migration(taken.connection),
        roles=scripts.roles,
        extensions=scripts.extensions,
        rows=rows,
        structure=structure.hash_definitions(definitions),
        audit_seal=snapshot.find_last_seal(taken.connection),
        dump_bytes=dump_bytes,
        files=files,
    )
    task.store.put_manifest(manifest)
    return manifest


def _store_file(task: Task, name: str, body: bytes) -> File:
    task.store.put(task.name, name, body)
    return File(size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def _encrypt(body: bytes, recipients: tuple[str, ...]) -> bytes:
    encrypted = io.BytesIO()
    archive.encrypt(io.BytesIO(body), encrypted, archive.parse_recipients(recipients))
    return encrypted.getvalue()


def _store_dump(task: Task, taken: Snapshot, chosen: programs.Programs, file: str, bar: Bar) -> tuple[int, File]:
    """Stores the pg_dump archive. Returns its size before compression, and the stored file."""
    target, environment = programs.split_password(task.url)
    schemas = [f"--schema={schema}" for schema in SCHEMAS]
    command = [
        *(chosen["pg_dump"], f"--dbname={target}", "--no-password", "--format=custom", "--compress=0"),
        *(f"--snapshot={taken.name}", f"--lock-wait-timeout={LOCK_WAIT}", *schemas),
    ]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            pipesize=archive.PIECE_BYTES,
        )
        try:
            source = archive.CompressingReader(
                process, lambda code: DumpFailed(_describe_failure(code, stderr)), bar.advance_to
            )
            with task.store.writer(task.name, file) as writer:
                measured = archive.MeasuringSink(writer)
                archive.encrypt(source, measured, archive.parse_recipients(task.recipients))
        finally:
            # Otherwise its COPY would block on the pipe and hold the snapshot open.
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    return source.bytes_read, measured.file()


def _describe_failure(code: int, stderr: IO[bytes]) -> str:
    """Describes how pg_dump ended, with its own error only: details from the server may quote data."""
    stderr.seek(0)
    lines = [line for line in stderr.read(10_000).decode(errors="replace").splitlines() if "pg_dump: error: " in line]
    reason = lines[0].partition("pg_dump: error: ")[2][:300] if lines else "it printed no error"
    end = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    return f"pg_dump {end}: {reason}"
