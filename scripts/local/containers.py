"""The local stack with containers: Docker runs the programs of hosted Supabase instead of the local substitutes.

The containers share the network of the first one, as in a Kubernetes pod. They reach each other on 127.0.0.1, and only
the stack's own ports are published. Their data is deleted with them.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx
import jwt

from scripts.errors import Failure
from scripts.local import services
from scripts.local.services import HEALTH_CHECK_SECONDS, Service
from scripts.local.stack import CHECKOUT, Stack
from scripts.scratch import os_user

# The Supabase CLI of package-lock.json starts the first two; a test compares the versions.
POSTGRES: Final = "supabase/postgres:17.11.0.018"
POSTGREST: Final = "postgrest/postgrest:v16.5"
REDIS: Final = "redis:7.4-alpine"
UPSTASH: Final = "hiett/serverless-redis-http:0.0.10"


class DockerMissing(Failure):
    """Docker is not installed, or it refused a command."""


@dataclass(frozen=True)
class Container:
    """A container of the stack. `variables` is called at its start; `publish` has pairs of host port and pod port."""

    stack: Stack
    service: str
    image: str
    variables: Callable[[], dict[str, str]] = dict
    arguments: tuple[str, ...] = ()
    publish: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        return f"ballast-{self.stack.port_base}-{self.service}"

    def command(self) -> list[str]:
        """The command that runs it in the foreground. Secrets are in a file: every user can read a command line."""
        pod = f"container:{replace(self, service='postgres').name}"
        network = [word for here, there in self.publish for word in ("--publish", f"127.0.0.1:{here}:{there}")]
        return [
            *("docker", "run", "--rm", "--name", self.name, "--env-file", str(self._env_file)),
            *(network or ("--network", pod)),
            *(self.image, *self.arguments),
        ]

    def prepare(self) -> None:
        """Removes a container that outlived its `docker run`, and writes the variables. Raises DockerMissing."""
        try:
            removal = subprocess.run(
                ["docker", "rm", "--force", "--volumes", self.name], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise DockerMissing(
                "BALLAST_CONTAINERS is on, but Docker is not installed: install it, or unset BALLAST_CONTAINERS."
            ) from None
        if removal.returncode and "No such container" not in removal.stderr:
            raise DockerMissing(
                f"BALLAST_CONTAINERS is on, but Docker failed: {removal.stderr.strip()}."
                " Start Docker, or unset BALLAST_CONTAINERS."
            )
        self._env_file.parent.mkdir(exist_ok=True)
        self._env_file.touch(mode=0o600)
        self._env_file.write_text("".join(f"{name}={value}\n" for name, value in self.variables().items()))

    def replace_service(self, service: Service, **changes: object) -> Service:
        """The same service, run as this container. Its port and its health check stay unless `changes` has others."""
        ours = {"command": self.command, "before": self.prepare, "folder": CHECKOUT, "run_as": os_user.Identity()}
        return replace(service, **{"environment": {}, **ours, **changes})  # type: ignore[arg-type]

    def prints(self, expected: str, *words: str) -> bool:
        """Whether a program in the container prints `expected`."""
        try:
            ended = subprocess.run(
                ["docker", "exec", self.name, *words],
                capture_output=True, text=True, timeout=HEALTH_CHECK_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return ended.stdout.strip() == expected

    @property
    def _env_file(self) -> Path:
        return self.stack.home / "containers" / f"{self.service}.env"


def build_services(stack: Stack) -> list[Service]:
    """All services, four of them as containers. The gateway still serves Realtime, and Clerk has no image."""
    contained = {"postgres": _postgres, "data-api": _data_api, "redis": _redis, "upstash": _upstash}
    return [
        contained[service.name](service, stack) if service.name in contained else service
        for service in services.build_services(stack)
    ]


def _postgres(service: Service, stack: Stack) -> Service:
    variables = {"POSTGRES_PASSWORD": stack.secrets.postgres_password, "JWT_SECRET": stack.secrets.jwt_secret}
    ports = ((stack.ports.postgres, 5432), (stack.ports.data_api, 3000), (stack.ports.upstash, 80))
    return Container(stack, service.name, POSTGRES, lambda: variables, publish=ports).replace_service(service)


def _data_api(service: Service, stack: Stack) -> Service:
    token = jwt.encode({"role": "service_role"}, stack.secrets.jwt_secret, algorithm="HS256")

    def variables() -> dict[str, str]:
        return {
            "PGRST_DB_URI": replace(stack.postgres, port=5432).url("authenticator"),
            "PGRST_DB_SCHEMAS": "public",
            "PGRST_DB_EXTRA_SEARCH_PATH": "public,extensions",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": "1000",
            "PGRST_JWT_SECRET": json.dumps({"keys": [_project_key(stack), *_clerk_keys(stack)]}),
        }

    return Container(stack, service.name, POSTGREST, variables).replace_service(
        service,
        needs=("postgres", "clerk"),
        is_healthy=lambda: services.is_answering(
            "POST", f"{service.address}/rpc/ready", headers={"Authorization": f"Bearer {token}"}
        ),
    )


def _redis(service: Service, stack: Stack) -> Service:
    container = Container(
        stack,
        service.name,
        REDIS,
        arguments=("redis-server", "--save", "", "--appendonly", "no", "--loglevel", "warning"),
    )
    return container.replace_service(
        service,
        needs=("postgres",),
        address=container.name,
        is_healthy=lambda: container.prints("PONG", "redis-cli", "ping"),
    )


def _upstash(service: Service, stack: Stack) -> Service:
    variables = {
        "SRH_MODE": "env",
        "SRH_TOKEN": stack.secrets.upstash_token,
        "SRH_CONNECTION_STRING": "redis://127.0.0.1:6379",
    }
    return Container(stack, service.name, UPSTASH, lambda: variables).replace_service(service)


def _project_key(stack: Stack) -> dict[str, str]:
    """The gateway's own secret, as a JSON web key."""
    secret = base64.urlsafe_b64encode(stack.secrets.jwt_secret.encode()).decode().rstrip("=")
    return {"kty": "oct", "alg": "HS256", "k": secret}


def _clerk_keys(stack: Stack) -> list[dict[str, str]]:
    answer = httpx.get(f"{stack.environment()['CLERK_ISSUER']}/.well-known/jwks.json", timeout=HEALTH_CHECK_SECONDS)
    keys: list[dict[str, str]] = answer.raise_for_status().json()["keys"]
    return keys


if __name__ == "__main__":  # the images to pull first, so that a stack with containers starts within a minute
    print(POSTGRES, POSTGREST, REDIS, UPSTASH, sep="\n")
