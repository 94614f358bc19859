"""A stack with containers: the commands for Docker, the health checks, and the gateway in front of PostgREST.

Machines that run these tests often have no Docker, so a program in its place records the commands. No container runs.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import stat
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from scripts.local import containers, services
from scripts.local.clerk.server import ClerkStandIn, svix
from scripts.local.gateway import Gateway
from scripts.local.services import Service
from scripts.local.stack import Secrets, Stack
from tests.conftest import ROOT, free_port_block

pytestmark = pytest.mark.thorough

CONTAINER_NAMES = ("postgres", "data-api", "redis", "upstash")


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path, free_port_block(), Secrets.of(tmp_path))


@pytest.fixture
def built_services(stack: Stack) -> dict[str, Service]:
    return {service.name: service for service in containers.build_services(stack)}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces Docker with a program that appends each command to the returned file.

    The files `out`, `err` and `status` next to it set its output and its exit code.
    """
    folder = tmp_path / "docker"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(
        f"#!/bin/sh\ncd {shlex.quote(str(folder))}\necho \"$*\" >> commands\n"
        "cat out 2> /dev/null; cat err >&2 2> /dev/null; exit $(cat status 2> /dev/null || echo 0)\n"
    )  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "commands"


def variables(stack: Stack, service: str) -> dict[str, str]:
    """The environment variables of the container."""
    file = stack.home / "containers" / f"{service}.env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def test_the_stack_has_all_services_and_four_are_containers(stack: Stack, built_services: dict[str, Service]) -> None:
    assert list(built_services) == [service.name for service in services.build_services(stack)]
    assert [name for name, service in built_services.items() if service.command()[:2] == ["docker", "run"]] == list(
        CONTAINER_NAMES
    )


def test_only_the_stacks_ports_are_published_and_only_on_this_machine(
    stack: Stack, built_services: dict[str, Service]
) -> None:
    words = built_services["postgres"].command()
    published = [words[at + 1] for at, word in enumerate(words) if word == "--publish"]
    assert published == [
        f"127.0.0.1:{stack.ports.postgres}:5432",
        f"127.0.0.1:{stack.ports.data_api}:3000",
        f"127.0.0.1:{stack.ports.upstash}:80",
    ]
    for name in CONTAINER_NAMES[1:]:
        command = built_services[name].command()
        assert "--publish" not in command
        assert command[command.index("--network") + 1] == f"container:ballast-{stack.port_base}-postgres"


def test_each_service_starts_after_the_services_that_it_needs(stack: Stack, built_services: dict[str, Service]) -> None:
    assert built_services["data-api"].needs == ("postgres", "clerk")  # it reads Clerk's keys
    assert built_services["redis"].needs == ("postgres",)  # it joins the network of postgres
    assert {name: built_services[name].port for name in CONTAINER_NAMES} == {
        service.name: service.port for service in services.build_services(stack) if service.name in CONTAINER_NAMES
    }
    # After SIGTERM PostgreSQL would wait for its clients.
    assert built_services["postgres"].stop_signal == signal.SIGINT


def test_no_secret_is_in_a_command(stack: Stack, built_services: dict[str, Service]) -> None:
    commands = " ".join(word for name in CONTAINER_NAMES for word in built_services[name].command())
    assert [name for name, secret in asdict(stack.secrets).items() if secret in commands] == []


def test_a_leftover_container_is_removed_before_the_start(
    docker: Path, stack: Stack, built_services: dict[str, Service]
) -> None:
    built_services["postgres"].before()
    assert docker.read_text() == f"rm --force --volumes ballast-{stack.port_base}-postgres\n"
    assert variables(stack, "postgres")["POSTGRES_PASSWORD"] == stack.secrets.postgres_password


def test_the_start_continues_without_a_leftover_container(docker: Path, built_services: dict[str, Service]) -> None:
    docker.with_name("err").write_text("Error response from daemon: No such container: x\n")
    docker.with_name("status").write_text("1")
    built_services["redis"].before()


def test_an_error_of_docker_is_reported(docker: Path, built_services: dict[str, Service]) -> None:
    docker.with_name("err").write_text("Cannot connect to the Docker daemon\n")
    docker.with_name("status").write_text("1")
    with pytest.raises(containers.DockerMissing, match="Cannot connect to the Docker daemon"):
        built_services["redis"].before()


def test_a_missing_docker_is_reported_with_what_to_do(
    built_services: dict[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(containers.DockerMissing, match="install it, or unset BALLAST_CONTAINERS"):
        built_services["redis"].before()


def test_the_health_of_redis_is_checked_in_its_container(
    docker: Path, stack: Stack, built_services: dict[str, Service]
) -> None:
    assert not built_services["redis"].is_healthy()
    docker.with_name("out").write_text("PONG\n")
    assert built_services["redis"].is_healthy()
    assert docker.read_text().splitlines()[-1] == f"exec ballast-{stack.port_base}-redis redis-cli ping"


def test_the_upstash_proxy_has_the_address_of_redis_and_the_token(
    docker: Path, stack: Stack, built_services: dict[str, Service]
) -> None:
    built_services["upstash"].before()
    assert variables(stack, "upstash") == {
        "SRH_MODE": "env",
        "SRH_TOKEN": stack.secrets.upstash_token,
        "SRH_CONNECTION_STRING": "redis://127.0.0.1:6379",
    }


async def serve(application: web.Application, port: int) -> web.AppRunner:
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


def test_postgrest_accepts_the_keys_of_clerk_and_of_the_gateway(
    docker: Path, stack: Stack, built_services: dict[str, Service]
) -> None:
    clerk = ClerkStandIn(stack.home, stack.environment()["CLERK_ISSUER"], [""], svix.Endpoint("", "whsec_"), "sk_test_")

    async def prepare() -> None:
        runner = await serve(clerk.application(), stack.ports.clerk)
        await asyncio.to_thread(built_services["data-api"].before)
        await runner.cleanup()

    asyncio.run(prepare())
    given = variables(stack, "data-api")
    assert (
        given["PGRST_DB_URI"] == f"postgresql://authenticator:{stack.secrets.postgres_password}@127.0.0.1:5432/postgres"
    )
    assert (given["PGRST_DB_SCHEMAS"], given["PGRST_DB_ANON_ROLE"]) == ("public", "anon")
    ours, clerks = json.loads(given["PGRST_JWT_SECRET"])["keys"]
    assert (ours["kty"], clerks["kty"], clerks["alg"]) == ("oct", "RSA", "RS256")
    assert "d" not in clerks


@pytest.mark.parametrize(("mode", "path"), [("on", "/projects?select=id"), ("off", "/rest/v1/projects?select=id")])
def test_requests_are_forwarded_to_the_root_of_postgrest(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, mode: str, path: str
) -> None:
    monkeypatch.setenv("BALLAST_CONTAINERS", mode)

    async def forwarded_path() -> str:
        upstream = web.Application()

        async def echo(request: web.Request) -> web.Response:
            return web.Response(text=request.raw_path)

        upstream.router.add_route("*", "/{rest:.*}", echo)
        runners = [
            await serve(upstream, stack.ports.data_api),
            await serve(Gateway(stack).application(), stack.ports.gateway),
        ]
        address = f"{stack.environment()['SUPABASE_URL']}/rest/v1/projects?select=id"
        async with httpx.AsyncClient() as client:
            answer = await client.get(address, headers={"apikey": stack.secrets.publishable_key})
        for runner in reversed(runners):
            await runner.cleanup()
        return answer.text

    assert asyncio.run(forwarded_path()) == path


def test_the_images_are_those_of_the_supabase_cli() -> None:
    found = list((ROOT / "node_modules/@supabase").glob("cli-*/bin/supabase*"))
    if not found:
        pytest.skip("The Supabase CLI is not available for this platform.")
    program = found[0].read_bytes()
    for image in (containers.POSTGRES, containers.POSTGREST):
        assert image.encode() in program
