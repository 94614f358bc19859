"""Every document: the commands that it names are real ones, and its links lead somewhere.

Other tests run those of recovery.md, personal-data.md, operations.md, jobs.md, extend.md and sql-editor.md, and the README's;
tests/docs/test_sql_blocks.py runs what other pages say in SQL.
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
    """What the page has in code that begins with a command of ours."""
    text = page.read_text()
    inline = re.findall(r"`([^`\n]+)`", text)
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    found = dict.fromkeys(code.split("  #")[0].strip() for code in [*inline, *lines])
    return [code for code in found if re.match(r"(ballast |\./scripts/\w|node_modules/\.bin)", code)]


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


def test_the_pages_name_commands() -> None:
    assert len(COMMANDS) > 100


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page.relative_to(ROOT)} {command}" for page, command in COMMANDS]
)
def test_every_command_is_a_real_one(page: Path, command: str) -> None:
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
    """Headings as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


BLOCK = re.compile(r"^ *```sh\n(.+?)^ *```", re.MULTILINE | re.DOTALL)


def follow_page(stack: Stack, page: str) -> None:
    """Types, on the local stack, what the page says in one block after the other."""
    for block in BLOCK.findall((ROOT / "docs" / page).read_text()):
        # The URL of a hosted project is not ours.
        lines = [line for line in block.splitlines() if not line.strip().startswith("export DATABASE_URL=")]
        ran = stack.run_lines("\n".join(lines))
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"


@pytest.mark.parametrize("page", ["clerk.md", pytest.param("deploy.md", marks=pytest.mark.thorough)])
def test_what_is_to_be_typed_works_on_the_local_stack(stack: Stack, page: str) -> None:
    # Other tests leave people that Clerk's stand-in does not know.
    agreed = stack.ballast("clerk", "reconcile", "--fix", "--yes-delete-many")
    assert agreed.returncode == 0, agreed.stdout
    follow_page(stack, page)


@pytest.mark.thorough
def test_an_upgrade_is_tried_on_a_backup_and_applied(stack: Stack) -> None:
    assert stack.ballast("backup", "run").returncode == 0
    follow_page(stack, "upgrade.md")


def test_the_audit_trail_is_verified_against_a_seal_that_was_kept(stack: Stack) -> None:
    [line] = re.findall(r"^\$ (ballast audit verify --seal \S+)$", (ROOT / "docs/audit.md").read_text(), re.MULTILINE)
    assert stack.ballast("audit", "seal").returncode == 0
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        [[seal]] = connection.execute(
            "select encode(seal, 'hex') from app.audit_seals order by sequence desc limit 1"
        ).fetchall()
    ran = stack.run_lines(line.replace("9f2c…", seal))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert stack.run_lines(line.replace("9f2c…", "0" * 64)).returncode == 1
