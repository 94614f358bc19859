"""Keeps a backup of a release's database for `ballast upgrade-check`: python -m tests.releases 0.2.0

In it people of several tenants have rows in every table. They are made up, so nobody's key is needed to read it.
"""

from __future__ import annotations

import os
import sys

import psycopg

from scripts import migrations
from scripts.cli import ballast
from scripts.local.scratch import scratch_folder, scratch_server
from tests import people
from tests.conftest import ROOT, Database

RELEASES = ROOT / "tests/fixtures/releases"


def keep(version: str) -> None:
    """Writes tests/fixtures/releases/<version>, of this checkout's files."""
    store = RELEASES / version
    store.mkdir(parents=True)
    with scratch_folder("release") as folder, scratch_server(folder) as server:
        migrations.up(server.url())
        with psycopg.connect(server.url()) as connection:
            people.world(Database(connection))
            connection.execute("select app.seal_audit()")
        os.environ |= {"DATABASE_URL": server.url(), "BACKUP_URL": store.as_uri(), "ENVIRONMENT": "local"}
        os.environ.pop("BACKUP_RECIPIENTS", None)
        ballast(["backup", "run"])


if __name__ == "__main__":
    keep(sys.argv[1])
