"""docs/extend.md: a product without the example `projects` is complete, keeps everything else, and passes its tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, expect

from scripts.backup import upgrade
from scripts.cli import clerk
from scripts.local import bulk
from scripts.schema import drift, migrations
from tests.conftest import ROOT, Database, Stack, free_port_block
from tests.e2e.conftest import Window, membership
from tests.schema import remove
from tests.scripts.schema.test_new_table import SOURCES, copy_to, find_blocks, run_script

# The test files that write most to a tenant table.
GENERIC = ("audit", "claims", "erasure", "personal_data", "realtime", "schema_rules")


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which the page's steps were followed."""
    names = (
        "clients",
        "scripts",
        "service",
        "supabase",
        "tests",
        "docs",
        "pyproject.toml",
        "gunicorn.conf.py",
        ".env.example",
        ".sqlfluff",
        ".squawk.toml",
    )
    folder = copy_to(tmp_path_factory.mktemp("product"), *SOURCES, *names)
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    [removal] = [block for block in find_blocks("sh") if "remove_projects" in block]
    migration = run_script(folder, removal).strip()
    [text] = [block for block in find_blocks("sql") if "drop table public.projects" in block]
    (folder / migration).write_text(text)
    return folder


def test_a_new_database_without_the_example_is_complete(product: Path, new_database: Callable[..., str]) -> None:
    url = new_database()
    migrations.up(url, root=product)
    plan, drifted = drift.check(url, root=product)
    assert (plan.is_empty, drifted) == (True, [])
    with psycopg.connect(url) as connection, connection.transaction(force_rollback=True):
        database = Database(connection)
        assert database.value("select to_regclass('public.projects')") is None
        assert database.rows("select from public.role_permissions where permission like 'projects:%'") == []
        assert database.rows("select from app.personal_data where relation like '%projects'") == []
        assert database.value("select count(*) from ops.rls_coverage where gap is not null") == 0
        connection.execute((product / "supabase/seed.sql").read_bytes())
        assert database.value("select count(*) from public.organization_memberships") == 6
        assert list(bulk.fill(connection, bulk.Size(organizations=2, members=3, projects=1))) == [(2, 14)]


def test_removing_the_example_from_a_used_database_loses_nothing_else(
    product: Path, populated_database: str, new_database: Callable[..., str]
) -> None:
    url = new_database(populated_database)
    remove(url)
    with psycopg.connect(url, autocommit=True) as connection:
        entries = connection.execute("select count(*) from public.audit_logs").fetchall()
        found = list(upgrade.migrate_and_compare(url, connection, product))
        assert [check for check in found if not check.passed] == []
        assert connection.execute("select to_regclass('public.projects')").fetchall() == [(None,)]
        left = connection.execute("select relation from app.personal_data where to_regclass(relation) is null")
        assert left.fetchall() == []
        assert connection.execute("select count(*) from public.audit_logs").fetchall() == entries


@pytest.mark.thorough
def test_linters_accept_the_migration(product: Path) -> None:
    run_script(product, "sqlfluff lint migrations/*_remove_projects.sql && squawk migrations/*_remove_projects.sql")


@pytest.mark.thorough
def test_types_omit_projects_and_the_remaining_tests_pass(product: Path) -> None:
    run_script(product, "ballast types")
    assert "projects" not in (product / "supabase/types/database.ts").read_text()
    tests = " ".join(f"tests/db/test_{name}.py" for name in GENERIC)
    printed = run_script(product, f"python -m pytest -q -p no:cacheprovider {tests}")
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 300
    assert "failed" not in printed


@pytest.fixture(scope="module")
def running(product: Path, home: Path) -> Iterator[Stack]:
    """The local stack of the product."""
    place = {"BALLAST_HOME": str(home / "product"), "BALLAST_PORT_BASE": str(free_port_block()), "BALLAST_JOBS": "off"}
    environment = os.environ | place | {"PYTHONPATH": str(product)}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)

    def ballast(*words: str) -> str:
        command = [Path(sys.executable).with_name("ballast"), *words]
        ran = subprocess.run(command, cwd=product, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    try:
        ballast("up", "--detach")
        yield Stack(home / "product", json.loads(ballast("env", "--json")))
    finally:
        ballast("down")


@pytest.mark.thorough
def test_the_demo_page_shows_members_live_and_no_projects(chromium: Browser, running: Stack) -> None:
    ada = Window(chromium.new_context(base_url=running.environment["SERVICE_URL"]).new_page()).open()
    ada.page.get_by_role("button", name="Ada Winter").click()
    expect(ada.live).to_have_text("Live")
    expect(ada.member("Ada Winter")).to_contain_text("online")
    expect(ada.page.locator("#members > li")).to_have_count(4)
    expect(ada.page.get_by_role("heading", name="Projects")).to_have_count(0)
    expect(ada.page.get_by_role("button", name="Create")).to_have_count(0)

    joined = membership("user_eve", "org_acme")
    assert clerk.send(running.environment, "organizationMembership.created", joined)["outcome"] == "processed"
    expect(ada.member("Eve Moreau")).to_be_visible()
    expect(ada.page.locator("#audit-entries > li").first).to_contain_text("Clerk added Eve Moreau as member")
    assert ada.errors == []
    ada.page.context.close()
