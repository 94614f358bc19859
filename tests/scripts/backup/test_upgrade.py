"""`ballast upgrade-check`: an earlier release can be upgraded, and losses are detected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from scripts.backup import upgrade
from scripts.cli import ballast
from scripts.schema import database, sql_files
from tests import people
from tests.conftest import ROOT, Database
from tests.schema import migrate, remove
from tests.scripts.conftest import StoredBackup, Vault
from tests.scripts.schema.test_new_table import SOURCES, copy_to

pytestmark = pytest.mark.thorough

# A release that adds a column, a function and a policy that uses them.
NEXT = """-- Projects have a colour.
alter table public.projects add column colour text not null default 'red';
"""
NEXT_FUNCTION = """create or replace function app.colours() returns text[]
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select array['red', 'green'];
$$;
comment on function app.colours is 'Colours of projects.';
"""


@pytest.fixture(scope="module")
def earlier(lasting_database: Callable[..., str]) -> str:
    """A database of the earlier release, which is this checkout, with people in every table. Copy it."""
    url = lasting_database()
    migrate(url)
    with psycopg.connect(url) as connection:
        people.fill_database(Database(connection))
        connection.execute("select app.seal_audit()")
    remove(url)
    return url


@pytest.fixture(scope="module")
def backup(
    earlier: str, lasting_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> StoredBackup:
    folder = tmp_path_factory.mktemp("backups")
    return StoredBackup.make(Vault(lasting_database(earlier), folder.as_uri(), folder))


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with newer files than the earlier release."""
    root = copy_to(tmp_path / "next", *SOURCES)
    monkeypatch.setattr(sql_files, "ROOT", root)
    return root


def checks_of(shelf: Vault, backup: StoredBackup, exit_code: int) -> list[dict[str, object]]:
    """Runs `ballast upgrade-check` on the backup and returns its checks."""
    name = shelf.keep(backup)
    result = CliRunner().invoke(ballast, ["upgrade-check", "--json"], env=shelf.environment)
    assert result.exit_code == exit_code, result.output
    found = json.loads(result.stdout)
    assert list(found) == [name]
    return list(found[name])


def test_a_database_of_an_earlier_release_can_be_upgraded(
    next_release: Path, folder_shelf: Vault, backup: StoredBackup
) -> None:
    sql_files.write_next_migration("add_colour", NEXT, root=next_release)
    (next_release / "functions/98_colours.sql").write_text(NEXT_FUNCTION)
    policies = next_release / "policies/projects.sql"
    policies.write_text(policies.read_text().replace(", metadata)", ", metadata, colour)"))
    checks = checks_of(folder_shelf, backup, 0)
    assert [check for check in checks if not check["passed"]] == []
    [applied] = [check["detail"] for check in checks if check["name"] == "migrations"]
    assert applied == "1 migrations and 2 sources were applied"
    assert {check["name"] for check in checks} >= {"data", "types", "drift", "policies", "other tenants denied"}


def test_a_migration_that_cannot_be_applied_fails_a_check(
    next_release: Path, folder_shelf: Vault, backup: StoredBackup
) -> None:
    path = sql_files.write_next_migration("divide", "select 1 / 0;\n", root=next_release)
    assert checks_of(folder_shelf, backup, 1)[-1] | {"seconds": 0} == {
        "name": "upgrade", "passed": False, "seconds": 0,
        "detail": f"migrations/{path.name}:1: division by zero\nThis file was not applied; all files before it were. "
        "Run `ballast migrate up` again: it continues with this file.",
    }  # fmt: skip


Findings = Callable[..., dict[str, str]]


@pytest.fixture
def findings(earlier: str, new_database: Callable[..., str], tmp_path: Path) -> Findings:
    """Returns the failed checks of a migration and changed policies, on a database with people in every table."""
    copy_to(tmp_path, *SOURCES)

    def find(migration: str, **policies: str) -> dict[str, str]:
        sql_files.write_next_migration("next", migration, root=tmp_path)
        for table, text in policies.items():
            (tmp_path / f"policies/{table}.sql").write_text(text)
        url = new_database(earlier)
        with database.connect(url) as connection:
            found = list(upgrade.migrate_and_compare(url, connection, tmp_path))
        assert {check.name for check in found} >= {"migrations", "data", "types", "drift", "policies"}
        return {check.name: check.detail for check in found if not check.passed}

    return find


def test_additions_are_not_losses(findings: Findings) -> None:
    migration = (
        "alter table public.projects add column colour text not null default 'red';"
        "create table app.later (id integer primary key);"
        "comment on table app.later is 'x'; alter table app.later enable row level security, force row level security;"
        "insert into public.role_permissions (role, permission) values ('viewer', 'colours:read');"
    )
    assert findings(migration) == {}


@pytest.mark.parametrize(("statement", "check", "problem"), [
    ("update public.projects set title = title || '!'", "data", "public.projects.title differs in"),
    ("alter table public.projects alter column description type varchar(3) using left(description, 3)", "types",
     "public.projects.description text is gone"),
    ("alter table public.projects drop column metadata", "data", "public.projects.metadata is gone"),
    ("drop table app.mail_suppressions", "data", "app.mail_suppressions is gone"),
    ("revoke execute on function public.ready() from service_role", "types", "public.ready() service_role is gone"),
])  # fmt: skip
def test_losses_are_detected(findings: Findings, statement: str, check: str, problem: str) -> None:
    assert problem in findings(f"{statement};")[check]


def test_declared_changes_are_not_losses(findings: Findings) -> None:
    migration = (
        "-- upgrade-check: changes public.projects.title\n-- upgrade-check: changes public.projects.updated_at\n"
        "-- upgrade-check: removes public.projects.metadata\n"
        "update public.projects set title = title || '!'; alter table public.projects drop column metadata;"
    )
    policy = (ROOT / "policies/projects.sql").read_text().replace(", metadata", "")
    assert findings(migration, projects=policy) == {}


def test_a_declared_change_does_not_allow_deleted_rows(findings: Findings) -> None:
    migration = "-- upgrade-check: changes public.projects.title\ndelete from public.projects;"
    assert "rows of public.projects are gone" in findings(migration)["data"]
    assert findings("-- upgrade-check: deletes public.projects\ndelete from public.projects;") == {}


def test_a_table_without_forced_row_level_security_is_detected(findings: Findings) -> None:
    found = findings("alter table public.projects no force row level security;")
    assert "public.projects: " in found["policies"]
