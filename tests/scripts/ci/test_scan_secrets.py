"""The secret scan reads the files that git tracks or would add. A fake npx prints its arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT

TRACKED = (".github/security.yml", "api/[id]/route.py", "read me.md", "scripts/ci/scan-secrets")


def test_the_scan_reads_what_git_tracks_or_would_add(tmp_path: Path) -> None:
    repository, programs = tmp_path / "repository", tmp_path / "bin"

    def write(file: str) -> None:
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        (repository / file).write_text("A=1\n")

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=repository, check=True)

    for file in (*TRACKED, "deleted", "forced.env"):
        write(file)
    shutil.copy(ROOT / "scripts/ci/scan-secrets", repository / "scripts/ci/scan-secrets")
    git("init", "--quiet")
    git("add", "--all")
    (repository / "deleted").unlink()
    (repository / ".gitignore").write_text(".env\nforced.env\n.local/\n")
    (repository / ".git/info/exclude").write_text("my-notes\n")
    for file in (".env", ".local/environment", "my-notes", "new file"):
        write(file)
    programs.mkdir()
    (programs / "npx").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (programs / "npx").chmod(0o755)

    path = f"{programs}:{os.environ['PATH']}"
    scan = subprocess.run(
        ["scripts/ci/scan-secrets"],
        cwd=repository, env={"PATH": path, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    options, files = scan.stdout.split("--no-gitignore\n")
    assert "--no-glob" in options.splitlines()
    assert sorted(files.splitlines()) == sorted([*TRACKED, "forced.env", ".gitignore", "new file"])
