"""docs/deviations.md: the named tests exist, the renamed variables are right, and tests for the rows that no other test proves."""

from __future__ import annotations

import ast
import re

import pytest

from service.settings import Settings
from tests.conftest import ROOT, Database

PAGE = (ROOT / "docs/deviations.md").read_text()
# Their rows state what is not built, what only has another name, and what only a provider's dashboard can set.
WITHOUT_PROOF = {"Settings of the providers", "Left out", "Variables", "Commands"}
# Every environment variable that the specification names.
SPECIFIED = """
    NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY CLERK_SECRET_KEY CLERK_WEBHOOK_SECRET NEXT_PUBLIC_SUPABASE_URL NEXT_PUBLIC_SUPABASE_ANON_KEY
    SUPABASE_SERVICE_ROLE_KEY DATABASE_URL UPSTASH_REDIS_REST_URL UPSTASH_REDIS_REST_TOKEN NEXT_PUBLIC_SENTRY_DSN SENTRY_AUTH_TOKEN
    SENTRY_ORG SENTRY_PROJECT RESEND_API_KEY FROM_EMAIL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION BACKUP_BUCKET NODE_ENV
    NEXT_PUBLIC_APP_URL SLACK_WEBHOOK VERCEL_TOKEN VERCEL_ORG_ID VERCEL_PROJECT_ID SNYK_TOKEN TEST_SUPABASE_URL TEST_SUPABASE_KEY
    TEST_USER_EMAIL TEST_USER_PASSWORD
"""
VARIABLE = re.compile(r"`([A-Z_]+)`")


def section(heading: str) -> str:
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[headings().index(heading) + 1]


def headings() -> list[str]:
    return re.findall(r"^## (.+)$", PAGE, re.MULTILINE)


def rows(heading: str) -> list[list[str]]:
    """The cells of each row of the section's table, without its header."""
    lines = re.findall(r"^\| (.+) \|$", section(heading), re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[1:]]


ROWS = [(heading, row) for heading in headings() if heading not in WITHOUT_PROOF for row in rows(heading)]


@pytest.fixture(scope="module")
def defined() -> set[str]:
    """The names of all test functions."""
    trees = (ast.parse(file.read_text()) for file in (ROOT / "tests").rglob("test_*.py"))
    functions = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {function.name for function in functions}


def test_every_row_has_a_proof_except_where_nothing_is_built() -> None:
    assert set(headings()) >= WITHOUT_PROOF
    assert len(ROWS) > 50
    assert [row for _, row in ROWS if len(row) != 4 or not re.fullmatch(r"`test_\w+`(, `test_\w+`)*", row[3])] == []
    for heading in headings():
        assert f"(#{heading.lower().replace(' ', '-')})" in PAGE.partition("\n## ")[0], heading


def test_every_named_test_exists(defined: set[str]) -> None:
    named = {name for _, row in ROWS for name in re.findall(r"test_\w+", row[3])}
    assert sorted(named - defined) == []


def test_no_requirement_has_two_rows() -> None:
    requirements = [row[0] for heading in headings() for row in rows(heading)]
    assert sorted(name for name in set(requirements) if requirements.count(name) > 1) == []


# --- variables


def provided() -> set[str]:
    """The variables that the service, the commands or the workflows read."""
    example = (ROOT / ".env.example").read_text()
    workflows = "\n".join(file.read_text() for file in (ROOT / ".github/workflows").iterdir())
    return {
        *re.findall(r"^([A-Z_]+)=", example, re.MULTILINE),
        *re.findall(r"\bAWS_[A-Z_]+", example),
        *(name.upper() for name in Settings.model_fields),
        *re.findall(r"(?:secrets|vars)\.([A-Z_]+)", workflows),
    }


def test_every_variable_of_the_specification_is_unchanged_or_in_the_table() -> None:
    table, unchanged = section("Variables").split("\nUnchanged:")
    renamed = [name for row in rows("Variables") for name in VARIABLE.findall(row[0])]
    assert sorted([*renamed, *VARIABLE.findall(unchanged)]) == sorted(SPECIFIED.split())
    assert set(VARIABLE.findall(unchanged)) <= provided()
    assert [name for name in renamed if name in provided()] == []
    assert set(VARIABLE.findall(table)) - set(renamed) <= provided()


# --- rows that no other test proves


def test_nothing_refers_to_supabases_accounts(database: Database) -> None:
    found = database.rows("""
        select k.conrelid::regclass::text || '.' || k.conname from pg_constraint as k
        where k.contype = 'f' and k.confrelid in (select oid from pg_class where relnamespace = to_regnamespace('auth'))
          and k.connamespace in ('public'::regnamespace, 'app'::regnamespace, 'ops'::regnamespace)""")
    assert found == []


# A product may have removed the example.
HAS_PROJECTS = (ROOT / "policies/projects.sql").exists()
COLUMNS: dict[tuple[str, str], set[str]] = {
    ("organizations", "insert"): set(),
    ("organizations", "update"): {"name", "settings"},
    ("profiles", "select"): {
        "id",
        "clerk_user_id",
        "email",
        "full_name",
        "avatar_url",
        "banned",
        "created_at",
        "updated_at",
    },
    ("profiles", "insert"): set(),
    ("profiles", "update"): {"full_name", "avatar_url", "preferences", "current_organization_id"},
}
if HAS_PROJECTS:
    COLUMNS["projects", "insert"] = {"organization_id", "title", "description", "status", "metadata"}
    COLUMNS["projects", "update"] = {"title", "description", "status", "metadata"}


@pytest.mark.parametrize(("table", "command"), COLUMNS, ids=" ".join)
def test_clients_may_use_only_these_columns(database: Database, table: str, command: str) -> None:
    found = database.rows(
        """
        select a.attname from pg_attribute as a
        where a.attrelid = %s::regclass and a.attnum > 0 and has_column_privilege('authenticated', a.attrelid, a.attnum, %s)""",
        f"public.{table}",
        command,
    )
    assert {name for (name,) in found} == COLUMNS[table, command]


# The specification's indexes. Those of a single column are also served by a longer index that begins with it.
INDEXES = """
    organizations (slug); organizations (clerk_org_id); profiles (email); profiles (clerk_user_id); profiles (current_organization_id);
    organization_memberships (organization_id); organization_memberships (user_id); audit_logs (organization_id, created_at);
    audit_logs (user_id, created_at); audit_logs (action); projects (organization_id, created_at); projects (created_by); projects (status)
"""


def test_the_specified_indexes_exist_but_for_three(database: Database) -> None:
    found = database.rows("""
        select i.indrelid::regclass::text, array_agg(a.attname::text order by k.position)
        from pg_index as i
        cross join unnest(i.indkey::smallint[]) with ordinality as k (number, position)
        join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.number
        where i.indpred is null
        group by i.indexrelid, i.indrelid""")
    ours = [(table.removeprefix("public."), tuple(columns)) for table, columns in found]
    wanted = [
        (table, tuple(columns.split(", "))) for table, columns in re.findall(r"(\w+) \(([\w, ]+)\)", INDEXES.strip())
    ]
    assert len(wanted) == 13
    missing = {
        f"`{table} ({', '.join(columns)})`"
        for table, columns in wanted
        if (HAS_PROJECTS or table != "projects")
        and not any(of == table and names[: len(columns)] == columns for of, names in ours)
    }
    left_out = re.findall(r"`\w+ \(\w+\)`", rows("Left out")[0][0])
    assert missing == {index for index in left_out if HAS_PROJECTS or "projects" not in index}
