"""JSON of 64 levels, the most that clients may write, passes every door of the service. A deeper body is refused."""

from __future__ import annotations

import csv
import io
import json
import secrets
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from flask.testing import FlaskClient

from tests.conftest import Stack
from tests.deep_json import LEVELS, nest
from tests.service.conftest import MakeApp
from tests.service.outside import Issuer, Outside

EXPORT, ERASURE = "/api/v1/gdpr/export", "/api/v1/gdpr/erasure"
DEEPEST = json.loads(nest(LEVELS))
TOO_DEEP = (LEVELS + 1, 900, 1_500, 10_000)


@dataclass(frozen=True)
class Member:
    """A person with a new organization, whose owner they are."""

    id: str
    organization_id: str
    ask: Callable[[str, str, str], httpx.Response]
    headers: Callable[..., dict[str, str]]


@pytest.fixture
def member(stack: Stack) -> Iterator[Member]:
    user_id, clerk_org_id = f"user_{secrets.token_hex(8)}", f"org_{secrets.token_hex(8)}"
    membership = {"organization": {"id": clerk_org_id}, "public_user_data": {"user_id": user_id}, "role": "org:admin"}
    for kind, data in (
        ("user.created", {"id": user_id}),
        ("organization.created", {"id": clerk_org_id, "created_by": user_id}),
        ("organizationMembership.created", membership),
    ):
        sent = stack.ballast("clerk", "send", kind, "--data", json.dumps(data))
        assert sent.returncode == 0, sent.stderr
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        [[organization_id]] = connection.execute(
            "select id::text from public.organizations where clerk_org_id = %s", [clerk_org_id]
        ).fetchall()

    def headers(**more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {stack.token(user_id, clerk_org_id)}"} | more

    with httpx.Client(base_url=f"{stack.environment['SUPABASE_URL']}/rest/v1") as client:

        def ask(method: str, path: str, body: str) -> httpx.Response:
            sent = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"], "Content-Type": "application/json"}
            return client.request(method, path, content=body, headers=headers(**sent, Prefer="return=minimal"))

        yield Member(user_id, organization_id, ask, headers)


def write(member: Member, levels: int) -> dict[str, httpx.Response]:
    """Writes JSON to every place that a browser can write."""
    organization, value = member.organization_id, nest(levels)
    event = f'"p_organization_id": "{organization}", "p_action": "client.done", "p_resource_type": "report"'
    return {
        "projects": member.ask(
            "POST", "/projects", f'{{"organization_id": "{organization}", "title": "Deep", "metadata": {value}}}'
        ),
        "profiles": member.ask("PATCH", f"/profiles?clerk_user_id=eq.{member.id}", f'{{"preferences": {value}}}'),
        "organizations": member.ask("PATCH", f"/organizations?id=eq.{organization}", f'{{"settings": {value}}}'),
        "log_audit_event": member.ask("POST", "/rpc/log_audit_event", f'{{{event}, "p_metadata": {value}}}'),
    }


def test_json_of_64_levels_passes_the_session_the_csv_and_both_exports(online: FlaskClient, member: Member) -> None:
    assert {name: answer.is_success for name, answer in write(member, LEVELS).items()} == dict.fromkeys(
        ("projects", "profiles", "organizations", "log_audit_event"), True
    )
    session = online.get("/api/v1/me", headers=member.headers())
    assert session.json["profile"]["preferences"] == DEEPEST

    trail = online.get(f"/api/v1/organizations/{member.organization_id}/audit.csv", headers=member.headers())
    entries = {each["action"]: each for each in csv.DictReader(io.StringIO(trail.text, newline=""))}
    assert json.loads(entries["client.done"]["metadata"]) == DEEPEST
    assert json.loads(entries["project.created"]["changes"])["after"]["metadata"] == DEEPEST
    assert json.loads(entries["organization.updated"]["changes"])["after"]["settings"] == DEEPEST

    document = online.get(EXPORT, headers=member.headers()).json
    assert [each["metadata"] for each in document["projects"]] == [DEEPEST]
    assert [each["preferences"] for each in document["profile"]] == [DEEPEST]


def test_json_of_64_levels_passes_the_zip(online: FlaskClient, member: Member) -> None:
    write(member, LEVELS)
    answer = online.get(EXPORT, headers=member.headers(Accept="application/zip"))
    with zipfile.ZipFile(io.BytesIO(answer.data)) as archive:
        assert json.loads(archive.read("projects.json"))[0]["metadata"] == DEEPEST


@pytest.mark.parametrize("levels", [LEVELS + 1, 900, 1_500])
def test_the_data_api_refuses_more_levels_with_400(member: Member, levels: int) -> None:
    answers = {name: (answer.status_code, answer.json()["code"]) for name, answer in write(member, levels).items()}
    columns = dict.fromkeys(("projects", "profiles", "organizations"), (400, "23514"))
    assert answers == columns | {"log_audit_event": (400, "PT400")}


def test_the_data_api_stores_nothing_of_json_that_postgres_cannot_parse(member: Member) -> None:
    assert all(answer.is_error for answer in write(member, 30_000).values())


@pytest.fixture
def send(make_app: MakeApp, outside: Outside, issuer: Issuer) -> Callable[[str], Any]:
    """Sends a body to confirm an erasure, to a service without a database."""
    outside.answer = lambda *_: pytest.fail("the database was asked")
    client = make_app(SUPABASE_URL=outside.url, CLERK_ISSUER=issuer.url).test_client()

    def post(body: str) -> Any:
        headers = {"Authorization": f"Bearer {issuer.token(fva=[0, -1])}", "Content-Type": "application/json"}
        return client.post(ERASURE, data=body, headers=headers)

    return post


@pytest.mark.parametrize("levels", TOO_DEEP)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_body_with_more_levels_is_refused_with_400(
    send: Callable[[str], Any], levels: int, opening: str, closing: str
) -> None:
    answer = send(f"{opening * (levels - 1)}1{closing * (levels - 1)}")
    assert (answer.status_code, answer.json["type"]) == (400, "urn:problem:ballast:json-too-deep")
    assert answer.json["detail"] == "Send JSON with at most 64 levels."


def test_a_body_with_64_levels_is_read(send: Callable[[str], Any]) -> None:
    answer = send(nest(LEVELS))
    assert (answer.status_code, answer.json["type"]) == (400, "urn:problem:ballast:confirmation-missing")
