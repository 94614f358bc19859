"""The product's schema, and with it the tests' own table: specimens.sql."""

from __future__ import annotations

from pathlib import Path

import psycopg

from scripts.schema import migrations

SPECIMENS = Path(__file__).with_name("specimens.sql")


def migrate(url: str) -> None:
    """Applies both to a database."""
    migrations.up(url)
    with psycopg.connect(url) as connection:
        connection.execute(SPECIMENS.read_bytes())
