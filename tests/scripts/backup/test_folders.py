"""A folder as the store: `run` creates it, and an error says what is wrong with the folder. A full disk loses nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.backup.store import BackupStore, StoreUnavailable
from service.erasure_ledger import LedgerUnavailable
from tests.conftest import ROOT
from tests.scripts.conftest import StoredBackup, Vault

OTHER_USER = 65534


def test_run_creates_the_folder_for_its_user_alone_and_says_so(folder_vault: Vault, tmp_path: Path) -> None:
    folder = tmp_path / "not yet" / "here"
    made = folder_vault.run_to_end("run", BACKUP_URL=folder.as_uri())
    assert f"Created the folder {folder}, which BACKUP_URL names." in made.stderr
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(BackupStore(folder.as_uri()).names()) == 1
    assert "Created" not in folder_vault.run_to_end("run", BACKUP_URL=folder.as_uri()).stderr


@pytest.mark.parametrize("words", [("list",), ("prune",), ("verify",), ("drill",), ("extract", "latest", "--organization",
    "org_acme", "--output", "/nowhere.sql")])  # fmt: skip
def test_readers_never_create_a_folder_and_name_it(folder_shelf: Vault, tmp_path: Path, words: tuple[str, ...]) -> None:
    folder = tmp_path / "not mounted"
    failed = folder_shelf.run(*words, BACKUP_URL=folder.as_uri())
    assert failed.exit_code == 1
    assert f"The folder {folder} does not exist: create it, or correct BACKUP_URL." in failed.stderr
    assert "AWS" not in failed.stderr
    assert not folder.exists()


@pytest.mark.parametrize("below", ["", "/x/y"])
@pytest.mark.parametrize("words", [("run",), ("list",), ("verify",)])
def test_a_file_instead_of_a_folder_is_named(folder_vault: Vault, words: tuple[str, ...], below: str) -> None:
    file = folder_vault.home / "a file"
    file.write_text("not a folder")
    failed = folder_vault.run(*words, BACKUP_URL=file.as_uri() + below)
    assert failed.exit_code == 1
    assert f"{file}{below} is not a folder, or is below a file: correct BACKUP_URL." in failed.stderr
    assert "AWS" not in failed.stderr


def run_as_another_user(source: str, *arguments: str) -> str:
    """Runs a program that becomes another user, and returns what it printed as an error."""
    begin = (
        f"import os; from scripts.backup.store import BackupStore; os.setgid({OTHER_USER}); os.setuid({OTHER_USER})\n"
    )
    command = [sys.executable, "-c", begin + source, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize(("mode", "words"), [(0o700, "list"), (0o755, "write x of y")])
def test_a_missing_permission_is_called_so(home: Path, mode: int, words: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    folder = home / f"of root {mode:o}"
    (folder / "database").mkdir(parents=True)
    folder.chmod(mode)
    source = (
        "import sys; store = BackupStore(sys.argv[1])\n"
        "store.names() if sys.argv[2] == 'list' else store.put('y', 'x', b'')"
    )
    failed = run_as_another_user(source, folder.as_uri(), words)
    assert f"The user of this process lacks permission for {folder}" in failed
    assert "AWS" not in failed


@pytest.mark.parametrize(("url", "variables"), [
    ("s3://bucket", "AWS_…"), ("gs://bucket", "GOOGLE_…"), ("az://container", "AZURE_…"),
])  # fmt: skip
def test_errors_of_a_bucket_name_the_variables_of_its_provider(url: str, variables: str) -> None:
    errors = [str(StoreUnavailable("list", url, "403")), str(LedgerUnavailable("list", url, "403"))]
    for error in errors:
        assert error.endswith(f"Check BACKUP_URL and the variables {variables}.")


# --- a full disk ---


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """Mounts a disk of that size in memory."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 12 MB."""
    with mounted(tmp_path / "small", "12m") as folder:
        yield folder


def test_a_full_disk_is_reported_and_older_backups_stay(
    heavy: str, folder_vault: Vault, small_disk: Path, backup: StoredBackup
) -> None:
    full = Vault(heavy, small_disk.as_uri(), folder_vault.home)
    name = full.keep(backup)
    used = shutil.disk_usage(small_disk).used
    failed = full.run("run")
    assert failed.exit_code == 1
    assert f"The disk of {small_disk} is full: free some space" in failed.stderr
    assert "AWS" not in failed.stderr
    assert full.store.names() == [name]
    assert shutil.disk_usage(small_disk).used == used
    full.run_to_end("verify", name)


def test_a_full_disk_for_temporary_files_is_reported(
    bucket_vault: Vault, small_disk: Path, backup: StoredBackup, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket_vault.keep(backup)
    (small_disk / "filling").write_bytes(b"x" * ((12 << 20) - 8192))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    failed = bucket_vault.run("verify")
    assert failed.exit_code == 1
    assert f"No space left on device: {small_disk}. Free some space, or set TMPDIR to another disk." in failed.stderr
    assert sorted(path.name for path in small_disk.iterdir()) == ["filling"]
