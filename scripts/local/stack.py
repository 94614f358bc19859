"""What one local stack is: its folder, its ports, its secrets, and the environment that its clients read."""

from __future__ import annotations

import base64
import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyrage

from scripts.errors import Failure
from scripts.scratch.postgres import Postgres

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_PORT_BASE = 54320
LAST_PORT_OFFSET = 6
# Relative to the stack's folder, where both of its processes run: the name of a socket may have 107 bytes only.
REDIS_SOCKET = "redis.sock"


class InvalidPortBase(Failure):
    """BALLAST_PORT_BASE is no number that leaves room for our ports."""

    exit_code = 2


@dataclass(frozen=True)
class Secrets:
    """Random values, made at the first start of a stack that wants them and kept in its folder."""

    postgres_password: str
    jwt_secret: str
    publishable_key: str
    secret_key: str
    webhook_secret: str
    clerk_secret_key: str
    jobs_token: str
    upstash_token: str
    operator_token: str
    metrics_token: str
    backup_identity: str

    @classmethod
    def make(cls) -> Secrets:
        return cls(
            postgres_password=secrets.token_urlsafe(24),
            jwt_secret=secrets.token_urlsafe(48),
            publishable_key=f"sb_publishable_{secrets.token_urlsafe(24)}",
            secret_key=f"sb_secret_{secrets.token_urlsafe(24)}",
            webhook_secret=f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}",
            clerk_secret_key=f"sk_test_{secrets.token_urlsafe(32)}",
            jobs_token=secrets.token_urlsafe(32),
            upstash_token=secrets.token_urlsafe(32),
            operator_token=secrets.token_urlsafe(32),
            metrics_token=secrets.token_urlsafe(32),
            backup_identity=str(pyrage.x25519.Identity.generate()),
        )

    @classmethod
    def of(cls, home: Path) -> Secrets:
        """The secrets kept in `home`. Those that are not there yet are made: readable by the owner only."""
        file = home / "secrets.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        if not kept.keys() >= {field.name for field in fields(cls)}:
            home.mkdir(parents=True, exist_ok=True)
            unfinished = home / f"secrets.json.{os.getpid()}"
            unfinished.touch(mode=0o600)
            unfinished.write_text(json.dumps(asdict(cls.make()) | kept, indent=2) + "\n")
            unfinished.replace(file)
            kept = json.loads(file.read_text())
        return cls(**{field.name: kept[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Stack:
    """One stack. `home` holds its data, logs and keys; its ports are `port_base` + 1 to + 6, on 127.0.0.1."""

    home: Path
    port_base: int
    secrets: Secrets

    @classmethod
    def from_environment(cls) -> Stack:
        """The stack that BALLAST_HOME and BALLAST_PORT_BASE name. Raises InvalidPortBase."""
        home = Path(os.environ.get("BALLAST_HOME") or CHECKOUT / ".local").absolute()
        text = os.environ.get("BALLAST_PORT_BASE") or str(DEFAULT_PORT_BASE)
        if not text.isascii() or not text.isdigit() or not 1023 <= int(text) <= 65535 - LAST_PORT_OFFSET:
            raise InvalidPortBase(
                f"BALLAST_PORT_BASE must be a number from 1023 to {65535 - LAST_PORT_OFFSET}, not {text!r}."
            )
        return cls(home, int(text), Secrets.of(home))

    @property
    def gateway_port(self) -> int:
        return self.port_base + 1

    @property
    def postgres_port(self) -> int:
        return self.port_base + 2

    @property
    def service_port(self) -> int:
        return self.port_base + 3

    @property
    def clerk_port(self) -> int:
        return self.port_base + 4

    @property
    def upstash_port(self) -> int:
        return self.port_base + 5

    @property
    def data_api_port(self) -> int:
        return self.port_base + 6

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def clerk_folder(self) -> Path:
        return self.home / "clerk"

    @property
    def backups(self) -> Path:
        return self.home / "backups"

    @property
    def postgres(self) -> Postgres:
        return Postgres(self.home / "postgres", self.postgres_port, self.secrets.postgres_password)

    def environment(self) -> dict[str, str]:
        """The variables that the service, the tests and `ballast env` agree on; `.env.example` explains each."""
        service_url = _url(self.service_port)
        return {
            "ENVIRONMENT": "local",
            "BALLAST_HOME": str(self.home),
            "BALLAST_PORT_BASE": str(self.port_base),
            "SUPABASE_URL": _url(self.gateway_port),
            "SUPABASE_PUBLISHABLE_KEY": self.secrets.publishable_key,
            "SUPABASE_SECRET_KEY": self.secrets.secret_key,
            "DATABASE_URL": self.postgres.url(),
            "CLERK_ISSUER": _url(self.clerk_port),
            "CLERK_WEBHOOK_SECRETS": self.secrets.webhook_secret,
            "CLERK_AUTHORIZED_PARTIES": service_url,
            "CLERK_SECRET_KEY": self.secrets.clerk_secret_key,
            "CLERK_API_URL": _url(self.clerk_port),
            "JOBS_TOKEN": self.secrets.jobs_token,
            "OPERATOR_TOKEN": self.secrets.operator_token,
            "METRICS_TOKEN": self.secrets.metrics_token,
            "UPSTASH_REDIS_REST_URL": _url(self.upstash_port),
            "UPSTASH_REDIS_REST_TOKEN": self.secrets.upstash_token,
            "BACKUP_URL": self.backups.as_uri(),
            "BACKUP_RECIPIENTS": str(pyrage.x25519.Identity.from_str(self.secrets.backup_identity).to_public()),
            "BACKUP_IDENTITY": self.secrets.backup_identity,
            "SERVICE_URL": service_url,
        }


def jobs_are_wanted() -> bool:
    """Whether the stack calls the service's jobs. Benchmarks, and tests that run one themselves, do not want it to."""
    return os.environ.get("BALLAST_JOBS") != "off"


def containers_are_wanted() -> bool:
    """Whether Docker runs what it can of the stack: see scripts/local/containers.py."""
    return os.environ.get("BALLAST_CONTAINERS") == "on"


def client_environment() -> dict[str, str]:
    """What a command works against: the local stack's variables, each of which the real environment may replace."""
    environment = Stack.from_environment().environment()
    return environment | {name: os.environ[name] for name in environment if os.environ.get(name)}


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
