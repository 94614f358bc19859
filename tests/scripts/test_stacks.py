"""`./scripts/test --stack`: which tests run on somebody else's stack, how, and what is said where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The script, where the programs that it starts only say how they were called."""
    for name in ("bin", "scripts", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/test", tmp_path / "scripts/test")
    for name in ("scripts/setup", "scripts/supabase-start", ".venv/bin/python"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{Path(name).name} $*"\n')
        program.chmod(0o755)

    def call(*words: str, docker: bool = True) -> subprocess.CompletedProcess[str]:
        stub = tmp_path / "bin/docker"
        stub.write_text(f"#!/bin/sh\nexit {0 if docker else 1}\n")
        stub.chmod(0o755)
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            [tmp_path / "scripts/test", *words], env=environment, capture_output=True, text=True, check=False
        )

    return call


def test_supabases_own_stack_is_started_and_migrated_by_the_tests(run: Run) -> None:
    assert run("--stack", "supabase").stdout.splitlines() == [
        "supabase-start ",
        "setup ",
        "python -m pytest tests/db --server-url postgresql://postgres:postgres@127.0.0.1:54322/postgres",
    ]


def test_without_docker_it_is_skipped_and_says_why(run: Run) -> None:
    skipped = run("--stack", "supabase", docker=False)
    assert (skipped.returncode, skipped.stdout.startswith("Skipped: no Docker")) == (0, True)


def test_any_url_is_taken(run: Run) -> None:
    ran = run("--stack", "postgresql://postgres:x@db.example.com:5432/postgres", docker=False)
    assert ran.stdout.endswith("tests/db --server-url postgresql://postgres:x@db.example.com:5432/postgres\n")


def test_without_a_stack_it_says_how(run: Run) -> None:
    assert "Usage: ./scripts/test --stack" in run("--stack").stderr
