"""The first look of the README on a freshly started stack: seeds, a signed event, a token, and both clients."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from postgrest import ReturnMethod
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, create_client

from scripts.cli.stack import show_summary
from scripts.local.stack import DEFAULT_PORT_BASE, Secrets
from scripts.local.stack import Stack as LocalStack
from tests.conftest import ROOT, Stack, needs_own_readme
from tests.tenant_tables import permissions_of


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        yield connection


def sign_in(stack: Stack, user: str, organization: str | None = None) -> Client:
    headers = {"Authorization": f"Bearer {stack.token(user, organization)}"}
    return create_client(
        stack.environment["SUPABASE_URL"], stack.environment["SUPABASE_PUBLISHABLE_KEY"], ClientOptions(headers=headers)
    )


def organization_id(database: psycopg.Connection[Any], clerk_id: str) -> str:
    row = database.execute("select id::text from public.organizations where clerk_org_id = %s", [clerk_id]).fetchone()
    assert row is not None
    return str(row[0])


def test_the_seeds_are_stored_as_signed_events(database: psycopg.Connection[Any]) -> None:
    roles = database.execute(
        "select p.clerk_user_id, o.clerk_org_id, m.role from public.organization_memberships as m "
        "join public.profiles as p on p.id = m.user_id join public.organizations as o on o.id = m.organization_id "
        "where p.clerk_user_id in ('user_ada', 'user_ben', 'user_cleo', 'user_dee', 'user_eve')"
    )
    assert set(roles.fetchall()) == {
        ("user_ada", "org_acme", "owner"),
        ("user_ben", "org_acme", "admin"),
        ("user_cleo", "org_acme", "member"),
        ("user_dee", "org_acme", "viewer"),
        ("user_eve", "org_globex", "owner"),
        ("user_ada", "org_globex", "viewer"),
    }
    types = database.execute(
        "select type, count(*) from app.webhook_events where outcome = 'processed' and message_id like 'msg_seed_%' group by type"
    ).fetchall()
    assert dict(types) == {"user.created": 5, "organization.created": 2, "organizationMembership.created": 6}


def test_seeding_again_changes_nothing(stack: Stack, database: psycopg.Connection[Any]) -> None:
    count = "select (select count(*) from public.projects), (select count(*) from app.webhook_events)"
    before = database.execute(count).fetchone()
    again = stack.ballast("seed")
    assert (again.returncode, "nothing changed" in again.stderr) == (0, True)
    assert database.execute(count).fetchone() == before


def test_a_member_lists_and_creates_projects_only_in_their_tenant(
    stack: Stack, database: psycopg.Connection[Any]
) -> None:
    cleo = sign_in(stack, "user_cleo", "org_acme")
    globex = organization_id(database, "org_globex")

    listed = cleo.table("projects").select("*, organization:organizations(clerk_org_id)").execute().data
    assert len(listed) >= 25
    assert {project["organization"]["clerk_org_id"] for project in listed} == {"org_acme"}

    created = (
        cleo.table("projects")
        .insert({"organization_id": listed[0]["organization_id"], "title": "Mine"})
        .execute()
        .data[0]
    )
    author = database.execute(
        "select clerk_user_id from public.profiles where id = %s", [created["created_by"]]
    ).fetchone()
    assert author == ("user_cleo",)

    with pytest.raises(APIError, match="row-level security"):
        cleo.table("projects").insert({"organization_id": globex, "title": "Not mine"}).execute()
    with pytest.raises(APIError, match="permission denied"):
        cleo.table("projects").update({"organization_id": globex}).eq("id", created["id"]).execute()
    assert cleo.table("projects").select("id").eq("organization_id", globex).execute().data == []
    database.execute("delete from public.projects where id = %s", [created["id"]])


def test_supabase_js_behaves_the_same(stack: Stack, database: psycopg.Connection[Any]) -> None:
    environment = {
        "TOKEN": stack.token("user_cleo", "org_acme"),
        "OWN_ORGANIZATION": organization_id(database, "org_acme"),
        "OTHER_ORGANIZATION": organization_id(database, "org_globex"),
    }
    output = subprocess.run(
        ["node", "tests/api/projects.mjs"],
        cwd=ROOT,
        env=os.environ | stack.environment | environment,
        capture_output=True,
        check=True,
    ).stdout
    answers = json.loads(output)

    assert answers["session"]["data"]["profile"]["clerk_user_id"] == "user_cleo"
    assert {project["organization"]["name"] for project in answers["listed"]["data"]} == {"Acme"}
    assert answers["created"]["status"] == 201
    assert (answers["foreign"]["status"], answers["foreign"]["error"]["code"]) == (403, "42501")
    assert answers["others"]["data"] == []
    assert answers["gone"]["data"] == [], "a member may not delete"
    database.execute("delete from public.projects where id = %s", [answers["created"]["data"]["id"]])


def test_a_new_user_exists_once_clerk_has_sent_the_event(stack: Stack) -> None:
    sent = stack.ballast("clerk", "send", "user.created", "--data", '{"id": "user_newcomer", "first_name": "Zoe"}')
    assert (sent.returncode, "processed" in sent.stdout) == (0, True), sent.stdout + sent.stderr

    headers = {"Authorization": f"Bearer {stack.token('user_newcomer')}"}
    me = httpx.get(f"{stack.environment['SERVICE_URL']}/api/v1/me", headers=headers).json()
    assert (me["profile"]["full_name"], me["organizations"]) == ("Zoe", [])


def test_people_change_their_own_profile_only(stack: Stack, database: psycopg.Connection[Any]) -> None:
    dee = sign_in(stack, "user_dee", "org_acme")
    acme, globex = organization_id(database, "org_acme"), organization_id(database, "org_globex")

    def update(user_id: str, change: dict[str, Any]) -> None:
        dee.table("profiles").update(change, returning=ReturnMethod.minimal).eq("clerk_user_id", user_id).execute()

    update("user_dee", {"preferences": {"theme": "dark"}, "current_organization_id": acme})
    own = dee.rpc("start_session").execute().data["profile"]
    assert (own["preferences"], own["current_organization_id"]) == ({"theme": "dark"}, acme)

    update("user_ben", {"full_name": "Taken"})
    assert database.execute("select from public.profiles where full_name = 'Taken'").rowcount == 0
    with pytest.raises(APIError, match="profiles_current_organization_id_fkey"):
        update("user_dee", {"current_organization_id": globex})
    with pytest.raises(APIError, match="permission denied"):
        update("user_dee", {"banned": False})


def test_co_members_cannot_read_private_columns_of_a_profile(stack: Stack) -> None:
    eve = sign_in(stack, "user_eve", "org_globex")
    assert eve.table("profiles").select("full_name").eq("clerk_user_id", "user_ada").execute().data
    for private in ("current_organization_id", "preferences", "last_seen_at"):
        with pytest.raises(APIError, match="permission denied"):
            eve.table("profiles").select(private).execute()


def test_a_missing_second_factor_is_reported(stack: Stack) -> None:
    headers = {"Authorization": f"Bearer {stack.token('user_ada', 'org_acme', second_factor=False)}"}
    me = httpx.get(f"{stack.environment['SERVICE_URL']}/api/v1/me", headers=headers).json()
    acme = next(organization for organization in me["organizations"] if organization["clerk_org_id"] == "org_acme")
    assert (acme["role"], acme["limited_by"]) == ("owner", "second_factor")
    assert acme["permissions"] == sorted({"members:read"} | permissions_of("viewer"))


@needs_own_readme
def test_the_readme_shows_the_summary_of_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = Secrets.of(tmp_path)
    show_summary(LocalStack(tmp_path, DEFAULT_PORT_BASE, secrets), 4.9)
    printed = capsys.readouterr().out.replace(str(tmp_path), ".local")
    for secret in (secrets.publishable_key, secrets.secret_key, secrets.webhook_secret, secrets.postgres_password):
        printed = printed.replace(re.sub("^(sb_publishable|sb_secret|whsec)_", "", secret), "…")
    assert f"$ ./scripts/up\n{printed.rstrip()}\n```" in (ROOT / "README.md").read_text()


@needs_own_readme
def test_the_commands_of_the_readme_work_unchanged(stack: Stack, database: psycopg.Connection[Any]) -> None:
    first_look = (ROOT / "README.md").read_text().split("\n## A first look\n")[1]
    session, program = (block.removeprefix("python\n") for block in first_look.split("```")[1:4:2])
    lines = [line.removeprefix("$ ") for line in session.splitlines() if line.startswith("$ ")]
    assert lines.pop() == "python"
    printing = f"{program}\nprint(len(projects), session['organizations'][0]['clerk_org_id'], apollo['title'])\n"
    printing += "print(len(supabase.table('projects').select('*').eq('id', apollo['id']).execute().data))\n"
    ran = stack.run_lines("\n".join([*lines, "python - <<'END'", printing + "END"]))
    database.execute("delete from public.projects where title = 'Apollo'")
    assert ran.returncode == 0, ran.stderr
    sent, listed, left = ran.stdout.splitlines()[-3:]
    assert (sent.split()[0], sent.endswith(": processed")) == ("user.created", True)
    assert (int(listed.split()[0]) >= 25, listed.split()[1:], left) == (True, ["org_acme", "Apollo"], "1")
