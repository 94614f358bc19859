"""./scripts/ci/check-migrations: what main has is never changed, only added to."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

FIRST = "migrations/20260101000000_first.sql"


def git(folder: Path, *words: str) -> None:
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone whose branch goes on from main, with a migration that main has and one that it has not."""
    main, clone = tmp_path / "main", tmp_path / "clone"
    for folder in ("scripts/ci", "migrations"):
        (main / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/ci/check-migrations", main / "scripts/ci/check-migrations")
    (main / FIRST).write_text("select 1;\n")
    git(main, "init", "--initial-branch=main")
    git(main, "add", ".")
    git(main, "commit", "--message=first")
    git(tmp_path, "clone", str(main), str(clone))
    (clone / "migrations/20260102000000_second.sql").write_text("select 2;\n")
    git(clone, "add", ".")
    git(clone, "commit", "--message=second")
    (main / "migrations/20260103000000_third.sql").write_text("select 3;\n")  # main goes on too
    git(main, "add", ".")
    git(main, "commit", "--message=third")
    git(clone, "fetch")
    return clone


def landed(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([checkout / "scripts/ci/check-migrations"], capture_output=True, text=True, check=False)


def test_what_is_added_may_still_change(checkout: Path) -> None:
    (checkout / "migrations/20260102000000_second.sql").write_text("select 20;\n")
    ran = landed(checkout)
    assert (ran.returncode, ran.stdout) == (0, "No migration that main has was changed.\n"), ran.stderr


@pytest.mark.parametrize("deed", ["change", "rename", "delete"])
def test_what_main_has_may_not(checkout: Path, deed: str) -> None:
    if deed == "change":
        (checkout / FIRST).write_text("select 10;\n")
    elif deed == "delete":
        (checkout / FIRST).unlink()
    else:
        git(checkout, "mv", FIRST, "migrations/20260101000000_renamed.sql")
    ran = landed(checkout)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"{FIRST} is on main already: put it back")


def test_without_main_it_says_that_nothing_was_compared(checkout: Path) -> None:
    git(checkout, "remote", "remove", "origin")
    ran = landed(checkout)
    assert (ran.returncode, "were not compared" in ran.stdout) == (0, True)
