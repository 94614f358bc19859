"""Every document: its commands exist, its links have targets, and the commands of some pages work on the local stack.

Other tests run the commands of README.md, recovery.md, personal-data.md, operations.md, jobs.md, extend.md and sql-editor.md.
tests/docs/test_sql_blocks.py runs the SQL of other pages.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click
import psycopg
import pytest

from scripts.cli import ballast
from tests.conftest import ROOT, Stack

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def commands(page: Path) -> list[str]:
    """The code on the page that begins with one of our commands."""
    text = page.read_text()
    inline = re.findall(r"`([^`\n]+)`", text)
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    found = dict.fromkeys(code.split("  #")[0].strip() for code in [*inline, *lines])
    return [code for code in found if re.match(r"(ballast |\./scripts/\w|node_modules/\.bin)", code)]


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


def test_commands_are_found_on_the_pages() -> None:
    assert len(COMMANDS) > 100


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page.relative_to(ROOT)} {command}" for page, command in COMMANDS]
)
def test_every_command_and_its_options_exist(page: Path, command: str) -> None:
    program, *words = shlex.split(command.split(" | ", maxsplit=1)[0].split(" > ", maxsplit=1)[0])
    if program != "ballast":
        assert os.access(ROOT / program, os.X_OK)
        return
    found: click.Command = ballast
    context = click.Context(ballast)
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        child = found.get_command(context, words.pop(0).rstrip(","))
        assert child is not None, f"{page.name}: {command}"
        found = child
    options = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    named = [word.split("=")[0] for word in words if word.startswith("--")]
    assert [word for word in named if word not in options | {"--help", "--version"}] == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_has_a_target(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_links_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}
    pages = {page.resolve() for page in (ROOT / "docs").glob("*.md")} - {index.resolve()}
    assert sorted(page.name for page in pages - linked) == []


BLOCK = re.compile(r"^ *```sh\n(.+?)^ *```", re.MULTILINE | re.DOTALL)


def follow_page(stack: Stack, page: str) -> None:
    """Runs the page's shell blocks on the local stack, in order."""
    for block in BLOCK.findall((ROOT / "docs" / page).read_text()):
        # The page sets the URL of a hosted project. Here the commands use the local one.
        lines = [line for line in block.splitlines() if not line.strip().startswith("export DATABASE_URL=")]
        ran = stack.run_lines("\n".join(lines))
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"


@pytest.mark.parametrize("page", ["clerk.md", pytest.param("deploy.md", marks=pytest.mark.thorough)])
def test_the_commands_of_a_page_work_on_the_local_stack(stack: Stack, page: str) -> None:
    # Other tests leave users that Clerk's stand-in does not have.
    reconciled = stack.ballast("clerk", "reconcile", "--fix", "--yes-delete-many")
    assert reconciled.returncode == 0, reconciled.stdout
    follow_page(stack, page)


@pytest.mark.thorough
def test_an_upgrade_is_checked_on_a_backup_and_applied(stack: Stack) -> None:
    assert stack.ballast("backup", "run").returncode == 0
    follow_page(stack, "upgrade.md")


def test_the_audit_trail_is_verified_against_a_stored_seal(stack: Stack) -> None:
    page = (ROOT / "docs/audit.md").read_text()
    [line] = re.findall(r"^\$ (ballast audit verify --seal \S+)$", page, re.MULTILINE)
    [accept] = re.findall(r"^\$ (ballast audit accept .+)$", page, re.MULTILINE)
    assert stack.ballast("audit", "seal").returncode == 0
    # Other tests may have erased people of this stack without a store.
    accepted = stack.run_lines(f"{accept} --yes")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        [[seal]] = connection.execute(
            "select encode(seal, 'hex') from app.audit_seals order by sequence desc limit 1"
        ).fetchall()
    ran = stack.run_lines(line.replace("9f2c…", seal))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert stack.run_lines(line.replace("9f2c…", "0" * 64)).returncode == 1
