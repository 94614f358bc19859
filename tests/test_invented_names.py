"""Objects that tests create in the schema public have names that a product's objects never have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.schema.new_table import TableRefused, parse_table
from tests.conftest import ROOT

# `ballast new table` refuses these names.
RESERVED = re.compile(r"test_|specimens\b|example_")
CREATES = re.compile(
    r"\bcreate\s+(?:or\s+replace\s+)?(?:unlogged\s+|materialized\s+|foreign\s+)?"
    r"(?:table|view|function|procedure|aggregate|type|sequence|domain)\s+(?:if\s+not\s+exists\s+)?public\.(\w+)",
    re.IGNORECASE,
)
# Files whose databases never have the schema of a product, or which name objects of another one on purpose.
OTHERS = {
    "tests/scripts/schema/test_migrate.py": "migrates a small checkout of its own",
    "tests/scripts/schema/test_interrupted_migrate.py": "migrates a small checkout of its own",
    "tests/scripts/cli/test_audit.py": "hides public.audit_logs, a table of Ballast",
    "tests/docs/test_upgrade.py": "creates what docs/upgrade.md does, for projects",
    "tests/docs/test_querying.py": "creates what docs/querying.md queries, with the prefix page_",
    "tests/scripts/schema/test_releases.py": "migrates small checkouts of its own",
    "tests/scripts/schema/test_product.py": "makes releases of Ballast, for the example product only",
    "tests/scripts/backup/definitions.py": "uses words that name no rows, such as made and other",
}


def find_names(path: Path) -> set[str]:
    return {name for name in CREATES.findall(path.read_text()) if not RESERVED.match(name)}


def test_a_test_creates_only_objects_with_reserved_names() -> None:
    files = [path for suffix in ("py", "sql") for path in (ROOT / "tests").rglob(f"*.{suffix}")]
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in files
        if ROOT / "tests/product" not in path.parents and (names := find_names(path))
    }
    assert {path: names for path, names in found.items() if path not in OTHERS} == {}, "Let the name begin with test_."
    # A product without the example has deleted some of these files.
    assert found.keys() == {path for path in OTHERS if (ROOT / path).exists()}


@pytest.mark.parametrize("name", ["test_invoices", "specimens"])
def test_a_product_cannot_use_a_name_of_the_tests(name: str) -> None:
    with pytest.raises(TableRefused, match="is a name of the tests"):
        parse_table(name, "title:text")
