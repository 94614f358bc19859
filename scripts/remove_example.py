"""`ballast remove-example`: takes the example `projects` out of the product.

Most tests and all benchmarks stand on it. So what defines it moves to tests/example/, into folders named as the
product's, where scripts/schema/migrations.py finds it for them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
from rich.console import Console

from scripts.errors import Failure
from scripts.local import examples
from scripts.schema import migrations
from scripts.schema.bundle import HEAD
from scripts.schema.migrations import EXAMPLE
from scripts.schema.new_table import REGISTRY
from scripts.schema.statements import Statement, split
from scripts.scratch.server import scratch_folder, scratch_server

FUNCTIONS = "functions/9_tables/projects.sql"
POLICIES = "policies/projects.sql"
REALTIME = "functions/4_realtime/broadcast.sql"
SEED = "supabase/seed.sql"
# What is said of the topic of projects only.
TOPIC = "nullif(permission, 'projects:read')"
TOPIC_TOLD = "-- That of the example projects is org:<organization id>.\n"

REMOVAL = f"""\
-- The example goes, with its rows. `ballast remove-example` keeps it for the tests, in tests/example/.
-- upgrade-check: removes public.projects
-- upgrade-check: deletes public.role_permissions
-- squawk-ignore ban-drop-table
drop table public.projects;
delete from public.role_permissions
where permission like 'projects:%';
delete from app.applied_sources
where path in ('{FUNCTIONS}', '{POLICIES}');
"""  # noqa: S608 - of what is written here
# What other migrations say of the table, in the one that makes it again for tests.
REST = "\nalter publication supabase_realtime add table public.projects;\n"

# So that the file can be run twice.
UNREGISTERED = "delete from app.personal_data where relation = 'public.projects';\n"
# A statement about the table itself, in a migration after the one that makes it.
LATER = re.compile(
    r"(alter table (only |if exists )*|comment on (table|column) |create (unique )?index .* on (only )?)"
    r"public\.projects\b",
    re.IGNORECASE | re.DOTALL,
)
NEEDED = re.compile(r"\bpublic\.projects\b|'projects:", re.IGNORECASE)


class NoExample(Failure):
    """The example cannot be taken out: nothing was changed."""


@click.command("remove-example", epilog="Example: ballast remove-example")
def remove_example() -> None:
    """Take the example `projects` out of the product: table, policies, permissions, seeds.

    Tests and benchmarks keep it, in tests/example/. It is tried on a scratch PostgreSQL first; then files change, and
    only version control brings them back: commit before. The migration that it writes drops the table with all rows.
    """
    for line in remove():
        click.echo(line)
    click.echo("\nThen:\n  ballast migrate up\n  ballast types\n  ballast migrate bundle\n  ./scripts/test")


def remove(root: Path = migrations.ROOT) -> list[str]:
    """Changes the files in `root`, and says what became of each. Raises NoExample, with nothing changed."""
    if not (root / POLICIES).exists() or (root / EXAMPLE).exists():
        raise NoExample(f"There is no {POLICIES}, or a {EXAMPLE} already: the example was removed before.")
    with scratch_folder("example") as folder:
        copy = folder / "copy"
        for name in ("migrations", "functions", "policies"):
            shutil.copytree(root / name, copy / name)
        changed = _take_out(copy)
        _try(copy, folder)
        for path in changed:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(copy / path, root / path)
    for path in (FUNCTIONS, POLICIES):
        (root / path).unlink()
    (root / SEED).write_bytes(examples.as_sql(with_projects=False).encode())
    return [*(f"Wrote {path}" for path in [*changed, SEED]), *(f"Deleted {path}" for path in (FUNCTIONS, POLICIES))]


def _take_out(root: Path) -> list[str]:
    """Changes the sources in `root`, and returns the paths of what was written. Raises NoExample."""
    registration = _statement(root, REGISTRY, "'public.projects'")
    topic = _statement(root, REALTIME, TOPIC)
    texts = {
        REALTIME: _text(root, REALTIME).replace(TOPIC_TOLD, "").replace(TOPIC, "permission"),
        REGISTRY: _text(root, REGISTRY).replace(f"\n{registration}", ""),
        f"{EXAMPLE}/{FUNCTIONS}": f"{_text(root, FUNCTIONS)}\n{TOPIC_TOLD}{topic}",
        f"{EXAMPLE}/{POLICIES}": _text(root, POLICIES),
        f"{EXAMPLE}/functions/9_tables/projects_registration.sql": f"{UNREGISTERED}\n{registration}",
    }
    table = _table(root)
    for path in (FUNCTIONS, POLICIES):
        (root / path).unlink()
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text.encode())
    for source in migrations.read_files(root, example=False).sources:
        if NEEDED.search(source.text):
            raise NoExample(f"{source.path} needs projects: take that out of it first.")
    removal = migrations.add("remove_projects", REMOVAL, root=root)
    again = migrations.add("projects", table, root=root)  # the later of the two
    moved = root / EXAMPLE / "migrations" / again.name
    moved.parent.mkdir()
    again.rename(moved)
    return [f"migrations/{removal.name}", *texts, f"{EXAMPLE}/migrations/{again.name}"]


def _table(root: Path) -> str:
    """A migration that makes the table again as it is now, for tests."""
    written = [file for file in migrations.read_files(root, example=False).migrations if not file.text.startswith(HEAD)]
    made = next(file for file in written if file.name == "projects")
    later = [
        f"{text};\n"
        for file in written
        if file.version > made.version
        for text in map(_without_comments, split(file.text))
        if LATER.match(text)
    ]
    return "".join([made.text, *later, REST])


def _try(root: Path, folder: Path) -> None:
    """Applies the files to a scratch server: without the example, and then with it. Raises NoExample."""
    try:
        told = Console(stderr=True).status("Trying it on a scratch PostgreSQL …")
        with told, scratch_server(folder, fsync="off") as server:
            for example in (False, True):
                migrations.up(server.url(), root=root, example=example)
    except Failure as failure:
        raise NoExample(f"Tried on a scratch PostgreSQL, it fails: {failure}\nNo file was changed.") from failure


def _statement(root: Path, path: str, words: str) -> str:
    """The one statement in which the words are, with its end."""
    there = [each for each in split(_text(root, path)) if words in each.text]
    if len(there) != 1:
        raise NoExample(f"{path} has {words} in {len(there)} statements and not in one: put it back as it was.")
    return f"{_without_comments(there[0])};\n"


def _without_comments(statement: Statement) -> str:
    """Its text, without the comments before it."""
    return statement.text[(statement.start or 0) - statement.offset :]


def _text(root: Path, path: str) -> str:
    return (root / path).read_bytes().decode()
