"""Deploying, smoke testing and rolling back a release, with the real scripts and a fake host. Also the service on Vercel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from scripts.local.stack import product_variables
from tests.conftest import ROOT, Stack
from tests.scripts.ci.test_image import import_with_service_packages
from tests.service.conftest import ENVIRONMENT
from tests.service.outside import Answer, Outside, rest_answer, running_outside

OLD, NEW = "0" * 40, "1" * 40
GOOD = {
    "/readyz": 200, "/openapi.json": 200, "/legal/privacy": 200,
    "/api/v1/me": 401, "/jobs/retry-events": 401, "/webhooks/clerk": 401,
}  # fmt: skip


class Host:
    """A container host with its hook and the service that it runs. `broken` maps a release to the paths that it answers wrongly."""

    def __init__(self, server: Outside) -> None:
        self.url = server.url
        self.runs = OLD
        self.broken: dict[str, dict[str, int]] = {}
        self.obeys_the_hook = True
        self.hook_calls: list[tuple[str, dict[str, str]]] = []
        server.answer = self.answer

    def answer(self, path: str, _headers: Any, body: bytes) -> Answer:
        if path.startswith("/hook"):
            self.hook_calls.append((path, json.loads(body)))
            if self.obeys_the_hook:
                self.runs = json.loads(body)["release"]
            return rest_answer({})
        if path == "/healthz":
            return rest_answer({"status": "ok"} | ({"release": self.runs} if self.runs else {}))
        return rest_answer({}, (GOOD | self.broken.get(self.runs, {}))[path])

    def run_script(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {"SMOKE_PAUSE": "0", "SMOKE_PATIENCE": "2", "PATH": os.environ["PATH"]}
        return subprocess.run(words, cwd=ROOT, env=given | environment, capture_output=True, text=True, check=False)

    def deploy(self, release: str = NEW, hook: str = "/hook") -> subprocess.CompletedProcess[str]:
        return self.run_script(
            "scripts/ci/deploy", release,
            DEPLOY_HOOK_URL=f"{self.url}{hook}", IMAGE="registry.example/acme/ballast", SERVICE_URL=f"{self.url}/",
        )  # fmt: skip


@pytest.fixture
def host() -> Iterator[Host]:
    with running_outside() as server:
        yield Host(server)


def test_a_release_that_passes_the_smoke_test_stays(host: Host) -> None:
    done = host.deploy()
    assert done.returncode == 0, done.stderr
    assert host.hook_calls == [("/hook", {"image": f"registry.example/acme/ballast:{NEW}", "release": NEW})]
    assert f"now running: {OLD}" in done.stdout


def test_the_hook_url_may_contain_the_image(host: Host) -> None:
    assert host.deploy(hook="/hook?key=5ecret&imgURL={image}").returncode == 0
    assert host.hook_calls[0][0] == f"/hook?key=5ecret&imgURL=registry.example%2Facme%2Fballast%3A{NEW}"


@pytest.mark.parametrize("broken", [{"/readyz": 503}, {"/webhooks/clerk": 200}, {"/api/v1/me": 200}])
def test_a_release_that_fails_the_smoke_test_is_rolled_back(host: Host, broken: dict[str, int]) -> None:
    host.broken[NEW] = broken
    done = host.deploy()
    assert done.returncode == 1
    assert [body["release"] for _, body in host.hook_calls] == [NEW, OLD]
    assert host.runs == OLD
    assert f"rolled back to {OLD}" in done.stderr


def test_a_host_that_ignores_the_hook_fails_the_deployment(host: Host) -> None:
    host.obeys_the_hook = False
    done = host.deploy()
    assert done.returncode == 1
    assert f"does not run {NEW} after 2 s: it runs '{OLD}'" in done.stderr


def test_a_failed_rollback_is_reported(host: Host) -> None:
    host.broken = {release: {"/readyz": 503} for release in (OLD, NEW)}
    done = host.deploy()
    assert done.returncode == 1
    assert f"the rollback to {OLD} failed too" in done.stderr


def test_without_a_previous_release_there_is_no_rollback(host: Host) -> None:
    host.runs = ""
    host.broken[NEW] = {"/readyz": 503}
    done = host.deploy()
    assert (done.returncode, len(host.hook_calls)) == (1, 1)
    assert "no previous release to roll back to" in done.stderr


@pytest.mark.parametrize("missing", ["DEPLOY_HOOK_URL", "IMAGE", "SERVICE_URL"])
def test_nothing_is_deployed_while_a_setting_is_missing(host: Host, missing: str) -> None:
    given = {"DEPLOY_HOOK_URL": host.url, "IMAGE": "ballast", "SERVICE_URL": host.url}
    done = host.run_script(
        "scripts/ci/deploy", NEW, **{name: value for name, value in given.items() if name != missing}
    )
    assert done.returncode != 0
    assert missing in done.stderr
    assert host.hook_calls == []


def test_the_local_service_passes_the_smoke_test(stack: Stack) -> None:
    done = subprocess.run(
        [ROOT / "scripts/ci/smoke", stack.environment["SERVICE_URL"]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok ") == len(GOOD) + 1


def smoke(stack: Stack, token: str) -> subprocess.CompletedProcess[str]:
    given = {name: stack.environment[name] for name in ("SUPABASE_URL", "SUPABASE_PUBLISHABLE_KEY")}
    return subprocess.run(
        [ROOT / "scripts/ci/smoke", stack.environment["SERVICE_URL"]],
        env={"PATH": os.environ["PATH"], "SESSION_TOKEN": token} | given, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_with_a_session_token_the_smoke_test_signs_in_to_the_service_and_to_the_data_api(stack: Stack) -> None:
    done = smoke(stack, stack.token("user_ada", "org_acme"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok ") == len(GOOD) + 3
    assert "rest/v1/organizations" in done.stdout


def test_the_smoke_test_fails_if_the_session_token_is_not_accepted(stack: Stack) -> None:
    done = smoke(stack, stack.token("user_ada", "org_acme") + "forged")
    assert done.returncode == 1
    assert "FAILED  GET /api/v1/me: 401" in done.stderr
    assert done.stderr.count("FAILED") == 2


def test_an_anonymous_caller_would_not_pass_the_smoke_test_of_the_data_api(stack: Stack) -> None:
    url, key = stack.environment["SUPABASE_URL"], stack.environment["SUPABASE_PUBLISHABLE_KEY"]
    answer = httpx.get(f"{url}/rest/v1/organizations?select=id&limit=1", headers={"apikey": key})
    assert answer.status_code == 401


def test_the_smoke_test_fails_if_nothing_listens() -> None:
    done = subprocess.run(
        [ROOT / "scripts/ci/smoke", "http://127.0.0.1:9"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "000 instead of 200" in done.stderr


# --- Vercel


VERCEL = json.loads((ROOT / "vercel.json").read_text())


def test_vercel_needs_only_the_packages_of_the_service() -> None:
    done = import_with_service_packages("api.index")
    assert done.returncode == 0, done.stderr


def test_vercel_routes_every_path_to_the_service_and_serves_no_files() -> None:
    assert VERCEL["rewrites"] == [{"source": "/(.*)", "destination": "/api/index"}]
    # Without an output directory Vercel serves the whole checkout.
    assert VERCEL["outputDirectory"] == "public"
    assert "public/" in VERCEL["buildCommand"]
    assert not (ROOT / "public").exists()
    [(entry, function)] = VERCEL["functions"].items()
    assert (ROOT / entry).exists()
    excluded = re.split(r"[{},]", function["excludeFiles"].removesuffix("/**"))
    assert not {"service", "api"} & set(excluded)


def test_on_vercel_the_release_is_the_commit() -> None:
    code = "from api.index import app; print(app.test_client().get('/healthz').text)"
    given = {name: value for name, value in os.environ.items() if name != "RELEASE"} | product_variables() | ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=given | {"VERCEL_GIT_COMMIT_SHA": NEW},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"status": "ok", "release": NEW}
