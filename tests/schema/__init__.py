"""Applies the product's schema together with specimens.sql, a table that only tests use."""

from __future__ import annotations

from pathlib import Path

import psycopg

from scripts.schema import migrations, structure

SPECIMENS = Path(__file__).with_name("specimens.sql")


REMOVAL = """
    drop table public.specimens;
    delete from public.role_permissions where permission like 'specimens:%';
    delete from app.personal_data where relation = 'public.specimens';
"""


def migrate(url: str) -> None:
    """Applies the product's schema and specimens.sql to a database."""
    migrations.up(url)
    with psycopg.connect(url) as connection:
        connection.execute(SPECIMENS.read_bytes())
        connection.execute(structure.RECORD)


def remove(url: str) -> None:
    """Removes specimens: for tests that look for objects that no file of a checkout declares."""
    with psycopg.connect(url) as connection:
        connection.execute(REMOVAL)
        connection.execute(structure.RECORD)
