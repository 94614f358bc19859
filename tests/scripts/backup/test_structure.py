"""A restored database is compared with its backup: equal definitions are never reported, and changed ones always."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from scripts.scratch.postgres import Postgres
from tests.scripts.conftest import Vault

pytestmark = pytest.mark.usefixtures("scratch_at_hand")


def drill(vault: Vault, **changes: str | None) -> str:
    """Backs up and runs a drill. Returns what its check of the structure says, and requires that the others pass."""
    vault.back_up()
    checks = {check["name"]: check for check in json.loads(vault.run("drill", "--json", **changes).stdout)["checks"]}
    assert [name for name, check in checks.items() if not check["passed"]] in ([], ["structure"]), checks
    return str(checks["structure"]["detail"])


@pytest.fixture
def bare_vault(migrated_database: str, new_database: Callable[..., str], tmp_path: Path) -> Vault:
    """A migrated database without people."""
    (tmp_path / "backups").mkdir()
    return Vault(new_database(migrated_database), (tmp_path / "backups").as_uri(), tmp_path)


ORDINARY = """
    create table public.ordinary (
        kind varchar(20) check (kind in ('a', 'b')),
        x int, y int, at timestamptz, check (x between 1 and 5 and y > 0)
    );
    alter table public.ordinary enable row level security, force row level security;
    create index on public.ordinary (x) where kind in ('a', 'b') and x between 1 and 5;
    create policy "some" on public.ordinary to authenticated using (kind in ('a', 'b') and x between 1 and 5 and y > 0);
    create function public.touch() returns trigger language plpgsql as 'begin return new; end';
    create trigger touch before update on public.ordinary for each row when (new.kind in ('a', 'b') and new.x between 1 and 5)
    execute function public.touch();
"""


def test_ordinary_definitions_are_the_same_after_a_restore(bare_vault: Vault) -> None:
    with bare_vault.connect() as connection:
        connection.execute(ORDINARY)
    assert "as backed up" in drill(bare_vault)


def test_a_backup_of_a_hosted_project_is_proven(bare_vault: Vault, bare_server: Postgres) -> None:
    """Its platform has other grants on schema public and other default privileges than the server of the drill."""
    with psycopg.connect(bare_server.url("supabase_admin", bare_vault.url.rpartition("/")[2])) as admin:
        admin.execute("revoke all on schema public from public, postgres")
        admin.execute("grant usage on schema public to postgres")
        admin.execute("alter default privileges for role supabase_admin in schema public grant all on tables to anon")
        admin.execute("create table public.theirs (id int)")
        admin.execute("grant select on public.theirs to postgres")
        admin.execute("grant all on public.theirs to service_role")
    assert "as backed up" in drill(bare_vault)
