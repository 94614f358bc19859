"""`ballast migrate bundle`: a database that Supabase's CLI made alone is the one that `ballast migrate up` makes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from scripts.backup import programs
from scripts.cli import ballast
from scripts.schema import bundle, migrations
from scripts.schema.migrations import ROOT
from scripts.schema.statements import split
from scripts.scratch.postgres import Postgres
from tests.scripts.schema.test_migrate import CALLER, NOTES, ROWS, Project

MESSAGES = "create policy hear on realtime.messages for select to authenticated using (true);\n"


def push(project: Project, *options: str) -> None:
    """What Supabase does with a project, by its CLI: migrations/ and nothing else."""
    (project.root / "supabase").mkdir(exist_ok=True)
    (project.root / "supabase/config.toml").write_bytes((ROOT / "supabase/config.toml").read_bytes())
    if not (project.root / "supabase/migrations").exists():
        (project.root / "supabase/migrations").symlink_to("../migrations")
    pushed = subprocess.run(
        [ROOT / "node_modules/.bin/supabase", "db", "push", f"--remote={project.url}?sslmode=disable", "--yes", *options],
        cwd=project.root, env=os.environ | {"DO_NOT_TRACK": "1", "SUPABASE_TELEMETRY_DISABLED": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert pushed.returncode == 0, pushed.stdout + pushed.stderr


def bundled(root: Path) -> Path | None:
    """The next bundle of the files there; None when there is nothing to say."""
    found = bundle.unbundled(migrations.read_files(root))
    return None if found.empty else migrations.add(bundle.NAME, bundle.text_of(found), root=root)


def schema(url: str) -> str:
    """All that is in a database but data, without the random key of a dump."""
    with psycopg.connect(url) as connection:
        pg_dump = programs.fitting(connection)["pg_dump"]
    dumped = subprocess.run([pg_dump, "--schema-only", url], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in dumped.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


@pytest.fixture
def project(new_database: Callable[..., str], tmp_path: Path) -> Project:
    made = Project(tmp_path, new_database())
    made.write_files()
    made.write("policies/realtime.messages.sql", MESSAGES)
    return made


@pytest.fixture
def theirs(project: Project, new_database: Callable[..., str]) -> Project:
    """The same files, and a database that only the Supabase CLI fills."""
    return Project(project.root, new_database())


def test_a_database_of_the_supabase_cli_alone_is_complete(new_database: Callable[..., str], tmp_path: Path) -> None:
    for folder in ("migrations", "functions", "policies"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    bundled(tmp_path)  # what may not be bundled yet
    ours, theirs = Project(tmp_path, new_database()), Project(tmp_path, new_database())
    ours.up()
    push(theirs)
    assert schema(theirs.url) == schema(ours.url)
    assert theirs.history() == ours.history()
    assert theirs.up().empty
    assert theirs.check() == []
    shutil.copy(ROOT / "supabase/seed.sql", tmp_path / "supabase/seed.sql")
    push(theirs, "--include-seed")
    assert theirs.query("select count(*) from public.organizations") == [(2,)]
    assert theirs.query("select count(*) from public.projects") == [(35,)]


def test_without_a_bundle_the_sources_apply_to_the_same(new_database: Callable[..., str], tmp_path: Path) -> None:
    """A bundle says what the files say: it's the way by which `migrate up` applied them before there was one."""
    for folder in ("migrations", "functions", "policies"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*_bundle.sql"))
    plain = Project(tmp_path, new_database())
    plain.up()
    before = schema(plain.url)
    assert bundled(tmp_path) is not None
    assert [path for path in plain.up().paths if not path.endswith("_bundle.sql")] == []
    assert schema(plain.url) == before


def test_what_is_bundled_is_not_applied_again(project: Project) -> None:
    path = bundled(project.root)
    assert path is not None
    assert project.up().paths == ["migrations/20260101000000_foundation.sql", f"migrations/{path.name}"]
    assert project.up().empty
    assert project.check() == []
    assert bundled(project.root) is None


def test_a_later_bundle_holds_only_what_changed(project: Project, theirs: Project) -> None:
    bundled(project.root)
    push(theirs)
    project.up()
    project.write("functions/10_caller.sql", CALLER.replace("authenticated, service_role", "service_role"))
    project.write("policies/notes.sql", NOTES.replace("(body)", "(id)").replace("read all", "read any"))
    path = bundled(project.root)
    assert path is not None
    text = path.read_text()
    assert "app.touch()" not in text
    assert "realtime" not in text
    push(theirs)
    assert theirs.check() == []
    assert {grant for grant in theirs.grants() if "realtime" not in grant} == {
        "execute on app.caller() to service_role",
        "insert (id) on public.notes to authenticated",
        "select on public.notes to authenticated",
    }
    assert project.up().paths == [f"migrations/{path.name}"]
    assert theirs.grants() == project.grants()


def test_bundles_in_one_run_do_not_close_what_earlier_ones_opened(project: Project) -> None:
    bundled(project.root)
    project.write("functions/20_rows.sql", ROWS + "grant execute on function app.touch() to service_role;\n")
    bundled(project.root)
    assert len(project.up().migrations) == 3
    assert project.check() == []
    assert "execute on app.caller() to authenticated" in project.grants()


def test_a_file_that_is_gone_is_forgotten_with_its_policies(project: Project, theirs: Project) -> None:
    bundled(project.root)
    push(theirs)
    (project.root / "policies/notes.sql").unlink()
    assert [bundle.unbundled(migrations.read_files(project.root)).removed] == [("policies/notes.sql",)]
    bundled(project.root)
    push(theirs)
    assert theirs.query("select polname from pg_policy where polrelid = 'public.notes'::regclass") == []
    assert not [grant for grant in theirs.grants() if "public.notes" in grant]
    assert theirs.up().empty
    assert bundled(project.root) is None


def test_a_table_of_supabases_that_is_not_there_yet_is_left_to_migrate_up(
    project: Project, bare_server: Postgres
) -> None:
    with psycopg.connect(bare_server.url("supabase_admin", project.url.rpartition("/")[2]), autocommit=True) as admin:
        admin.execute("alter table realtime.messages rename to messages_later")
    bundled(project.root)
    push(project)
    with psycopg.connect(bare_server.url("supabase_admin", project.url.rpartition("/")[2]), autocommit=True) as admin:
        admin.execute("alter table realtime.messages_later rename to messages")
    assert project.up().paths == ["policies/realtime.messages.sql"]
    assert project.check() == []


def test_statement_by_statement_it_refuses_to_go_on(project: Project) -> None:
    path = bundled(project.root)
    assert path is not None
    project.query((project.root / "migrations/20260101000000_foundation.sql").read_text())
    closing = next(each.text for each in split(path.read_text()) if "made record" in each.text)
    with pytest.raises(psycopg.errors.RaiseException, match="in one transaction"):
        project.query(closing)


def test_the_check_names_what_is_not_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path, "")
    project.write_files()
    monkeypatch.setattr(migrations, "ROOT", tmp_path)
    refused = CliRunner().invoke(ballast, ["migrate", "bundle", "--check"])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "Not bundled: policies/notes.sql" in refused.stderr
    assert CliRunner().invoke(ballast, ["migrate", "bundle"]).stdout.endswith("_bundle.sql: 3 files\n")
    assert CliRunner().invoke(ballast, ["migrate", "bundle", "--check"]).exit_code == 0
    assert "Nothing to do" in CliRunner().invoke(ballast, ["migrate", "bundle"]).stdout
