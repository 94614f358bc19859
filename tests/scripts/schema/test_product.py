"""A product takes two releases: nothing conflicts, no row is lost, and the tests of both pass.

The product is tests/product, built in a clone. The releases are made here: their migrations are older than the
product's. They change no pinned package, so that `./scripts/setup` has nothing to install.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from scripts.schema import drift, migrations
from scripts.schema.sql_files import read_files, strip_origin
from tests.conftest import ROOT
from tests.scripts.conftest import Vault
from tests.scripts.schema.test_bundle import dump_schema, push
from tests.scripts.schema.test_migrate import Project
from tests.scripts.schema.test_new_table import run_script
from tests.scripts.schema.test_releases import AUTHOR

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        (ROOT / "functions/9_tables/clients.sql").exists(), reason="This product has a table of the example product."
    ),
]

PROJECTS, POLICIES, NEW = "functions/9_tables/projects.sql", "policies/projects.sql", "functions/9_tables/urgent.sql"
PRIORITY = """\
-- Projects have a priority.
alter table public.projects add column priority integer not null default 0;
comment on column public.projects.priority is 'The higher, the more urgent.';
"""
INDEX = """\
-- Members list urgent projects first. No project has a priority yet, so the index is small.
-- squawk-ignore require-concurrent-index-creation
create index projects_organization_id_priority_idx on public.projects (organization_id, priority) where priority > 0;
"""
URGENT = """\
-- The urgent projects.
create or replace function public.urgent_projects() returns setof public.projects
language sql stable parallel safe security invoker set search_path = pg_catalog, pg_temp
as $$
  select * from public.projects as p where p.priority > {limit} order by p.priority desc, p.id;
$$;
comment on function public.urgent_projects is 'The urgent projects that the caller may read.';
grant execute on function public.urgent_projects() to authenticated;
"""
ROWS = """\
insert into public.clients (organization_id, name) select id, 'A client of ' || name from public.organizations;
insert into public.invoices (organization_id, client_id, number, amount)
select c.organization_id, c.id, n, n from public.clients as c, generate_series(1, 5) as n;
insert into public.comments (organization_id, invoice_id, author_id, body)
select i.organization_id, i.id, i.client_id, 'Paid?' from public.invoices as i;
"""
COUNTS = """\
select (select count(*) from public.clients), (select count(*) from public.invoices), (select count(*) from public.comments),
  (select count(*) from public.projects), (select count(*) from public.organization_memberships)
"""
REMOTE, UPGRADE = re.findall(r"^```console\n\$ (.+)$", (ROOT / "docs/upgrade.md").read_text(), re.MULTILINE)
# Tests of Ballast that read the whole schema, and those of the product.
TESTS = (
    "tests/db/test_schema_rules.py", "tests/db/test_claims.py", "tests/db/test_realtime.py", "tests/db/test_member_roles.py",
    "tests/db/test_personal_data.py", "tests/db/test_job_schedule.py", "tests/service/test_mail.py",
)  # fmt: skip


@dataclass(frozen=True)
class Checkout:
    """A clone of Ballast's files, whose commands run its own code."""

    root: Path

    def run(self, script: str, **environment: str) -> str:
        return run_script(self.root, script, **AUTHOR, GIT_CONFIG_GLOBAL=os.devnull, **environment)

    def commit(self, message: str) -> None:
        self.run(f"git add --all && git commit --quiet --message '{message}'")

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def link_packages(self) -> None:
        """Uses the installed packages. `./scripts/setup` would replace them if the clone had other lock files."""
        for name, inputs in ((".venv", "requirements.txt pyproject.toml"), ("node_modules", "package-lock.json")):
            installed = (ROOT / name / ".installed").read_text().strip()
            assert self.run(f"cat {inputs} | git hash-object --stdin").strip() == installed
            (self.root / name).symlink_to(ROOT / name)
            with (self.root / ".git/info/exclude").open("a") as file:
                file.write(f"/{name}\n")

    @property
    def migrations(self) -> list[str]:
        return [f"{migration.version}_{migration.name}" for migration in read_files(self.root).migrations]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Ballast with three releases. v0.1.0 is this checkout."""
    made = Checkout(tmp_path_factory.mktemp("upstream"))
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (made.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, made.root / name)
    made.run("git init --quiet --initial-branch=main")
    made.link_packages()
    made.commit("Release 0.1.0.")
    made.run("git tag v0.1.0")
    newest = int(max(made.migrations)[:14])
    made.write(f"migrations/{newest + 1}_add_priority.sql", PRIORITY)
    made.write(NEW, URGENT.format(limit=0))
    made.edit(PROJECTS, "t.metadata,", "t.metadata,t.priority,")
    made.edit(POLICIES, "status, metadata)", "status, metadata, priority)")
    release(made, "0.2.0")
    made.write(f"migrations/{newest + 2}_index_priority.sql", INDEX)
    made.write(NEW, URGENT.format(limit=5))
    made.edit(POLICIES, '"read with projects:read"', '"read projects"')
    release(made, "0.3.0")
    return made


def release(upstream: Checkout, version: str) -> None:
    head, mark, sections = (upstream.root / "CHANGELOG.md").read_text().partition("\n## ")
    upstream.write("CHANGELOG.md", f"{head}\n## {version} (2027-01-01)\n\n- What {version} adds.\n{mark}{sections}")
    upstream.run("ballast types")
    upstream.commit(f"Release {version}.")
    upstream.run(f"git tag v{version}")


@pytest.fixture(scope="module")
def product(upstream: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The product, which started as a copy of v0.1.0 and changed none of Ballast's files but the README."""
    made = Checkout(tmp_path_factory.mktemp("product") / "product")
    upstream.run(f"git clone --quiet --branch=v0.1.0 . {made.root}")
    made.run(REMOTE.replace("https://example.com/ballast.git", str(upstream.root)))
    made.run("git switch --quiet --create=main")
    made.link_packages()
    made.run("tests/product/build && ballast types && ballast migrate bundle")
    made.write("README.md", "# Our product\n")
    made.commit("Build the product.")
    changed = made.run("git diff --name-only --diff-filter=MD v0.1.0 HEAD").split()
    assert changed == ["README.md", "supabase/types/database.py", "supabase/types/database.ts"]
    return made


def copy(product: Checkout, folder: Path) -> Checkout:
    shutil.copytree(product.root, folder, symlinks=True)
    return Checkout(folder)


def add_rows(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute((ROOT / "supabase/seed.sql").read_bytes())
        connection.execute(ROWS)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Taken:
    """The product after both releases, its database, and one that only the Supabase CLI migrates."""

    product: Checkout
    database: Project
    pushed: Project
    rows: list[tuple[int, ...]]
    printed: list[str]


@pytest.fixture(scope="module")
def taken(product: Checkout, lasting_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Taken:
    """Takes v0.2.0 and then the newest release, v0.3.0, as docs/upgrade.md describes."""
    made = copy(product, tmp_path_factory.mktemp("taken") / "product")
    database, pushed = (Project(made.root, lasting_database()) for _ in range(2))
    database.up()
    push(pushed)
    for each in (database, pushed):
        add_rows(each.url)
    rows = database.query(COUNTS)
    folder = tmp_path_factory.mktemp("backups")
    vault = Vault(database.url, folder.as_uri(), folder)
    variables = {name: value or "" for name, value in vault.environment.items()}
    printed = []
    for command in (f"{UPGRADE} v0.2.0", UPGRADE):
        vault.back_up()
        printed.append(made.run(command, **variables))
        assert made.run("git status --porcelain") == ""
        database.up()
        push(pushed)
    return Taken(made, database, pushed, rows, printed)


def test_the_releases_migrations_follow_the_products(taken: Taken, product: Checkout) -> None:
    before = product.migrations
    assert taken.product.migrations[: len(before)] == before
    added = taken.product.migrations[len(before) :]
    assert [name.partition("_")[2] for name in added] == ["add_priority", "index_priority"]
    texts = {file.name: strip_origin(file.text) for file in read_files(taken.product.root).migrations}
    assert (texts["add_priority"], texts["index_priority"]) == (PRIORITY, INDEX)
    taken.product.run("squawk migrations/*.sql && sqlfluff lint migrations && ./scripts/ci/check-migrations")


def test_no_row_is_lost_and_nothing_differs_from_the_files(taken: Taken) -> None:
    for database in (taken.database, taken.pushed):
        assert database.query(COUNTS) == taken.rows
        assert database.query("select count(*) from public.urgent_projects()") == [(0,)]
        assert database.up().is_empty
        plan, found = drift.check(database.url, root=taken.product.root)
        assert (plan.is_empty, found) == (True, [])
    assert dump_schema(taken.pushed.url) == dump_schema(taken.database.url)
    taken.product.run("ballast migrate bundle --check")


def test_the_command_prints_what_changed_and_what_is_left(taken: Taken) -> None:
    for version, printed in zip(("0.2.0", "0.3.0"), taken.printed, strict=True):
        assert re.findall(r"^- What (\S+) adds\.$", printed, re.MULTILINE) == [version]
        assert "rows still have their values" in printed
        assert printed.rstrip().endswith("docs/upgrade.md explains each step.")


def test_the_products_files_and_the_releases_files_are_unchanged(taken: Taken, upstream: Checkout) -> None:
    run = taken.product.run
    assert run("git diff --name-only --diff-filter=MD refs/ballast/v0.3.0 HEAD -- . ':!migrations'").split() == [
        "README.md", "supabase/types/database.py", "supabase/types/database.ts",
    ]  # fmt: skip
    assert (taken.product.root / "README.md").read_text() == "# Our product\n"
    assert "priority" in (taken.product.root / "supabase/types/database.ts").read_text()
    assert "invoice_totals" in (taken.product.root / "supabase/types/database.ts").read_text()


def test_a_skipped_release_ends_in_the_same_schema(
    taken: Taken, product: Checkout, new_database: Callable[..., str], tmp_path: Path
) -> None:
    made = copy(product, tmp_path / "product")
    database = Project(made.root, new_database())
    database.up()
    add_rows(database.url)
    printed = made.run("ballast upgrade --no-check")
    assert re.findall(r"^- What (\S+) adds\.$", printed, re.MULTILINE) == ["0.3.0", "0.2.0"]
    assert [name.partition("_")[2] for name in made.migrations][-2:] == ["add_priority", "index_priority"]
    database.up()
    assert database.query(COUNTS) == taken.rows
    assert dump_schema(database.url) == dump_schema(taken.database.url)
    # The database takes the names of another branch, which took the releases one by one.
    plan = migrations.up(database.url, root=taken.product.root)
    assert (len(plan.migrations), len(plan.renamed)) == (0, 2)
    assert [version for version, *_ in database.history()] == [name[:14] for name in taken.product.migrations]


def test_the_command_has_nothing_to_do_twice(taken: Taken) -> None:
    before = taken.product.run("git rev-parse HEAD")
    assert taken.product.run("ballast upgrade --no-check").startswith("v0.3.0 is already merged.\n")
    assert taken.product.run("git rev-parse HEAD && git status --porcelain") == before


def test_the_tests_of_the_product_and_of_ballast_pass(taken: Taken) -> None:
    own = taken.product.run("cd tests/product/tests && find . -name 'test_*.py'").split()
    tests = " ".join([*TESTS, *(f"tests/{path}" for path in own)])
    printed = taken.product.run(f"python -m pytest -q -p no:cacheprovider {tests}")
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 500
    assert "failed" not in printed
