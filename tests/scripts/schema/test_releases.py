"""Taking a release, on small repositories: each migration is there once, after the product's own, and keeps its identity.

tests/scripts/schema/test_product.py takes releases into a whole product.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from scripts.cli import ballast
from scripts.schema import releases
from scripts.schema.releases import CheckoutUnfit, ReleaseChanged, ReleaseUnknown, Repository, UpstreamMissing
from scripts.schema.sql_files import FilesInvalid, mark_origin, read_files

BASE = "migrations/20260101000000_base.sql"
OWN = "migrations/20260301000000_own.sql"
RANK, COLOR, SIZE = (
    f"-- Notes have a {name}.\nalter table public.notes add column {name} text;\n" for name in ("rank", "color", "size")
)
AUTHOR = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER") for key, value in (("NAME", "Ada"), ("EMAIL", "ada@example.com"))
}  # fmt: skip


@pytest.fixture(autouse=True)
def author(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AUTHOR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


@dataclass(frozen=True)
class Clone:
    """A repository whose files a test commits."""

    root: Path

    @property
    def repository(self) -> Repository:
        return Repository(self.root)

    def git(self, *words: str) -> str:
        return subprocess.run(["git", *words], cwd=self.root, check=True, capture_output=True, text=True).stdout

    def commit(self, files: dict[str, str | None], tag: str | None = None) -> None:
        """Writes files, or deletes those without a text, and commits them."""
        for path, text in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                (self.root / path).unlink()
            else:
                (self.root / path).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "Change files.")
        if tag is not None:
            self.git("tag", tag)

    def take(self, tag: str | None = None) -> list[str]:
        """Takes a release as `ballast upgrade` does, without generated files. Returns the migrations that it renamed."""
        self.merge(tag)
        return self.finish()

    def merge(self, tag: str | None = None) -> None:
        releases.merge(self.repository, releases.fetch(self.repository, tag))

    def finish(self) -> list[str]:
        releases.settle(self.repository)
        assert self.repository.list_conflicts() == []
        self.git("commit", "--quiet", "--message", "Take a release.")
        assert self.git("status", "--porcelain") == ""
        return [each.path for each in releases.list_taken(self.repository, releases.list_releases(self.repository)[-1])]

    @property
    def migrations(self) -> dict[str, str]:
        """The texts of the migrations by name, oldest first. No command accepts them twice."""
        return {file.name: file.text for file in read_files(self.root).migrations}


@pytest.fixture
def upstream(tmp_path: Path) -> Clone:
    """A repository with three releases: v0.1.0 has a baseline, v0.2.0 adds rank and color, v0.3.0 adds size."""
    made = Clone(tmp_path / "upstream")
    made.root.mkdir()
    made.git("init", "--quiet", "--initial-branch=main")
    made.commit(
        {
            BASE: "create table public.notes (id int primary key);\n",
            "README.md": "Ballast\n",
            "functions/a.sql": "select 1;\n",
        },
        "v0.1.0",
    )
    made.commit(
        {
            "migrations/20260102000000_rank.sql": RANK,
            "migrations/20260103000000_color.sql": COLOR,
            "functions/a.sql": "select 2;\n",
        },
        "v0.2.0",
    )
    made.commit({"migrations/20260104000000_size.sql": SIZE, "functions/a.sql": "select 3;\n"}, "v0.3.0")
    made.git("tag", "v0.10.0-rc1")
    return made


@pytest.fixture
def product(upstream: Clone, tmp_path: Path) -> Clone:
    """A clone of v0.1.0 with a newer migration of its own, and tags of its own."""
    upstream.git("clone", "--quiet", "--no-tags", "--origin=upstream", ".", str(tmp_path / "product"))
    made = Clone(tmp_path / "product")
    made.git("reset", "--quiet", "--hard", upstream.git("rev-parse", "v0.1.0").strip())
    made.commit({OWN: "create table public.own (id int primary key);\n", "README.md": "Our product\n"}, "v0.3.0")
    return made


ALL = {"rank": ("20260102000000", RANK), "color": ("20260103000000", COLOR), "size": ("20260104000000", SIZE)}


def marked(*names: str) -> dict[str, str]:
    return {name: mark_origin(*ALL[name]) for name in names}


def own(product: Clone) -> dict[str, str]:
    return {name: (product.root / path).read_text() for name, path in (("base", BASE), ("own", OWN))}


def test_migrations_of_a_release_come_after_the_products(product: Clone) -> None:
    renamed = product.take("v0.2.0")
    assert list(product.migrations.items()) == list((own(product) | marked("rank", "color")).items())
    assert [path.partition("_")[2] for path in renamed] == ["rank.sql", "color.sql"]
    assert (product.root / "functions/a.sql").read_text() == "select 2;\n"
    assert (product.root / "README.md").read_text() == "Our product\n"


def test_timestamps_follow_those_of_bundles(product: Clone) -> None:
    product.commit({"supabase/migrations/20990101000000_functions_a.bundle.sql": "select 1;\n"})
    assert product.take() == [f"migrations/2099010100000{number}_{name}.sql" for number, name in enumerate(ALL, 1)]


@pytest.mark.parametrize("tags", [["v0.2.0", "v0.3.0"], ["v0.3.0"], [None]], ids=["one by one", "skipped", "newest"])
def test_a_skipped_release_is_not_missed(product: Clone, tags: list[str | None]) -> None:
    for tag in tags:
        product.take(tag)
        product.commit({f"migrations/{tag or 'none'}.txt": "The product goes on."})
    assert product.migrations == own(product) | marked(*ALL)
    assert (product.root / "functions/a.sql").read_text() == "select 3;\n"


def test_a_release_is_taken_once(product: Clone) -> None:
    product.take()
    assert releases.is_merged(product.repository, releases.fetch(product.repository, None))


def test_a_squashed_merge_brings_no_migration_back(product: Clone) -> None:
    product.git("switch", "--quiet", "--create=upgrade")
    product.take("v0.2.0")
    product.git("switch", "--quiet", "main")
    product.git("merge", "--quiet", "--squash", "upgrade")
    product.git("commit", "--quiet", "--message", "Squashed.")
    before = product.migrations
    product.merge("v0.3.0")
    releases.settle(product.repository)
    assert product.repository.list_conflicts() == ["functions/a.sql"]
    assert product.migrations == before | marked("size")


@pytest.mark.parametrize("squashed", [False, True])
def test_a_file_that_was_renamed_by_hand_is_recognized(product: Clone, squashed: bool) -> None:
    """The release was merged or copied without this command, and its files got new timestamps."""
    releases.fetch(product.repository, None)
    if squashed:
        product.git("checkout", "--quiet", "refs/ballast/v0.2.0", "--", "migrations")
    else:
        product.git("merge", "--quiet", "--no-edit", "--strategy-option=ours", "refs/ballast/v0.2.0")
    product.git("mv", "migrations/20260102000000_rank.sql", "migrations/20260401000000_rank.sql")
    product.git("mv", "migrations/20260103000000_color.sql", "migrations/20260402000000_paint.sql")
    product.git("commit", "--quiet", "--message", "Rename files.")
    if squashed:
        product.merge()
        product.finish()
        assert product.migrations == own(product) | {
            "rank": marked("rank")["rank"],
            "paint": marked("color")["color"],
        } | marked("size")
    else:
        product.take()
        assert [*product.migrations] == ["base", "own", "rank", "paint", "size"]


@pytest.mark.parametrize("lines", [0, 40], ids=["small files", "renames that git detects"])
def test_two_branches_that_took_a_release_differ_only_in_names(upstream: Clone, product: Clone, lines: int) -> None:
    long = "-- A long file.\n" * lines + "select 1;\n"
    upstream.commit({"migrations/20260105000000_long.sql": long}, "v0.4.0")
    product.git("switch", "--quiet", "--create=branch")
    product.take()
    theirs = set(product.git("ls-files", "migrations").split())
    product.git("switch", "--quiet", "main")
    product.commit({"migrations/20990101000000_later.sql": "select 2;\n"})
    product.take()
    ours = product.git("ls-files", "migrations").split()
    merged = product.repository.attempt("merge", "--no-edit", "branch")
    assert merged.returncode == (1 if lines else 0)
    if lines:
        assert len(product.repository.list_conflicts()) == 3
    else:
        with pytest.raises(FilesInvalid, match="are the same migration of a release, taken on two branches: delete"):
            read_files(product.root)
    others = set(product.git("ls-files", "migrations").split()) | theirs
    product.git("rm", "--quiet", "--force", "--ignore-unmatch", *(others - set(ours)))
    product.git("add", "--all")
    product.git("commit", "--quiet", "--message", "Keep the names of main.")
    assert product.git("ls-files", "migrations").split() == ours
    upstream.commit({"functions/a.sql": "select 5;\n"}, "v0.5.0")
    product.take()
    assert product.git("ls-files", "migrations").split() == ours


@pytest.mark.parametrize("done", range(5))
def test_an_interrupted_upgrade_continues(product: Clone, done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any write or deletion of a file."""
    steps = iter(range(done))
    real_write, real_unlink = releases.write_whole, Path.unlink

    def write(path: Path, text: str) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        real_write(path, text)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        real_unlink(path, missing_ok)

    product.merge()
    with monkeypatch.context() as patched:
        patched.setattr(releases, "write_whole", write)
        patched.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            releases.settle(product.repository)
    unfinished = releases.find_unfinished(product.repository, None)
    assert unfinished is not None
    assert unfinished.tag == "v0.3.0"
    product.finish()
    assert list(product.migrations.items()) == list((own(product) | marked(*ALL)).items())


def test_a_conflict_stops_the_upgrade_and_its_resolution_continues_it(product: Clone) -> None:
    product.commit({"functions/a.sql": "select 'ours';\n"})
    product.merge()
    releases.settle(product.repository)
    assert product.repository.list_conflicts() == ["functions/a.sql"]
    (product.root / "functions/a.sql").write_text("select 3;\n")
    product.git("add", "functions/a.sql")
    assert len(product.finish()) == 3


def test_an_upgrade_that_is_undone_leaves_nothing(product: Clone) -> None:
    before = product.git("ls-files", "--stage")
    product.merge()
    releases.settle(product.repository)
    product.git("merge", "--abort")
    assert product.git("ls-files", "--stage") == before
    assert product.git("status", "--porcelain") == ""


def test_a_file_that_the_product_deleted_stays_deleted(upstream: Clone, product: Clone) -> None:
    """Such as the example `projects`, whose files docs/extend.md deletes."""
    product.commit({"functions/a.sql": None})
    product.take()
    assert product.git("ls-files", "functions") == ""
    upstream.commit({"functions/a.sql": "select 4;\n"}, "v0.4.0")
    product.take()
    assert product.git("ls-files", "functions") == ""


def test_a_changed_file_that_the_release_deletes_is_a_conflict(upstream: Clone, product: Clone) -> None:
    upstream.commit({"functions/a.sql": None}, "v0.4.0")
    product.commit({"functions/a.sql": "select 'ours';\n"})
    product.merge()
    releases.settle(product.repository)
    assert product.repository.list_conflicts() == ["functions/a.sql"]


def test_a_file_that_both_renamed_is_a_conflict(upstream: Clone, product: Clone) -> None:
    text = "".join(f"select {number};\n" for number in range(20))
    upstream.commit({"functions/b.sql": text}, "v0.4.0")
    product.take()
    upstream.commit({"functions/b.sql": None, "functions/theirs.sql": text}, "v0.5.0")
    product.commit({"functions/b.sql": None, "functions/ours.sql": text})
    product.merge()
    releases.settle(product.repository)
    assert product.repository.list_conflicts() == ["functions/b.sql", "functions/ours.sql", "functions/theirs.sql"]


def test_generated_files_never_conflict(upstream: Clone, product: Clone) -> None:
    types, bundle = "supabase/types/database.ts", "supabase/migrations/20260105000000_functions_a.bundle.sql"
    upstream.commit({types: "theirs\n", bundle: "theirs\n"}, "v0.4.0")
    product.commit({types: "ours\n", "supabase/migrations/20260301000000_own.sql": "ours\n"})
    product.take()
    assert product.git("ls-files", "supabase").split() == ["supabase/migrations/20260301000000_own.sql", types]
    assert (product.root / types).read_text() == "theirs\n"


def test_locks_that_both_changed_are_pinned_again(upstream: Clone, product: Clone) -> None:
    upstream.commit({"requirements.txt": "theirs\n", "package-lock.json": "theirs\n"}, "v0.4.0")
    product.commit({"requirements.txt": "ours\n"})
    product.merge()
    releases.settle(product.repository)
    assert product.repository.list_conflicts() == []
    assert releases.find_stale_locks(product.repository) == ["requirements.txt"]


def test_an_edited_migration_of_a_release_stops_the_upgrade(product: Clone) -> None:
    [path, *_] = product.take("v0.2.0")
    product.commit({path: mark_origin("20260102000000", RANK.replace("text", "int"))})
    product.merge()
    with pytest.raises(
        ReleaseChanged, match=rf"{path} differs from migrations/20260102000000_rank\.sql of the release"
    ):
        releases.settle(product.repository)
    (product.root / path).write_text(marked("rank")["rank"])
    product.finish()
    assert product.migrations == own(product) | marked(*ALL)


def test_a_product_of_a_product_keeps_the_first_identity(product: Clone, tmp_path: Path) -> None:
    product.git("clone", "--quiet", "--no-tags", "--origin=upstream", ".", str(tmp_path / "second"))
    second = Clone(tmp_path / "second")
    second.commit({"migrations/20980101000000_second.sql": "select 2;\n"})
    product.take()
    product.git("tag", "v1.0.0")
    assert [path[:19] for path in second.take("v1.0.0")] == ["migrations/20980101"] * 3
    assert second.migrations == own(product) | {"second": "select 2;\n"} | marked(*ALL)


def test_what_prevents_an_upgrade_is_named_and_nothing_is_changed(product: Clone, tmp_path: Path) -> None:
    repository, head = product.repository, product.git("rev-parse", "HEAD")
    with pytest.raises(ReleaseUnknown, match=r"no release v9\.9\.9 \(the newest: v0\.1\.0, v0\.2\.0, v0\.3\.0\)"):
        releases.fetch(repository, "v9.9.9")
    with pytest.raises(ReleaseUnknown, match=r"no release v0\.10\.0-rc1"):
        releases.fetch(repository, "v0.10.0-rc1")
    release = releases.fetch(repository, None)
    (product.root / "notes.txt").write_text("Not committed.")
    with pytest.raises(CheckoutUnfit, match=r"not committed \(\?\? notes.txt\): commit them"):
        releases.merge(repository, release)
    (product.root / "notes.txt").unlink()
    product.git("switch", "--quiet", "--create=other")
    product.commit({"notes.txt": "other"})
    product.git("switch", "--quiet", "main")
    product.git("merge", "--quiet", "--no-commit", "--no-ff", "other")
    with pytest.raises(CheckoutUnfit, match=r"A merge of .* is not finished"):
        releases.find_unfinished(repository, None)
    product.git("merge", "--abort")
    assert (product.git("rev-parse", "HEAD"), product.git("status", "--porcelain")) == (head, "")
    product.git("remote", "remove", "upstream")
    with pytest.raises(UpstreamMissing, match="git remote add upstream URL"):
        releases.fetch(repository, None)
    assert product.git("tag").split() == ["v0.3.0"]


def test_a_copy_without_history_records_its_release_once(upstream: Clone, tmp_path: Path) -> None:
    copy = Clone(tmp_path / "copy")
    copy.root.mkdir()
    copy.git("init", "--quiet", "--initial-branch=main")
    copy.git("remote", "add", "upstream", str(upstream.root))
    base = {path: upstream.git("show", f"v0.1.0:{path}") for path in (BASE, "README.md", "functions/a.sql")}
    copy.commit(base | {OWN: "create table public.own (id int primary key);\n"})
    with pytest.raises(CheckoutUnfit, match=r"shares no history with v0\.3\.0") as refused:
        copy.merge()
    command = str(refused.value).split("`")[1]
    copy.git(*command.split()[1:])
    copy.take()
    assert copy.migrations == own(copy) | marked(*ALL)
    assert (copy.root / "functions/a.sql").read_text() == "select 3;\n"


def test_the_changes_since_the_last_release_are_printed(upstream: Clone, product: Clone) -> None:
    sections = {
        version: f"## {version} (2027-01-01)\n\n- Change {version}.\n"
        for version in ("0.10.0", "0.3.0", "0.2.0", "0.1.0")
    }
    upstream.commit({"CHANGELOG.md": "# Changes\n\n" + "\n".join(sections.values())}, "v0.10.0")
    product.take("v0.2.0")
    release = releases.fetch(product.repository, None)
    before = releases.find_newest_merged(product.repository, release)
    assert (
        releases.read_changes(product.repository, release, before)
        == (sections["0.10.0"] + "\n" + sections["0.3.0"]).strip()
    )


def test_the_command_states_what_is_missing(product: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.cli.upgrade.ROOT", product.root)
    product.git("remote", "rename", "upstream", "origin")
    ran = CliRunner().invoke(ballast, ["upgrade"])
    assert (ran.exit_code, ran.stderr.partition(":")[0]) == (1, "ballast")
    assert "git remote add upstream" in ran.stderr


def test_the_command_lists_conflicts_with_advice(product: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.cli.upgrade.ROOT", product.root)
    product.commit({"functions/a.sql": "select 'ours';\n"})
    for _ in range(2):
        ran = CliRunner().invoke(ballast, ["upgrade"])
        assert ran.exit_code == 1
        assert "These files conflict with v0.3.0:\n  functions/a.sql: a file of Ballast that you changed" in ran.stderr
        assert "run `ballast upgrade` again" in ran.stderr
    wrong = CliRunner().invoke(ballast, ["upgrade", "v0.2.0"])
    assert "A merge of v0.3.0 is not finished" in wrong.stderr
