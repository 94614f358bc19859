"""A migration keeps its record when its file gets another timestamp: no database applies it twice, none misses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast
from scripts.schema import history, migrations, sql_files
from scripts.schema.sql_files import FilesInvalid, mark_origin
from tests.schema import remove
from tests.scripts.schema.test_bundle import push, write_bundle
from tests.scripts.schema.test_migrate import Project

# A migration of a release, which fails if it is applied twice.
RANK = "-- Notes have a rank: it's optional.\nalter table public.notes add column rank int;\n"
SHIPPED = "20260102000000"
MARKED_RANK = mark_origin(SHIPPED, RANK)
OWN = "create table app.own (id int primary key);\n"
FOUNDATION_PATH = "migrations/20260101000000_foundation.sql"


class Branches:
    """Files that get another state, and databases that applied earlier ones."""

    def __init__(self, root: Path, new_database: Callable[..., str]) -> None:
        self.root = root
        self.new_database = new_database

    def database(self, applied: dict[str, str]) -> Project:
        """Returns a new database to which the baseline and these migrations are applied, in this order."""
        made = Project(self.root, self.new_database())
        self.keep({})
        made.up()
        files: dict[str, str] = {}
        for name, text in applied.items():
            files[name] = text
            self.keep(files)
            made.up()
        return made

    def keep(self, files: dict[str, str]) -> None:
        """Makes these the only migrations besides the baseline."""
        made = Project(self.root, "")
        made.write_files()
        for path in (self.root / "migrations").iterdir():
            if str(path.relative_to(self.root)) != FOUNDATION_PATH:
                path.unlink()
        for name, text in files.items():
            made.write(f"migrations/{name}.sql", text)


@pytest.fixture
def branches(tmp_path: Path, new_database: Callable[..., str]) -> Branches:
    return Branches(tmp_path, new_database)


def names(project: Project) -> list[str]:
    """The recorded migrations after the baseline."""
    return [f"{version}_{name}" for version, name, _ in project.history()][1:]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({f"{SHIPPED}_rank": RANK}, {"20260301000000_rank": RANK}, id="by hand"),
        pytest.param({f"{SHIPPED}_rank": RANK}, {"20260301000000_note_rank": RANK}, id="by hand, with another name"),
        pytest.param({f"{SHIPPED}_rank": RANK}, {"20260301000000_rank": MARKED_RANK}, id="merged, later upgraded"),
        pytest.param({"20260201000000_rank": MARKED_RANK}, {"20260301000000_rank": MARKED_RANK}, id="upgraded twice"),
        pytest.param({"20260301000000_rank": MARKED_RANK}, {"20260201000000_rank": MARKED_RANK}, id="to an older one"),
        pytest.param({"20260301000000_rank": MARKED_RANK}, {"20260301000000_rank": RANK}, id="without its first line"),
    ],
)
def test_a_renamed_migration_is_not_applied_again(
    branches: Branches, before: dict[str, str], after: dict[str, str]
) -> None:
    project = branches.database(before)
    branches.keep(after)
    plan = project.up()
    assert plan.paths == []
    assert names(project) == list(after)
    assert project.up().is_empty


@pytest.mark.parametrize(
    ("branch_version", "main_version"), [("20260201", "20260401"), ("20260501", "20260201")], ids=["before", "after"]
)
def test_two_branches_that_took_a_release_are_merged(
    branches: Branches, branch_version: str, main_version: str
) -> None:
    """The files keep the name of main, which has a migration of its own that the branch does not have."""
    ours, theirs = f"{main_version}000000_rank", f"{branch_version}000000_rank"
    own = {"20260301000000_own": OWN}
    in_main = dict(sorted({ours: MARKED_RANK, **own}.items()))
    main, branch, behind = branches.database(in_main), branches.database({theirs: MARKED_RANK}), branches.database(own)
    branches.keep({theirs: MARKED_RANK, **in_main})
    with pytest.raises(FilesInvalid, match="taken on two branches: delete the one that your main branch did not have"):
        main.up()
    branches.keep(in_main)
    assert main.up().is_empty
    assert branch.up().paths == ["migrations/20260301000000_own.sql"]
    assert names(branch) == names(main) == list(in_main)
    if main_version > "20260301":
        assert behind.up().paths == [f"migrations/{ours}.sql"]


def test_a_database_that_the_supabase_cli_migrated_recognizes_it(branches: Branches) -> None:
    branches.keep({"20260201000000_rank": MARKED_RANK})
    project = Project(branches.root, branches.new_database())
    write_bundle(project.root)
    push(project)
    branches.keep({"20260301000000_rank": MARKED_RANK})
    for path in (project.root / "supabase/migrations").glob("*_rank.sql"):
        path.unlink()
    copy = project.root / "supabase/migrations/20260301000000_rank.sql"
    copy.write_text(MARKED_RANK)
    with pytest.raises(AssertionError, match="Remote migration versions not found in local migrations directory"):
        push(project)
    assert project.up().paths == []
    push(project)
    assert [name for name in names(project) if not name.endswith(".bundle")] == ["20260301000000_rank"]


def test_migrations_that_exchange_their_timestamps_keep_their_records(branches: Branches) -> None:
    project = branches.database({"20260201000000_a": RANK, "20260301000000_b": OWN})
    branches.keep({"20260201000000_c": mark_origin("20260301000000", OWN), "20260401000000_a": RANK})
    with pytest.raises(history.HistoryDisagrees, match=r"20260201000000_c\.sql was edited"):
        project.up()
    first, second = mark_origin("20250101000000", RANK), mark_origin("20250102000000", OWN)
    project = branches.database({"20260201000000_a": first, "20260301000000_b": second})
    branches.keep({"20260201000000_b": second, "20260301000000_a": first})
    assert project.up().paths == []
    assert names(project) == ["20260201000000_b", "20260301000000_a"]


def test_a_text_that_two_files_have_identifies_neither(branches: Branches) -> None:
    step = "update public.notes set body = 'filled' where body is null;\n"
    project = branches.database({"20260201000000_fill": step})
    branches.keep({"20260201000000_fill": step, "20260202000000_fill_more": step})
    assert project.up().paths == ["migrations/20260202000000_fill_more.sql"]
    branches.keep({"20260301000000_fill": step, "20260302000000_fill_more": step})
    with pytest.raises(history.HistoryDisagrees, match=r"20260201000000_fill\.sql is applied but has no file"):
        project.up()


def test_an_edited_migration_of_a_release_is_refused_without_a_database(branches: Branches) -> None:
    branches.keep({"20260201000000_rank": MARKED_RANK.replace("rank int", "rank bigint")})
    with pytest.raises(FilesInvalid, match=r"20260201000000_rank\.sql differs from the release that it came with"):
        sql_files.read_files(branches.root)


@pytest.mark.parametrize("line", ["-- ballast: rank", "-- ballast: 20260102000000", "-- ballast:"])
def test_a_first_line_that_is_damaged_is_refused(branches: Branches, line: str) -> None:
    branches.keep({"20260201000000_rank": f"{line}\n{RANK}"})
    with pytest.raises(FilesInvalid, match="differs from the release"):
        sql_files.read_files(branches.root)


@pytest.mark.parametrize("version", ["20260201000000", "20260301000000"])
def test_a_database_that_applied_another_text_is_refused(branches: Branches, version: str) -> None:
    project = branches.database({"20260201000000_rank": mark_origin(SHIPPED, RANK.replace("int;", "bigint;"))})
    branches.keep({f"{version}_rank": MARKED_RANK})
    with pytest.raises(history.HistoryDisagrees, match=rf"{version}_rank\.sql was edited after it was applied"):
        project.up()


@pytest.mark.parametrize("name", [f"{SHIPPED}_rank", "20260601000000_ranks"])
def test_a_migration_that_is_there_twice_is_refused(branches: Branches, name: str) -> None:
    """A squashed merge brings the release's file back."""
    branches.keep({"20260301000000_rank": MARKED_RANK, name: RANK})
    with pytest.raises(FilesInvalid, match=rf"are the same migration of a release: delete migrations/{name}\.sql"):
        sql_files.read_files(branches.root)


def test_a_migration_that_was_applied_twice_is_named(branches: Branches) -> None:
    project = branches.database({"20260201000000_rank": MARKED_RANK})
    project.query(
        "insert into supabase_migrations.schema_migrations (version, name, statements) "
        "select '20260301000000', name, statements from supabase_migrations.schema_migrations where version like '202602%'"
    )
    with pytest.raises(history.HistoryDisagrees, match=r"20260301000000_rank\.sql is applied but has no file"):
        project.up()


def test_a_dry_run_keeps_the_old_name(branches: Branches) -> None:
    project = branches.database({f"{SHIPPED}_rank": RANK})
    branches.keep({"20260301000000_rank": MARKED_RANK, "20260401000000_own": OWN})
    assert project.up(dry_run=True).paths == ["migrations/20260401000000_own.sql"]
    assert names(project) == [f"{SHIPPED}_rank"]
    states = dict(migrations.list_states(project.url, root=project.root))
    assert states["migrations/20260301000000_rank.sql"] == "renamed"


def test_the_command_announces_the_new_name(migrated_database: str, new_database: Callable[..., str]) -> None:
    url = new_database(migrated_database)
    remove(url)
    newest = sql_files.read_files(sql_files.ROOT).migrations[-1]
    with psycopg.connect(url) as connection:
        connection.execute(
            "update supabase_migrations.schema_migrations set version = '20270101000000' where version = %s",
            [newest.version],
        )

    def run(*words: str) -> Result:
        return CliRunner().invoke(ballast, ["migrate", *words], env={"DATABASE_URL": url})

    assert f"Next: {newest.path}." in run("status").stderr
    check = run("check")
    assert (check.exit_code, f"Pending: {newest.path}\n" in check.stderr) == (1, True)
    change = f"{newest.path} under this name: it was applied as 20270101000000_{newest.name}.sql\n"
    assert run("up", "--dry-run").stdout == f"Would record {change}"
    assert run("up").stdout == f"Recorded {change}"
    assert run("check").exit_code == 0
