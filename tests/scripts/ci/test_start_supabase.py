"""`supabase start`: its configuration, and what the locked Supabase CLI fetches before the images."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.service.outside import Answer, Outside, rest_answer, running_outside

SCRIPT = ROOT / "scripts/ci/start-supabase"
CLI = ROOT / "node_modules/.bin/supabase"
CONFIGURATION = (ROOT / "supabase/config.toml").read_text()
CLERK_IS_ON = CONFIGURATION.replace("enabled = false\n# Your Clerk", "enabled = true\n# Your Clerk")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which a user has enabled Clerk, with a fake Supabase CLI that prints its arguments and configuration."""
    checkout = tmp_path / "checkout"
    for folder in ("scripts/ci", "supabase", "node_modules/.bin"):
        (checkout / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, checkout / "scripts/ci")
    (checkout / "supabase/config.toml").write_text(CLERK_IS_ON)
    for name, text in (
        ("scripts/setup", "#!/bin/sh\n"),
        ("node_modules/.bin/supabase", '#!/bin/sh\necho "$@"\ncat "$3/supabase/config.toml"\n'),
    ):
        (checkout / name).write_text(text)
        (checkout / name).chmod(0o755)
    return checkout


def test_it_starts_with_our_settings_but_without_seeds_and_third_party_auth(checkout: Path) -> None:
    done = subprocess.run([checkout / "scripts/ci/start-supabase"], capture_output=True, text=True, check=True)
    first, _, configuration = done.stdout.partition("\n")
    assert first.startswith("start --workdir ")
    ours = tomllib.loads(CLERK_IS_ON)
    assert ours["auth"]["third_party"]["clerk"]["enabled"] is True
    ours["db"]["seed"]["enabled"] = ours["auth"]["third_party"]["clerk"]["enabled"] = False
    assert tomllib.loads(configuration) == ours
    assert (ours["db"]["port"], ours["api"]["enabled"]) == (54322, True)


def empty_docker(path: str, *_: object) -> Answer:
    """Answers as a Docker without containers and images, which cannot pull any."""
    if path == "/_ping":
        return 200, {"Api-Version": "1.44", "Ostype": "linux"}, b""
    return rest_answer({"message": "No such container"}, 404)


@pytest.fixture
def network() -> Iterator[Outside]:
    """Docker, and a proxy that records the requested hosts."""
    with running_outside() as network:
        network.answer = empty_docker
        yield network


def run_cli(network: Outside, tmp_path: Path, *command: str | Path) -> tuple[set[str], bool]:
    """Runs the command. Returns the hosts that it requested, and whether it requested the database's image."""
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "DO_NOT_TRACK": "1",
            "DOCKER_HOST": network.url.replace("http", "tcp"), "HTTPS_PROXY": network.url,
        },
    )  # fmt: skip
    assert done.returncode != 0, done.stdout  # it has no images
    hosts = {path for path in network.requests if not path.startswith("/")}
    return hosts, any("/supabase/postgres:17" in path for path in network.requests)


def test_in_ci_it_fetches_images_and_no_keys(network: Outside, tmp_path: Path) -> None:
    assert run_cli(network, tmp_path, SCRIPT) == (set(), True)


@pytest.mark.parametrize(
    ("configuration", "hosts", "starts"),
    [(CONFIGURATION, set(), True), (CLERK_IS_ON, {"clerk.example.com:443"}, False)],
    ids=["as shipped", "with a domain that does not exist"],
)
def test_the_shipped_configuration_starts_without_a_domain(
    network: Outside, tmp_path: Path, configuration: str, hosts: set[str], starts: bool
) -> None:
    (tmp_path / "supabase").mkdir()
    (tmp_path / "supabase/config.toml").write_text(configuration)
    assert run_cli(network, tmp_path, CLI, "start") == (hosts, starts)
