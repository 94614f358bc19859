"""`ballast backup`: backups that are proven by restoring them."""

from __future__ import annotations

import click

from scripts.backup.drill import drill
from scripts.backup.extract import extract
from scripts.backup.restore import restore
from scripts.backup.retention import list_command, prune
from scripts.backup.run import run
from scripts.backup.verify import verify


@click.group(epilog="Example: ballast backup run")
def backup() -> None:
    """Back the database up, prove by a restore that the backup is good, and restore it."""


backup.add_command(run)
backup.add_command(restore)
backup.add_command(drill)
backup.add_command(list_command)
backup.add_command(prune)
backup.add_command(verify)
backup.add_command(extract)
