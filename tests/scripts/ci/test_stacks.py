"""`./scripts/test`: which tests it runs, and on which stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the script with fake programs that only print how they were called."""
    for name in ("bin", "scripts/ci", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/test", tmp_path / "scripts/test")
    programs = ("setup", "ci/start-supabase", "ci/find-chromium", "ci/install-recovery-tools", "ci/install-pgbouncer")
    for name in (*(f"scripts/{program}" for program in programs), ".venv/bin/python"):
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


@pytest.fixture
def collect_tests() -> Callable[..., str]:
    """Runs pytest with `--collect-only` and returns what it prints."""

    def collect(*words: str) -> str:
        command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout

    return collect


def lines(ran: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.rstrip() for line in ran.stdout.splitlines()]


def test_stack_supabase_starts_the_cli_stack_and_tests_its_database(run: Run) -> None:
    assert lines(run("--stack", "supabase")) == [
        "start-supabase",
        "setup",
        "python -m pytest tests/db --server-url postgresql://postgres:postgres@127.0.0.1:54322/postgres",
    ]


def test_stack_containers_pulls_the_images_before_it_runs_tests(run: Run) -> None:
    assert lines(run("--stack", "containers")) == [
        "setup",
        # The script pulls the images that `python` prints. This stub, first in PATH, prints its arguments.
        "docker pull --quiet python",
        "docker pull --quiet -m",
        "docker pull --quiet scripts.local.containers",
        "setup  on",
        "python -m pytest tests/api tests/service tests/e2e on",
    ]


@pytest.mark.parametrize("stack", ["supabase", "containers"])
def test_without_docker_the_run_is_skipped_with_a_reason(run: Run, stack: str) -> None:
    skipped = run("--stack", stack, docker=False)
    assert (skipped.returncode, skipped.stdout.startswith(f"Skipped: '--stack {stack}' needs Docker")) == (0, True)


def test_the_stack_may_be_any_url(run: Run) -> None:
    ran = run("--stack", "postgresql://postgres:x@db.example.com:5432/postgres", docker=False)
    assert lines(ran)[-1].endswith("tests/db --server-url postgresql://postgres:x@db.example.com:5432/postgres")


def test_a_missing_stack_shows_the_usage(run: Run) -> None:
    assert "Usage: ./scripts/test --stack" in run("--stack").stderr


def test_without_arguments_the_everyday_tests_run_on_every_core_without_coverage(run: Run) -> None:
    [setup, pytest_command] = lines(run())
    assert setup == "setup"
    assert pytest_command.startswith(f"python -m pytest --numprocesses {os.cpu_count()} ")
    assert "--thorough" not in pytest_command


def test_thorough_runs_everything_with_coverage_and_on_the_oldest_postgresql(run: Run) -> None:
    printed = lines(run("--thorough"))
    assert printed[0] == "setup"
    assert [line for line in printed if "PostgreSQL 15" in line or "--postgres /usr/lib/postgresql/15/bin" in line]
    assert [re.sub("--numprocesses.* --", "--", line) for line in printed[-4:]] == [
        "python -m coverage run -m pytest --thorough",
        "python -m coverage combine --quiet",
        "python -m coverage html --quiet --skip-covered --directory artefacts/coverage",
        "python -m coverage report --skip-covered --fail-under=85",
    ]


def test_with_arguments_only_the_selected_tests_run(run: Run) -> None:
    assert lines(run("tests/db", "-k", "projects")) == ["setup", "python -m pytest tests/db -k projects"]
    assert lines(run("tests/db", "--thorough")) == ["setup", "python -m pytest --thorough tests/db"]


def test_servers_keep_running_with_keep_and_stop_with_stop(run: Run) -> None:
    assert lines(run("--keep", "tests/db"))[-1] == "python -m pytest --keep tests/db"
    assert lines(run("--keep"))[-1] == lines(run())[-1] + " --keep"
    assert lines(run("--stop"))[-1] == "python -m tests.servers stop"


def test_the_tests_of_one_table_can_be_selected(collect_tests: Callable[..., str]) -> None:
    words = ("tests/db", "tests/api", "--table", "projects")
    selected = [line for line in collect_tests(*words).splitlines() if line.startswith("tests/")]
    assert len(selected) > 20
    assert [line for line in selected if "projects" not in line] == []
    assert {line.partition("::")[0] for line in selected} >= {"tests/api/test_access.py", "tests/db/test_plans.py"}


def test_an_expensive_test_runs_only_with_thorough(collect_tests: Callable[..., str]) -> None:
    file = "tests/api/test_access.py"
    [everyday, thorough] = [collect_tests(file), collect_tests(file, "--thorough")]
    assert "[live" in everyday
    assert "restored" not in everyday
    assert "deselected" in everyday
    assert everyday.count("[live") == thorough.count("[live")
    assert thorough.count("restored") == thorough.count("[live")


def test_contributing_lists_every_file_whose_tests_are_expensive() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    marked = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"mark\.thorough\b", file.read_text()) and file != Path(__file__)
    ]
    assert len(marked) > 5
    assert [file for file in marked if f"`{file}`" not in page] == []
