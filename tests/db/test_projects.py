"""What the example `projects` has in addition to other tables. Delete this file with the example (docs/extend.md)."""

from __future__ import annotations

import pytest

from scripts.schema.sql_files import ROOT
from scripts.schema.statements import split
from tests.conftest import Database

# The statements of migrations about the publication.
PUBLISHING = [
    statement.text
    for path in sorted((ROOT / "migrations").glob("*.sql"))
    for statement in split(path.read_text())
    if "publication supabase_realtime" in statement.text
]


def is_published(database: Database) -> bool:
    return bool(
        database.value(
            "select count(*) from pg_publication_tables where pubname = 'supabase_realtime' and tablename = 'projects'"
        )
    )


def test_projects_are_published(database: Database) -> None:
    assert is_published(database)


@pytest.mark.parametrize(
    "before",
    ["", "drop publication supabase_realtime", "alter publication supabase_realtime drop table public.projects",
     "drop publication supabase_realtime; create publication supabase_realtime for table public.organizations"],
)  # fmt: skip
def test_the_migrations_accept_the_publication_of_a_hosted_project(database: Database, before: str) -> None:
    assert len(PUBLISHING) == 2
    if before:
        database.execute(before)
    for _ in range(2):
        for statement in PUBLISHING:
            database.execute(statement)
        assert is_published(database)
