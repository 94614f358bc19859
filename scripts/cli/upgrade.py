"""`ballast upgrade`: merges a release of Ballast into a product, and prints what is left to do."""

from __future__ import annotations

import subprocess
import sys

import click

from scripts.cli import options
from scripts.errors import Failure
from scripts.schema import releases
from scripts.schema.releases import LOCKS, TYPES, Release, Repository
from scripts.schema.sql_files import BUNDLES, ROOT

LEFT_TO_DO = """
Left to do:
  1. Test the product: ./scripts/test
  2. Merge this branch with a merge commit. After a squashed merge, the next release conflicts.
  3. Back up, then apply the migrations: ballast backup run, ballast migrate up
  4. Deploy the service.
docs/upgrade.md explains each step."""
ADVICE = {
    "migrations/": "a release's migrations never change: restore the release's text.",
    "supabase/": "Supabase's configuration: keep your settings, and add the new ones.",
    "pyproject.toml": "keep both lists of dependencies.",
    "package.json": "keep both lists of dependencies.",
    "CHANGELOG.md": "keep both, or write your own changes to another file.",
}
DEFAULT_ADVICE = "a file of Ballast that you changed: take the release's, and move your change to a file of your own."


class ConflictsLeft(Failure):
    """Git could not merge some files."""


class StepFailed(Failure):
    """A command that belongs to the upgrade failed."""


@click.command(epilog="Example: ballast upgrade v0.2.0")
@click.argument("tag", required=False)
@click.option("--no-check", is_flag=True, help="Do not test the migrations on the latest backup.")
def upgrade(tag: str | None, no_check: bool) -> None:
    """Merge a release of Ballast into this product.

    Fetches the releases from the git remote `upstream`, and merges TAG, by default the newest. Its migrations get
    timestamps after yours. Generated files are generated again. Then the migrations are tested on the latest backup, if
    BACKUP_URL names a store. No database is changed.

    If a conflict or a failure stops it, do what it prints, and run it again: it continues. Before it has committed the
    merge, `git merge --abort` undoes everything. Exits with 1 if something is left to resolve.
    """
    repository = Repository(ROOT)
    release = releases.find_unfinished(repository, tag)
    if release is None:
        release = releases.fetch(repository, tag)
        if releases.is_merged(repository, release):
            releases.require_clean(repository)
            click.echo(f"{release.tag} is already merged.")
        else:
            releases.merge(repository, release)
    before = releases.find_newest_merged(repository, release)
    if repository.merged_commit is not None:
        releases.settle(repository)
        _require_no_conflicts(repository, release)
        if stale := releases.find_stale_locks(repository):
            click.echo(f"You and the release changed {', '.join(stale)}: pinning the packages again ...", err=True)
            _run_step("./scripts/setup")
            _run_step("./scripts/lock")
    _generate(repository)
    _commit(repository, release)
    changes = releases.read_changes(repository, release, before)
    click.echo(f"{changes}\n" if changes else f"CHANGELOG.md of {release.tag} lists no changes.")
    _check(no_check)
    click.echo(LEFT_TO_DO)


def _require_no_conflicts(repository: Repository, release: Release) -> None:
    conflicts = repository.list_conflicts()
    if conflicts:
        lines = [f"  {path}: {_advise(path)}" for path in conflicts]
        raise ConflictsLeft(
            "\n".join([f"These files conflict with {release.tag}:", *lines])
            + "\nResolve them, `git add` them, and run `ballast upgrade` again: it continues."
        )


def _advise(path: str) -> str:
    return next((advice for start, advice in ADVICE.items() if path.startswith(start)), DEFAULT_ADVICE)


def _generate(repository: Repository) -> None:
    """Generates the types and, if the product has them, the bundles. New processes run the code of the release."""
    click.echo("Generating ...", err=True)
    _run_step("./scripts/setup")
    _run_step(sys.executable, "-m", "scripts.cli", "types")
    if releases.has_own_bundles(repository):
        _run_step(sys.executable, "-m", "scripts.cli", "migrate", "bundle")
    generated = [path for path in (*TYPES, *LOCKS, str(BUNDLES)) if (ROOT / path).exists()]
    repository.run("add", "--all", "--", *generated)


def _commit(repository: Repository, release: Release) -> None:
    """Commits the merge, or what was generated after it was committed by hand."""
    if repository.merged_commit is None and not repository.lines("diff", "--cached", "--name-only"):
        return
    taken = [f"- {each.shipped} is {each.path} here" for each in releases.list_taken(repository, release)]
    reason = "The release's migrations follow ours, so that the history stays linear:" if taken else ""
    message = "\n".join([f"upgrade: take {release.tag} of Ballast", "", reason, *taken]).strip()
    repository.run("commit", "--quiet", "--message", message)
    click.echo(f"Committed the merge of {release.tag}.")
    for each in taken:
        click.echo(each)


def _check(no_check: bool) -> None:
    """Tests the migrations on the latest backup, in a process with the code of the release."""
    if no_check:
        return
    if not options.build_environment(None).get("BACKUP_URL"):
        click.echo("The migrations are not tested on a backup, because BACKUP_URL is not set: see docs/upgrade.md.")
        return
    _run_step(sys.executable, "-m", "scripts.cli", "upgrade-check", "--backup", "latest")


def _run_step(*command: str) -> None:
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        words = ["ballast" if word == sys.executable else word for word in command if word not in ("-m", "scripts.cli")]
        raise StepFailed(
            f"`{' '.join(words)}` failed, as printed above. Then run `ballast upgrade` again: it continues."
        )
