"""The store of backups. Each has a folder `database/<name>/`, which counts as a backup once it has a manifest."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore
from pydantic import ValidationError

from scripts.backup.checksum import add_checksum, has_checksum
from scripts.backup.manifest import MANIFEST, Manifest
from scripts.errors import Failure
from scripts.schema import database
from service import object_store
from service.backup_names import FOLDER

NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
DRILLS = "drills"
MEGABYTE = 1 << 20
# S3 accepts 10,000 parts, so a compressed dump may have 80 GB. An upload takes 24 MiB of memory.
PART_BYTES = 8 * MEGABYTE
PARTS_AT_ONCE = 2
READ_BYTES = 4 * MEGABYTE
MANIFESTS_AT_ONCE = 8
# The timeout of a request: one part at 1 Mbit/s. A stalled upload must not keep a transaction open for days.
ATTEMPT_SECONDS = 90
RETRIES = 3
# Clocks that differ by less count as equal, as for signed webhooks.
CLOCK_TOLERANCE = timedelta(minutes=5)
NEVER = datetime.max.replace(tzinfo=UTC)

# What describe_error() returns for a missing file: first in a bucket, then in a folder.
MISSING = {"404", "NotFound"}

Result = TypeVar("Result")


class StoreUnavailable(Failure):
    """The store cannot be read or written. `code` is the reason, without the store's message: that may quote keys."""

    def __init__(self, action: str, url: str, code: str) -> None:
        super().__init__(f"Cannot {action} in {url}: {code}. {object_store.advise(url, code)}")
        self.code = code


class BackupUnknown(Failure):
    """There is no backup of this name."""


class NameTaken(Failure):
    """The store already has files under this name."""


class ManifestInvalid(Failure):
    """A manifest cannot be parsed, or belongs to another backup."""


class Sink(Protocol):
    """The target of a stream."""

    def write(self, piece: bytes, /) -> int: ...


@dataclass(frozen=True)
class StoredManifest:
    """A manifest, and when it was written by the store's clock.

    If it cannot be read, `manifest` is None and `damage` is the reason.
    """

    name: str
    written_at: datetime
    manifest: Manifest | None
    damage: str | None = None

    @property
    def created_at(self) -> datetime:
        """The time of the snapshot by the database's clock. If that is unreadable, when the manifest was written."""
        return self.manifest.created_at if self.manifest else self.written_at

    @property
    def ahead(self) -> timedelta:
        """How far the snapshot is dated after the clocks of the store and of this machine; zero if the clocks agree."""
        ahead = self.created_at - min(self.written_at, datetime.now(UTC))
        return timedelta(seconds=round(ahead.total_seconds())) if ahead > CLOCK_TOLERANCE else timedelta(0)


@dataclass(frozen=True)
class UnfinishedBackup:
    """Files of an interrupted run that never became a backup."""

    path: str
    size_bytes: int
    began_at: datetime
    upload_id: str | None = None


class BackupStore:
    """The backups under `url`, which has the form that open_object_store() accepts. Connects on first use.

    Every method raises StoreUnavailable.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    # --- reading ---

    def names(self) -> list[str]:
        """The names of all backups, sorted."""
        return sorted(self._list_manifests())

    def find(self, wanted: str) -> str:
        """Finds a backup by its name, its last 8 characters, or `latest`: the newest snapshot.

        Raises BackupUnknown, and ManifestInvalid if the latest backup may be one that cannot be read.
        """
        if wanted == "latest":
            found = self._find_latest()
        else:
            found = [name for name in self.names() if wanted in {name, name[-8:]}]
        if not found:
            raise BackupUnknown(f"There is no backup {wanted!r} in {self.url}. Run `ballast backup list` to see them.")
        return found[0]

    def manifests(self) -> list[StoredManifest]:
        """Reads all manifests. They are sorted by the time of the snapshot, oldest first."""
        with ThreadPoolExecutor(MANIFESTS_AT_ONCE) as pool:
            found = pool.map(lambda each: self._read_manifest(*each), self._list_manifests().items())
            return sorted(found, key=lambda each: (each.created_at, each.name))

    def measure_ahead(self, manifest: Manifest) -> timedelta:
        """How far a backup is dated after the clocks of the store and of this machine; zero if the clocks agree."""
        now = datetime.now(UTC)  # if the backup has been pruned meanwhile
        return StoredManifest(manifest.name, self._list_manifests().get(manifest.name, now), manifest).ahead

    def manifest(self, name: str) -> Manifest:
        """Reads and validates a manifest. Raises ManifestInvalid."""
        body = self.read(name, MANIFEST)
        if not has_checksum(body):
            raise ManifestInvalid(f"The manifest of {name} is damaged: it differs from its own checksum.")
        try:
            manifest = Manifest.model_validate_json(body)
        except ValidationError as error:
            [first, *_] = error.errors(include_input=False)
            field = ".".join(str(part) for part in first["loc"])
            raise ManifestInvalid(f"The manifest of {name} is damaged: {field}: {first['msg']}.") from None
        if manifest.name != name:
            raise ManifestInvalid(f"The manifest in {FOLDER}/{name} is that of {manifest.name}: trust neither backup.")
        return manifest

    def read(self, name: str, file: str) -> bytes:
        """Reads a small file of a backup."""
        return bytes(self._attempt(f"read {file} of {name}", lambda store: store.get(_path(name, file)).bytes()))

    def _find_latest(self) -> list[str]:
        """Returns no name if there is no backup. Raises ManifestInvalid; warns if a clock was wrong."""
        for latest in self.manifests()[-1:]:
            if latest.manifest is None:
                raise ManifestInvalid(f"{latest.damage} It may be the latest backup: choose another one by its ID.")
            if latest.ahead:
                database.echo_err(
                    f"{latest.name} counts as the latest backup, but is dated {latest.ahead} ahead: the clock of the"
                    " database, of the store or of this machine is wrong. Compare it with `ballast backup list`."
                )
            return [latest.name]
        return []

    def _read_manifest(self, name: str, written_at: datetime) -> StoredManifest:
        try:
            return StoredManifest(name, written_at, self.manifest(name))
        except ManifestInvalid as damage:
            return StoredManifest(name, written_at, None, str(damage))

    def _list_manifests(self) -> dict[str, datetime]:
        """Maps the name of each backup to the time when its manifest was written."""
        suffix = f"/{MANIFEST}"
        found = {
            path.removesuffix(suffix).rpartition("/")[2]: written_at
            for path, _, written_at in self._list_objects()
            if path.endswith(suffix)
        }
        return {name: written_at for name, written_at in found.items() if NAME.fullmatch(name)}

    def stream(self, name: str, file: str) -> Iterator[bytes]:
        """Reads a file of a backup in pieces."""
        pieces = self._attempt(
            f"read {file} of {name}", lambda store: iter(store.get(_path(name, file)).stream(min_chunk_size=READ_BYTES))
        )
        while (piece := self._attempt(f"read {file} of {name}", lambda _: next(pieces, None))) is not None:
            yield bytes(piece)

    def drills(self) -> dict[str, list[str]]:
        """Maps each backup to the report files of its drills, oldest first."""
        found: dict[str, list[str]] = {}
        for path in sorted(self._list_paths()):
            name, _, file = path.removeprefix(f"{FOLDER}/").partition("/")
            if file.startswith(f"{DRILLS}/") and file.endswith(".json"):
                found.setdefault(name, []).append(file)
        return found

    # --- writing ---

    def create_folder(self) -> None:
        """Creates the folder of the store if it is missing. Only this process's user may read it."""
        if self.folder is None or os.path.lexists(self.folder):
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise StoreUnavailable("create the folder", self.url, object_store.describe_error(error)) from None
        database.echo_err(f"Created the folder {self.folder}, which BACKUP_URL names.")

    def require_unused(self, name: str) -> None:
        """Raises NameTaken: a run must neither overwrite another backup, nor delete it when it cleans up."""
        if any(path.startswith(f"{FOLDER}/{name}/") for path in self._list_paths()):
            raise NameTaken(f"{name} already exists in {self.url}. Run the backup again to get another name.")

    @contextmanager
    def writer(self, name: str, file: str) -> Iterator[Sink]:
        """Writes a file of unknown length in parts. If the block raises, the upload is aborted."""
        action = f"write {file} of {name}"
        upload = self._attempt(
            action,
            lambda store: obstore.open_writer(
                store, _path(name, file), buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            ),
        )
        try:
            yield _GuardedWriter(upload, lambda act: self._attempt(action, lambda _: act()))
        except BaseException as failure:
            # obstore aborts the upload if __exit__ receives an exception. An error of the abort would hide this one.
            with suppress(BaseError, OSError, ValueError, RuntimeError):
                upload.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._attempt(action, lambda _: upload.close())
        self._sync(_path(name, file))

    def put(self, name: str, file: str, body: bytes) -> None:
        """Writes a small file; fails if it exists."""
        path = _path(name, file)
        self._attempt(f"write {file} of {name}", lambda store: store.put(path, body, mode="create"))
        self._sync(path)

    def put_report(self, name: str, body: bytes) -> None:
        """Writes the report of a drill. Reports are numbered, so that no clock decides which is the last one."""
        number = len(self.drills().get(name, [])) + 1
        self.put(name, f"{DRILLS}/{number:04}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.json", add_checksum(body))

    def put_manifest(self, manifest: Manifest) -> None:
        """Writes the manifest: from then on, the backup counts."""
        self.put(manifest.name, MANIFEST, add_checksum(manifest.model_dump_json(indent=2).encode()))

    def discard(self, name: str) -> None:
        """Deletes a backup, the manifest first: an interrupted deletion then leaves nothing that counts as a backup."""
        folder = f"{FOLDER}/{name}/"
        paths = [path for path in self._list_paths() if path.startswith(folder)]
        for path in sorted(paths, key=lambda path: not path.endswith(f"/{MANIFEST}")):
            self._attempt(f"delete {path}", partial(_delete, path=path))
        if self.folder is not None:  # obstore does not list its staging files (`dump…#1`) and the folder
            shutil.rmtree(self.folder / folder, ignore_errors=True)

    # --- leftovers of interrupted runs ---

    def leftovers(self, older_than: timedelta) -> list[UnfinishedBackup]:
        """Finds unfinished uploads, and folders without a manifest, whose last write is older than this.

        Older than the newest file, by the store's clock. With this machine's clock alone, one that is wrong by days
        would delete the files of a backup that is running.
        """
        files = list(self._list_objects() if self.folder is None else self._list_on_disk(self.folder))
        found = [*self._find_unfinished_folders(files), *self._find_uploads()]
        newest = max([written_at for *_, written_at in files] + [each.began_at for each in found], default=NEVER)
        before = min(newest, datetime.now(UTC)) - older_than
        return [each for each in found if each.began_at <= before]

    def remove(self, leftover: UnfinishedBackup) -> None:
        """Deletes a leftover folder, or aborts an upload."""
        if leftover.upload_id is None:
            self.discard(leftover.path.removeprefix(f"{FOLDER}/"))
            return
        try:
            key = self._key(leftover.path)
            upload = {"Key": key, "UploadId": leftover.upload_id}
            self._ask_bucket("abort an upload", lambda s3, bucket: s3.abort_multipart_upload(**bucket, **upload))
        except StoreUnavailable as failure:
            if failure.code not in MISSING:  # missing: the upload has ended in the meantime
                raise

    def _find_unfinished_folders(self, files: list[tuple[str, int, datetime]]) -> Iterator[UnfinishedBackup]:
        backups = set(self.names())
        folders: dict[str, list[tuple[int, datetime]]] = {}
        for path, size, written_at in files:
            name = path.removeprefix(f"{FOLDER}/").partition("/")[0]
            if NAME.fullmatch(name) and name not in backups:
                folders.setdefault(name, []).append((size, written_at))
        for name, written in folders.items():
            yield UnfinishedBackup(
                f"{FOLDER}/{name}", sum(size for size, _ in written), max(moment for _, moment in written)
            )

    def _list_on_disk(self, folder: Path) -> list[tuple[str, int, datetime]]:
        """Like _list_objects(), but includes empty folders and the staging files (`dump…#1`) that obstore hides."""

        def walk() -> Iterator[tuple[str, int, datetime]]:
            for parent, _, files in os.walk(folder / FOLDER):
                for found in (Path(parent), *(Path(parent, file) for file in files)):
                    with suppress(FileNotFoundError):  # another process finished or deleted it
                        status = found.stat()
                        size = 0 if found.is_dir() else status.st_size
                        yield found.relative_to(folder).as_posix(), size, datetime.fromtimestamp(status.st_mtime, UTC)

        return self._attempt(f"list {FOLDER}", lambda _: list(walk()))

    def _find_uploads(self) -> Iterator[UnfinishedBackup]:
        """Finds multipart uploads that were never completed. Other clouds than S3 expire theirs."""
        if not self.url.startswith("s3:"):
            return
        found = self._ask_bucket(
            "list unfinished uploads",
            lambda s3, bucket: (
                s3.get_paginator("list_multipart_uploads")
                .paginate(**bucket, Prefix=self._key(f"{FOLDER}/"))
                .build_full_result()
            ),
        )
        for each in found.get("Uploads", []):
            yield UnfinishedBackup(each["Key"].removeprefix(self._key("")), 0, each["Initiated"], each["UploadId"])

    # --- access ---

    @property
    def folder(self) -> Path | None:
        """The path of the store if it is a folder."""
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    def path(self, name: str, file: str) -> Path | None:
        """The path of a backup's file if the store is a folder."""
        return self.folder / _path(name, file) if self.folder is not None else None

    def _key(self, path: str) -> str:
        prefix = unquote(urlsplit(self.url).path).strip("/")
        return f"{prefix}/{path}" if prefix else path

    def _ask_bucket(self, action: str, ask: Callable[[Any, dict[str, str]], dict[str, Any]]) -> dict[str, Any]:
        """Returns `ask(client, {"Bucket": …})`."""
        import boto3  # noqa: PLC0415 - takes half a second, and only this needs it
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            # obstore reads AWS_REGION, boto3 only AWS_DEFAULT_REGION.
            client = boto3.client("s3", region_name=os.environ.get("AWS_REGION"))
            return ask(client, {"Bucket": urlsplit(self.url).netloc})
        except ClientError as error:
            code = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "ClientError"))
        except BotoCoreError as error:
            code = type(error).__name__
        raise StoreUnavailable(action, self.url, code)

    def _list_paths(self) -> list[str]:
        return [path for path, _, _ in self._list_objects()]

    def _list_objects(self) -> list[tuple[str, int, datetime]]:
        def list_objects(store: ObjectStore) -> list[tuple[str, int, datetime]]:
            batches = store.list(FOLDER)
            return [(each["path"], each["size"], each["last_modified"]) for batch in batches for each in batch]

        return self._attempt(f"list {FOLDER}", list_objects)

    def _attempt(self, action: str, act: Callable[[ObjectStore], Result]) -> Result:
        try:
            return act(self._store)
        except AlreadyExistsError:
            code = "AlreadyExists"
        except (BaseError, OSError, ValueError) as error:
            code = object_store.describe_error(error)
        # Outside the except block: a chained traceback would print the store's message.
        raise StoreUnavailable(action, self.url, code)

    def _sync(self, path: str) -> None:
        """Syncs a file in a folder to disk: obstore renames it without a sync, so a power failure could lose it."""
        if self.folder is None:
            return
        file = self.folder / path
        for synced in (file, file.parent):
            self._attempt(f"write {path}", partial(_sync_to_disk, path=synced))

    @cached_property
    def _store(self) -> ObjectStore:
        return object_store.open_object_store(self.url, attempt_seconds=ATTEMPT_SECONDS, retries=RETRIES)


class _GuardedWriter:
    """A writer that raises errors as StoreUnavailable."""

    def __init__(self, upload: obstore.WritableFile, guard: Callable[[Callable[[], object]], object]) -> None:
        self._upload = upload
        self._guard = guard

    def write(self, piece: bytes, /) -> int:
        self._guard(lambda: self._upload.write(piece))
        return len(piece)


def _sync_to_disk(_store: ObjectStore, path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _path(name: str, file: str) -> str:
    return f"{FOLDER}/{name}/{file}"


def _delete(store: ObjectStore, path: str) -> None:
    store.delete(path)
