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
from scripts.backup.alarm import monitored
from scripts.backup.manifest import AFTER, BEFORE, DUMP, MANIFEST, SCHEMAS, SEALED_DUMP, File, Manifest
from scripts.backup.progress import Bar
from scripts.backup.records import Records
from scripts.backup.snapshot import Around, Snapshot
from scripts.backup.store import BackupStore, StoreUnavailable
from scripts.errors import Failure
from scripts.schema import database
from service.backup_names import BackupType, filename_of
from service.settings import BACKUP_PLACE

# pg_dump waits so long for a table that a deployment has locked.
LOCK_WAIT = "5min"
INSECURE_ENVIRONMENTS = {"local", "test"}


class NowhereToStore(Failure):
    """Nobody says where backups are kept."""

    exit_code = 2


class NobodyCouldOpen(Failure):
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
    records: Records
    id: str
    name: str
    backup_type: BackupType

    @property
    def filename(self) -> str:
        return filename_of(self.name)


def store_of(environment: dict[str, str]) -> BackupStore:
    """By BACKUP_URL. Raises NowhereToStore, which does not repeat what may hold a password."""
    url = environment.get("BACKUP_URL", "")
    if BACKUP_PLACE.fullmatch(url) is None:
        raise NowhereToStore(
            "Where are backups kept? Set BACKUP_URL to s3://bucket/prefix or file:///folder (gs:// and az:// work too);"
            " a user or a password has no place in it."
        )
    return BackupStore(url.rstrip("/"))


def recipients_of(environment: dict[str, str]) -> tuple[str, ...]:
    """By BACKUP_RECIPIENTS. Raises KeyInvalid, and NobodyCouldOpen where a backup must not lie open."""
    keys = tuple(key.strip() for key in environment.get("BACKUP_RECIPIENTS", "").split(",") if key.strip())
    archive.recipients(keys)
    if not keys and environment.get("ENVIRONMENT", "production") not in INSECURE_ENVIRONMENTS:
        raise NobodyCouldOpen(
            "Set BACKUP_RECIPIENTS to age's public keys (`age-keygen` makes a pair): unencrypted backups are only made"
            " with ENVIRONMENT=local or test."
        )
    if not keys:
        database.say("BACKUP_RECIPIENTS is not set: whoever reaches the store can read this backup.")
    return keys


def backed_up(task: Task, bar: Bar) -> Manifest:
    """Makes the backup, records it, and returns its manifest. Raises a Failure, and then there is none."""
    try:
        with (
            database.connected(task.url, tell=database.say) as connection,
            snapshot.taken(connection) as taken,
            monitored("ballast-backup"),
        ):
            task.records.begin(task.id, task.filename, task.backup_type)
            task.store.require_unused(task.name)
            with _cleaned_up(task):
                manifest = _stored(task, taken, bar)
            task.records.complete(manifest)
            return manifest
    except BaseException as failure:
        # Changes nothing if the run had no row yet.
        task.records.fail(task.id, str(failure) if isinstance(failure, Failure) else type(failure).__name__)
        raise


@contextmanager
def _cleaned_up(task: Task) -> Iterator[None]:
    """A failed backup leaves nothing in the store."""
    try:
        yield
    except BaseException:
        try:
            task.store.discard(task.name)
        except StoreUnavailable as also:
            database.say(f"{also} `ballast backup prune` removes what is left there.")
        raise


def _stored(task: Task, taken: Snapshot, bar: Bar) -> Manifest:
    """Everything into the store, the manifest last."""
    began = time.monotonic()
    chosen = programs.fitting(taken.connection)
    bar.stage("Counting")
    rows = snapshot.counted(taken.connection)
    around = Around.of(taken.connection)
    bar.stage("Dumping", snapshot.estimated_bytes(taken.connection))
    dump = SEALED_DUMP if task.recipients else DUMP
    dump_bytes, dumped = _dumped(task, taken, chosen, dump, bar)
    bar.stage("Finishing")
    files = {dump: dumped}
    for name, text in ((BEFORE, around.before), (AFTER, around.after)):
        files[name] = _put(task, name, text.encode())
    manifest = Manifest(
        id=task.id,
        name=task.name,
        backup_type=task.backup_type,
        created_at=taken.taken_at.astimezone(UTC),
        duration_seconds=round(time.monotonic() - began, 3),
        server_version=taken.connection.info.server_version,
        dump_version=chosen.version,
        migration=snapshot.newest_migration(taken.connection),
        roles=around.roles,
        rows=rows,
        structure=snapshot.described(taken.connection),
        audit_seal=snapshot.last_seal(taken.connection),
        dump_bytes=dump_bytes,
        files=files,
    )
    task.store.put(task.name, MANIFEST, manifest.model_dump_json(indent=2).encode())
    return manifest


def _put(task: Task, name: str, body: bytes) -> File:
    task.store.put(task.name, name, body)
    return File(size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def _dumped(task: Task, taken: Snapshot, chosen: programs.Programs, file: str, bar: Bar) -> tuple[int, File]:
    """pg_dump's archive into the store: its size before compression, and what the store holds."""
    target, environment = programs.without_password(task.url)
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
            source = archive.Compressed(process, lambda code: DumpFailed(_last_words(code, words)), bar.advance_to)
            with task.store.writer(task.name, file) as writer:
                measured = archive.Measured(writer)
                archive.seal(source, measured, archive.recipients(task.recipients))
        finally:
            # Its COPY would hold the snapshot for as long as nobody reads.
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    return source.bytes_read, measured.file()


def _last_words(code: int, words: IO[bytes]) -> str:
    """Only what pg_dump says itself: details of the server's may quote data."""
    words.seek(0)
    said = [line for line in words.read(10_000).decode(errors="replace").splitlines() if "pg_dump: error: " in line]
    reason = said[0].partition("pg_dump: error: ")[2][:300] if said else "it said nothing"
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"pg_dump {how}: {reason}"
