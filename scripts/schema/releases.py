"""Merges a release of Ballast into a product, and gives the migrations that it adds timestamps after the product's own.

Supabase's deployment applies files in the order of their timestamps, and refuses one that is older than an applied one.
A release's migrations are older than a product's newest, so they get new timestamps, in the release's order. Their
first line identifies them for good: see sql_files.py. The merge is one commit, made by the caller.

Every step looks at the files and at git's own state, and does what is left. So an interrupted upgrade is continued by
the same command. Nothing depends on how git detects renamed files.

Example: the product's newest migration is 20270310_add_invoices.sql, and release v0.2.0 adds 20270105_add_rank.sql. The
product gets 20270402_add_rank.sql with the first line `-- ballast: 20270105…`. Release v0.3.0 has 20270105_add_rank.sql
too. Git knows that the product has it; after a squashed merge, the first line shows it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scripts.errors import Failure
from scripts.schema.sql_files import (
    BUNDLES,
    Migration,
    choose_next_version,
    mark_origin,
    parse_migration,
    read_migrations,
    strip_origin,
    write_whole,
)

REMOTE = "upstream"
# Not refs/tags, where the product keeps its own versions.
NAMESPACE = "refs/ballast"
TYPES = ("supabase/types/database.ts", "supabase/types/database.py")
LOCKS = ("requirements.txt", "requirements-service.txt", "package-lock.json")
# A product replaces it, so its text wins a conflict.
OWN_PAGE = "README.md"

_TAG = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_SECTION = re.compile(r"^## (\d+\.\d+\.\d+).*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


class GitFailed(Failure):
    """A git command failed. The message has git's own words."""


class UpstreamMissing(Failure):
    """The repository has no remote from which releases come."""


class ReleaseUnknown(Failure):
    """The remote has no such release, or none at all."""


class CheckoutUnfit(Failure):
    """The checkout has changes that are not committed, another merge, or no history in common with the release."""


class ReleaseChanged(Failure):
    """A migration in the product differs from the same one in the release."""


class Release(NamedTuple):
    """A tag of the upstream remote, with its commit."""

    tag: str
    commit: str

    @property
    def version(self) -> tuple[int, ...]:
        return _parse_version(self.tag)


class Taken(NamedTuple):
    """A migration of a release with the path that it has in the product."""

    shipped: str
    path: str


@dataclass(frozen=True)
class Repository:
    """The git repository of a product."""

    root: Path

    def run(self, *words: str) -> str:
        """Runs git, and returns its output. Raises GitFailed."""
        ran = self.attempt(*words)
        if ran.returncode:
            raise GitFailed(f"`git {' '.join(words)}` failed: {(ran.stderr or ran.stdout).strip()}")
        return ran.stdout

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=self.root, capture_output=True, text=True, check=False)

    def lines(self, *words: str) -> list[str]:
        return self.run(*words).splitlines()

    def find_commit(self, name: str) -> str | None:
        return self.attempt("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").stdout.strip() or None

    def list_paths(self, commit: str, *paths: str) -> list[str]:
        return self.run("ls-tree", "-r", "-z", "--name-only", commit, "--", *paths).split("\0")[:-1]

    def list_conflicts(self) -> list[str]:
        return self.run("diff", "--name-only", "-z", "--diff-filter=U").split("\0")[:-1]

    def read_file(self, commit: str, path: str) -> str:
        """Returns a file's text with its own line ends, which the checksum of a migration includes."""
        ran = subprocess.run(["git", "show", f"{commit}:{path}"], cwd=self.root, capture_output=True, check=True)
        return ran.stdout.decode()

    def read_migrations(self, commit: str) -> list[Migration]:
        paths = [path for path in self.list_paths(commit, "migrations") if path.endswith(".sql")]
        return [parse_migration(path, self.read_file(commit, path)) for path in sorted(paths)]

    @property
    def merged_commit(self) -> str | None:
        """The commit whose merge is not finished."""
        return self.find_commit("MERGE_HEAD")


def find_unfinished(repository: Repository, tag: str | None) -> Release | None:
    """Returns the release whose merge is not finished. Raises CheckoutUnfit if something else is being merged."""
    merged = repository.merged_commit
    if merged is None:
        return None
    unfinished = next((release for release in list_releases(repository) if release.commit == merged), None)
    if unfinished is None or tag not in (None, unfinished.tag):
        raise CheckoutUnfit(
            f"A merge of {unfinished.tag if unfinished else merged[:12]} is not finished: commit it, or undo it with "
            "`git merge --abort`."
        )
    return unfinished


def fetch(repository: Repository, tag: str | None) -> Release:
    """Fetches the releases, and returns the wanted or the newest one. Raises UpstreamMissing and ReleaseUnknown."""
    if REMOTE not in repository.lines("remote"):
        raise UpstreamMissing(
            f"There is no remote `{REMOTE}`, from which releases come: add it with `git remote add {REMOTE} URL`, with "
            "the URL of Ballast's repository."
        )
    repository.run("fetch", "--quiet", "--no-tags", REMOTE, f"+refs/tags/v*:{NAMESPACE}/v*")
    releases = list_releases(repository)
    if tag is None and releases:
        return releases[-1]
    for release in releases:
        if release.tag == tag:
            return release
    known = ", ".join(release.tag for release in releases[-5:]) or "none"
    raise ReleaseUnknown(f"The remote `{REMOTE}` has no release {tag or 'vX.Y.Z'} (the newest: {known}).")


def list_releases(repository: Repository, *options: str) -> list[Release]:
    """Returns the fetched releases, oldest first. Others, such as release candidates, can only be merged by hand."""
    found = [Release(name.rpartition("/")[2], "") for name in repository.lines(
        "for-each-ref", "--format=%(refname)", *options, f"{NAMESPACE}/"
    )]  # fmt: skip
    releases = [release for release in found if _TAG.fullmatch(release.tag)]
    commits = [repository.find_commit(f"{NAMESPACE}/{release.tag}") or "" for release in releases]
    return sorted(map(Release, (release.tag for release in releases), commits), key=lambda release: release.version)


def is_merged(repository: Repository, release: Release) -> bool:
    return repository.attempt("merge-base", "--is-ancestor", release.commit, "HEAD").returncode == 0


def find_newest_merged(repository: Repository, release: Release) -> Release | None:
    """Returns the newest release before this one that the product has."""
    merged = [each for each in list_releases(repository, "--merged", "HEAD") if each.version < release.version]
    return merged[-1] if merged else None


def merge(repository: Repository, release: Release) -> None:
    """Merges a release without a commit. Raises CheckoutUnfit before it changes anything, and GitFailed."""
    require_clean(repository)
    if repository.attempt("merge-base", "HEAD", release.commit).returncode:
        raise CheckoutUnfit(
            f"This repository shares no history with {release.tag}, so git cannot merge it. Record once which release "
            "it started as, such as v0.1.0: "
            f"`git merge --strategy=ours --allow-unrelated-histories {NAMESPACE}/v0.1.0`."
        )
    ran = repository.attempt("merge", "--no-commit", "--no-ff", release.commit)
    if repository.merged_commit is None:
        raise GitFailed(f"git could not merge {release.tag}: {(ran.stderr or ran.stdout).strip()}")


def require_clean(repository: Repository) -> None:
    if changes := repository.lines("status", "--porcelain"):
        raise CheckoutUnfit(
            f"The checkout has changes that are not committed ({changes[0].strip()}): commit them, or put them aside "
            "with `git stash --include-untracked`."
        )


def settle(repository: Repository) -> None:
    """Brings the files of an unfinished merge to the product's state, and stages them: all but real conflicts.

    Raises FilesInvalid and ReleaseChanged.
    """
    take_migrations(repository)
    _keep_own_bundles(repository)
    stale_locks = find_stale_locks(repository)
    for path in repository.list_conflicts():
        # The merge base and the release have the file.
        if _list_stages(repository, path) == ["1", "3"]:
            # The product deleted it, such as the example `projects`.
            repository.run("rm", "--quiet", "--force", "--", path)
        elif path == OWN_PAGE:
            repository.run("checkout", "HEAD", "--", path)
        elif path in TYPES or path in stale_locks:
            repository.run("checkout", "MERGE_HEAD", "--", path)


def _list_stages(repository: Repository, path: str) -> list[str]:
    """Returns which sides of a conflict have a file: 1 the merge base, 2 the product, 3 the release."""
    return [line.partition("\t")[0].split()[2] for line in repository.lines("ls-files", "--unmerged", "--", path)]


def take_migrations(repository: Repository) -> None:
    """Gives each migration that the merge adds a new timestamp, and deletes what the product has already.

    Raises FilesInvalid, and ReleaseChanged if a migration of the product differs from the release's.
    """
    release = repository.read_migrations("MERGE_HEAD")
    own = set(repository.list_paths("HEAD", "migrations"))
    added = {migration.path for migration in release} - own
    here = [migration for migration in read_migrations(repository.root) if migration.path not in added]
    for shipped in release:
        found = _find_taken(here, shipped)
        if found and strip_origin(found.text) != strip_origin(shipped.text):
            raise ReleaseChanged(
                f"{found.path} differs from {shipped.path} of the release, whose migrations never change: restore the "
                f"text of `git show MERGE_HEAD:{shipped.path}`, and make the change in a new migration."
            )
        if found is None:
            version = choose_next_version(repository.root)
            found = shipped._replace(path=f"migrations/{version}_{shipped.name}.sql")
        if found.path != shipped.path:
            text = mark_origin(shipped.origin or shipped.version, strip_origin(shipped.text))
            write_whole(repository.root / found.path, text)
            (repository.root / shipped.path).unlink(missing_ok=True)
    repository.run("add", "--all", "--", "migrations")


def _find_taken(here: list[Migration], shipped: Migration) -> Migration | None:
    """Returns the product's file of a release's migration: by its path or its first line, else by its text."""
    origin = shipped.origin or shipped.version
    known = (each for each in here if each.path == shipped.path or each.origin == origin)
    return next(known, None) or next((each for each in here if each.text == shipped.text), None)


def list_taken(repository: Repository, release: Release) -> Iterator[Taken]:
    """Yields the release's migrations that have another name in the product's checkout."""
    here = {migration.origin: migration for migration in read_migrations(repository.root) if migration.origin}
    for shipped in repository.read_migrations(release.commit):
        if found := here.get(shipped.origin or shipped.version):
            yield Taken(shipped.path, found.path)


def _keep_own_bundles(repository: Repository) -> None:
    """Restores supabase/migrations/, which belongs to the product: `ballast migrate bundle` adds what is new."""
    own = repository.list_paths("HEAD", BUNDLES.as_posix())
    if own:
        repository.run("checkout", "HEAD", "--", *own)
    for path in set(repository.list_paths("MERGE_HEAD", BUNDLES.as_posix())) - set(own):
        repository.run("rm", "--force", "--quiet", "--ignore-unmatch", "--", path)


def find_stale_locks(repository: Repository) -> list[str]:
    """Returns the lock files that both the product and the release changed, so that neither one's is right."""
    base = repository.run("merge-base", "HEAD", "MERGE_HEAD").strip()
    changed = [
        set(repository.lines("diff", "--name-only", base, commit, "--", *LOCKS)) for commit in ("HEAD", "MERGE_HEAD")
    ]
    return sorted(changed[0] & changed[1])


def has_own_bundles(repository: Repository) -> bool:
    return bool(repository.list_paths("HEAD", BUNDLES.as_posix()))


def read_changes(repository: Repository, release: Release, before: Release | None) -> str:
    """Returns the sections of the release's CHANGELOG.md that are newer than the release `before`."""
    text = repository.attempt("show", f"{release.commit}:CHANGELOG.md").stdout
    oldest = before.version if before else ()
    sections = (
        match[0].strip() for match in _SECTION.finditer(text) if oldest < _parse_version(match[1]) <= release.version
    )
    return "\n\n".join(sections)


def _parse_version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.removeprefix("v").split(".")))
