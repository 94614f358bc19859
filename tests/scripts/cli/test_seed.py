"""`ballast seed`: example tenants and bulk data, neither of which a second run changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from scripts.cli import ballast
from scripts.local import bulk, examples
from scripts.scratch.postgres import Postgres
from tests.conftest import ROOT, Stack

SEED_SQL = ROOT / "supabase" / "seed.sql"
ROLES_BY_PERSON = """
select p.clerk_user_id, o.clerk_org_id, m.role from public.organization_memberships as m
join public.profiles as p on p.id = m.user_id join public.organizations as o on o.id = m.organization_id
where p.clerk_user_id = any (%s) order by 1, 2
"""
ROLES = [
    ("user_ada", "org_acme", "owner"),
    ("user_ada", "org_globex", "viewer"),
    ("user_ben", "org_acme", "admin"),
    ("user_cleo", "org_acme", "member"),
    ("user_dee", "org_acme", "viewer"),
    ("user_eve", "org_globex", "owner"),
]
QUEUED = "select from app.email_outbox as m join public.profiles as p on p.id = m.person_id where p.email like '%@%'"
PROJECTS = """
select o.clerk_org_id, p.clerk_user_id, t.title from public.projects as t
join public.organizations as o on o.id = t.organization_id join public.profiles as p on p.id = t.created_by
where o.clerk_org_id in ('org_acme', 'org_globex')
"""
EXAMPLE_PROJECTS = {
    (organization, user, title) for (organization, user), titles in examples.PROJECTS.items() for title in titles
}


@pytest.fixture
def connection(server: Postgres) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server.url()) as connection:
        yield connection
        connection.rollback()


def test_the_stack_starts_with_the_example_tenants(stack: Stack) -> None:
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        assert connection.execute(ROLES_BY_PERSON, [list(examples.PEOPLE)]).fetchall() == ROLES
        assert set(connection.execute(PROJECTS).fetchall()) >= EXAMPLE_PROJECTS


def test_acme_has_25_projects_and_globex_10() -> None:
    per_tenant = [organization for organization, _, _ in EXAMPLE_PROJECTS]
    assert (per_tenant.count("org_acme"), per_tenant.count("org_globex")) == (25, 10)


def test_the_seed_of_the_supabase_cli_is_the_same_and_idempotent(connection: psycopg.Connection[Any]) -> None:
    connection.execute("update app.settings set mail_enabled = true")
    for _ in range(2):
        connection.execute(SEED_SQL.read_bytes())
        assert connection.execute(QUEUED).rowcount == 0
        assert connection.execute(ROLES_BY_PERSON, [list(examples.PEOPLE)]).fetchall() == ROLES
        rows = connection.execute(PROJECTS).fetchall()
        assert (len(rows), set(rows)) == (35, EXAMPLE_PROJECTS)


def test_the_seed_of_the_supabase_cli_is_current() -> None:
    assert SEED_SQL.read_text() == examples.as_sql(), "run: ballast seed --sql > supabase/seed.sql"


def test_bulk_data_has_the_requested_size_and_is_idempotent(connection: psycopg.Connection[Any]) -> None:
    connection.execute("update app.settings set mail_enabled = true")
    every_role = [key for (key,) in connection.execute("select key from public.roles order by key").fetchall()]
    assert len(every_role) >= 4
    size = bulk.Size(organizations=60, members=len(every_role), projects=3)
    assert sum(rows for _, rows in bulk.fill(connection, size)) == 60 * (1 + 2 * len(every_role) + 3)
    assert sum(rows for _, rows in bulk.fill(connection, size)) == 0
    roles = """select m.role, count(*) from public.organization_memberships as m
        join public.organizations as o on o.id = m.organization_id
        where o.clerk_org_id like 'org\\_bulk\\_%' group by 1 order by 1"""
    assert connection.execute(roles).fetchall() == [(role, 60) for role in every_role]
    assert connection.execute(QUEUED).rowcount == 0
    first = "select count(*) from public.organizations where clerk_org_id = 'org_bulk_000001'"
    assert connection.execute(first).fetchall() == [(1,)]


def test_new_example_people_get_no_mail_and_mail_stays_on(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    person = examples.Event("msg_seed_user_newcomer", "user.created", {"id": "user_newcomer", "first_name": "Nova"})
    monkeypatch.setattr(examples, "events", lambda: [person])
    monkeypatch.setattr(examples, "PROJECTS", {})
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        before = connection.execute("update app.settings set mail_enabled = true returning mail_enabled").fetchall()
        seeded = CliRunner().invoke(ballast, ["seed"], env=stack.environment | {"BALLAST_JOBS": "off"})
        queued = connection.execute(f"{QUEUED} and p.clerk_user_id = 'user_newcomer'").rowcount
        after = connection.execute("select mail_enabled from app.settings").fetchall()
        connection.execute("update app.settings set mail_enabled = false")
        stack.ballast("clerk", "send", "user.deleted", "--data", '{"id": "user_newcomer"}')
    assert seeded.exit_code == 0, seeded.output
    assert "Seeded 1 of 1 events" in seeded.output
    assert (queued, after) == (0, before)
