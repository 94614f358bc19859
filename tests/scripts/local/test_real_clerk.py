"""A whole stack with a real Clerk instance. Tests have no Clerk account, so a second stand-in plays the instance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from aiohttp import web

from scripts.local.clerk import svix
from scripts.local.clerk.client import ClerkClient
from scripts.local.clerk.server import ClerkStandIn
from scripts.local.stack import Secrets
from scripts.scratch.server import free_ports
from tests.conftest import Stack, free_port_block
from tests.service.outside import event, sign

KEY = "sk_test_RealInstance"
SECRET = "whsec_plJ3nmyCDGBKInavdOK15jsl"
PEOPLE = (
    ("user.created", {"id": "user_rea", "first_name": "Rea", "last_name": "Alvarez"}),
    ("organization.created", {"id": "org_real", "created_by": "user_rea"}),
    (
        "organizationMembership.created",
        {
            "organization": {"id": "org_real"},
            "public_user_data": {"user_id": "user_rea"},
            "role": "org:admin",
        },
    ),
)


@contextlib.contextmanager
def running_instance(folder: Path, service_url: str) -> Iterator[str]:
    """Runs a second stand-in with its own key, secrets and people. Yields its issuer."""
    port = free_ports(1)
    issuer = f"http://127.0.0.1:{port}"
    endpoint = svix.Endpoint(f"{service_url}/webhooks/clerk", SECRET)
    instance = ClerkStandIn(folder, issuer, [service_url], endpoint, KEY)
    for event_type, data in PEOPLE:
        instance.event(event_type, data)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(instance.application(), access_log=None)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield issuer
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True)
class RealStack(Stack):
    """A stack that uses the instance `issuer`."""

    issuer: str = ""
    shown: str = ""

    def name_of(self, user_id: str) -> str | None:
        with psycopg.connect(self.environment["DATABASE_URL"]) as connection:
            row = connection.execute(
                "select full_name from public.profiles where clerk_user_id = %s", [user_id]
            ).fetchone()
        return row[0] if row else None

    def statuses(self, token: str) -> dict[str, int]:
        """The status with which the service, the Data API and Realtime answer a request with this token."""
        authorization = {"Authorization": f"Bearer {token}"}
        api = {"apikey": self.environment["SUPABASE_PUBLISHABLE_KEY"]} | authorization
        url = self.environment["SUPABASE_URL"]
        message = {"messages": [{"topic": "room", "event": "hello", "payload": {}}]}
        return {
            "service": httpx.get(f"{self.environment['SERVICE_URL']}/api/v1/me", headers=authorization).status_code,
            "data api": httpx.get(f"{url}/rest/v1/projects", headers=api).status_code,
            "realtime": httpx.post(
                f"{url}/realtime/v1/api/broadcast", headers={"apikey": token}, json=message
            ).status_code,
        }


@pytest.fixture(scope="module")
def real(home: Path) -> Iterator[RealStack]:
    folder = home / "real"
    folder.mkdir()
    base = free_port_block()
    place = {"BALLAST_HOME": str(folder), "BALLAST_PORT_BASE": str(base), "BALLAST_JOBS": "off"}
    starting = Stack(folder, place)
    with running_instance(home / "instance", f"http://127.0.0.1:{base + 3}") as issuer:
        (folder / ".env").write_text(
            f"CLERK_ISSUER={issuer}\nCLERK_API_URL={issuer}\nCLERK_SECRET_KEY={KEY}\nCLERK_WEBHOOK_SECRETS={SECRET}\n"
        )
        up = starting.ballast("up", "--detach")
        try:
            assert up.returncode == 0, up.stdout + up.stderr
            environment = place | json.loads(starting.ballast("env", "--json").stdout)
            yield RealStack(folder, environment, issuer=issuer, shown=up.stdout)
        finally:
            starting.ballast("down")


pytestmark = pytest.mark.thorough


def test_up_and_status_show_the_instance(real: RealStack) -> None:
    assert f"Clerk issuer  {real.issuer} (a real instance, from {real.home / '.env'})\n" in real.shown
    assert "ballast token" not in real.shown
    status = json.loads(real.ballast("status", "--json").stdout)
    assert status["clerk"] == real.issuer
    assert "clerk" not in {part["name"] for part in status["parts"]}
    assert {part["state"] for part in status["parts"]} == {"healthy"}


def test_the_stand_in_does_not_run(real: RealStack) -> None:
    port = int(real.environment["BALLAST_PORT_BASE"]) + 4
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0


def test_the_database_has_the_instances_people_and_no_others(real: RealStack) -> None:
    with psycopg.connect(real.environment["DATABASE_URL"]) as connection:
        people = connection.execute("select clerk_user_id from public.profiles").fetchall()
        members = connection.execute(
            "select clerk_org_id, role from public.organization_memberships as m "
            "join public.organizations as o on o.id = m.organization_id"
        ).fetchall()
    assert (people, members) == ([("user_rea",)], [("org_real", "owner")])


def test_tokens_of_the_instance_are_accepted_and_those_of_the_stand_in_are_refused(
    real: RealStack, tmp_path: Path
) -> None:
    accepted = ClerkClient(real.issuer).token("user_rea", "org_real")
    assert real.statuses(accepted["token"]) == {"service": 200, "data api": 200, "realtime": 202}
    stand_in = f"http://127.0.0.1:{int(real.environment['BALLAST_PORT_BASE']) + 4}"
    for issuer in (stand_in, real.issuer):
        other = ClerkStandIn(tmp_path, issuer, [], svix.Endpoint("", SECRET), KEY)
        forged = other.keys.sign(accepted["claims"] | {"iss": issuer})
        assert real.statuses(forged) == {"service": 401, "data api": 401, "realtime": 401}


def test_a_change_at_the_instance_arrives_by_its_webhook(real: RealStack) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    changed = httpx.patch(f"{real.issuer}/v1/users/user_rea", headers=headers, json={"first_name": "Renata"})
    assert changed.is_success
    deadline = time.monotonic() + 20
    while real.name_of("user_rea") != "Renata Alvarez":
        assert time.monotonic() < deadline, "the webhook did not arrive"
        time.sleep(0.05)


def test_a_webhook_with_the_stand_ins_secret_is_refused(real: RealStack) -> None:
    url = f"{real.environment['SERVICE_URL']}/webhooks/clerk"
    body = event()
    assert httpx.post(url, content=body, headers=sign(body)).status_code == 200
    ours = Secrets.of(real.home).webhook_secret
    assert httpx.post(url, content=body, headers=sign(body, ours)).status_code == 401


def test_doctor_and_backfill_use_the_instance(real: RealStack) -> None:
    token = ClerkClient(real.issuer).token("user_rea", "org_real")["token"]
    findings: list[dict[str, Any]] = json.loads(real.ballast("doctor", "--json", "--session-token", token).stdout)
    outcomes = {each["name"]: each["outcome"] for each in findings}
    assert "passed" in outcomes.values()
    assert [each for each in findings if each["outcome"] == "failed"] == []
    assert real.ballast("clerk", "backfill").returncode == 0


def test_the_stack_cannot_switch_to_the_stand_in_with_the_same_database(real: RealStack) -> None:
    file = real.home / ".env"
    text = file.read_text()
    file.write_text("")
    try:
        up = real.ballast("up", "--detach")
    finally:
        file.write_text(text)
    assert up.returncode == 1
    assert f"was filled from the Clerk instance {real.issuer}" in up.stderr
