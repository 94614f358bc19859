"""The registry covers all personal data. An export is complete and has no data of others. Retention deletes expired rows."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import psycopg
import pytest

from scripts.schema.sql_files import ROOT
from tests import people
from tests.conftest import Database
from tests.people import ADA, ADA_EMAILS, BEN, CLEO, SECRET, SIMILAR, call, identifiers, scan, tables
from tests.schema import SPECIMENS

# Not part of an export: messages that Realtime delivers to her colleagues, and that Supabase deletes after some days.
DELETED_BY_SUPABASE = {"realtime.messages"}
# A run of retention ends after half a second: a busy machine, or a product with more tables, needs more runs.
MAX_RUNS = 300


def read_page(database: Database, export_id: str, after: object, page: int) -> list[tuple[str, str, int, Any]]:
    query = "select domain, content, entries, next from public.export_page(%s, %s, %s)"
    return database.rows(query, export_id, json.dumps(after) if after else None, page)  # type: ignore[return-value]


def read_pages(database: Database, export_id: str, page: int = 1000) -> dict[str, list[dict[str, Any]]]:
    records: dict[str, list[dict[str, Any]]] = {}
    after = None
    while True:
        rows = read_page(database, export_id, after, page)
        assert sum(entries for _, _, entries, _ in rows) <= page
        for domain, content, entries, _ in rows:
            found = json.loads(f"[{content}]")
            assert len(found) == entries
            records.setdefault(domain, []).extend(found)
        after = rows[-1][-1]
        if after is None:
            return records


def export_all(database: Database, user_id: str = ADA, page: int = 1000) -> dict[str, list[dict[str, Any]]]:
    begun = call(database, "begin_export", clerk_user_id=user_id, requested_by="administrator")
    records = read_pages(database, begun["export_id"], page)
    assert list(records) == [each["name"] for each in begun["domains"]]
    return records


# --- the registry


def test_the_registry_keeps_its_order_when_its_files_are_applied_again(database: Database) -> None:
    order = "select relation, path from app.personal_data order by position"
    before = database.rows(order)
    assert before[0] == ("public.profiles", "id")
    assert before[-1] == ("public.specimens", "created_by")
    registry = (ROOT / "functions/5_personal_data/registry.sql").read_text()
    for text in (registry, SPECIMENS.read_text(), registry):
        database.connection.execute(text.encode())
        assert database.rows(order) == before
    database.execute(
        "insert into app.personal_data (relation, path, erasure, purpose) values ('public.more', '', 'none', 'A test')"
    )
    database.connection.execute(registry.encode())
    assert database.rows(order) == [*before, ("public.more", "")]


def test_an_entry_that_its_file_no_longer_has_is_deleted(database: Database) -> None:
    registry = (ROOT / "functions/5_personal_data/registry.sql").read_text()
    entry = "('app.job_runs', '', 'none', 'Outcomes of jobs: counts', null, null),\n"
    assert entry in registry
    database.connection.execute(registry.replace(entry, "").encode())
    assert database.rows("select from app.personal_data where relation = 'app.job_runs'") == []


def test_every_table_of_ours_is_registered_or_declared_free_of_personal_data(database: Database) -> None:
    registered = {relation for (relation,) in database.rows("select relation from app.personal_data")}
    assert registered == set(tables(database)) - {"realtime.subscription", "realtime.schema_migrations"}


def test_every_reference_to_a_person_is_registered(database: Database) -> None:
    assert database.rows(
        "select k.conrelid::regclass::text, a.attname from pg_constraint as k "
        "join pg_attribute as a on a.attrelid = k.conrelid and a.attnum = any(k.conkey) "
        "where k.contype = 'f' and k.confrelid = 'public.profiles'::regclass and not exists (select from app.personal_data as d "
        "where d.relation::regclass = k.conrelid and d.path = a.attname)"
    ) == []  # fmt: skip


def test_every_column_commented_as_personal_data_is_registered(database: Database) -> None:
    commented = database.rows(
        "select a.attrelid::regclass::text, a.attname from pg_attribute as a join pg_class as c on c.oid = a.attrelid "
        "where c.relnamespace in ('public'::regnamespace, 'app'::regnamespace) and c.relkind in ('r', 'p') and not c.relispartition "
        "and col_description(a.attrelid, a.attnum) ~* 'personal data'"
    )
    assert ("app.webhook_events", "event") in commented
    registered = database.rows(
        "select distinct relation::regclass::text from app.personal_data where erasure <> 'none'"
    )
    free = {"app.personal_data", *(relation for (relation,) in registered)}
    assert [(relation, column) for relation, column in commented if relation not in free] == []


def test_every_path_begins_with_a_column(database: Database) -> None:
    assert database.rows(
        "select d.relation, d.path from app.personal_data as d where d.path <> '' and not exists (select from pg_attribute as a "
        "where a.attrelid = d.relation::regclass and a.attname = split_part(d.path, '.', 1))"
    ) == []  # fmt: skip


def test_the_registry_is_shown_to_administrators_and_on_the_privacy_page(database: Database) -> None:
    assert (
        database.value("select retention from ops.personal_data_map where path = 'impersonator'")
        == "400 days from the day of the entry"
    )
    with database.acting("service_role", {"role": "service_role"}):
        notice = database.value("select public.privacy_notice()")
    assert [*notice[0]]
    assert {*notice[0]} == {"category", "data", "purpose", "lawful_basis", "retention", "erasure"}
    assert all(line[field] for line in notice for field in line)
    assert "30 days after a message was applied" in {line["retention"] for line in notice}
    assert "1 hour after you last wrote" in {line["retention"] for line in notice}
    assert len(notice) == database.value("select count(*) from app.personal_data where erasure <> 'none'")


@pytest.mark.parametrize("function", [
    "privacy_notice()", "begin_export('user_x')", "end_export(gen_random_uuid(), true)", "export_page(gen_random_uuid(), null, 1)",
    "request_erasure('user_x')", "continue_erasure(gen_random_uuid())", "end_erasure(gen_random_uuid(), true)",
    "postpone_erasure(gen_random_uuid(), '')", "claim_due_erasure()", "erasure_receipt(gen_random_uuid())", "run_retention()",
    "claim_name_changes()", "end_name_change('user_x', now(), null, true)",
])  # fmt: skip
@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_only_the_service_can_call_the_public_functions(world: Database, role: str, function: str) -> None:
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        world.connection.transaction(),
        world.acting(role, {"sub": ADA, "role": role}),
    ):
        world.execute(f"select public.{function}")


def test_users_cannot_call_the_internal_functions(database: Database) -> None:
    assert database.rows(
        "select p.oid::regprocedure::text from pg_proc as p where p.pronamespace = 'app'::regnamespace "
        "and p.proname ~ 'eras|export|retention|purge|person|name_change|privacy' and has_function_privilege('authenticated', p.oid, 'execute')"
    ) == []  # fmt: skip


# --- export


def test_an_export_has_every_row_that_a_scan_of_all_tables_finds(world: Database) -> None:
    found = scan(world, *identifiers(world))
    records = export_all(world)
    relations = dict(world.rows("select domain, relation from app.personal_data where domain is not null"))
    counted: Counter[str] = Counter()
    for domain, rows in records.items():
        counted[relations[domain]] += len(rows)
    # The export request itself adds a row to each of these tables.
    found["app.exports"] += 1
    found["public.audit_logs"] += 1
    assert +counted == {table: rows for table, rows in found.items() if table not in DELETED_BY_SUPABASE}
    assert [domain for domain, rows in records.items() if not rows] == []


def test_no_row_is_exported_twice(world: Database) -> None:
    records = export_all(world)
    entries = [
        row["id"] for domain in ("activity", "activity_for_others", "activity_about_you") for row in records[domain]
    ]
    assert len(entries) == len(set(entries))


def test_an_export_contains_no_data_of_other_people(world: Database) -> None:
    text = json.dumps(export_all(world)).lower()
    ids = [str(id) for (id,) in world.rows("select id from public.profiles where clerk_user_id <> %s", ADA)]
    others = [
        *ids,
        BEN,
        CLEO,
        *SIMILAR,
        "ben@example",
        "cleo@example",
        *SIMILAR.values(),
        "203.0.113.2",
        "Browser of Ben",
        SECRET,
    ]
    assert [each for each in others if each.lower() in text] == []
    assert "203.0.113.1" in text
    assert "browser of ada" in text


def test_the_page_size_does_not_change_the_export(world: Database) -> None:
    def without_the_request(records: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
        return {
            domain: sorted(json.dumps(row) for row in rows if row.get("action") != "personal_data.exported")
            for domain, rows in records.items() if domain != "exports"
        }  # fmt: skip

    assert (
        without_the_request(export_all(world, page=1))
        == without_the_request(export_all(world, page=3))
        == without_the_request(export_all(world))
    )


def test_the_example_in_the_header_of_export_sql_is_the_generated_query(world: Database) -> None:
    header = (ROOT / "functions/5_personal_data/export.sql").read_text().partition("create or replace")[0]
    example = re.search(r"select row_to_json.*? as x", header.replace("\n--", "\n"), re.DOTALL)
    assert example is not None
    shortened = """jsonb_populate_record(d, '{"exported": ["t.id", "t.action"]}')"""
    query = f"select app.export_query({shortened}, false) from app.personal_data as d where d.domain = 'activity'"
    assert example[0].split() == world.value(query).split()


def test_a_page_ends_at_two_megabytes(world: Database) -> None:
    world.execute(
        "insert into public.specimens (organization_id, created_by, title, metadata) "
        "select o.id, p.id, 'Large', jsonb_build_object('text', repeat('x', 60000)) "
        "from public.organizations as o, public.profiles as p, generate_series(1, 100) where o.name = 'Acme' and p.clerk_user_id = %s", ADA
    )  # fmt: skip
    begun = call(world, "begin_export", clerk_user_id=ADA, requested_by="administrator")
    [*_, (domain, content, _, following)] = read_page(world, begun["export_id"], None, 1000)
    assert domain == "specimens"
    assert 2_000_000 < len(content) < 2_100_000
    assert following["domain"] == "specimens"
    assert len(read_pages(world, begun["export_id"])["specimens"]) == 102


def test_a_page_reads_no_more_large_rows_than_it_returns(world: Database) -> None:
    """A page of 2,000 rows of 128 kB each would take longer than the database's timeout. A sequence counts what is read."""
    world.execute(
        "insert into public.specimens (organization_id, created_by, title, metadata) "
        "select o.id, p.id, 'Large', jsonb_build_object('text', repeat('x', 60000)) "
        "from public.organizations as o, public.profiles as p, generate_series(1, 400) where o.name = 'Acme' and p.clerk_user_id = %s", ADA
    )  # fmt: skip
    world.execute("create sequence public.test_reads")
    world.execute(
        "update app.personal_data set exported = exported || array['nextval(''public.test_reads'') as place'] where domain = 'specimens'"
    )
    begun = call(world, "begin_export", clerk_user_id=ADA, requested_by="administrator")
    [*_, (domain, _, entries, _)] = read_page(world, begun["export_id"], None, 2000)
    assert (domain, 30 < entries < 40) == ("specimens", True)
    assert world.value("select last_value from public.test_reads") < 100


def test_an_export_leaves_out_rows_created_after_it_began(world: Database) -> None:
    begun = call(world, "begin_export", clerk_user_id=ADA, requested_by="administrator")
    world.execute(
        "insert into public.specimens (organization_id, created_by, title, created_at) "
        "select o.id, p.id, 'Tomorrow', now() + interval '1 day' "
        "from public.organizations as o, public.profiles as p where o.name = 'Acme' and p.clerk_user_id = %s", ADA
    )  # fmt: skip
    assert "Tomorrow" not in {row["title"] for row in read_pages(world, begun["export_id"])["specimens"]}


def test_an_export_has_a_membership_that_ended_at_an_unknown_time(world: Database) -> None:
    ended = people.events.event("organizationMembership.deleted", {"id": "orgmem_0"}, people.START)
    del ended["timestamp"]
    world.execute("select public.receive_clerk_event('msg_undated', %s)", json.dumps(ended))
    (past,) = [each for each in export_all(world)["past_memberships"] if each["organization_id"] == "org_acme"]
    assert past["deleted_at"] is None


def test_a_person_may_export_once_an_hour_unless_the_last_export_failed(world: Database) -> None:
    def begin_export() -> Any:
        return call(world, "begin_export", clerk_user_id=ADA, requested_by="person")

    first = begin_export()
    assert 0 < begin_export()["retry_after"] <= 60  # the first is running
    world.execute("update app.exports set touched_at = now() - interval '61 seconds'")
    second = begin_export()  # the first counts as failed
    assert second["export_id"] != first["export_id"]
    call(world, "end_export", export_id=second["export_id"], failed=True)
    world.execute("update app.exports set outcome = 'failed' where outcome = 'running'")
    third = begin_export()
    call(world, "end_export", export_id=third["export_id"], failed=False)
    assert 3500 < begin_export()["retry_after"] <= 3600
    assert "export_id" in call(world, "begin_export", clerk_user_id=BEN, requested_by="person")
    assert "export_id" in call(world, "begin_export", clerk_user_id=ADA, requested_by="administrator")
    world.execute(
        "update app.exports set started_at = now() - interval '61 minutes', touched_at = now() - interval '61 minutes'"
    )
    assert "export_id" in begin_export()


def test_the_audit_trail_records_each_request(world: Database) -> None:
    begun = call(world, "begin_export", clerk_user_id=ADA, requested_by="person")
    assert world.rows(
        "select p.clerk_user_id, a.actor, a.organization_id from public.audit_logs as a join public.profiles as p on p.id = a.user_id "
        "where a.action = 'personal_data.exported' and a.metadata ->> 'export_id' = %s", begun["export_id"]
    ) == [(ADA, None, None)]  # fmt: skip


def test_an_ended_export_has_no_pages(world: Database) -> None:
    begun = call(world, "begin_export", clerk_user_id=ADA, requested_by="person")
    call(world, "end_export", export_id=begun["export_id"], failed=False)
    with pytest.raises(psycopg.DatabaseError) as refused:
        read_page(world, begun["export_id"], None, 10)
    assert refused.value.sqlstate == "PT404"


def test_an_export_of_an_unknown_person_is_refused(database: Database) -> None:
    with pytest.raises(psycopg.DatabaseError) as refused:
        call(database, "begin_export", clerk_user_id="user_unknown", requested_by="person")
    assert refused.value.sqlstate == "PT404"


def test_an_address_of_two_accounts_identifies_neither(world: Database) -> None:
    world.execute("update public.profiles set email = %s where clerk_user_id = %s", ADA_EMAILS[1], CLEO)
    assert ADA_EMAILS[1] not in world.value("select (app.find_person(%s)).emails", ADA)


# --- retention


def test_retention_deletes_the_rows_that_have_expired_by_the_registry(world: Database) -> None:
    before = dict(world.rows("select outcome, count(*) from app.webhook_events group by outcome"))
    world.execute(
        "update app.webhook_events set applied_at = applied_at - interval '31 days' where outcome <> 'failed'"
    )
    world.execute("update app.webhook_events set received_at = received_at - interval '31 days'")
    world.execute("update app.exports set started_at = now() - interval '31 days'")
    world.execute(
        "update public.organization_invitations set expires_at = now() - interval '31 days' where email like 'ben%%'"
    )
    report = call(world, "run_retention")
    assert report["done"]
    applied = sum(count for outcome, count in before.items() if outcome != "failed")
    assert report["purged"] == {"app.webhook_events": applied, "app.exports": 1, "public.organization_invitations": 1}
    # Failed events are kept.
    assert world.value("select count(*) from app.webhook_events") == before["failed"] == 2


def test_retention_deletes_expired_invitations_from_the_clerk_records(world: Database) -> None:
    world.execute(
        """update app.clerk_records set fields = fields || '{"expires_at": 1500000000000}' where kind = 'invitation' and fields ->> 'email' like 'ben%%'"""
    )
    assert call(world, "run_retention")["purged"] == {"app.clerk_records": 1}


def test_a_deleted_organization_is_purged_with_all_its_rows_after_its_grace_period(world: Database) -> None:
    acme = str(world.value("select id from public.organizations where name = 'Acme'"))
    everywhere = scan(world, acme, "org_acme")
    assert {"public.specimens", "public.organization_memberships", "app.clerk_records"} <= everywhere.keys()
    world.execute("update public.organizations set deleted_at = now() - interval '29 days' where id = %s", acme)
    assert call(world, "run_retention")["purged"] == {}
    world.execute("update public.organizations set deleted_at = now() - interval '31 days' where id = %s", acme)
    entries = world.value("select count(*) from public.audit_logs")
    assert call(world, "run_retention")["purged"].keys() == {"public.organizations"}
    # Audit entries stay, and one records the purge. Clerk events have their own retention of 30 days.
    remaining = scan(world, acme, "org_acme").keys()
    assert remaining <= {"public.audit_logs", "app.webhook_events", "realtime.messages"}
    assert world.value("select count(*) from public.audit_logs") == entries + 1
    assert world.value("select count(*) from public.specimens where title = 'Hers in Globex'") == 1


def purge(database: Database, organization: Any, batch: int) -> int:
    """Purges a batch, and returns how many rows."""
    return int(database.value("select p.purged from app.purge_organization(%s, %s, '{}') as p", organization, batch))


def test_a_large_organization_is_purged_in_batches(world: Database) -> None:
    acme = world.value("select id from public.organizations where name = 'Acme'")
    world.execute(
        "insert into public.specimens (organization_id, title) select %s, 'Many' from generate_series(1, 2500)", acme
    )
    world.execute("update public.organizations set deleted_at = now() - interval '31 days' where id = %s", acme)
    exists = "select exists (select from public.organizations where id = %s)"
    batches = []
    while world.value(exists, acme):
        batches.append(purge(world, acme, 1000))
    assert max(batches) == 1000
    assert sum(batches) > 2500
    assert scan(world, str(acme)).keys() <= {"public.audit_logs", "realtime.messages"}


def test_large_rows_are_purged_in_smaller_batches(world: Database) -> None:
    acme = world.value("select id from public.organizations where name = 'Acme'")
    world.execute("alter table public.specimens alter column metadata set storage external")  # not compressed
    world.execute(
        "insert into public.specimens (organization_id, title, metadata) "
        "select %s, 'Large', jsonb_build_object('text', repeat('x', 60000)) from generate_series(1, 200)",
        acme,
    )
    world.execute("delete from public.specimens where title <> 'Large' and organization_id = %s", acme)
    left = "select count(*) from public.specimens where organization_id = %s"
    batches = []
    while world.value(left, acme):
        batches.append(purge(world, acme, 100))
    assert 10 < max(batch for batch in batches if batch < 100) < 20  # about 800 kB


def refuse_deletion(database: Database, table: str, condition: str) -> None:
    database.execute(
        f"create function public.test_refuse() returns trigger language plpgsql as $$ begin if {condition} then raise 'no'; end if; return old; end $$"
    )
    database.execute(
        f"create trigger refuse before delete on {table} for each row execute function public.test_refuse()"
    )


def test_a_row_that_cannot_be_deleted_is_reported_and_stops_neither_rows_nor_tables(world: Database) -> None:
    world.execute("update app.webhook_events set applied_at = now() - interval '31 days' where outcome <> 'failed'")
    world.execute("update app.exports set started_at = now() - interval '31 days'")
    [[key]] = world.rows("select message_id from app.webhook_events where applied_at is not null limit 1")
    refuse_deletion(world, "app.webhook_events", f"old.message_id = '{key}'")
    steps = [call(world, "run_retention")]
    while not steps[-1]["done"]:
        steps.append(call(world, "run_retention"))
    assert steps[-1]["failed"] == {"app.webhook_events": {"error": "P0001", "rows": 1, "key": [key]}}
    assert world.rows("select message_id from app.webhook_events where applied_at is not null") == [(key,)]
    assert world.value("select count(*) from app.exports") == 0


def test_an_organization_that_cannot_be_purged_does_not_stop_others(world: Database) -> None:
    world.execute(
        "update public.organizations set deleted_at = now() - interval '40 days' + (name = 'Globex')::integer * interval '1 day'"
        " where name in ('Acme', 'Globex')"
    )
    refuse_deletion(
        world, "public.specimens", "old.organization_id = (select id from public.organizations where name = 'Acme')"
    )
    while not (step := call(world, "run_retention"))["done"]:
        pass
    assert step["failed"].keys() == {"public.organizations"}
    assert world.rows("select name from public.organizations where deleted_at is not null") == [("Acme",)]


def test_a_row_that_cannot_be_purged_with_its_organization_is_reported_and_stops_no_other_row(world: Database) -> None:
    acme = world.value("select id from public.organizations where name = 'Acme'")
    insert = (
        "insert into public.specimens (organization_id, title) select %s, 'p' || n from generate_series(1, 60) as n"
    )
    world.execute(insert, acme)
    world.execute("update public.organizations set deleted_at = now() - interval '40 days' where id = %s", acme)
    refuse_deletion(world, "public.specimens", "old.title = 'p7'")
    while not (step := call(world, "run_retention"))["done"]:
        pass
    [(row, title)] = world.rows("select id::text, title from public.specimens where organization_id = %s", acme)
    assert title == "p7"
    assert step["failed"]["public.organizations"]["key"] == ["public.specimens", [row]]
    assert world.value("select count(*) from public.organization_memberships where organization_id = %s", acme) == 0


def test_many_rows_that_cannot_be_deleted_do_not_keep_the_rest_of_retention_from_its_turn(world: Database) -> None:
    world.execute(
        """insert into app.event_failures (message_id, error, failures, failed_at)
        select 'm' || n, '57014', 1, now() - interval '8 days' from generate_series(1, 3000) as n"""
    )
    refuse_deletion(world, "app.event_failures", "true")
    steps = [call(world, "run_retention") for _ in range(10)]
    assert steps[-1]["done"]
    assert steps[-1]["failed"]["app.event_failures"]["error"] == "P0001"


def test_rows_behind_many_that_cannot_be_deleted_are_reached_over_several_runs(world: Database) -> None:
    world.execute(
        """insert into app.event_failures (message_id, error, failures, failed_at)
        select case when n <= 150 then 'bad' else 'good' end || n, '57014', 1, now() - interval '8 days'
        from generate_series(1, 155) as n"""
    )
    refuse_deletion(world, "app.event_failures", "old.message_id like 'bad%'")
    runs = 0
    while world.value("select count(*) from app.event_failures where message_id like 'good%%'") and runs < MAX_RUNS:
        call(world, "run_retention")
        runs += 1
    assert world.rows("select left(message_id, 3), count(*) from app.event_failures group by 1") == [("bad", 150)]


def test_what_is_behind_an_organization_with_many_rows_that_cannot_be_purged_is_reached(world: Database) -> None:
    acme = world.value("select id from public.organizations where name = 'Acme'")
    insert = "insert into public.specimens (organization_id, title) select %s, case when n <= 150 then 'bad' else 'good' end || n"
    world.execute(f"{insert} from generate_series(1, 155) as n", acme)
    world.execute(
        "update public.organizations set deleted_at = now() - interval '40 days' where name in ('Acme', 'Globex')"
    )
    refuse_deletion(world, "public.specimens", "old.title like 'bad%'")
    remaining = """select
        (select count(*) from public.specimens where organization_id = o.id and title like 'good%%'),
        (select count(*) from public.organization_memberships where organization_id = o.id),
        (select count(*) from public.organizations where name = 'Globex')
        from public.organizations as o where o.id = %s"""
    runs = 0
    while world.rows(remaining, acme) != [(0, 0, 0)] and runs < MAX_RUNS:
        call(world, "run_retention")
        runs += 1
    assert runs < MAX_RUNS
    assert world.value("select count(*) from public.specimens where title like 'bad%%'") == 150


# --- rectification


def test_a_changed_name_is_sent_to_clerk(world: Database) -> None:
    with world.acting("service_role", {"role": "service_role"}):
        [change] = world.value("select public.claim_name_changes()")
        assert (change["clerk_user_id"], change["first_name"], change["last_name"]) == (ADA, "Ada", "Summer")
        assert world.value("select public.claim_name_changes()") == []  # claimed already
        world.execute("select public.end_name_change(%s, %s, null, false)", ADA, change["changed_at"])
    assert world.value("select count(*) from app.name_changes") == 0


@pytest.mark.parametrize(("name", "names"), [
    ("Ada", ("Ada", "")), ("  Ada   de la  Cruz ", ("Ada", "de la  Cruz")), (None, ("", "")),
])  # fmt: skip
def test_a_name_is_split_into_its_first_word_and_the_rest(
    world: Database, name: str | None, names: tuple[str, str]
) -> None:
    people.act(world, ADA, "update public.profiles set full_name = %s", name)
    [change] = call(world, "claim_name_changes")
    assert (change["first_name"], change["last_name"]) == names


def test_a_name_that_clerk_changed_is_not_sent_back(world: Database) -> None:
    world.execute("delete from app.name_changes")
    user = people.events.user(BEN, updated_at=people.FAR_FUTURE, first_name="Benjamin")
    world.execute(
        "select public.receive_clerk_event('msg_renamed', %s)", json.dumps(people.events.event("user.updated", user))
    )
    assert world.value("select full_name from public.profiles where clerk_user_id = %s", BEN) == "Benjamin Winter"
    assert world.value("select count(*) from app.name_changes") == 0


def test_ending_an_older_name_change_keeps_a_newer_one(world: Database) -> None:
    [change] = call(world, "claim_name_changes")
    world.execute("update app.name_changes set changed_at = changed_at + interval '1 second'")
    call(world, "end_name_change", clerk_user_id=ADA, changed_at=change["changed_at"], error=None, is_final=False)
    assert world.value("select count(*) from app.name_changes") == 1


def test_a_name_that_clerk_refuses_is_listed_and_not_sent_again(world: Database) -> None:
    [change] = call(world, "claim_name_changes")
    call(
        world,
        "end_name_change",
        clerk_user_id=ADA,
        changed_at=change["changed_at"],
        error="form_param_invalid",
        is_final=True,
    )
    assert world.rows("select error from ops.refused_names") == [("form_param_invalid",)]
    world.execute("update app.name_changes set next_attempt_at = now() where next_attempt_at < 'infinity'")
    assert call(world, "claim_name_changes") == []
