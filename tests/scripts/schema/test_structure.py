"""What `ballast migrate up` and bundles record of each file, so that ops.structure_health reports changes by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.schema import sql_files
from scripts.schema.migrations import StatementFailed
from scripts.schema.sql_files import ROOT
from tests.scripts.schema.test_bundle import push, write_bundle
from tests.scripts.schema.test_migrate import Project

LIGHT = "select status from ops.structure_health"
CHANGES = "select kind, name, problem from ops.structure_changes"
PARTS = "create table public.test_parts (id integer primary key, weight integer check (weight > 0));\n"
COUNT = "create or replace function app.count_parts() returns bigint language sql as 'select count(*) from public.test_parts';\n"


def copy_files(folder: Path) -> None:
    for name in ("migrations", "functions", "policies"):
        shutil.copytree(ROOT / name, folder / name)


@pytest.fixture
def project(migrated_database: str, new_database: Callable[..., str], tmp_path: Path) -> Project:
    """A checkout with our files, and a database that they are applied to."""
    copy_files(tmp_path)
    return Project(tmp_path, new_database(migrated_database))


def add_migration(project: Project, name: str, text: str) -> None:
    sql_files.write_next_migration(name, text, root=project.root)


def test_the_objects_of_a_products_files_are_recorded(project: Project) -> None:
    add_migration(project, "add_parts", PARTS)
    project.write("functions/9_tables/parts.sql", COUNT)
    project.up()
    assert project.query(CHANGES) == []
    project.query("alter table public.test_parts drop constraint test_parts_weight_check")
    project.query("create or replace function app.count_parts() returns bigint language sql as 'select 0::bigint'")
    assert project.query(CHANGES) == [
        ("constraint", "test_parts_weight_check on public.test_parts", "missing"), ("function", "app.count_parts()", "different"),
    ]  # fmt: skip
    assert project.query(LIGHT) == [("red",)]


def test_what_a_file_changes_or_drops_is_not_reported(project: Project) -> None:
    add_migration(project, "add_parts", PARTS)
    project.up()
    add_migration(
        project,
        "change_parts",
        "alter table public.test_parts drop constraint test_parts_weight_check, alter weight type bigint;\n",
    )
    project.up()
    assert project.query(CHANGES) == []
    add_migration(project, "drop_parts", "drop table public.test_parts;\n")
    project.up()
    assert project.query(CHANGES) == []
    assert project.query("select * from app.recorded_objects where name like '%parts%'") == []


def test_a_deployment_does_not_bless_what_someone_changed_before(project: Project) -> None:
    project.query("alter table public.organizations drop constraint organizations_name_check")
    project.query("alter table public.audit_logs disable trigger append_only")
    add_migration(project, "add_parts", PARTS)
    project.up()
    assert project.query(CHANGES) == [
        ("constraint", "organizations_name_check on public.organizations", "missing"),
        ("trigger", "append_only on public.audit_logs", "different"),
    ]  # fmt: skip


def test_applying_a_file_again_repairs_what_someone_changed(project: Project) -> None:
    project.query(
        "create or replace function app.org_ids(permission text) returns uuid[] language sql as 'select null::uuid[]'"
    )
    project.query("alter table public.audit_logs disable trigger append_only")
    assert project.query(LIGHT) == [("red",)]
    project.query(
        "delete from app.applied_sources where path in ('functions/1_caller/caller.sql', 'functions/3_audit/storage.sql')"
    )
    project.up()
    assert project.query(CHANGES) == []


def test_a_file_that_fails_records_nothing(project: Project) -> None:
    before = project.query("select * from app.recorded_objects order by 1, 2")
    add_migration(project, "add_parts", PARTS + "select 1 / 0;\n")
    with pytest.raises(StatementFailed):
        project.up()
    assert project.query("select * from app.recorded_objects order by 1, 2") == before
    assert project.query(CHANGES) == []


def test_a_dry_run_records_nothing(project: Project) -> None:
    add_migration(project, "add_parts", PARTS)
    project.up(dry_run=True)
    assert project.query("select * from app.recorded_objects where name like '%parts%'") == []


@pytest.mark.thorough
def test_bundles_record_the_structure(new_database: Callable[..., str], tmp_path: Path) -> None:
    copy_files(tmp_path)
    project = Project(tmp_path, new_database())
    write_bundle(tmp_path)
    push(project)
    assert project.query(LIGHT) == [("green",)]
    add_migration(project, "add_parts", PARTS)
    written = write_bundle(tmp_path)
    assert [path.name.partition("_")[2] for path in written] == ["add_parts.sql", "structure.bundle.sql"]
    push(project)
    assert project.query(CHANGES) == []
    project.query("alter table public.test_parts drop constraint test_parts_weight_check")
    assert project.query(CHANGES) == [("constraint", "test_parts_weight_check on public.test_parts", "missing")]
    assert project.up().is_empty
