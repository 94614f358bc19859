"""A restored database compares itself with the structure that the restore proved."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from tests.scripts.conftest import StoredBackup, Vault


def test_a_restored_structure_is_green_and_reports_the_next_change(
    folder_shelf: Vault, new_database: Callable[..., str], backup: StoredBackup
) -> None:
    empty = new_database()
    folder_shelf.run_to_end("restore", folder_shelf.keep(backup), "--to", empty)
    with psycopg.connect(empty, autocommit=True) as connection:
        assert connection.execute("select * from ops.structure_changes").fetchall() == []
        assert connection.execute("select status, advice from ops.structure_health").fetchall() == [("green", "OK.")]
        assert connection.execute("select * from ops.role_faults").fetchall() == []
        connection.execute("alter table public.audit_logs disable trigger append_only")
        changes = connection.execute("select name, problem from ops.structure_changes").fetchall()
        assert changes == [("append_only on public.audit_logs", "different")]
