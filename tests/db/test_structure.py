"""ops.structure_health: everything that files made, and that someone then changed or dropped by hand, is reported."""

from __future__ import annotations

import pytest

from scripts.schema import structure
from tests.conftest import Database

AGAIN = "delete the row of the file from app.applied_sources, then run `ballast migrate up`"
MIGRATION = "Create it again as its migration does."
ACCEPT = "If the change is wanted, add it to a file, then run `select ops.accept_structure()`."

# What breaks the structure, what is reported first, and the remedy.
FAULTS = {
    "alter table public.specimens drop constraint specimens_organization_id_fkey": (
        "The constraint specimens_organization_id_fkey on public.specimens is missing.", MIGRATION,
    ),
    "alter table public.specimens drop constraint specimens_title_check": ("The constraint specimens_title_check on public.specimens is missing.", MIGRATION),
    "alter table public.organizations drop constraint organizations_clerk_org_id_key": ("constraint organizations_clerk_org_id_key on public.organizations is missing", MIGRATION),
    "alter table public.specimens drop constraint specimens_pkey cascade": ("The constraint specimens_pkey on public.specimens is missing.", MIGRATION),
    """alter table public.specimens drop constraint specimens_organization_id_fkey;
    alter table public.specimens add constraint specimens_organization_id_fkey
    foreign key (organization_id) references public.organizations on delete cascade not valid""": (
        "The constraint specimens_organization_id_fkey on public.specimens was changed by hand.", MIGRATION,
    ),
    """alter table public.specimens drop constraint specimens_organization_id_fkey;
    alter table public.specimens add constraint specimens_organization_id_fkey
    foreign key (organization_id) references public.organizations on delete restrict""": ("specimens_organization_id_fkey on public.specimens was changed", MIGRATION),
    """alter table public.specimens drop constraint specimens_title_check;
    alter table public.specimens add constraint specimens_title_check check (length(title) between 1 and 2000)""": (
        "specimens_title_check on public.specimens was changed", MIGRATION,
    ),
    "drop index public.specimens_created_by_idx": ("The index specimens_created_by_idx on public.specimens is missing.", MIGRATION),
    "update pg_index set indisvalid = false where indexrelid = 'public.specimens_created_by_idx'::regclass": (
        "The index specimens_created_by_idx on public.specimens was changed by hand.", MIGRATION,
    ),
    "drop index public.specimens_created_by_idx; create index specimens_created_by_idx on public.specimens (created_by) where created_by is not null": (
        "The index specimens_created_by_idx on public.specimens was changed by hand.", MIGRATION,
    ),
    "alter table public.specimens alter column organization_id drop not null": ("The column public.specimens.organization_id was changed by hand.", MIGRATION),
    "alter table public.specimens alter column created_by drop default": ("The column public.specimens.created_by was changed by hand.", MIGRATION),
    "alter table public.specimens alter column title type varchar": ("The column public.specimens.title was changed by hand.", MIGRATION),
    "grant update (id) on public.specimens to authenticated": ("The column public.specimens.id was changed by hand.", MIGRATION),
    "alter table public.specimens drop column title cascade": ("The column public.specimens.title is missing.", MIGRATION),
    "drop table app.rate_limits cascade": ("The table app.rate_limits is missing.", MIGRATION),
    "alter table app.settings set unlogged": ("The table app.settings was changed by hand.", "Compare row level security"),
    "alter table app.settings disable row level security": ("The table app.settings was changed by hand.", "Compare row level security"),
    "alter table public.specimens no force row level security": ("The table public.specimens was changed by hand.", "Compare row level security"),
    "alter table public.specimens replica identity full": ("The table public.specimens was changed by hand.", "Compare row level security"),
    "create rule nothing as on delete to public.specimens do instead nothing": ("The table public.specimens was changed by hand.", "rules"),
    "create policy open on public.profiles for select to authenticated using (id is not null)": (
        "The table public.profiles was changed by hand.", "`ballast migrate check` lists its policies",
    ),
    "create policy open on realtime.messages for select to authenticated using (true)": ("The table realtime.messages was changed by hand.", "lists its policies"),
    "grant select on public.specimens to anon": ("The table public.specimens was changed by hand.", "grants"),
    "grant usage on schema ops to authenticated": ("The schema ops was changed by hand.", MIGRATION),
    "alter table public.specimens disable trigger audit_insert": ("The trigger audit_insert on public.specimens was changed by hand.", AGAIN),
    "alter table public.specimens disable trigger touch": ("The trigger touch on public.specimens was changed by hand.", AGAIN),
    "alter table public.specimens enable replica trigger audit_update": ("The trigger audit_update on public.specimens was changed by hand.", AGAIN),
    "alter table public.audit_logs disable trigger append_only": ("The trigger append_only on public.audit_logs was changed by hand.", AGAIN),
    "drop trigger append_only on public.audit_logs": ("The table public.audit_logs was changed by hand.", "triggers"),
    "alter table public.specimens disable trigger all": ("The constraint", MIGRATION),
    "create or replace function app.user_id() returns uuid language sql stable security definer set search_path = pg_catalog, pg_temp as 'select null::uuid'": (
        "The function app.user_id() was changed by hand.", AGAIN,
    ),
    "alter function app.user_id() security invoker": ("The function app.user_id() was changed by hand.", AGAIN),
    "alter function app.user_id() reset search_path": ("The function app.user_id() was changed by hand.", AGAIN),
    "alter function app.user_id() owner to supabase_admin": ("The function app.user_id()", AGAIN),
    "alter function app.user_id() volatile": ("The function app.user_id() was changed by hand.", AGAIN),
    "grant execute on function app.is_transient(text) to authenticated": ("The function app.is_transient(", AGAIN),
    "drop function ops.person_id(text) cascade": ("The function ops.person_id(person text) is missing.", AGAIN),
    """create or replace view app.caller as select p.id, true as second_factor, t.claims
    from app.token as t join public.profiles as p on t.claims ->> 'sub' = p.clerk_user_id""": ("The view app.caller was changed by hand.", AGAIN),
    "drop policy \"read with specimens:read\" on public.specimens": ("The table public.specimens was changed by hand.", "lists its policies"),
    "alter policy \"read with specimens:read\" on public.specimens using (true)": ("The policy read with specimens:read on public.specimens was changed by hand.", AGAIN),
    "alter policy \"read with specimens:read\" on public.specimens to anon": ("The policy read with specimens:read on public.specimens was changed by hand.", AGAIN),
    "alter publication supabase_realtime drop table public.specimens": ("The publication public.specimens of supabase_realtime is missing.", "alter publication supabase_realtime add table public."),
    "drop publication supabase_realtime": ("The publication public.", "`alter publication supabase_realtime add table public."),
    "alter view ops.health reset (security_invoker)": ("The view ops.health was changed by hand.", AGAIN),
    "alter publication supabase_realtime set (publish = 'insert')": ("of supabase_realtime was changed by hand.", "alter publication supabase_realtime add table public."),
}  # fmt: skip


def verdict(database: Database) -> tuple[str, str]:
    [found] = database.rows("select status, advice from ops.structure_health")
    return found[0], found[1]


def test_a_migrated_database_is_as_its_files_made_it(database: Database) -> None:
    assert database.rows("select * from ops.structure_changes") == []
    assert verdict(database) == ("green", "OK.")
    assert database.value("select recorded from ops.structure_health") > 500


@pytest.mark.parametrize("breaking", FAULTS)
def test_a_change_by_hand_is_reported_with_its_remedy(superuser: Database, breaking: str) -> None:
    superuser.execute(breaking)
    status, advice = verdict(superuser)
    change, remedy = FAULTS[breaking]
    assert status == "red"
    assert change in advice
    assert remedy in advice
    assert ACCEPT in advice
    assert superuser.rows("select status from ops.health where subject = 'structure'") == [("red",)]


def test_several_changes_are_counted_and_listed(superuser: Database) -> None:
    superuser.execute("drop index public.specimens_created_by_idx")
    superuser.execute("alter table public.specimens disable trigger touch")
    assert superuser.rows("select kind, name, problem from ops.structure_changes") == [
        ("index", "specimens_created_by_idx on public.specimens", "missing"),
        ("trigger", "touch on public.specimens", "different"),
    ]
    assert verdict(superuser)[1].endswith("1 more in ops.structure_changes.")


def test_an_additional_trigger_shows_in_its_table(superuser: Database) -> None:
    superuser.execute(
        "create trigger extra before insert on public.specimens for each row execute function app.touch()"
    )
    assert superuser.rows("select kind, name from ops.structure_changes") == [("table", "public.specimens")]


def test_an_append_only_trigger_that_is_disabled_on_one_partition_is_reported(superuser: Database) -> None:
    partition = superuser.value(
        "select min(inhrelid::regclass::text) from pg_inherits where inhparent = 'public.audit_logs'::regclass"
    )
    superuser.execute(f"alter table {partition} disable trigger append_only")
    assert superuser.rows("select kind, name from ops.structure_changes") == [
        ("trigger", "append_only on public.audit_logs")
    ]


def test_partitions_of_the_audit_trail_may_come_and_go(database: Database) -> None:
    known = database.value("select count(*) from app.list_structure()")
    database.execute(
        "create table app.audit_logs_2001_01 partition of public.audit_logs for values from ('2001-01-01') to ('2001-02-01')"
    )
    assert verdict(database) == ("green", "OK.")
    assert database.value("select count(*) from app.list_structure()") == known


def test_objects_that_no_file_made_are_not_reported(database: Database) -> None:
    database.execute(
        "create table public.test_scratch (id integer primary key); create function app.scratch() returns void language sql as ''"
    )
    assert verdict(database) == ("green", "OK.")


@pytest.mark.parametrize("setting", [
    "search_path = app, public, extensions", "search_path = ''", "quote_all_identifiers = on", "timezone = 'Asia/Kolkata'",
    "datestyle = 'German'", "intervalstyle = 'iso_8601'", "bytea_output = 'escape'", "extra_float_digits = -3",
])  # fmt: skip
def test_the_comparison_does_not_depend_on_the_session(database: Database, setting: str) -> None:
    database.execute(f"set local {setting}")
    assert verdict(database) == ("green", "OK.")


def test_the_records_of_another_major_version_count_for_existence_only(superuser: Database) -> None:
    superuser.execute("update app.recorded_objects set postgres_major = 14, hash = md5(hash) where true")
    status, advice = verdict(superuser)
    assert status == "yellow"
    assert "Run `ballast migrate check`, then `select ops.accept_structure()`." in advice
    superuser.execute("drop index public.specimens_created_by_idx")
    assert verdict(superuser)[0] == "red"


def test_an_accepted_structure_is_green_until_the_next_change(superuser: Database) -> None:
    superuser.execute("drop index public.specimens_created_by_idx; alter table public.specimens disable trigger touch")
    assert superuser.value("select ops.accept_structure()").startswith("2 definitions were recorded")
    assert verdict(superuser) == ("green", "OK.")
    superuser.execute("alter table public.specimens enable trigger touch")
    assert verdict(superuser)[0] == "red"


def test_a_database_without_records_is_yellow(superuser: Database) -> None:
    superuser.execute("delete from app.recorded_objects where true")
    assert verdict(superuser)[0] == "yellow"
    superuser.execute("select ops.accept_structure()")
    assert verdict(superuser) == ("green", "OK.")


def test_what_someone_changed_before_a_file_is_not_recorded_with_it(superuser: Database) -> None:
    superuser.execute("drop index public.specimens_created_by_idx; alter function app.user_id() volatile")
    known = structure.list_changes(superuser.connection)
    superuser.execute(
        "alter table public.specimens add column weight integer; drop index public.specimens_organization_id_created_at_idx"
    )
    superuser.connection.execute(structure.SET_KNOWN, [known])
    superuser.execute(structure.RECORD)
    assert superuser.rows("select name from ops.structure_changes") == [
        ("specimens_created_by_idx on public.specimens",),
        ("app.user_id()",),
    ]
    assert superuser.value("select count(*) from app.recorded_objects where name = 'public.specimens.weight'") == 1


def test_a_file_that_repairs_a_change_by_hand_ends_the_report(superuser: Database) -> None:
    superuser.execute("drop index public.specimens_created_by_idx")
    known = structure.list_changes(superuser.connection)
    superuser.execute("create index specimens_created_by_idx on public.specimens (created_by desc)")
    superuser.connection.execute(structure.SET_KNOWN, [known])
    superuser.execute(structure.RECORD)
    assert verdict(superuser) == ("green", "OK.")


@pytest.mark.parametrize(("breaking", "repair"), [
    ("alter table public.specimens drop constraint specimens_organization_id_fkey",
     "alter table public.specimens add foreign key (organization_id) references public.organizations on delete cascade"),
    ("alter table public.specimens drop constraint specimens_title_check",
     "alter table public.specimens add constraint specimens_title_check check (length(title) between 1 and 200)"),
    ("drop index public.specimens_created_by_idx", "create index specimens_created_by_idx on public.specimens (created_by)"),
    ("alter table public.specimens alter column status drop default", "alter table public.specimens alter column status set default 'active'"),
    ("alter table public.specimens alter column title drop not null", "alter table public.specimens alter column title set not null"),
    ("alter publication supabase_realtime drop table public.specimens", "alter publication supabase_realtime add table public.specimens"),
    ("alter table public.specimens disable trigger touch", "alter table public.specimens enable trigger touch"),
    ("grant select on public.specimens to anon", "revoke select on public.specimens from anon"),
])  # fmt: skip
def test_what_someone_creates_again_as_advised_is_green(superuser: Database, breaking: str, repair: str) -> None:
    superuser.execute(breaking)
    assert verdict(superuser)[0] == "red"
    superuser.execute(repair)
    assert superuser.rows("select * from ops.structure_changes") == []
    assert verdict(superuser) == ("green", "OK.")
