"""`ballast upgrade-check`: every release can be upgraded, and what an upgrade would lose is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from scripts import database, migrations, upgrade
from scripts.cli import ballast
from scripts.migrations import EXAMPLE
from tests.conftest import ROOT
from tests.scripts.test_new import SOURCES_OF_TESTS, copied

pytestmark = pytest.mark.thorough


def test_every_release_can_be_upgraded() -> None:
    result = CliRunner().invoke(ballast, ["upgrade-check", "--json"], env={"BACKUP_IDENTITY": None})
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found) == len(upgrade.releases())
    for checks in found.values():
        assert all(check["passed"] for check in checks)
        assert {check["name"] for check in checks} >= {
            "migrations",
            "data",
            "types",
            "drift",
            "policies",
            "other tenants denied",
        }


Findings = Callable[..., dict[str, str]]


def policies_in(root: Path) -> Path:
    """Where the policies of projects are: among the product's, or beside them (`ballast remove-example`)."""
    return next(
        folder for folder in (root / "policies", root / EXAMPLE / "policies") if (folder / "projects.sql").exists()
    )


@pytest.fixture
def findings(inhabited: str, new_database: Callable[..., str], tmp_path: Path) -> Findings:
    """What is found wrong with a migration, and with other policies, on a database with people in every table."""
    copied(tmp_path, *SOURCES_OF_TESTS)

    def find(migration: str, **policies: str) -> dict[str, str]:
        migrations.add("next", migration, root=tmp_path)
        for table, text in policies.items():
            (policies_in(tmp_path) / f"{table}.sql").write_text(text)
        url = new_database(inhabited)
        with database.connected(url) as connection:
            found = list(upgrade.migrated(url, connection, tmp_path))
        assert {check.name for check in found} >= {"migrations", "data", "types", "drift", "policies"}
        return {check.name: check.detail for check in found if not check.passed}

    return find


def test_what_is_added_loses_nothing(findings: Findings) -> None:
    migration = (
        "alter table public.projects add column colour text not null default 'red';"
        "create table app.later (id integer primary key);"
        "comment on table app.later is 'x'; alter table app.later enable row level security, force row level security;"
        "insert into public.role_permissions (role, permission) values ('viewer', 'colours:read');"
    )
    assert findings(migration) == {}


@pytest.mark.parametrize(("deed", "check", "found"), [
    ("update public.projects set title = title || '!'", "data", "public.projects.title differs in"),
    ("alter table public.projects alter column description type varchar(3) using left(description, 3)", "types",
     "public.projects.description text is gone"),
    ("alter table public.projects drop column metadata", "data", "public.projects.metadata is gone"),
    ("drop table app.mail_suppressions", "data", "app.mail_suppressions is gone"),
    ("revoke execute on function public.ready() from service_role", "types", "public.ready() service_role is gone"),
])  # fmt: skip
def test_what_is_lost_is_found(findings: Findings, deed: str, check: str, found: str) -> None:
    assert found in findings(f"{deed};")[check]


def test_what_a_migration_says_that_it_does_is_no_loss(findings: Findings) -> None:
    migration = (
        "-- upgrade-check: changes public.projects.title\n-- upgrade-check: changes public.projects.updated_at\n"
        "-- upgrade-check: removes public.projects.metadata\n"
        "update public.projects set title = title || '!'; alter table public.projects drop column metadata;"
    )
    policy = (policies_in(ROOT) / "projects.sql").read_text().replace(", metadata", "")
    assert findings(migration, projects=policy) == {}


def test_rows_that_are_gone_are_no_changed_values(findings: Findings) -> None:
    migration = "-- upgrade-check: changes public.projects.title\ndelete from public.projects;"
    assert "rows of public.projects are gone" in findings(migration)["data"]
    assert findings("-- upgrade-check: deletes public.projects\ndelete from public.projects;") == {}


def test_a_table_that_stands_open_is_found(findings: Findings) -> None:
    found = findings("alter table public.projects no force row level security;")
    assert "public.projects: " in found["policies"]


def test_a_migration_that_cannot_be_applied_is_a_check_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise migrations.StatementFailed("migrations/x.sql:1: no")

    monkeypatch.setattr(migrations, "up", refuse)
    result = CliRunner().invoke(ballast, ["upgrade-check", "--json"])
    assert result.exit_code == 1
    [checks] = json.loads(result.stdout).values()
    assert checks[-1] | {"seconds": 0} == {
        "name": "upgrade", "passed": False, "detail": "migrations/x.sql:1: no", "seconds": 0,
    }  # fmt: skip


def test_without_a_release_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(migrations, "ROOT", tmp_path)
    monkeypatch.setattr(upgrade, "RELEASES", tmp_path / "releases")
    result = CliRunner().invoke(ballast, ["upgrade-check"])
    assert (result.exit_code, result.stderr) == (1, "ballast: There is no release in releases.\n")
