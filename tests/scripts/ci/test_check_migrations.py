"""./scripts/ci/check-migrations: released migrations never change, and the next release only adds migrations."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.schema.sql_files import mark_origin
from tests.conftest import ROOT

BASELINE = "migrations/20260101000000_baseline.sql"
BUNDLE = "supabase/migrations/20260101000001_functions_and_policies.bundle.sql"
NEXT = "migrations/20260102000000_next.sql"


def git(folder: Path, *words: str) -> None:
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", f"--message={path}")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository without a release, with a baseline and its bundle."""
    (tmp_path / "scripts/ci").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/ci/check-migrations", tmp_path / "scripts/ci/check-migrations")
    git(tmp_path, "init", "--initial-branch=main")
    commit(tmp_path, BASELINE, "select 1;\n")
    commit(tmp_path, BUNDLE, "select 1;\n")
    return tmp_path


@pytest.fixture
def released_checkout(checkout: Path) -> Path:
    """The same, released as 0.9.0 and, with a second migration, as 0.10.0."""
    git(checkout, "tag", "v0.9.0")
    commit(checkout, NEXT, "select 2;\n")
    git(checkout, "tag", "v0.10.0")
    return checkout


def check(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([checkout / "scripts/ci/check-migrations"], capture_output=True, text=True, check=False)


def test_the_baseline_may_be_edited_before_the_first_release(checkout: Path) -> None:
    commit(checkout, BASELINE, "select 10;\n")
    ran = check(checkout)
    assert (ran.returncode, ran.stdout) == (0, "No release yet: migrations may still be edited.\n"), ran.stderr


def test_a_migration_added_after_the_release_may_change(released_checkout: Path) -> None:
    commit(released_checkout, "migrations/20260103000000_third.sql", "select 3;\n")
    (released_checkout / "migrations/20260103000000_third.sql").write_text("select 30;\n")
    ran = check(released_checkout)
    assert (ran.returncode, ran.stdout) == (0, "No migration of v0.10.0 was changed.\n"), ran.stderr


@pytest.mark.parametrize("path", [BASELINE, BUNDLE, NEXT])
@pytest.mark.parametrize("action", ["change", "rename", "delete"])
def test_a_released_migration_may_not_change(released_checkout: Path, path: str, action: str) -> None:
    if action == "change":
        commit(released_checkout, path, "select 10;\n")
    elif action == "delete":
        (released_checkout / path).unlink()
    else:
        git(released_checkout, "mv", path, path.replace(".sql", "_renamed.sql"))
    ran = check(released_checkout)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"{path} was released in v0.10.0: restore it")


@pytest.mark.parametrize(("text", "returncode"), [("select 2;\n", 0), ("select 20;\n", 1)])
def test_a_product_has_a_released_migration_under_another_name(
    released_checkout: Path, text: str, returncode: int
) -> None:
    (released_checkout / NEXT).unlink()
    commit(released_checkout, "migrations/20260301000000_next.sql", mark_origin("20260102000000", text))
    ran = check(released_checkout)
    assert ran.returncode == returncode, ran.stderr
    assert ran.stderr.startswith(f"{NEXT} was released in v0.10.0" if returncode else "")


def test_a_release_candidate_is_older_than_its_release(released_checkout: Path) -> None:
    git(released_checkout, "tag", "v0.10.0-rc1")
    assert "v0.10.0 was" in check(released_checkout).stdout


def test_a_release_of_another_branch_is_not_compared(released_checkout: Path) -> None:
    git(released_checkout, "switch", "--create=other")
    commit(released_checkout, "migrations/20260104000000_other.sql", "select 4;\n")
    git(released_checkout, "tag", "v2.0.0")
    git(released_checkout, "switch", "main")
    assert check(released_checkout).stdout == "No migration of v0.10.0 was changed.\n"
