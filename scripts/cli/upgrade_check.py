"""`ballast upgrade-check`: tests the pending migrations on a restored backup."""

from __future__ import annotations

from pathlib import Path

import click

from scripts.backup.borrowed import Place
from scripts.backup.progress import progress_bar
from scripts.backup.restore import open_backup, read_keys
from scripts.backup.run import open_store
from scripts.backup.upgrade import UpgradeFailed, check_upgrade
from scripts.cli import options
from scripts.cli.output import print_json, show_checks
from scripts.scratch.server import scratch_folder


@click.command("upgrade-check", epilog="Example: ballast upgrade-check --backup latest")
@click.option("--backup", "wanted", metavar="ID", default="latest", help="The backup to test; the latest by default.")
@options.identity_option
@options.url_option
@options.place_options
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON, keyed by the name of the backup.")
def upgrade_check(wanted: str, identity: Path | None, url: str | None, place: Place, as_json: bool) -> None:
    """Test this checkout's migrations on a restored backup.

    The backup is restored into a temporary PostgreSQL and migrated. Then data, policies and types are compared. Nothing
    else is changed. Exits with 1 if the migrations lose anything.
    """
    environment = options.build_environment(url)
    store = open_store(environment)
    keys = read_keys(environment, identity)
    with scratch_folder("upgrade") as folder, progress_bar() as bar:
        backup = open_backup(store, wanted, keys, folder, place)
        found = check_upgrade(backup, bar)
    if as_json:
        print_json({backup.manifest.name: found})
    else:
        click.echo(backup.manifest.name)
        show_checks(found, as_json=False)
    if not all(check.passed for check in found):
        raise UpgradeFailed(
            "The upgrade loses data or functions: correct the migration, or declare the loss in it (docs/upgrade.md)."
        )
