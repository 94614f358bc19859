"""`ballast backup verify`: detects any change to a stored backup, without a database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import boto3
import obstore
import pyrage
import pytest

from scripts.backup.checksum import add_checksum, has_checksum
from scripts.backup.manifest import AFTER, BEFORE, ENCRYPTED_DUMP, ENCRYPTED_STRUCTURE, MANIFEST
from scripts.backup.store import BackupStore, ManifestInvalid
from service import object_store
from tests.scripts.conftest import StoredBackup, Vault

WITHOUT_KEY = {"BACKUP_IDENTITY": None, "BACKUP_RECIPIENTS": None}


def replace(shelf: Vault, name: str, file: str, change: Callable[[bytes], bytes]) -> None:
    """Changes a file in the store, like an intruder with write access."""
    store = object_store.open_object_store(shelf.backup_url, attempt_seconds=5, retries=0)
    store.put(f"database/{name}/{file}", change(shelf.store.read(name, file)))


def remove(shelf: Vault, name: str, file: str) -> None:
    obstore.delete(
        object_store.open_object_store(shelf.backup_url, attempt_seconds=5, retries=0), f"database/{name}/{file}"
    )


def verify_and_fail(shelf: Vault, *words: str, **changes: str | None) -> str:
    result = shelf.run("verify", *words, **changes)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    return result.stderr


def flip_bit(body: bytes, position: int) -> bytes:
    changed = bytearray(body)
    changed[position] ^= 1
    return bytes(changed)


def test_an_unchanged_backup_is_verified_without_a_database(shelf: Vault, backup: StoredBackup) -> None:
    name = shelf.keep(backup)
    for words in (("verify",), ("verify", "latest"), ("verify", name), ("verify", name[-8:])):
        result = shelf.run_to_end(*words)
        assert result.stderr == ""
        assert result.stdout.count("\n") == 1
        assert result.stdout.startswith(f"{name}: 4 files, ")
        assert "decrypted and decompressed to" in result.stdout


def test_a_key_file_decrypts_a_backup(folder_shelf: Vault, tmp_path: Path, backup: StoredBackup) -> None:
    key = tmp_path / "key.txt"
    key.write_text(f"# made today\n{folder_shelf.identity}\n")
    folder_shelf.keep(backup)
    result = folder_shelf.run_to_end("verify", "--identity", str(key), BACKUP_IDENTITY=None)
    assert "decrypted and decompressed" in result.stdout


def test_without_a_key_only_the_checksums_are_compared_with_a_warning(shelf: Vault, backup: StoredBackup) -> None:
    name = shelf.keep(backup)
    result = shelf.run_to_end("verify", **WITHOUT_KEY)
    assert "only the checksums were compared" in result.stderr
    assert "not decrypted" in result.stdout
    replace(shelf, name, ENCRYPTED_DUMP, lambda body: flip_bit(body, -1))
    assert f"{ENCRYPTED_DUMP} of {name} is damaged" in verify_and_fail(shelf, **WITHOUT_KEY)


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_one_flipped_bit_of_the_dump_is_detected(shelf: Vault, place: str, backup: StoredBackup) -> None:
    name = shelf.keep(backup)
    replace(
        shelf,
        name,
        ENCRYPTED_DUMP,
        lambda body: flip_bit(body, {"start": 0, "middle": len(body) // 2, "end": -1}[place]),
    )
    assert f"{ENCRYPTED_DUMP} of {name} is damaged" in verify_and_fail(shelf)


@pytest.mark.parametrize("file", [BEFORE, AFTER])
def test_one_flipped_bit_of_a_script_is_detected(shelf: Vault, file: str, backup: StoredBackup) -> None:
    name = shelf.keep(backup)
    replace(shelf, name, file, lambda body: flip_bit(body, -1) if body else b"-- more")
    assert f"{file} of {name} is damaged" in verify_and_fail(shelf)


def test_every_flipped_bit_of_a_small_file_is_detected() -> None:
    whole = add_checksum(b'{\n  "rows": {"public.specimens": 1200},\n  "name": "caf\xc3\xa9"\n}')
    assert has_checksum(whole)
    assert json.loads(whole)["rows"] == {"public.specimens": 1200}
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        assert not has_checksum(bytes(changed))
    for place in range(len(whole)):
        assert not has_checksum(whole[:place])
        assert not has_checksum(whole[:place] + b" " + whole[place:])


def test_one_flipped_bit_of_the_manifest_is_detected_wherever_it_is(shelf: Vault, backup: StoredBackup) -> None:
    name = shelf.keep(backup)
    whole = shelf.store.read(name, MANIFEST)
    for number in range(30):
        place = number * (len(whole) - 1) // 29
        replace(shelf, name, MANIFEST, lambda body: flip_bit(body, place))  # noqa: B023 - called at once
        with pytest.raises(ManifestInvalid, match=f"manifest of {name} is damaged: it differs from its own checksum"):
            shelf.store.manifest(name)
        replace(shelf, name, MANIFEST, lambda _: whole)
    replace(shelf, name, MANIFEST, lambda body: flip_bit(body, len(body) // 2))
    for words in (("verify",), ("verify", name), ("drill", name)):
        assert "differs from its own checksum" in shelf.run(*words).stderr


@pytest.mark.parametrize("left", [0, 1, -1])
def test_a_truncated_dump_is_detected(shelf: Vault, left: int, backup: StoredBackup) -> None:
    name = shelf.keep(backup)
    replace(shelf, name, ENCRYPTED_DUMP, lambda body: body[:left])
    assert f"{ENCRYPTED_DUMP} of {name} is damaged" in verify_and_fail(shelf)


@pytest.mark.parametrize("file", [BEFORE, AFTER, ENCRYPTED_DUMP, ENCRYPTED_STRUCTURE])
def test_a_missing_file_is_reported(shelf: Vault, file: str, backup: StoredBackup) -> None:
    name = shelf.keep(backup)
    remove(shelf, name, file)
    assert f"{file} of {name} is missing" in verify_and_fail(shelf)


@pytest.mark.parametrize("file", [BEFORE, AFTER, ENCRYPTED_DUMP, ENCRYPTED_STRUCTURE])
def test_a_manifest_without_a_required_file_is_rejected(folder_shelf: Vault, file: str, backup: StoredBackup) -> None:
    name = folder_shelf.keep(backup)

    def without(body: bytes) -> bytes:
        manifest = json.loads(body)
        del manifest["files"][file]
        return add_checksum(json.dumps(manifest).encode())

    replace(folder_shelf, name, MANIFEST, without)
    assert "is damaged: files: Value error, a required file is missing" in verify_and_fail(folder_shelf)


def test_the_manifest_of_another_backup_is_detected(
    shelf: Vault, backup: StoredBackup, other_backup: StoredBackup
) -> None:
    first, second = shelf.keep(backup), shelf.keep(other_backup)
    replace(shelf, second, MANIFEST, lambda _: shelf.store.read(first, MANIFEST))
    assert f"is that of {first}" in verify_and_fail(shelf, second)


def test_the_files_of_another_backup_are_detected(
    shelf: Vault, backup: StoredBackup, other_backup: StoredBackup
) -> None:
    first, second = shelf.keep(backup), shelf.keep(other_backup)
    replace(shelf, second, ENCRYPTED_DUMP, lambda _: shelf.store.read(first, ENCRYPTED_DUMP))
    assert f"{ENCRYPTED_DUMP} of {second} is damaged" in verify_and_fail(shelf, second)


def test_a_wrong_key_is_reported(shelf: Vault, backup: StoredBackup) -> None:
    shelf.keep(backup)
    other = str(pyrage.x25519.Identity.generate())
    assert "not encrypted for this key" in verify_and_fail(shelf, BACKUP_IDENTITY=other)


def test_an_invalid_key_is_a_usage_error(folder_shelf: Vault, backup: StoredBackup) -> None:
    folder_shelf.keep(backup)
    assert folder_shelf.run("verify", BACKUP_IDENTITY="hello").exit_code == 2


def test_an_unencrypted_backup_is_verified_without_a_key(shelf: Vault, plain_backup: StoredBackup) -> None:
    name = shelf.keep(plain_backup)
    result = shelf.run_to_end("verify", **WITHOUT_KEY)
    assert result.stderr == ""
    assert "; decompressed to" in result.stdout
    replace(shelf, name, "dump.pgc.zst", lambda body: flip_bit(body, len(body) // 2))
    assert f"dump.pgc.zst of {name} is damaged" in verify_and_fail(shelf, **WITHOUT_KEY)


def remeasure(store: BackupStore, name: str, file: str) -> Callable[[bytes], bytes]:
    """Makes the manifest match a damaged file."""

    def damage_manifest(body: bytes) -> bytes:
        manifest, found = json.loads(body), store.read(name, file)
        manifest["files"][file] = {"size_bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()}
        return add_checksum(json.dumps(manifest).encode())

    return damage_manifest


@pytest.mark.parametrize("environment", [{}, WITHOUT_KEY])
def test_a_truncated_dump_with_a_matching_manifest_is_detected(
    folder_shelf: Vault, backup: StoredBackup, plain_backup: StoredBackup, environment: dict[str, str | None]
) -> None:
    name, dump = (
        (folder_shelf.keep(plain_backup), "dump.pgc.zst")
        if environment
        else (folder_shelf.keep(backup), ENCRYPTED_DUMP)
    )
    replace(folder_shelf, name, dump, lambda body: body[:-20])
    replace(folder_shelf, name, MANIFEST, remeasure(folder_shelf.store, name, dump))
    assert "The dump" in verify_and_fail(folder_shelf, **environment)


def test_a_dump_with_another_length_than_in_the_manifest_is_detected(folder_shelf: Vault, backup: StoredBackup) -> None:
    name = folder_shelf.keep(backup)

    def longer(body: bytes) -> bytes:
        manifest = json.loads(body)
        return add_checksum(json.dumps(manifest | {"dump_bytes": manifest["dump_bytes"] + 1}).encode())

    replace(folder_shelf, name, MANIFEST, longer)
    assert "not as long as its manifest says" in verify_and_fail(folder_shelf)


def test_a_forbidden_file_is_not_reported_as_missing(bucket_shelf: Vault, backup: StoredBackup) -> None:
    name = bucket_shelf.keep(backup)
    bucket = bucket_shelf.backup_url.split("/")[2]
    rule = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*/{AFTER}",
    }
    boto3.client("s3").put_bucket_policy(
        Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]})
    )
    assert f"Cannot read {AFTER} of {name}" in verify_and_fail(bucket_shelf)
