"""docs/sql-editor.md: every recipe runs as it stands there, on a database with people in every table, and finds what it is for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests import people
from tests.conftest import ROOT, Database

PAGE = (ROOT / "docs/sql-editor.md").read_text()
BLOCKS = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# The page's names are those of the local stack's example tenants.
NAMES = {"user_ada": people.ADA}


def ran(database: Database, block: str) -> list[tuple[Any, ...]]:
    for name, ours in NAMES.items():
        block = block.replace(f"'{name}'", f"'{ours}'")
    return database.rows(block)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: " ".join(block.split())[:60])
def test_every_recipe_runs(world: Database, block: str) -> None:
    ran(world, block)


def test_the_recipes_are_those_of_a_day_in_order(world: Database) -> None:
    """One after the other, in one session: what one changes, the next one sees."""
    found = [ran(world, block) for block in BLOCKS]
    assert sum(bool(rows) for rows in found) > len(BLOCKS) / 2


def test_the_page_names_every_view_and_function_of_ops(database: Database) -> None:
    names = database.rows(
        "select relname from pg_class where relnamespace = 'ops'::regnamespace and relkind = 'v' "
        "union select proname from pg_proc where pronamespace = 'ops'::regnamespace"
    )
    ours = {name for (name,) in names} - {"organization_id"} - {name for (name,) in names if "mail" in name}
    assert [name for name in sorted(ours) if f"ops.{name}" not in PAGE] == []


def test_the_page_says_nothing_of_what_is_not_there(database: Database) -> None:
    mentioned = set(re.findall(r"ops\.([a-z_]+)", PAGE))
    names = database.rows(
        "select relname from pg_class where relnamespace = 'ops'::regnamespace "
        "union select proname from pg_proc where pronamespace = 'ops'::regnamespace"
    )
    assert mentioned - {name for (name,) in names} == set()
