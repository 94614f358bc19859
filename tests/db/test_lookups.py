"""What a caller learns about other tenants: nothing, neither from answers and errors nor from what an entry, an export or a count shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.conftest import Claims, Database
from tests.db.test_erasure import erase, find_texts
from tests.db.test_personal_data import export_all
from tests.people import ADA, ADA_EMAILS, BEN, CLEO, identifiers

MALLORY = "user_2Mallory"


@pytest.fixture
def mallorys(world: Database) -> str:
    """The id of an organization of Mallory, who shares none with the people of the world."""
    world.execute("insert into public.organizations (clerk_org_id, name) values ('org_mallory', 'Mallory''s')")
    world.execute("insert into public.profiles (clerk_user_id, email) values (%s, 'mallory@example.com')", MALLORY)
    world.execute(
        "insert into public.organization_memberships (organization_id, user_id, role) "
        "select o.id, p.id, 'owner' from public.organizations as o, public.profiles as p where o.clerk_org_id = 'org_mallory' and p.clerk_user_id = %s",
        MALLORY,
    )
    return str(world.value("select id from public.organizations where clerk_org_id = 'org_mallory'"))


def mallory(**more: Any) -> Claims:
    return {"sub": MALLORY, "role": "authenticated", "fva": [0, 0]} | more


def log_event(world: Database, organization: str, metadata: object, resource: str | None = None) -> str:
    log = "select public.log_audit_event(%s, 'client.noted', 'note', %s, %s)"
    with world.acting("authenticated", mallory()):
        made = world.value(log, organization, resource, json.dumps(metadata))
    world.execute("select set_config('request.jwt.claims', '', true)")
    return str(made)


def entry(world: Database, identifier: str) -> dict[str, Any]:
    found: dict[str, Any] = world.value("select to_jsonb(a) from public.audit_logs as a where id = %s", identifier)
    return found


# --- people named by an audit entry

NAMINGS: dict[str, Callable[[str], tuple[object, str | None]]] = {
    "a value": lambda name: ({"person": name}, None),
    "a value in other letters": lambda name: ({"person": name.upper() if "@" in name else name}, None),
    "a nested value": lambda name: ({"people": [{"who": [name]}]}, None),
    "a key": lambda name: ({name: 1}, None),
    "a sentence": lambda name: ({"note": f"Wrote to {name}, and waits.\nThen '{name}' answered {name}."}, None),
    "a link": lambda name: ({"link": f"https://example.com/people?who={name}&a=1"}, None),
    "after a line break": lambda name: ({"note": f'"\n{name}\\'}, None),
    "the resource": lambda name: ({}, name),
}


@pytest.mark.parametrize("name", NAMINGS.values(), ids=NAMINGS)
def test_an_erasure_finds_an_entry_whose_author_could_not_see_the_person(
    world: Database, mallorys: str, name: Callable[[str], tuple[object, str | None]]
) -> None:
    texts = identifiers(world)
    for text in texts:
        metadata, resource = name(text)
        log_event(world, mallorys, metadata, resource)
    assert find_texts(world, texts)["public.audit_logs"] >= len(texts)
    erase(world)
    assert find_texts(world, texts) == {}
    assert world.value("select count(*) from public.audit_logs where action = 'client.noted'") == len(texts)


def test_an_erasure_finds_an_entry_from_before_the_person_signed_up(world: Database, mallorys: str) -> None:
    log_event(world, mallorys, {"to": "Zoe.Late@example.com"})
    world.execute("insert into public.profiles (clerk_user_id, email) values ('user_2Zoe', 'zoe.late@example.com')")
    erase(world, "user_2Zoe")
    assert find_texts(world, ["zoe.late@example.com"]) == {}


def test_an_erasure_keeps_the_other_people_of_an_entry_findable(world: Database, mallorys: str) -> None:
    made = log_event(world, mallorys, {"copies": [ADA, "user_2Zoe"]})
    world.execute("insert into public.profiles (clerk_user_id) values ('user_2Zoe')")
    erase(world)
    assert entry(world, made)["metadata"] == {"copies": ["erased", "user_2Zoe"]}
    erase(world, "user_2Zoe")
    assert entry(world, made)["metadata"] == {"copies": ["erased", "erased"]}
    assert entry(world, made)["mentions"] is None


@pytest.mark.parametrize("argument", ["action", "resource type"])
def test_an_event_that_names_a_person_where_no_erasure_looks_is_refused(
    world: Database, mallorys: str, argument: str
) -> None:
    log = "select public.log_audit_event(%s, %s, %s)"
    for name in identifiers(world):
        action, resource = (f"client.{name}", "note") if argument == "action" else ("client.noted", f"note of {name}")
        with (
            pytest.raises(psycopg.DatabaseError) as refused,
            world.connection.transaction(),
            world.acting("authenticated", mallory()),
        ):
            world.execute(log, mallorys, action, resource)
        assert refused.value.sqlstate == "PT400"


@pytest.mark.parametrize("exporter", [ADA, MALLORY])
def test_an_export_does_not_contain_another_person_whom_an_event_names(
    world: Database, mallorys: str, exporter: str
) -> None:
    for resource in (BEN, "ben@example.com"):
        log_event(world, mallorys, {"to": ADA}, resource)
    exported = export_all(world, exporter)["activity_about_you" if exporter == ADA else "activity"]
    rows = [row for row in exported if row["action"] == "client.noted"]
    assert len(rows) == 2
    assert BEN not in json.dumps(rows)
    assert "ben@example.com" not in json.dumps(rows)


def test_a_person_gets_the_entries_that_name_them(world: Database, mallorys: str) -> None:
    made = [log_event(world, mallorys, {"note": f"Ask {name}"}) for name in identifiers(world)]
    found = [row for row in export_all(world)["activity_about_you"] if row["id"] in made]
    assert sorted(row["id"] for row in found) == sorted(made)
    assert {row["organization_id"] for row in found} == {mallorys}


def test_an_entry_does_not_show_whether_the_person_it_names_has_an_account(world: Database, mallorys: str) -> None:
    """Not even in the columns that no client may read: they depend on the text only."""
    unknown = ("00000000-0000-4000-8000-000000000000", "user_2Unknown", "unknown@example.com", "unknown@example.org")
    facts = [
        {
            column: len(value) if column == "mentions" else value
            for column, value in entry(world, log_event(world, mallorys, {"to": name}, name)).items()
            if column not in ("id", "metadata", "resource_id")
        }
        for known in zip(identifiers(world), unknown, strict=True)
        for name in known
    ]
    assert facts == [facts[0]] * len(facts)
    assert (facts[0]["mentions"], facts[0]["subject_ids"]) == (1, None)


def test_the_authors_export_does_not_show_whether_a_person_has_an_account(world: Database, mallorys: str) -> None:
    for address in (ADA_EMAILS[0], "unknown@example.com"):
        log_event(world, mallorys, {"to": address})
    known, unknown = [
        {name: value for name, value in row.items() if name != "id"}
        for row in export_all(world, MALLORY)["activity"]
        if row["action"] == "client.noted"
    ]
    assert known == unknown


def test_the_author_gets_what_they_logged_without_the_ids_and_addresses_of_others(
    world: Database, mallorys: str
) -> None:
    log_event(
        world, mallorys, {"to": ADA_EMAILS[0], "from": "mallory@example.com", "note": f"1. Ask {ADA}\n2. Pay", "n": 7}
    )
    [row] = [row for row in export_all(world, MALLORY)["activity"] if row["action"] == "client.noted"]
    assert row["metadata"] == {"from": "mallory@example.com", "n": 7}


def test_an_entry_that_names_only_its_author_is_exported_to_them_in_full(world: Database, mallorys: str) -> None:
    log_event(world, mallorys, {"from": "Mallory@example.com", "id": MALLORY})
    [row] = [row for row in export_all(world, MALLORY)["activity"] if row["action"] == "client.noted"]
    assert row["metadata"] == {"from": "Mallory@example.com", "id": MALLORY}


@pytest.mark.parametrize("column", ["subject_ids", "mentions"])
@pytest.mark.parametrize(
    "statement",
    [
        "select {} from public.audit_logs",
        "select id from public.audit_logs where {} is not null",
        "select id from public.audit_logs order by {}",
        "select count({}) from public.audit_logs",
        "select a from public.audit_logs as a",
        "select * from public.audit_logs",
        "select a.xmin from public.audit_logs as a",
    ],
)
def test_no_client_reads_or_compares_whom_an_entry_is_about(
    world: Database, mallorys: str, statement: str, column: str
) -> None:
    log_event(world, mallorys, {"to": ADA})
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        world.connection.transaction(),
        world.acting("authenticated", mallory()),
    ):
        world.execute(statement.format(column))


def test_the_audit_csv_does_not_show_whom_an_entry_is_about(world: Database) -> None:
    columns = {
        name
        for (name,) in world.rows("select attname::text from pg_attribute where attrelid = 'app.audit_entries'::regclass and attnum > 0")
    }  # fmt: skip
    assert {"id", "metadata"} <= columns
    assert columns.isdisjoint({"subject_ids", "mentions"})


# --- columns that clients may not read

HIDDEN_COLUMNS = """
    select c.oid::regclass::text, a.attname::text, format_type(a.atttypid, a.atttypmod)
    from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
      and has_any_column_privilege('authenticated', c.oid, 'select') and not has_column_privilege('authenticated', c.oid, a.attnum, 'select')
    order by 1, 2
"""
READABLE_COLUMNS = """
    select string_agg(format('t.%%I', a.attname), ', ') from pg_attribute as a
    where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped and has_column_privilege('authenticated', a.attrelid, a.attnum, 'select')
"""
# A different value for each type of hidden column, unless the column needs one of its own.
OTHER_VALUES = {
    "jsonb": "jsonb_build_object('probe', true)", "timestamp with time zone": "now() - interval '1 year'", "uuid[]": "array[gen_random_uuid()]",
    "bigint[]": "array[7]", "text": "'probe'", "boolean": "not t.{column}", "integer": "t.{column} + 1",
    "current_organization_id": "(select m.organization_id from public.organization_memberships as m where m.user_id = t.id order by 1 limit 1)",
}  # fmt: skip


def read_hidden_columns(database: Database) -> list[tuple[str, str, str]]:
    return database.rows(HIDDEN_COLUMNS)  # type: ignore[return-value]


def test_a_change_of_a_hidden_column_changes_no_column_that_clients_may_read(world: Database) -> None:
    """Such as updated_at: it would show co-members when a person switches to another organization."""
    world.execute("set local app.audit_intervention = 'on'")
    hidden = read_hidden_columns(world)
    assert {("profiles", "preferences"), ("audit_logs", "subject_ids")} <= {
        (table, column) for table, column, _ in hidden
    }
    for table, column, kind in hidden:
        key = (
            f"clerk_user_id = '{BEN}'"
            if table == "profiles"
            else f"id = (select min(id::text)::uuid from public.{table})"
        )
        backdate(world, table, key)
        readable = world.value(READABLE_COLUMNS, f"public.{table}")
        before = world.rows(f"select {readable} from public.{table} as t where {key}")
        chosen = OTHER_VALUES[column if column in OTHER_VALUES else kind].format(column=column)
        value = f"({chosen})::{kind}"
        changed = world.execute(
            f"update public.{table} as t set {column} = {value} where {key} and {column} is distinct from {value}"
        )
        assert changed.rowcount == 1, (table, column)
        assert world.rows(f"select {readable} from public.{table} as t where {key}") == before, (table, column)


def backdate(world: Database, table: str, key: str) -> None:
    """Sets updated_at, if there is one, to a time that no trigger would set."""
    if world.value(
        "select true from pg_attribute where attrelid = %s::regclass and attname = 'updated_at'", f"public.{table}"
    ):
        world.execute(f"alter table public.{table} disable trigger user")
        world.execute(f"update public.{table} set updated_at = '2020-01-01' where {key}")
        world.execute(f"alter table public.{table} enable trigger user")


def test_a_change_of_a_column_that_clients_may_read_still_sets_updated_at(world: Database) -> None:
    backdate(world, "profiles", f"clerk_user_id = '{ADA}'")
    world.execute("update public.profiles set full_name = 'Ada Autumn' where clerk_user_id = %s", ADA)
    assert world.value("select updated_at = now() from public.profiles where clerk_user_id = %s", ADA)


def test_a_start_of_a_session_and_a_switch_of_organization_show_nothing_to_co_members(world: Database) -> None:
    backdate(world, "profiles", f"clerk_user_id = '{ADA}'")
    seen = "select to_jsonb(p) from (select id, full_name, banned, updated_at from public.profiles where clerk_user_id = %s) as p"
    messages = world.value("select count(*) from realtime.messages")
    with world.acting("authenticated", mallory(sub=CLEO)):
        before = world.value(seen, ADA)
    with world.acting("authenticated", mallory(sub=ADA)):
        world.execute("select public.start_session()")
        world.execute(
            "update public.profiles set preferences = '{\"theme\": \"dark\"}', current_organization_id = "
            "(select id from public.organizations where name = 'Globex') where clerk_user_id = %s", ADA
        )  # fmt: skip
    with world.acting("authenticated", mallory(sub=CLEO)):
        assert world.value(seen, ADA) == before
    assert world.value("select count(*) from realtime.messages") == messages


def test_a_broadcast_of_a_table_with_a_hidden_column_does_not_show_when_it_changes(world: Database) -> None:
    world.execute("revoke select on public.specimens from authenticated")
    world.execute("grant select (id, organization_id, title) on public.specimens to authenticated")
    messages = world.value("select count(*) from realtime.messages")
    world.execute("update public.specimens set description = 'hidden', updated_at = now() + interval '1 day'")
    assert world.value("select count(*) from realtime.messages") == messages
    world.execute("update public.specimens set title = title || '!' where title = 'Not hers'")
    assert world.value("select count(*) from realtime.messages") > messages


@pytest.mark.parametrize("column", ["xmin", "xmax", "ctid", "cmin"])
def test_the_system_columns_of_a_row_with_hidden_columns_are_hidden_too(world: Database, column: str) -> None:
    """They change whenever any column of the row changes."""
    for table in {table for table, _, _ in read_hidden_columns(world)}:
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            world.connection.transaction(),
            world.acting("authenticated", mallory(sub=ADA)),
        ):
            world.execute(f"select t.{column} from public.{table} as t")


# --- functions that look across tenants

# Definer functions that an API role may execute, or that run when a client writes a row, and whose comment does not state what their caller
# learns. Before you state it: does the answer, an error or an effect depend on rows that the caller may not see?
UNREVIEWED = """
    select p.oid::regprocedure::text from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
    where n.nspname in ('public', 'app', 'ops') and p.prosecdef
      and (
        has_function_privilege('authenticated', p.oid, 'execute') or has_function_privilege('anon', p.oid, 'execute')
        or exists (
          select from pg_trigger as t where t.tgfoid = p.oid and not t.tgisinternal
            and (
              has_any_column_privilege('authenticated', t.tgrelid, 'insert, update')
              or has_table_privilege('authenticated', t.tgrelid, 'delete')
            )
        )
      )
      and coalesce(obj_description(p.oid, 'pg_proc'), '') !~ ' The caller learns: [^.]+\\.'
"""


def test_every_definer_function_that_a_client_can_run_states_what_its_caller_learns(database: Database) -> None:
    assert database.rows(UNREVIEWED) == []


@pytest.mark.parametrize(
    "access",
    [
        "grant execute on function app.probe() to authenticated",
        "create trigger probe after update on public.specimens for each row execute function app.probe()",
        "revoke insert, update on public.specimens from authenticated; "
        "create trigger probe after delete on public.specimens for each row execute function app.probe()",
    ],
)
def test_a_new_definer_function_is_found_until_it_states_that(database: Database, access: str) -> None:
    database.execute(
        "create function app.probe() returns trigger security definer language plpgsql as 'begin return null; end'"
    )
    database.execute(access)
    assert database.rows(UNREVIEWED) == [("app.probe()",)]
    database.execute("comment on function app.probe is 'A test. The caller learns: nothing.'")
    assert database.rows(UNREVIEWED) == []


# What Mallory tries on an organization and a person that she cannot see. %(org)s and %(person)s exist, or not: the answers must be equal.
PROBES = {
    "log an event": "select public.log_audit_event(%(org)s, 'client.x', 'x')",
    "log an event as another": "select public.log_audit_event(%(own)s, 'client.x', 'x', p_user_id => %(person)s)",
    "invite": "select public.prepare_invitation(%(org)s, 'member')",
    "invite in a bad role": "select public.prepare_invitation(%(org)s, 'owner')",
    "remove": "select public.prepare_removal(%(org)s, %(person)s)",
    "remove from the own organization": "select public.prepare_removal(%(own)s, %(person)s)",
    "ask for a permission": "select public.has_permission(%(org)s, 'members:read')",
    "switch to the organization": "update public.profiles set current_organization_id = %(org)s where clerk_user_id = 'user_2Mallory'",
    "update the person": "update public.profiles set full_name = 'x' where id = %(person)s",
    "update the organization": "update public.organizations set name = 'x' where id = %(org)s",
    "insert a row": "insert into public.specimens (organization_id, title) values (%(org)s, 'x')",
    "read rows": "select id from public.specimens where organization_id = %(org)s",
    "move a row": "update public.specimens set organization_id = %(org)s where false",
    "read the trail": "select id from public.audit_logs where organization_id = %(org)s or user_id = %(person)s",
    "join a channel": "select count(*) from realtime.messages where topic = 'org:' || %(org)s || ':specimens:read'",
    "be present": "insert into realtime.messages (topic, extension) values ('org:' || %(org)s || ':presence', 'presence')",
    "start a session": "select public.start_session() -> 'organizations'",
    "list permissions": "select public.my_permissions()",
    "list topics": "select app.topics()",
    "list people": "select app.visible_profile_ids()",
    "list organizations": "select app.own_org_ids(), app.org_ids('members:read'), app.user_id(), app.take_token()",
}  # fmt: skip


def ask_as_mallory(world: Database, statement: str, values: dict[str, str]) -> str:
    """Everything that PostgREST would send her, without the ids that she sent."""
    with world.connection.transaction(force_rollback=True):
        try:
            with world.acting("authenticated", mallory()):
                cursor = world.connection.execute(statement, values)  # type: ignore[arg-type]
                answer = f"{cursor.rowcount} {cursor.fetchall() if cursor.description else ''}"
        except psycopg.DatabaseError as refused:
            error = refused.diag
            answer = f"{refused.sqlstate} {error.message_primary} {error.message_detail} {error.message_hint} {error.constraint_name}"
    for name, value in values.items():
        answer = answer.replace(value, name)
    return answer


@pytest.mark.parametrize("statement", PROBES.values(), ids=PROBES)
def test_an_answer_does_not_show_whether_a_foreign_organization_or_person_exists(
    world: Database, mallorys: str, statement: str
) -> None:
    existing = {
        "own": mallorys,
        "org": str(world.value("select id from public.organizations where name = 'Acme'")),
        "person": str(world.value("select id from public.profiles where clerk_user_id = %s", ADA)),
    }
    unknown = {
        "own": mallorys,
        "org": "00000000-0000-4000-8000-00000000000a",
        "person": "00000000-0000-4000-8000-00000000000b",
    }
    answer = ask_as_mallory(world, statement, existing)
    assert answer == ask_as_mallory(world, statement, unknown)
    foreign = world.rows(
        "select id::text from public.profiles where clerk_user_id <> %s union all select id::text from public.organizations where id <> %s",
        MALLORY, mallorys,
    )  # fmt: skip
    assert [text for (text,) in foreign if text in answer] == []
