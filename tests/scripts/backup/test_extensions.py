"""Backups of a database whose objects need extensions."""

from __future__ import annotations

import json
from collections.abc import Callable

import psycopg
import pytest

from tests.scripts.conftest import Vault

# Each uses its extension in another kind of object. The statements run as postgres, as a migration does.
USES = {
    "trigger": ("moddatetime", """
        create table app.uses (id uuid primary key, updated_at timestamptz);
        create trigger touch before update on app.uses for each row execute function extensions.moddatetime(updated_at)"""),
    "view": ("pg_trgm", "create view app.uses as select extensions.similarity(title, 'Acme') from public.specimens"),
    "check": ("citext", "create table app.uses (name text, check (name::extensions.citext <> 'Root'))"),
    "domain": ("hstore", "create domain app.uses as extensions.hstore check (value operator(extensions.?) 'id')"),
    "array": ("citext", "create table app.uses (names extensions.citext[])"),
    "exclusion": ("btree_gist", "create table app.uses (room integer, during tsrange, exclude using gist (room with =, during with &&))"),
    "policy": ("hstore", """
        create table app.uses (owner text); alter table app.uses enable row level security;
        create policy own on app.uses using (extensions.defined('a=>1', owner))"""),
    "policy of Supabase's table": ("hstore", """
        create policy uses on realtime.messages for select to authenticated
        using (app.user_id() is not null and extensions.defined('a=>1', topic))"""),
    "column": ("vector", "create table app.uses (place extensions.vector(3))"),
    "default": ("citext", "create table app.uses (name text default extensions.citext('A'))"),
    "generated column": ("unaccent", """
        create function app.plain(text) returns text language sql immutable return extensions.unaccent($1);
        create table app.uses (name text, plain text generated always as (app.plain(name)) stored)"""),
    "index": ("pg_trgm", "create index uses on public.specimens using gin (title extensions.gin_trgm_ops)"),
    "operator class": ("btree_gin", "create index uses on public.specimens using gin (created_at)"),
    "text search": ("unaccent", """
        create text search configuration app.uses (copy = simple);
        alter text search configuration app.uses alter mapping for word with extensions.unaccent, simple"""),
    "range": ("citext", "create type app.uses as range (subtype = extensions.citext)"),
    "composite type": ("hstore", "create type app.uses as (pairs extensions.hstore)"),
    "rule": ("hstore", "create table app.uses (a text); create rule uses as on insert to app.uses do also select extensions.hstore(new.a, 'b')"),
    "aggregate": ("cube", "create aggregate app.uses (extensions.cube) (sfunc = extensions.cube_union, stype = extensions.cube)"),
    "another extension": ("earthdistance", "create table app.uses (place extensions.earth)"),
    "trigger condition": ("ltree", """
        create function app.nothing() returns trigger language plpgsql as 'begin return new; end';
        create trigger uses after update on public.specimens for each row
        when (new.title::extensions.ltree is null) execute function app.nothing()"""),
    "partition key": ("pg_trgm", "create table app.uses (name text) partition by range (extensions.similarity(name, 'a'))"),
    "statistics": ("pg_trgm", "create statistics app.uses on extensions.similarity(title, 'a'), id from public.specimens"),
}  # fmt: skip
EVERYDAY = {"trigger", "view", "check", "domain", "policy", "column"}
# Extensions that another one requires.
REQUIRED = {"earthdistance": ["cube", "earthdistance"]}


@pytest.mark.usefixtures("scratch_at_hand")
@pytest.mark.parametrize("place", [
    pytest.param(place, marks=() if place in EVERYDAY else pytest.mark.thorough) for place in USES
])  # fmt: skip
def test_a_backup_brings_the_extensions_that_its_objects_use(
    folder_vault: Vault, new_database: Callable[..., str], place: str
) -> None:
    extension, statements = USES[place]
    with folder_vault.connect() as connection:
        connection.execute(f"create extension {extension} schema extensions cascade".encode())
        connection.execute("create extension intarray schema extensions")  # nothing uses it
        connection.execute(statements.encode())
    name = folder_vault.back_up()
    assert [each.name for each in folder_vault.store.manifest(name).extensions] == REQUIRED.get(extension, [extension])
    folder_vault.run_to_end("drill")
    target = new_database()
    folder_vault.run_to_end("restore", name, "--to", target)
    with psycopg.connect(target) as connection:
        assert connection.execute("select from pg_extension where extname = %s", [extension]).rowcount == 1
        assert not connection.execute("select from pg_extension where extname = 'intarray'").rowcount


@pytest.mark.usefixtures("scratch_at_hand")
def test_an_extension_keeps_its_schema_with_the_grants(folder_vault: Vault, new_database: Callable[..., str]) -> None:
    with folder_vault.connect() as connection:
        connection.execute('create schema "Odd home"; grant usage on schema "Odd home" to authenticated')
        connection.execute('create extension citext schema "Odd home"')
        connection.execute("create extension hstore schema public")
        connection.execute('create table app.uses (name "Odd home".citext, pairs public.hstore)')
    folder_vault.back_up()
    target = new_database()
    folder_vault.run_to_end("restore", "latest", "--to", target)
    with psycopg.connect(target) as connection:
        found = connection.execute(
            "select extname::text, extnamespace::regnamespace::text, has_schema_privilege('authenticated', extnamespace, 'usage'), "
            "has_schema_privilege('anon', extnamespace, 'usage') from pg_extension where extname in ('citext', 'hstore') order by 1"
        ).fetchall()
    assert found == [("citext", '"Odd home"', True, False), ("hstore", "public", True, True)]
    assert json.loads(folder_vault.run_to_end("drill", "--json").stdout)["passed"]


@pytest.mark.usefixtures("scratch_at_hand")
@pytest.mark.parametrize("place", [
    "app", *(pytest.param(place, marks=pytest.mark.thorough) for place in ("ops", "supabase_migrations"))
])  # fmt: skip
def test_an_extension_in_one_of_our_schemas_is_restored(
    folder_vault: Vault, new_database: Callable[..., str], place: str
) -> None:
    with folder_vault.connect() as connection:
        connection.execute(f"create extension citext schema {place}".encode())
        connection.execute(f"create table app.uses (name {place}.citext)".encode())
    folder_vault.back_up()
    assert json.loads(folder_vault.run_to_end("drill", "--json").stdout)["passed"]
    target = new_database()
    folder_vault.run_to_end("restore", "latest", "--to", target)
    folder_vault.run_to_end("restore", "latest", "--to", target, "--replace", target.rpartition("/")[2])
    with psycopg.connect(target) as connection:
        found = "select extnamespace::regnamespace::text from pg_extension where extname = 'citext'"
        assert connection.execute(found).fetchall() == [(place,)]
