"""`ballast backup run`: what it stores, and that whatever fails leaves nothing that looks like a backup."""

from __future__ import annotations

import json

from tests.scripts.conftest import Vault


def test_a_backup_is_four_files_and_the_last_says_what_they_are(vault: Vault) -> None:
    manifest = json.loads(vault.done("run", "--json").stdout)
    assert vault.store.names() == [manifest["name"]]


def test_a_drill_proves_it(vault: Vault) -> None:
    name = vault.backed_up()
    result = vault.done("drill", name)
    assert "proven" in result.stdout
