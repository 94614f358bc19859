"""Runs the local stack's Data API on its own database, and sends requests to it or to any other PostgREST."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt
import psycopg

from scripts.scratch.server import free_ports
from tests.conftest import ROOT, OwnDatabase
from tests.schema import remove

Json = dict[str, Any]
PEOPLE = ("ada", "ben", "cleo", "dee", "eve")
CLEO = {"sub": "user_cleo", "role": "authenticated"}


@dataclass(frozen=True)
class DataApi:
    """A PostgREST, or the local Data API, and the secret that signs its tokens."""

    address: str
    jwt_secret: str
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def ask(self, method: str, path: str, caller: str = "cleo", **request: Any) -> httpx.Response:
        """Sends a request. `request` may have a body (json or text) and headers, in which {token} is the caller's token."""
        token = self.token(caller)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {name: value.replace("{token}", token) for name, value in request.get("headers", {}).items()}
        content = json.dumps(request["json"]) if "json" in request else request.get("text")
        if content is not None:
            headers = {"Content-Type": "application/json"} | headers
        return self.client.request(method, self.address + path, headers=headers, content=content)

    def token(self, caller: str) -> str:
        """The token of an example user, of a role, or an invalid one; empty for `anonymous`."""
        now = int(time.time())
        claims: dict[str, Json] = {
            **{name: {"sub": f"user_{name}", "role": "authenticated", "fva": [0, 0]} for name in PEOPLE},
            "service": {"role": "service_role"},
            "anonjwt": {"role": "anon"},
            "expired": CLEO | {"exp": now - 100},
            "nbf": CLEO | {"nbf": now + 1000},
            "iat-future": CLEO | {"iat": now + 1000},
            "norole": {"sub": "user_cleo"},
            "badrole": CLEO | {"role": "no_such_role"},
            "postgresrole": CLEO | {"role": "postgres"},
            "supaadmin": CLEO | {"role": "supabase_admin"},
            "authenticatorrole": CLEO | {"role": "authenticator"},
            "rolenull": CLEO | {"role": None},
            "rolelist": CLEO | {"role": ["authenticated"]},
            "aud": CLEO | {"aud": "someone"},
            "own-cleo": CLEO,
            "subnum": CLEO | {"sub": 5},
            "subnul": CLEO | {"sub": None},
        }
        if caller in claims:
            return self._signed(claims[caller])
        valid = self._signed(CLEO)
        odd = {
            "anonymous": "",
            "tampered": valid[:-6] + valid[-6:].swapcase(),
            "garbage": "a.b.c",
            "notjwt": "x",
            "none-alg": jwt.encode(CLEO, None, algorithm="none"),
            "wrongsecret": jwt.encode(CLEO, "x" * 40, algorithm="HS256"),
        }
        return odd[caller]

    def _signed(self, claims: Json) -> str:
        """A token with these claims, valid for five minutes. PyJWT would refuse to encode some of them."""
        parts = ({"alg": "HS256", "typ": "JWT"}, {"exp": int(time.time()) + 300} | claims)
        content = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        signature = jwt.get_algorithm_by_name("HS256").sign(content.encode(), self.jwt_secret.encode())
        return f"{content}.{_base64(signature)}"


@contextlib.contextmanager
def running_data_api(database: OwnDatabase) -> Iterator[DataApi]:
    """Runs the local stack's Data API on the database, which gets the example tenants."""
    remove(database.url())
    with psycopg.connect(database.url()) as connection:
        connection.execute((ROOT / "supabase/seed.sql").read_bytes())
    port = free_ports(1)
    api = DataApi(f"http://127.0.0.1:{port}/rest/v1", "s" * 40)
    environment = {
        "PORT": str(port),
        "DATABASE_URL": database.url("authenticator"),
        "CATALOG_URL": database.url(),
        "JWT_SECRET": api.jwt_secret,
        "CLERK_ISSUER": "http://127.0.0.1:9",  # Clerk signs none of these tokens
    }
    process = subprocess.Popen(["node", "scripts/local/data_api/server.mjs"], cwd=ROOT, env=os.environ | environment)
    try:
        _wait_until_ready(api)
        yield api
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(api: DataApi, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            assert api.ask("POST", "/rpc/ready", "service").is_success
        except httpx.TransportError:
            assert time.monotonic() < deadline, f"The Data API did not start within {seconds:g} s."
            time.sleep(0.05)
        else:
            return


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
