"""What `ballast doctor` examines, and how a check reports what it found.

Nothing that is printed holds the value of a secret variable.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import httpx

from service.settings import GUARDED_ENVIRONMENTS

TIMEOUT = httpx.Timeout(10)
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|IDENTITY|DATABASE_URL|DSN")
PUBLIC_NAMES = {"SUPABASE_PUBLISHABLE_KEY"}
MIN_REDACTED_LENGTH = 6


Outcome = Literal["passed", "failed", "skipped"]


class CheckFailed(Exception):
    """What was looked at is not as it has to be: `found` says how, `remedy` what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy


class CheckSkipped(Exception):
    """There is nothing to look at: a variable is not set, or a program not there."""


@dataclass(frozen=True)
class Finding:
    """What became of a check."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class LocalStack:
    """The local stack of this checkout. `mint_token` returns a session token of a person, by Clerk id; a real Clerk
    instance has no such call.
    """

    database_url: str
    mint_token: Callable[[str], str] | None


class Context:
    """What is examined: the environment it runs in, and its database."""

    def __init__(
        self,
        environment: Mapping[str, str],
        url: str | None,
        *,
        session_token: str | None = None,
        local: LocalStack | None = None,
        may_write: bool = False,
    ) -> None:
        self.environment = environment
        self.session_token = session_token
        self.local = local
        self.may_write = may_write
        self._url = url

    def __getitem__(self, name: str) -> str:
        """A variable. Raises CheckSkipped when it is not set."""
        if not (value := self.environment.get(name, "").strip()):
            raise CheckSkipped(f"{name} is not set.")
        return value

    def list_items(self, name: str) -> list[str]:
        """A variable's parts between commas. Raises CheckSkipped."""
        return [item.strip() for item in self[name].split(",") if item.strip()]

    @property
    def is_guarded(self) -> bool:
        return self.environment.get("ENVIRONMENT") in GUARDED_ENVIRONMENTS

    @cached_property
    def database_url(self) -> str:
        return self._url or self["DATABASE_URL"]

    @property
    def is_local(self) -> bool:
        return self.local is not None and self.database_url == self.local.database_url

    def redact(self, text: str) -> str:
        """The text without any secret of the environment."""
        known = [
            value for name, value in self.environment.items() if SECRET_NAME.search(name) and name not in PUBLIC_NAMES
        ]
        pieces = {piece.strip() for value in known for piece in (value, *value.split(","))}
        if self._url:
            pieces |= {self._url}
        if self.session_token:
            pieces |= {self.session_token}
        for url in [piece for piece in pieces if "://" in piece]:
            if password := re.search(r"://[^:/@]*:([^@]+)@", url):
                pieces.add(password[1])
        for piece in sorted(pieces, key=len, reverse=True):
            if len(piece) >= MIN_REDACTED_LENGTH:
                text = text.replace(piece, "…")
        return text


def parse_json(answer: httpx.Response, kind: type[Any] = dict) -> Any:
    """The body, when it is JSON of that kind; else an empty one."""
    try:
        body = answer.json()
    except ValueError:
        return kind()
    return body if isinstance(body, kind) else kind()


def read_claims(token: str) -> dict[str, Any]:
    """The claims of a JWT, whose signature is not checked; an empty object when it is not a JWT."""
    try:
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def read_error_message(answer: httpx.Response) -> str:
    """What an error says of itself: PostgREST's message, a problem's detail, or the beginning of the text."""
    body = parse_json(answer)
    words = body.get("detail") or body.get("message") or body.get("error") or body.get("title")
    return " ".join(str(words or answer.text or answer.reason_phrase).split())[:200]


def join_some(things: list[str], most: int = 3) -> str:
    rest = f", and {len(things) - most} more" if len(things) > most else ""
    return f"{', '.join(things[:most])}{rest}"


@contextmanager
def use_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The process' own environment, for a while: settings and the store's keys are read from nowhere else."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
