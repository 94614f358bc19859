"""`ballast remove-example`: takes the example `projects` out of the product.

Most tests and all benchmarks stand on it. So what defines it moves to tests/example/, into folders named as the
product's, where scripts/migrations.py finds it for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

from scripts import examples, migrations
from scripts.bundle import HEAD
from scripts.failure import Failure
from scripts.migrations import EXAMPLE
from scripts.new import REGISTRY, ROLES
from scripts.statements import split

FUNCTIONS = "functions/97_projects.sql"
POLICIES = "policies/projects.sql"
REALTIME = "functions/70_realtime.sql"
SEED = "supabase/seed.sql"
# Which permission opens an organization's own topic, with projects and without.
TOPIC, TOPIC_WITHOUT = "'projects:read'", "'members:read'"

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
PERMISSIONS = ",\n".join(f"('{role}', 'projects:{action}')" for action, holders in ROLES.items() for role in holders)
# What other migrations say of the table, in the one that makes it again for tests.
REST = f"""
insert into public.role_permissions (role, permission) values
{PERMISSIONS};
alter publication supabase_realtime add table public.projects;
"""  # noqa: S608 - of what is written here

# So that the file can be run twice.
UNREGISTERED = "delete from app.personal_data where relation = 'public.projects';\n"


class NoExample(Failure):
    """The example is not there as this command knows it: nothing was changed."""


@dataclass(frozen=True)
class Example:
    """What the files say of the example, as texts."""

    table: str
    functions: str
    policies: str
    registration: str
    topic_permission: str


@click.command("remove-example", epilog="Example: ballast remove-example")
def remove_example() -> None:
    """Take the example `projects` out of the product: table, policies, permissions, seeds.

    Tests and benchmarks keep it, in tests/example/. Only files change, and only version control brings them back:
    commit before. The migration that it writes drops the table with all its rows.
    """
    for line in remove():
        click.echo(line)
    click.echo("\nThen:\n  ballast migrate up\n  ballast types\n  ballast migrate bundle\n  ./scripts/test")


def remove(root: Path = migrations.ROOT) -> list[str]:
    """Changes the files in `root`, and says what became of each. Raises NoExample, with nothing changed."""
    example = found(root)
    without = {
        REALTIME: _text(root, REALTIME).replace(TOPIC, TOPIC_WITHOUT),
        REGISTRY: _text(root, REGISTRY).replace(f"\n{example.registration}", ""),
        SEED: examples.as_sql(with_projects=False),
    }
    kept = {
        FUNCTIONS: f"{example.functions}\n-- As it was with projects.\n{example.topic_permission}",
        POLICIES: example.policies,
        "functions/99_projects.sql": f"{UNREGISTERED}\n{example.registration}",
    }
    for path, text in without.items():
        (root / path).write_bytes(text.encode())
    for path in (FUNCTIONS, POLICIES):
        (root / path).unlink()
    for path, text in kept.items():
        (root / EXAMPLE / path).parent.mkdir(parents=True, exist_ok=True)
        (root / EXAMPLE / path).write_bytes(text.encode())
    removal = migrations.add("remove_projects", REMOVAL, root=root)
    again = migrations.add("projects", example.table + REST, root=root)  # the later of the two
    moved = root / EXAMPLE / "migrations" / again.name
    moved.parent.mkdir()
    again.rename(moved)
    return [
        f"Wrote migrations/{removal.name}",
        *(f"Changed {path}" for path in without),
        *(f"Moved {path} to {EXAMPLE}/{path}" for path in (FUNCTIONS, POLICIES)),
        f"Wrote {moved.relative_to(root)}",
    ]


def found(root: Path) -> Example:
    """The example as the files have it. Raises NoExample."""
    if not (root / POLICIES).exists():
        raise NoExample(f"There is no {POLICIES}: the example was removed already.")
    files = migrations.read_files(root, example=False).migrations
    about = [file for file in files if re.search(r"\bpublic\.projects\b", file.text) and not file.text.startswith(HEAD)]
    made, *others = (file for file in about if file.name != "realtime")
    if others:
        raise NoExample(f"{others[0].path} builds on projects: take back what it does first, or keep them.")
    return Example(
        made.text,
        _text(root, FUNCTIONS),
        _text(root, POLICIES),
        _statement(root, REGISTRY, "'public.projects'"),
        _statement(root, REALTIME, TOPIC),
    )


def _statement(root: Path, path: str, words: str) -> str:
    """The one statement in which the words are: without the comments before it, with its end."""
    there = [each.text[(each.start or 0) - each.offset :] for each in split(_text(root, path)) if words in each.text]
    if len(there) != 1:
        raise NoExample(f"{path} has {words} in {len(there)} statements and not in one: put it back as it was.")
    return f"{there[0]};\n"


def _text(root: Path, path: str) -> str:
    return (root / path).read_bytes().decode()
