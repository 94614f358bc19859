"""A restored database is compared with its backup: equal definitions are never reported, and changed ones always."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from scripts.backup.archive import parse_identities
from scripts.backup.restore import open_backup
from scripts.backup.structure import Definition, describe, find_differences, hash_definitions, pin_session
from scripts.schema import database
from scripts.scratch.postgres import Postgres
from tests.scripts.backup.definitions import make_all, make_tables
from tests.scripts.conftest import Vault

pytestmark = pytest.mark.usefixtures("scratch_at_hand")


def drill(vault: Vault) -> str:
    """Backs up and runs a drill. Returns what its check of the structure says, and requires that the others pass."""
    vault.back_up()
    return check_structure(vault)


def check_structure(vault: Vault, **changes: str | None) -> str:
    checks = {check["name"]: check for check in json.loads(vault.run("drill", "--json", **changes).stdout)["checks"]}
    assert [name for name, check in checks.items() if not check["passed"]] in ([], ["structure"]), checks
    return str(checks["structure"]["detail"])


@pytest.fixture
def bare_vault(migrated_database: str, new_database: Callable[..., str], tmp_path: Path) -> Vault:
    """A migrated database without people."""
    (tmp_path / "backups").mkdir()
    return Vault(new_database(migrated_database), (tmp_path / "backups").as_uri(), tmp_path)


ORDINARY = """
    create table public.test_ordinary (
        kind varchar(20) check (kind in ('a', 'b')),
        x int, y int, at timestamptz, check (x between 1 and 5 and y > 0)
    );
    alter table public.test_ordinary enable row level security, force row level security;
    create index on public.test_ordinary (x) where kind in ('a', 'b') and x between 1 and 5;
    create policy "some" on public.test_ordinary to authenticated using (kind in ('a', 'b') and x between 1 and 5 and y > 0);
    create function public.test_touch() returns trigger language plpgsql as 'begin return new; end';
    create trigger touch before update on public.test_ordinary for each row when (new.kind in ('a', 'b') and new.x between 1 and 5)
    execute function public.test_touch();
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
        admin.execute("create table public.test_theirs (id int)")
        admin.execute("grant select on public.test_theirs to postgres")
        admin.execute("grant all on public.test_theirs to service_role")
    assert "as backed up" in drill(bare_vault)


@pytest.mark.parametrize("number", [4, pytest.param(250, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("version", ["same", "old"])
def test_generated_definitions_are_the_same_and_changed_ones_differ(
    request: pytest.FixtureRequest, new_database: Callable[..., str], bare_vault: Vault, version: str, number: int
) -> None:
    """Of each kind, in one database that is backed up and restored once."""
    vault = replace(bare_vault, url=request.getfixturevalue("old_database")) if version == "old" else bare_vault
    definitions = list(make_all(20, number))
    with vault.connect() as connection:
        connection.execute(make_tables(number).encode())
        for each in definitions:
            connection.execute(each.create.encode())
    name, target = vault.back_up(), new_database()
    vault.run_to_end("restore", name, "--to", target)
    backup = open_backup(vault.store, name, parse_identities(vault.identity), vault.home)
    with database.connect(target) as connection:
        for each in definitions:
            connection.execute(each.change.encode())
        found = {each[:2] for each in find_differences(connection, backup.manifest, backup.read_definitions())}
    assert found == {(each.kind, each.name) for each in definitions}


# What a database, a role or a pooler may have set, and each of it changes how PostgreSQL prints or reads something.
SETTINGS = {
    "timezone": "America/St_Johns", "datestyle": "SQL, DMY", "intervalstyle": "sql_standard", "search_path": "ops, app, public", "extra_float_digits": "-8",
    "bytea_output": "escape", "xmloption": "document", "quote_all_identifiers": "on", "standard_conforming_strings": "off", "array_nulls": "off",
    "transform_null_equals": "on", "backslash_quote": "on", "lc_numeric": "POSIX",
}  # fmt: skip
SENSITIVE = r"""
    create table public.test_sensitive (
        id int primary key, at timestamptz default '2026-03-29 01:30:00+00', due interval default '-1 day 02:03', raw bytea default '\x00ff5c', f double precision default 0.1::double precision / 3,
        day date default '2026-02-01' check (day > '2025-03-04' and at > '2026-01-02 03:04:05.678+00'), words text[] default array[null, 'a\b', 'it''s'],
        check (f < 1.2345678901234567::double precision and due <> interval '1 day -02:03')
    );
    create table public.test_spread (like public.test_sensitive) partition by range (at);
    create table public.test_spread_1 partition of public.test_spread for values from ('2026-03-29 00:00:00+00') to ('2026-10-25 01:00:00+00');
    create policy "early" on public.test_sensitive using (at < '2026-07-01 12:00:00+02');
    insert into public.test_sensitive select n from generate_series(1, 3) as n;
    insert into public.test_spread select * from public.test_sensitive;
"""


@pytest.mark.parametrize("place", ["database", "role"])
def test_settings_of_the_source_do_not_matter(bare_vault: Vault, bare_server: Postgres, place: str) -> None:
    name = bare_vault.url.rpartition("/")[2]
    with bare_vault.connect() as connection:
        connection.execute(SENSITIVE)
    with psycopg.connect(bare_server.url("supabase_admin", name), autocommit=True) as admin:
        scope = f"database {name}" if place == "database" else f"role postgres in database {name}"
        for setting, value in SETTINGS.items():
            admin.execute(f"alter {scope} set {setting} = {value if ',' in value else repr(value)}".encode())
    assert "as backed up" in drill(bare_vault)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Pacific/Kiritimati", "America/St_Johns"])
def test_a_backup_made_in_one_time_zone_is_proven_in_another(bare_vault: Vault, zone: str) -> None:
    with bare_vault.connect() as connection:
        connection.execute(SENSITIVE)
    bare_vault.run_to_end("run", TZ="Asia/Kolkata", PGTZ="Asia/Kolkata", PGDATESTYLE="German")
    assert "as backed up" in check_structure(bare_vault, TZ=zone, PGTZ=zone, PGDATESTYLE="SQL, DMY")


def test_settings_of_the_target_do_not_matter(
    bare_vault: Vault, bare_server: Postgres, new_database: Callable[..., str]
) -> None:
    with bare_vault.connect() as connection:
        connection.execute(SENSITIVE)
        rows = (
            "select s::text from (select * from public.test_sensitive union all select * from public.test_spread) as s"
        )
        pin_session(connection, until_commit=False)
        before = connection.execute(rows).fetchall()
    target = new_database()
    name = target.rpartition("/")[2]
    with psycopg.connect(bare_server.url("supabase_admin", "postgres"), autocommit=True) as admin:
        for setting, value in SETTINGS.items():
            admin.execute(f"alter database {name} set {setting} = {value if ',' in value else repr(value)}".encode())
    bare_vault.run_to_end("restore", bare_vault.back_up(), "--to", target)
    with database.connect(target) as connection:
        pin_session(connection, until_commit=False)
        assert connection.execute(rows).fetchall() == before


# What is compared as it is: a statement that makes it, and one that changes it into what the difference names.
AS_IT_IS = {
    "sequence public.test_numbers": ("create sequence public.test_numbers increment 5 cache 3", "alter sequence public.test_numbers cycle"),
    "type public.test_grade": ("create type public.test_grade as enum ('low', 'high')", "alter type public.test_grade add value 'higher'"),
    "column public.test_pair.b": ("create type public.test_pair as (a int, b text)", "alter type public.test_pair alter attribute b type varchar(9)"),
    "type public.test_span": ("create type public.test_span as range (subtype = float8)", "drop type public.test_span; create type public.test_span as range (subtype = float8, subtype_diff = float8mi)"),
    "type public.test_tight": ("create domain public.test_tight as text not null", "alter domain public.test_tight drop not null"),
    "aggregate public.test_total(integer)": (
        "create aggregate public.test_total(int) (sfunc = int4pl, stype = int, initcond = '0')", "create or replace aggregate public.test_total(int) (sfunc = int4pl, stype = int, initcond = '1')"
    ),
    "operator public.===(integer,integer)": (
        "create operator public.=== (leftarg = int, rightarg = int, function = int4eq, restrict = eqsel)", "alter operator public.=== (int, int) set (restrict = none)"
    ),
    "collation public.numeric_order": (
        "create collation public.numeric_order (provider = libc, locale = 'C')", "drop collation public.numeric_order; create collation public.numeric_order (provider = libc, locale = 'POSIX')"
    ),
    "text search configuration public.plain": (
        "create text search configuration public.plain (copy = simple)", "alter text search configuration public.plain alter mapping for word with english_stem"
    ),
    "text search dictionary public.short": (
        "create text search dictionary public.short (template = simple, stopwords = english)", "alter text search dictionary public.short (stopwords)"
    ),
    "comment table column of public.test_plain_table.a": ("comment on column public.test_plain_table.a is 'one'", "comment on column public.test_plain_table.a is 'two'"),
    "comment policy of seen on public.test_plain_table": ("comment on policy seen on public.test_plain_table is 'one'", "comment on policy seen on public.test_plain_table is 'two'"),
    "options of column public.test_plain_table.b": ("alter table public.test_plain_table alter b set storage external", "alter table public.test_plain_table alter b set storage main"),
    "column public.test_plain_table.id": ("alter table public.test_plain_table add id int generated always as identity", "alter table public.test_plain_table alter id set generated by default"),
    "table public.test_heir": ("create table public.test_heir (c int) inherits (public.test_plain_table)", "alter table public.test_heir no inherit public.test_plain_table"),
    "table public.test_named": ("create table public.test_named (a int primary key) with (fillfactor = 70)", "alter table public.test_named replica identity full"),
    "trigger quiet on public.test_plain_table": (
        "create trigger quiet before insert on public.test_plain_table for each row execute function suppress_redundant_updates_trigger(); alter table public.test_plain_table disable trigger quiet",
        "alter table public.test_plain_table enable always trigger quiet",
    ),
    "rule still on public.test_plain_table": ("create rule still as on delete to public.test_plain_table do nothing", "alter table public.test_plain_table disable rule still"),
    "constraint late on public.test_plain_table": ("alter table public.test_plain_table add constraint late foreign key (a) references public.test_named", "alter table public.test_plain_table alter constraint late deferrable"),
    "index test_named_pkey on public.test_named": ("alter table public.test_named cluster on test_named_pkey", "alter table public.test_named set without cluster"),
    "view public.test_shown": ("create view public.test_shown with (security_invoker) as select a from public.test_plain_table", "alter view public.test_shown reset (security_invoker)"),
    "materialized view public.test_kept": ("create materialized view public.test_kept as select 1 as a", "refresh materialized view public.test_kept with no data"),
    "grant usage on type public.test_grade to anon": ("revoke usage on type public.test_grade from public", "grant usage on type public.test_grade to anon"),
    "grant select (a) on public.test_plain_table to anon": ("grant select (a) on public.test_plain_table to anon", "revoke select (a) on public.test_plain_table from anon"),
}  # fmt: skip


def test_what_is_compared_as_it_is(bare_vault: Vault, new_database: Callable[..., str]) -> None:
    with bare_vault.connect() as connection:
        connection.execute(
            "create table public.test_plain_table (a int, b text); create policy seen on public.test_plain_table"
        )
        for create, _ in AS_IT_IS.values():
            connection.execute(create.encode())
    name, target = bare_vault.back_up(), new_database()
    bare_vault.run_to_end("restore", name, "--to", target)
    backup = open_backup(bare_vault.store, name, parse_identities(bare_vault.identity), bare_vault.home)
    with database.connect(target) as connection:
        for difference, (_, change) in AS_IT_IS.items():
            with connection.transaction(force_rollback=True):
                connection.execute(change.encode())
                found = find_differences(connection, backup.manifest, backup.read_definitions())
            assert difference in {f"{each.kind} {each.name}" for each in found}


@pytest.mark.parametrize(
    "statement",
    ["commit; create table public.test_forged ()", "create table public.test_forged (); commit", "rollback; create table public.test_forged ()", "copy public.specimens to stdout"],
)  # fmt: skip
def test_a_forged_definition_changes_nothing(bare_vault: Vault, statement: str) -> None:
    """A writer to the store can forge definitions with their hashes. They run on the database that was restored."""
    backup = open_backup(bare_vault.store, bare_vault.back_up(), parse_identities(bare_vault.identity), bare_vault.home)
    with database.connect(bare_vault.url) as connection:
        forged = describe(connection)
        forged["view"] = {"ops.health": Definition(forged["view"]["ops.health"].facts, statement)}
        manifest = backup.manifest.model_copy(update={"structure": hash_definitions(forged)})
        found = find_differences(connection, manifest, forged)
        assert ("view", "ops.health", "differs") in found
        assert connection.execute("select to_regclass('public.test_forged')").fetchall() == [(None,)]
