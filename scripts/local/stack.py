"""A local stack: its folder, its ports, its secrets, and the environment variables that its clients read."""

from __future__ import annotations

import base64
import json
import os
import secrets
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyrage
from dotenv import dotenv_values

from scripts.errors import Failure
from scripts.scratch.postgres import Postgres

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_HOME = CHECKOUT / ".local"
DEFAULT_PORT_BASE = 54320
# Relative to the stack's folder, in which both programs run: the path of a socket has at most 107 bytes.
REDIS_SOCKET = "redis.sock"


class Ports(NamedTuple):
    """The ports of a stack's services on 127.0.0.1, one after the other."""

    gateway: int
    postgres: int
    service: int
    clerk: int
    upstash: int
    data_api: int

    @classmethod
    def after(cls, port_base: int) -> Ports:
        return cls(*range(port_base + 1, port_base + 1 + LAST_PORT_OFFSET))


LAST_PORT_OFFSET = len(Ports._fields)
STAND_IN = "stand-in"


class InvalidPortBase(Failure):
    """BALLAST_PORT_BASE is not a number, or leaves no room for the stack's ports."""

    exit_code = 2


class SecretsDamaged(Failure):
    """The file with the stack's secrets cannot be read."""


class OtherClerk(Failure):
    """The database was filled from another Clerk than the one that `.env` selects."""


def _random(number_of_bytes: int = 32, prefix: str = "") -> str:
    return field(default_factory=lambda: prefix + secrets.token_urlsafe(number_of_bytes))


@dataclass(frozen=True)
class Secrets:
    """Random values, created at the first start of a stack and kept in its folder."""

    postgres_password: str = _random(24)
    jwt_secret: str = _random(48)
    publishable_key: str = _random(24, "sb_publishable_")
    secret_key: str = _random(24, "sb_secret_")
    webhook_secret: str = field(default_factory=lambda: f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}")
    clerk_secret_key: str = _random(prefix="sk_test_")
    jobs_token: str = _random()
    upstash_token: str = _random()
    operator_token: str = _random()
    metrics_token: str = _random()
    backup_identity: str = field(default_factory=lambda: str(pyrage.x25519.Identity.generate()))

    @classmethod
    def of(cls, home: Path) -> Secrets:
        """The secrets kept in `home`, in a file that only its owner can read. Missing ones are created.

        Raises SecretsDamaged.
        """
        file = home / "secrets.json"
        stored = _read_secrets(file) if file.exists() else {}
        names = {field.name for field in fields(cls)}
        if not stored.keys() >= names:
            home.mkdir(parents=True, exist_ok=True)
            unfinished = home / f"secrets.json.{os.getpid()}"
            unfinished.touch(mode=0o600)
            unfinished.write_text(json.dumps(asdict(cls()) | stored, indent=2) + "\n")
            unfinished.replace(file)
            stored = _read_secrets(file)
        return cls(**{name: stored[name] for name in names})


@dataclass(frozen=True)
class Stack:
    """A stack. `home` is the folder of its data, logs and keys; its ports start at `port_base` + 1."""

    home: Path
    port_base: int
    secrets: Secrets

    @classmethod
    def from_environment(cls, *, create: bool = False) -> Stack:
        """The stack that BALLAST_HOME and BALLAST_PORT_BASE name. Raises InvalidPortBase.

        The folder of a new stack is made only with `create`: a command in production may not be allowed to make it.
        """
        home = Path(os.environ.get("BALLAST_HOME") or DEFAULT_HOME).absolute()
        text = os.environ.get("BALLAST_PORT_BASE") or str(DEFAULT_PORT_BASE)
        if not text.isascii() or not text.isdigit() or not 1023 <= int(text) <= 65535 - LAST_PORT_OFFSET:
            raise InvalidPortBase(
                f"BALLAST_PORT_BASE must be a number from 1023 to {65535 - LAST_PORT_OFFSET}, not {text!r}."
            )
        return cls(home, int(text), Secrets.of(home) if create or home.exists() else Secrets())

    @property
    def ports(self) -> Ports:
        return Ports.after(self.port_base)

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
        return Postgres(self.home / "postgres", self.ports.postgres, self.secrets.postgres_password)

    @property
    def env_file(self) -> Path:
        """`.env` of the checkout for the default stack; any other stack has one in its own folder."""
        return (CHECKOUT if self.home.resolve() == DEFAULT_HOME else self.home) / ".env"

    @cached_property
    def clerk_variables(self) -> dict[str, str]:
        """The CLERK_ variables of `.env`, checked. The process environment is not read. Raises EnvFileInvalid."""
        if not self.env_file.is_file():
            return {}
        from scripts.local import env_file  # noqa: PLC0415 - the import takes a fifth of a second

        return env_file.clerk_variables(self.env_file, self.port_base, stand_in_url)

    @property
    def clerk(self) -> str:
        """The issuer of the real Clerk instance that `.env` names, else STAND_IN."""
        return self.clerk_variables.get("CLERK_ISSUER", STAND_IN)

    @property
    def clerk_in_use(self) -> str:
        """The Clerk from which the database was filled; the same as `clerk` if there is no database."""
        if not self.postgres.exists():
            return self.clerk
        return self._clerk_record.read_text() if self._clerk_record.exists() else STAND_IN

    def record_clerk(self) -> None:
        """Records which Clerk fills the database. Raises OtherClerk if another one has filled it."""
        if self.clerk_in_use != self.clerk:
            raise OtherClerk(
                f"The database in {self.home} was filled from {_describe(self.clerk_in_use)}, but {self.env_file} "
                f"selects {_describe(self.clerk)}. Run `ballast reset`, which deletes the database, or set "
                "BALLAST_HOME to another folder."
            )
        self.clerk_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clerk_record.write_text(self.clerk)

    @property
    def _clerk_record(self) -> Path:
        return self.clerk_folder / "issuer"

    def environment(self) -> dict[str, str]:
        """The variables of the service, the tests and `ballast env`; `.env.example` explains each."""
        service_url = _url(self.ports.service)
        origins = [service_url, *self.clerk_variables.get("CLERK_AUTHORIZED_PARTIES", "").split(",")]
        own = product_variables()
        return {
            **own,
            **{name: os.environ[name] for name in own if os.environ.get(name)},
            "ENVIRONMENT": "local",
            "BALLAST_HOME": str(self.home),
            "BALLAST_PORT_BASE": str(self.port_base),
            "SUPABASE_URL": _url(self.ports.gateway),
            "SUPABASE_PUBLISHABLE_KEY": self.secrets.publishable_key,
            "SUPABASE_SECRET_KEY": self.secrets.secret_key,
            "DATABASE_URL": self.postgres.url(),
            "CLERK_ISSUER": stand_in_url(self.port_base),
            "CLERK_WEBHOOK_SECRETS": self.secrets.webhook_secret,
            "CLERK_SECRET_KEY": self.secrets.clerk_secret_key,
            "CLERK_API_URL": stand_in_url(self.port_base),
            "JOBS_TOKEN": self.secrets.jobs_token,
            "OPERATOR_TOKEN": self.secrets.operator_token,
            "METRICS_TOKEN": self.secrets.metrics_token,
            "UPSTASH_REDIS_REST_URL": _url(self.ports.upstash),
            "UPSTASH_REDIS_REST_TOKEN": self.secrets.upstash_token,
            "BACKUP_URL": self.backups.as_uri(),
            "BACKUP_RECIPIENTS": str(pyrage.x25519.Identity.from_str(self.secrets.backup_identity).to_public()),
            "BACKUP_IDENTITY": self.secrets.backup_identity,
            "SERVICE_URL": service_url,
            **self.clerk_variables,
            "CLERK_AUTHORIZED_PARTIES": ",".join(filter(None, dict.fromkeys(origins))),
        }


def _read_secrets(file: Path) -> dict[str, str]:
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict) or not all(isinstance(value, str) and value.isascii() for value in stored.values()):
        raise SecretsDamaged(
            f"{file} is damaged or unreadable, and the stack's database cannot be opened without it. Restore the file, "
            f"or delete {file.parent} and run `ballast up`, which creates a new stack."
        )
    return stored


def product_variables() -> dict[str, str]:
    """The variables of a product's own settings: the local stack and the tests use the values of `.env.*.example`."""
    read = [dotenv_values(file, interpolate=False) for file in sorted(CHECKOUT.glob(".env.*.example"))]
    return {name: value for variables in read for name, value in variables.items() if value}


def jobs_are_wanted() -> bool:
    """Whether the stack calls the service's jobs. Benchmarks, and tests that call jobs themselves, switch it off."""
    return os.environ.get("BALLAST_JOBS") != "off"


def containers_are_wanted() -> bool:
    """Whether Docker runs services of the stack: see scripts/local/containers.py."""
    return os.environ.get("BALLAST_CONTAINERS") == "on"


def client_environment() -> dict[str, str]:
    """The local stack's variables; variables of the process environment take precedence."""
    environment = Stack.from_environment().environment()
    return environment | {name: os.environ[name] for name in environment if os.environ.get(name)}


def stand_in_url(port_base: int) -> str:
    """The URL of the Clerk stand-in, which is its issuer too, in a stack with this port base."""
    return _url(Ports.after(port_base).clerk)


def _describe(clerk: str) -> str:
    return "the Clerk stand-in" if clerk == STAND_IN else f"the Clerk instance {clerk}"


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
