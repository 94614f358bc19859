"""Runs every recipe of docs/sql-editor.md, exactly as written, on a database that has rows in every table."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests import people
from tests.conftest import ROOT, Database

PAGE = (ROOT / "docs/sql-editor.md").read_text()
BLOCKS = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
# The page uses the ids of the local stack's example tenants.
IDS_IN_TESTS = {"user_ada": people.ADA}


def run_block(database: Database, block: str) -> list[tuple[Any, ...]]:
    for page_id, test_id in IDS_IN_TESTS.items():
        block = block.replace(f"'{page_id}'", f"'{test_id}'")
    return database.rows(block)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: " ".join(block.split())[:60])
def test_every_recipe_runs(world: Database, block: str) -> None:
    run_block(world, block)


def test_the_recipes_work_one_after_the_other(world: Database) -> None:
    """All run in one session, so each recipe sees the changes of those before it."""
    found = [run_block(world, block) for block in BLOCKS]
    assert sum(bool(rows) for rows in found) > len(BLOCKS) / 2


def test_the_page_names_every_view_and_function_of_ops(database: Database) -> None:
    names = database.rows(
        "select relname from pg_class where relnamespace = 'ops'::regnamespace and relkind = 'v' "
        "union select proname from pg_proc where pronamespace = 'ops'::regnamespace"
    )
    documented = {name for (name,) in names} - {"organization_id"} - {name for (name,) in names if "mail" in name}
    assert [name for name in sorted(documented) if f"ops.{name}" not in PAGE] == []


def test_the_page_names_no_view_or_function_that_does_not_exist(database: Database) -> None:
    mentioned = set(re.findall(r"ops\.([a-z_]+)", PAGE))
    names = database.rows(
        "select relname from pg_class where relnamespace = 'ops'::regnamespace "
        "union select proname from pg_proc where pronamespace = 'ops'::regnamespace"
    )
    assert mentioned - {name for (name,) in names} == set()
