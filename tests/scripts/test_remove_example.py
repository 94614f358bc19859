"""`ballast remove-example`: the product has no projects any more, loses nothing else, and tests have them as before."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from scripts import remove_example
from scripts.cli import ballast
from scripts.remove_example import NoExample, remove
from scripts.schema import drift, migrations, upgrade
from scripts.schema.migrations import ROOT
from tests.conftest import HAS_EXAMPLE, Database
from tests.scripts.test_bundle import bundled, push, schema
from tests.scripts.test_migrate import Project
from tests.scripts.test_new import PAGE, SOURCES, contents, copied, followed, linted

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(not HAS_EXAMPLE, reason="The example was removed.")]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without the example."""
    folder = copied(tmp_path_factory.mktemp("product"), *SOURCES, "supabase")
    remove(root=folder)
    return folder


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of tests: what was removed is not there."""
    monkeypatch.setenv("BALLAST_EXAMPLE", "off")


def test_no_file_of_the_product_has_it(product: Path) -> None:
    files = [*(product / "functions").rglob("*.sql"), *(product / "policies").iterdir(), product / "supabase/seed.sql"]
    assert [file.name for file in files if re.search(r"public\.projects|'projects", file.read_text())] == []


@pytest.mark.usefixtures("alone")
def test_a_new_database_has_none_and_is_complete(product: Path, new_database: Callable[..., str]) -> None:
    url = new_database()
    migrations.up(url, root=product)
    assert drift.check(url, root=product)[1] == []
    with psycopg.connect(url) as connection, connection.transaction(force_rollback=True):
        database = Database(connection)
        assert database.value("select to_regclass('public.projects')") is None
        assert database.rows("select from public.role_permissions where permission like 'projects:%'") == []
        assert database.rows("select from app.personal_data where relation like '%projects'") == []
        assert database.value("select count(*) from ops.rls_coverage where gap is not null") == 0


@pytest.mark.usefixtures("alone")
def test_members_listen_and_are_present_where_they_were(product: Path, new_database: Callable[..., str]) -> None:
    url = new_database()
    migrations.up(url, root=product)
    with psycopg.connect(url) as connection, connection.transaction(force_rollback=True):
        database = Database(connection)
        database.execute(
            "with one as (insert into public.organizations (clerk_org_id, name) values ('org_acme', 'Acme') returning id), "
            "ada as (insert into public.profiles (clerk_user_id) values ('user_ada') returning id) "
            "insert into public.organization_memberships (organization_id, user_id, role) select one.id, ada.id, 'viewer' from one, ada"
        )
        acme = database.value("select id from public.organizations")
        with database.acting("authenticated", {"sub": "user_ada", "role": "authenticated"}):
            topics = set(database.value("select app.topics()"))
        assert topics == {f"org:{acme}:members:read", f"org:{acme}:presence"}
        assert database.value("select topic from realtime.messages") == f"org:{acme}:members:read"


@pytest.mark.usefixtures("alone")
def test_a_database_with_people_loses_nothing_else(
    product: Path, inhabited: str, new_database: Callable[..., str]
) -> None:
    url = new_database(inhabited)
    with psycopg.connect(url, autocommit=True) as connection:
        before = connection.execute("select count(*) from public.audit_logs").fetchall()
        found = list(upgrade.migrated(url, connection, product))
        assert [check for check in found if not check.passed] == []
        assert connection.execute("select to_regclass('public.projects')").fetchall() == [(None,)]
        assert connection.execute("select count(*) from public.audit_logs").fetchall() == before


def test_tests_have_the_schema_that_they_had(product: Path, new_database: Callable[..., str]) -> None:
    before, after = new_database(), new_database()
    migrations.up(before)
    migrations.up(after, root=product, example=True)
    assert sorted(schema(after).split("\n\n")) == sorted(schema(before).split("\n\n"))  # whatever was made first
    with psycopg.connect(before) as one, psycopg.connect(after) as other:
        for table in ("public.role_permissions", "app.personal_data"):
            query = f"select to_jsonb(t) - 'position' from {table} as t order by 1"
            assert other.execute(query).fetchall() == one.execute(query).fetchall()


@pytest.mark.usefixtures("alone")
def test_supabase_alone_removes_it_too(tmp_path: Path, new_database: Callable[..., str]) -> None:
    folder = copied(tmp_path, *SOURCES)
    bundled(folder)
    theirs = Project(folder, new_database())
    push(theirs)
    assert theirs.query("select to_regclass('public.projects') is not null") == [(True,)]
    remove(root=folder)
    bundled(folder)
    push(theirs)
    ours = new_database()
    migrations.up(ours, root=folder)
    assert schema(theirs.url) == schema(ours)
    assert theirs.up().empty
    assert theirs.check() == []


def test_linters_find_nothing_in_the_migration(tmp_path: Path, product: Path) -> None:
    [written] = (product / "migrations").glob("*_remove_projects.sql")
    (tmp_path / written.name).write_text(written.read_text())
    linted(tmp_path, written.name)


# --- what it refuses


def refused(folder: Path, words: str) -> None:
    before = contents(folder)
    with pytest.raises(NoExample, match=re.escape(words)):
        remove(root=folder)
    assert contents(folder) == before


def test_a_second_time_it_is_refused(product: Path) -> None:
    refused(product, "There is no policies/projects.sql, or a tests/example already: the example was removed before.")


def test_what_refers_to_projects_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path, *SOURCES, "supabase")
    migrations.add("add_tasks", "create table public.tasks (project_id uuid references projects);", root=folder)
    refused(folder, "cannot drop table projects because other objects depend on it")


@pytest.mark.parametrize("text", ["select count(*) from public.projects;", "select app.org_ids('projects:read');"])
def test_what_needs_projects_while_it_runs_is_named(tmp_path: Path, text: str) -> None:
    folder = copied(tmp_path, *SOURCES, "supabase")
    (folder / "functions/9_tables/mine.sql").write_text(text)
    refused(folder, "functions/9_tables/mine.sql needs projects: take that out of it first.")


def test_tests_have_the_columns_that_migrations_added(tmp_path: Path, new_database: Callable[..., str]) -> None:
    folder = copied(tmp_path, *SOURCES, "supabase")
    migrations.add(
        "add_budget",
        "-- Why.\nalter table public.projects add column budget numeric, add column note text;\n"
        "update public.projects set budget = 1;\nalter table public.projects drop column note;\n"
        "create index projects_budget_idx on public.projects (organization_id, budget);",
        root=folder,
    )
    remove(root=folder)
    url = new_database()
    migrations.up(url, root=folder, example=True)
    with psycopg.connect(url) as connection:
        columns = connection.execute(
            "select column_name from information_schema.columns where table_name = 'projects' and column_name in ('budget', 'note')"
        )
        assert columns.fetchall() == [("budget",)]
        assert connection.execute("select to_regclass('public.projects_budget_idx') is not null").fetchone() == (True,)


@pytest.mark.parametrize(("path", "words"), [
    (remove_example.REALTIME, remove_example.TOPIC), (remove_example.REGISTRY, "'public.projects'"),
])  # fmt: skip
def test_files_that_were_changed_are_left_alone(tmp_path: Path, path: str, words: str) -> None:
    folder = copied(tmp_path, *SOURCES, "supabase")
    text = (folder / path).read_text()
    (folder / path).write_text(f"{text}\nselect {words};\n")
    refused(folder, f"{path} has {words} in 2 statements and not in one")


def test_what_an_earlier_removal_left_is_not_overwritten(tmp_path: Path) -> None:
    folder = copied(tmp_path, *SOURCES, "supabase")
    (folder / "tests/example").mkdir(parents=True)
    refused(folder, "or a tests/example already")


def test_a_refusal_is_a_line_that_says_why(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remove_example.remove, "__defaults__", (product,))
    ran = CliRunner().invoke(ballast, ["remove-example"])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.startswith("ballast: There is no policies/projects.sql")


# --- docs/extend.md


def test_the_page_is_followed_to_a_product_whose_tests_pass(tmp_path: Path, new_database: Callable[..., str]) -> None:
    """But for ./scripts/test, of which those are run that know of the example most."""
    folder = copied(
        tmp_path, *SOURCES, "scripts", "service", "tests", "supabase", "docs", "pyproject.toml", "gunicorn.conf.py"
    )
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    [block] = re.findall(r"^```sh\n(ballast remove-example\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert block.endswith("./scripts/test\n")
    tests = "python -m pytest -q -p no:cacheprovider tests/db/test_claims.py tests/scripts/test_remove_example.py"
    url = new_database()
    printed = followed(folder, block.replace("./scripts/test", tests), DATABASE_URL=url, BALLAST_EXAMPLE="off")
    assert "Wrote database.ts, database.py." in printed
    assert "projects" not in (folder / "supabase/types/database.ts").read_text()
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 50
    assert "failed" not in printed
    for path in re.findall(r"^Wrote (\S+\.sql)$", printed, re.MULTILINE):
        assert (folder / path).exists()
