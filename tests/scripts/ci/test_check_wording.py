"""./scripts/ci/check-wording: refused wordings are found in prose and in names, and nowhere else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts/ci/check-wording"
REFUSED = "".join(re.findall(r'^refused\+?="(.+)"$', SCRIPT.read_text(), re.MULTILINE)).split("|")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """An empty repository with the script."""
    (tmp_path / "scripts/ci").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "scripts/ci")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def check(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([checkout / "scripts/ci/check-wording"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("wording", REFUSED)
def test_a_refused_wording_is_found_in_prose_and_names(checkout: Path, wording: str) -> None:
    lines = [f"{wording.capitalize()}.", f"an {wording}", f"def test_{wording.replace(' ', '_')}_twice():"]
    (checkout / "a.py").write_text("".join(f"{line}\n" for line in [*lines, "fine"]))
    ran = check(checkout)
    assert ran.returncode == 1
    *found, advice = ran.stderr.splitlines()
    assert found == [f"a.py:{number}:{line}" for number, line in enumerate(lines, start=1)]
    assert "CONTRIBUTING.md" in advice


def test_a_longer_word_is_not_refused(checkout: Path) -> None:
    (checkout / "a.md").write_text("".join(f"x{wording}x\n" for wording in REFUSED))
    ran = check(checkout)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_changelog_and_generated_files_are_not_searched(checkout: Path) -> None:
    for name in ("CHANGELOG.md", "openapi.json"):
        (checkout / name).write_text(f"{REFUSED[0]}\n")
    assert check(checkout).returncode == 0


def test_an_error_of_git_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "scripts/ci").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "scripts/ci")
    environment = {"PATH": "/usr/bin:/bin", "GIT_DIR": str(tmp_path / "missing")}
    ran = subprocess.run([tmp_path / "scripts/ci/check-wording"], env=environment, capture_output=True, check=False)
    assert ran.returncode not in (0, 127)
