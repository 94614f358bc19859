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
    for name in ("scripts/setup", "scripts/supabase-start", "scripts/chromium", ".venv/bin/python"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{Path(name).name} $* $BALLAST_CONTAINERS"\n')
        program.chmod(0o755)

    def call(*words: str, docker: bool = True) -> subprocess.CompletedProcess[str]:
        stub = tmp_path / "bin/docker"
        stub.write_text(f'#!/bin/sh\n[ "$1" = info ] || echo "docker $*"\nexit {0 if docker else 1}\n')
        stub.chmod(0o755)
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            [tmp_path / "scripts/test", *words], env=environment, capture_output=True, text=True, check=False
        )

    return call


def lines(ran: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.rstrip() for line in ran.stdout.splitlines()]


def test_supabases_own_stack_is_started_and_migrated_by_the_tests(run: Run) -> None:
    assert lines(run("--stack", "supabase")) == [
        "supabase-start",
        "setup",
        "python -m pytest tests/db --server-url postgresql://postgres:postgres@127.0.0.1:54322/postgres",
    ]


def test_images_are_pulled_before_a_stack_of_containers_is_tested(run: Run) -> None:
    assert lines(run("--stack", "containers")) == [
        "setup",
        # What the first python prints is what is pulled: here, its own words.
        "docker pull --quiet python",
        "docker pull --quiet -m",
        "docker pull --quiet scripts.local.containers",
        "setup  on",
        "python -m pytest tests/api tests/service tests/e2e on",
    ]


@pytest.mark.parametrize("stack", ["supabase", "containers"])
def test_without_docker_it_is_skipped_and_says_why(run: Run, stack: str) -> None:
    skipped = run("--stack", stack, docker=False)
    assert (skipped.returncode, skipped.stdout.startswith("Skipped: no Docker")) == (0, True)


def test_any_url_is_taken(run: Run) -> None:
    ran = run("--stack", "postgresql://postgres:x@db.example.com:5432/postgres", docker=False)
    assert lines(ran)[-1].endswith("tests/db --server-url postgresql://postgres:x@db.example.com:5432/postgres")


def test_without_a_stack_it_says_how(run: Run) -> None:
    assert "Usage: ./scripts/test --stack" in run("--stack").stderr
