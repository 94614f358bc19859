"""The environment that `ballast doctor` checks, and the results of its checks.

No output contains the value of a secret variable.
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

from service.settings import GUARDED_ENVIRONMENTS, secret_variables

TIMEOUT = httpx.Timeout(10)
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|IDENTITY|DATABASE_URL|DSN")
PUBLIC_NAMES = {"SUPABASE_PUBLISHABLE_KEY"}
MIN_REDACTED_LENGTH = 6


Outcome = Literal["passed", "warning", "failed", "skipped"]


class CheckFailed(Exception):
    """A check failed: `found` is the problem, `remedy` is what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy


class CheckWarned(CheckFailed):
    """Everything works, but not for everyone: `found` is what does not, `remedy` is what to do."""


class CheckSkipped(Exception):
    """A check cannot run: a variable is not set, or a program is missing."""


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class LocalStack:
    """The local stack. `mint_token` returns a session token for a Clerk user id.

    It is None if the stack has a real Clerk, or if another database is checked.
    """

    database_url: str
    mint_token: Callable[[str], str] | None


class Context:
    """The environment and the database that are checked."""

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
        """Returns a variable. Raises CheckSkipped if it is not set."""
        if not (value := self.environment.get(name, "").strip()):
            raise CheckSkipped(f"{name} is not set.")
        return value

    def list_items(self, name: str) -> list[str]:
        """Returns the items of a comma-separated variable. Raises CheckSkipped if it is not set."""
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
        """Replaces every secret of the environment in the text."""
        secret = secret_variables()
        known = [
            value
            for name, value in self.environment.items()
            if (SECRET_NAME.search(name) or name in secret) and name not in PUBLIC_NAMES
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
    """Returns the body if it is JSON of that kind, else an empty value."""
    try:
        body = answer.json()
    except ValueError:
        return kind()
    return body if isinstance(body, kind) else kind()


def read_claims(token: str) -> dict[str, Any]:
    """Returns the claims of a JWT without verifying its signature; empty if the token is not a JWT."""
    try:
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def read_error_message(answer: httpx.Response) -> str:
    """Returns a problem's detail, PostgREST's message, or the beginning of the response."""
    body = parse_json(answer)
    message = body.get("detail") or body.get("message") or body.get("error") or body.get("title")
    return " ".join(str(message or answer.text or answer.reason_phrase).split())[:200]


def join_some(items: list[str], most: int = 3) -> str:
    rest = f", and {len(items) - most} more" if len(items) > most else ""
    return f"{', '.join(items[:most])}{rest}"


@contextmanager
def use_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets the process's environment temporarily, because settings and the store's keys are read only from there."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
