"""The audit trail: which writes and actors it records, what it refuses, and that it never makes a write fail."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import psycopg
import pytest

from scripts.health import audit_trail
from tests.conftest import Claims, Database
from tests.db.test_erasure import erase
from tests.deep_json import LEVELS, nest
from tests.events import event as clerk_event
from tests.events import user as clerk_user

Entry = dict[str, Any]


@pytest.fixture
def acme(database: Database) -> str:
    """Acme, with Ada as owner, Cleo as member and Dee as viewer, and Globex, with Eve. Their entries count as read."""
    database.execute(
        "insert into public.organizations (clerk_org_id, name) values ('org_acme', 'Acme'), ('org_globex', 'Globex')"
    )
    database.execute(
        "insert into public.profiles (clerk_user_id, full_name) select 'user_' || lower(name), name from unnest('{Ada,Cleo,Dee,Eve}'::text[]) as name"
    )
    database.execute(
        "insert into public.organization_memberships (organization_id, user_id, role) select o.id, p.id, m.role "
        "from (values ('user_ada', 'Acme', 'owner'), ('user_cleo', 'Acme', 'member'), ('user_dee', 'Acme', 'viewer'), ('user_eve', 'Globex', 'owner')) "
        "as m (person, org, role) join public.profiles as p on p.clerk_user_id = m.person join public.organizations as o on o.name = m.org"
    )
    database.execute("create temporary table read_entries on commit drop as select id from public.audit_logs")
    return str(database.value("select id from public.organizations where name = 'Acme'"))


def profile_id(database: Database, name: str) -> Any:
    return database.value("select id from public.profiles where clerk_user_id = %s", f"user_{name}")


def claims(name: str, **more: Any) -> Claims:
    return {"sub": f"user_{name}", "role": "authenticated", "fva": [0, 0]} | more


def read_new_entries(database: Database) -> list[Entry]:
    """The entries since the last call."""
    rows = database.rows(
        "with recent as (insert into read_entries select id from public.audit_logs where id not in (select id from read_entries) returning id) "
        "select to_jsonb(a) from public.audit_logs as a join recent using (id) order by a.action, a.resource_id"
    )
    return [row for (row,) in rows]


def create_specimens(database: Database, organization: str, *titles: str) -> None:
    database.execute(
        "insert into public.specimens (organization_id, title) select %s, unnest(%s::text[])",
        organization,
        list(titles),
    )


def set_headers(database: Database, **values: str) -> None:
    named = {name.replace("_", "-"): value for name, value in values.items()}
    database.execute("select set_config('request.headers', %s, true)", json.dumps(named))


# --- the actor


def test_a_person_is_identified_by_their_token(database: Database, acme: str) -> None:
    set_headers(
        database,
        x_forwarded_for="203.0.113.9, 10.0.0.1",
        user_agent="Firefox",
        x_request_id="req-1",
        x_actor="another actor",
    )
    with database.acting("authenticated", claims("cleo", act={"sub": "user_support"})):
        create_specimens(database, acme, "Apollo")
    [entry] = read_new_entries(database)
    assert (entry["user_id"], entry["actor"], entry["impersonator"]) == (
        str(profile_id(database, "cleo")),
        None,
        "user_support",
    )
    assert (entry["ip_address"], entry["user_agent"], entry["request_id"]) == ("203.0.113.9", "Firefox", "req-1")
    assert (entry["organization_id"], entry["action"], entry["resource_type"]) == (acme, "specimen.created", "specimen")
    assert entry["metadata"] == {"title": "Apollo"}


@pytest.mark.parametrize(("named", "actor"), [({}, "service"), ({"x_actor": "nightly import"}, "nightly import")])
def test_the_service_may_record_itself_as_the_actor(
    database: Database, acme: str, named: dict[str, str], actor: str
) -> None:
    set_headers(database, **named)
    database.execute("""select set_config('request.jwt.claims', '{"role": "service_role"}', true)""")
    create_specimens(database, acme, "Apollo")
    [entry] = read_new_entries(database)
    assert (entry["user_id"], entry["actor"]) == (None, actor)


def test_a_write_without_a_token_is_by_the_system(database: Database, acme: str) -> None:
    set_headers(database, x_actor="another actor")
    create_specimens(database, acme, "Apollo")
    assert [entry["actor"] for entry in read_new_entries(database)] == ["system"]


def test_clerk_is_the_actor_of_its_events(database: Database, acme: str) -> None:
    database.execute("""select set_config('request.jwt.claims', '{"role": "service_role"}', true)""")
    event = clerk_event("user.created", clerk_user("user_zoe", first_name="Zoe"))
    database.execute("select public.receive_clerk_event('msg_zoe', %s)", json.dumps(event))
    [entry] = read_new_entries(database)
    assert (entry["action"], entry["actor"], entry["organization_id"]) == ("profile.created", "clerk", None)
    assert "Zoe" not in json.dumps(entry)
    assert "ada@example.com" not in json.dumps(entry)


# --- the write


ACTORS: dict[str, tuple[Claims | None, str, str | None]] = {
    "a person": (claims("eve"), "", None), "the service": ({"role": "service_role"}, "", "service"),
    "Clerk": ({"role": "service_role"}, "clerk", "clerk"), "the system": (None, "", "system"),
}  # fmt: skip


@pytest.mark.parametrize(("who", "name", "actor"), ACTORS.values(), ids=ACTORS)
def test_every_command_on_every_table_is_recorded_with_its_actor(
    database: Database, acme: str, who: Claims | None, name: str, actor: str | None
) -> None:
    """Writes like our definer functions: with the caller's claims and the owner's privileges."""
    database.execute(
        "select set_config('request.jwt.claims', %s, true), set_config('app.actor', %s, true)",
        json.dumps(who) if who else "",
        name,
    )
    create_specimens(database, acme, "Apollo")
    database.execute("update public.specimens set title = 'Gemini', description = 'Twins'")
    database.execute("delete from public.specimens")
    database.execute("update public.organizations set name = 'Acme Corp' where id = %s", acme)
    database.execute("update public.organization_memberships set role = 'admin' where role = 'viewer'")
    database.execute("delete from public.organization_memberships where role = 'member'")
    database.execute(
        "insert into public.organization_invitations (organization_id, clerk_invitation_id, email, role) values (%s, 'orginv_1', 'guest@example.com', 'member')",
        acme,
    )
    database.execute("update public.profiles set full_name = 'Adele' where clerk_user_id = 'user_ada'")
    database.execute("update public.organizations set deleted_at = now() where id = %s", acme)
    database.execute("delete from public.organizations where id = %s", acme)
    entries = read_new_entries(database)
    eve = None if actor else str(profile_id(database, "eve"))
    assert {(entry["user_id"], entry["actor"]) for entry in entries} == {(eve, actor)}
    assert {entry["action"] for entry in entries} == {
        "specimen.created", "specimen.updated", "specimen.deleted", "organization.updated", "organization.deleted", "member.role_changed",
        "member.left", "invitation.created", "invitation.deleted", "profile.updated",
    }  # fmt: skip
    changes = {
        entry["action"]: entry["changes"]
        for entry in entries
        if entry["resource_type"] not in ("member", "organization")
    }
    assert changes["specimen.updated"] == {
        "before": {"title": "Apollo", "description": None}, "after": {"title": "Gemini", "description": "Twins"}, "redacted": [],
    }  # fmt: skip
    assert changes["specimen.created"]["after"]["title"] == "Apollo"
    assert changes["specimen.deleted"]["before"]["title"] == "Gemini"
    assert changes["profile.updated"] == {"before": {}, "after": {}, "redacted": ["full_name"]}
    assert "guest@example.com" not in json.dumps(entries)
    assert "Adele" not in json.dumps(entries)


def test_a_write_that_changes_nothing_is_not_recorded(database: Database, acme: str) -> None:
    create_specimens(database, acme, "Apollo")
    read_new_entries(database)
    database.execute("update public.specimens set title = title")
    database.execute("update public.specimens set updated_at = now() + interval '1 hour'")
    database.execute("update public.profiles set last_seen_at = now()")
    database.execute("update public.specimens set title = 'x' where false")
    assert read_new_entries(database) == []


def test_a_bulk_statement_makes_one_entry_per_row(database: Database, acme: str) -> None:
    create_specimens(database, acme, *(f"Project {number}" for number in range(1000)))
    assert len(read_new_entries(database)) == 1000
    database.execute("update public.specimens set status = 'archived' where title like '%%7'")
    assert len(read_new_entries(database)) == 100


@pytest.mark.parametrize("arguments", ["'app.clients'", "'app.clients', 'client.contact'"])
def test_a_table_whose_entries_clients_could_forge_is_refused(database: Database, arguments: str) -> None:
    database.execute("create table app.clients (id uuid primary key, organization_id uuid)")
    with pytest.raises(psycopg.errors.RaiseException, match="Clients may log actions client"):
        database.execute(f"select app.audit({arguments})")


def test_one_call_turns_the_audit_trail_on_for_a_table(database: Database, acme: str) -> None:
    database.execute(
        "create table public.test_probes (id uuid primary key default gen_random_uuid(), organization_id uuid, total numeric, iban text)"
    )
    for _ in range(2):
        database.execute("select app.audit('public.test_probes', named => '{total}', redacted => '{iban}')")
    database.execute("insert into public.test_probes (organization_id, total, iban) values (%s, 9.5, 'DE00')", acme)
    [entry] = read_new_entries(database)
    assert (entry["action"], entry["organization_id"], entry["metadata"]) == (
        "test_probe.created",
        acme,
        {"total": 9.5},
    )
    assert "DE00" not in json.dumps(entry)


@pytest.mark.parametrize(
    "name", ["n", "o", "w", "named", "redacted", "ignored", "who", "changes", "written_rows", "content"]
)
def test_a_column_of_any_name_is_recorded_like_others(database: Database, acme: str, name: str) -> None:
    database.execute(
        f"create table public.test_shapes (id uuid primary key default gen_random_uuid(), organization_id uuid, {name} jsonb, iban text)"
    )
    database.execute("select app.audit('public.test_shapes', redacted => '{iban}')")
    database.execute(
        f"insert into public.test_shapes (organization_id, {name}, iban) values (%s, '{{\"a\": null}}', 'DE00')", acme
    )
    database.execute(f"update public.test_shapes set {name} = '[2]', iban = 'DE01'")
    database.execute("delete from public.test_shapes")
    created, deleted, updated = read_new_entries(database)
    assert (created["changes"]["after"][name], deleted["changes"]["before"][name]) == ({"a": None}, [2])
    assert updated["changes"] == {"before": {name: {"a": None}}, "after": {name: [2]}, "redacted": ["iban"]}
    assert "DE0" not in json.dumps([created, deleted, updated])


@pytest.mark.parametrize(
    ("columns", "reason"),
    [("id uuid, organization_id uuid", "no primary key"), ("id uuid primary key, organization_id text", "no column organization_id"),
     ("number integer primary key, organization_id uuid", "no primary key"), ("id uuid primary key", "no column organization_id")],
)  # fmt: skip
def test_a_table_that_cannot_be_audited_is_refused_at_once(database: Database, columns: str, reason: str) -> None:
    database.execute(f"create table public.test_shapes ({columns})")
    with pytest.raises(psycopg.errors.RaiseException, match=reason):
        database.execute("select app.audit('public.test_shapes')")


# --- hostile


HOSTILE: list[str] = [
    "", "null", "[]", "3", "not json", "{", '{"x-forwarded-for": 3}', '{"x-forwarded-for": null, "user-agent": []}', "[" * 20_000,
    f'{{"user-agent": {nest(4_000)}, "x-request-id": {nest(65)}}}', '{"user-agent": "\\u0000"}', '{"user-agent": "\\ud800"}',
    *(json.dumps({"x-forwarded-for": value, "user-agent": value, "x-request-id": value, "x-actor": value}) for value in (
        "x" * 65_536, "'; drop table audit_logs; --", "999.999.999.999", "::ffff:1.2.3.4%eth0", "1.2.3.4/33", ":" * 45, "..", ",", " , ", "\u202e\u2028é😀",
    )),
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30].encode("unicode_escape").decode())
@pytest.mark.parametrize("role", ["authenticated", "service_role"])
def test_no_header_makes_a_write_fail_or_go_unrecorded(database: Database, acme: str, text: str, role: str) -> None:
    database.execute("select set_config('request.headers', %s, true)", text)
    with database.acting("authenticated", claims("cleo")):
        create_specimens(database, acme, "Apollo")
    database.execute("select set_config('request.jwt.claims', %s, true)", json.dumps({"role": role}))
    create_specimens(database, acme, "Gemini")
    entries = read_new_entries(database)
    assert len(entries) == 2
    assert all(len(entry["user_agent"] or "") <= 512 and len(entry["request_id"] or "") <= 200 for entry in entries)


def test_json_of_64_levels_is_recorded_unchanged(database: Database, acme: str) -> None:
    database.execute("select app.audit('public.specimens', named => '{metadata}')")
    deep, other = nest(LEVELS), nest(LEVELS).replace("1", "2")
    database.execute(
        "insert into public.specimens (organization_id, title, metadata) values (%s, 'Apollo', %s)", acme, deep
    )
    database.execute("update public.specimens set metadata = %s", other)
    database.execute("delete from public.specimens")
    created, deleted, updated = read_new_entries(database)
    assert created["changes"]["after"]["metadata"] == created["metadata"]["metadata"] == json.loads(deep)
    assert updated["changes"]["before"]["metadata"] == json.loads(deep)
    assert updated["changes"]["after"]["metadata"] == deleted["changes"]["before"]["metadata"] == json.loads(other)


def test_of_json_with_more_levels_only_its_hash_is_recorded(database: Database, acme: str) -> None:
    """A product's table may lack the check. Its writes succeed, and each change stays visible."""
    database.execute(
        "create table public.test_shapes (id uuid primary key default gen_random_uuid(), organization_id uuid, name text, content jsonb)"
    )
    database.execute("select app.audit('public.test_shapes', named => '{name,content}')")
    values = [nest(levels) for levels in (LEVELS + 1, LEVELS + 2, 3_000)]
    database.execute(
        "insert into public.test_shapes (organization_id, name, content) values (%s, 'Circle', %s)", acme, values[0]
    )
    database.execute("update public.test_shapes set content = %s", values[1])
    database.execute("update public.test_shapes set content = %s", values[1])
    database.execute("update public.test_shapes set content = %s", values[2])
    database.execute("delete from public.test_shapes")
    hashed = "select 'more than 64 levels, SHA-256 ' || encode(sha256(%s::jsonb::text::bytea), 'hex')"
    first, second, third = (database.value(hashed, value) for value in values)
    created, deleted, *updated = read_new_entries(database)
    assert (created["changes"]["after"]["content"], created["changes"]["after"]["name"]) == (first, "Circle")
    assert created["metadata"] == {"name": "Circle", "content": first}
    assert deleted["changes"]["before"]["content"] == third
    assert sorted(
        [each["changes"]["before"]["content"], each["changes"]["after"]["content"]] for each in updated
    ) == sorted([[first, second], [second, third]])


def test_a_write_does_not_fail_when_its_audit_entry_is_refused(database: Database, acme: str) -> None:
    warnings: list[str] = []
    database.connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    database.execute(
        "alter table public.audit_logs add constraint full_up check (action <> 'specimen.created') not valid"
    )
    create_specimens(database, acme, "Apollo")
    assert database.value("select count(*) from public.specimens") == 1
    assert warnings == ["A change of public.specimens is not in the audit trail (23514)."]
    assert losses(database) == [("audit", "public.specimens", "23514", 1)]


def losses(database: Database) -> list[tuple[Any, ...]]:
    """What this test's own connection has lost."""
    return database.rows(
        "select kind, relation, error, sum(lost)::int from app.lost_records where backend = pg_backend_pid() "
        "and last_at = now() group by kind, relation, error order by kind, error"
    )


def test_each_lost_entry_is_counted(database: Database, acme: str) -> None:
    create_specimens(database, acme, "Apollo", "Gemini")
    database.execute(
        "alter table public.audit_logs add constraint full_up check (resource_type <> 'specimen') not valid"
    )
    create_specimens(database, acme, "Mercury", "Vostok", "Voskhod")
    database.execute("update public.specimens set status = 'archived' where title in ('Apollo', 'Gemini')")
    database.execute("delete from public.specimens where title = 'Apollo'")
    assert losses(database) == [("audit", "public.specimens", "23514", 6)]


# One SQLSTATE of each class: a deadlock, a full disk, no memory, a lock that is not available, a shutdown, and an I/O error.
TROUBLE = ("40P01", "53100", "53200", "55P03", "57P01", "58030")
WRITES = (
    "insert into public.specimens (organization_id, title) values ('{acme}', 'Gemini')",
    "update public.specimens set title = 'Gemini'",
    "delete from public.specimens",
)


def fail_entries(database: Database, table: str, error: str) -> None:
    """Makes each insert into a table raise an SQLSTATE, as the server would."""
    database.execute(
        f"create function public.test_fail_entry() returns trigger language plpgsql as "
        f"$$ begin raise sqlstate '{error}' using message = 'trouble'; end; $$"
    )
    database.execute(
        f"create trigger fail_entry before insert on {table} for each row execute function public.test_fail_entry()"
    )


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.split()[0])
@pytest.mark.parametrize("error", TROUBLE)
def test_trouble_of_the_server_fails_the_write_instead_of_losing_its_entry(
    database: Database, acme: str, write: str, error: str
) -> None:
    create_specimens(database, acme, "Apollo")
    fail_entries(database, "public.audit_logs", error)
    with pytest.raises(psycopg.Error) as failed, database.connection.transaction():
        database.execute(write.format(acme=acme))
    assert failed.value.sqlstate == error
    assert database.rows("select title from public.specimens") == [("Apollo",)]
    assert losses(database) == []


def test_a_write_whose_entry_waits_for_a_lock_in_vain_fails(database: Database, server: Any) -> None:
    """Another session locks the trail's partition, as a change of its structure does."""
    with psycopg.connect(server.url()) as other:
        other.execute("lock table public.audit_logs in access exclusive mode")
        database.execute("set local lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable), database.connection.transaction():
            database.execute("insert into public.organizations (clerk_org_id, name) values ('org_locked', 'Locked')")
        other.rollback()
    assert database.value("select count(*) from public.organizations where clerk_org_id = 'org_locked'") == 0


def test_a_write_does_not_fail_when_the_actor_cannot_be_determined(database: Database, acme: str) -> None:
    warnings: list[str] = []
    database.connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    database.execute("alter function app.start_audit_entry() rename to away")
    create_specimens(database, acme, "Apollo")
    assert database.value("select count(*) from public.specimens") == 1
    assert warnings == ["A change of public.specimens is not in the audit trail (42883)."]


# --- log_audit_event


LOG = "select public.log_audit_event(p_organization_id => %s, p_action => %s, p_resource_type => 'report', p_resource_id => '7')"


def test_a_member_may_log_an_event_with_themselves_as_the_actor(database: Database, acme: str) -> None:
    with database.acting("authenticated", claims("dee")):
        identifier = database.value(LOG, acme, "client.exported")
    [entry] = read_new_entries(database)
    assert (entry["id"], entry["user_id"]) == (str(identifier), str(profile_id(database, "dee")))
    assert (entry["action"], entry["resource_type"], entry["resource_id"]) == ("client.exported", "report", "7")


@pytest.mark.parametrize(
    ("who", "changed"),
    [
        ("cleo", {"p_user_id": "ada"}), ("cleo", {"p_organization_id": "globex"}), ("cleo", {"p_organization_id": None}),
        ("cleo", {"p_action": "specimen.deleted"}), ("cleo", {"p_action": "client"}), ("cleo", {"p_action": None}), ("cleo", {"p_action": ""}),
        ("cleo", {"p_action": "client." + "x" * 200}), ("cleo", {"p_resource_type": ""}), ("cleo", {"p_resource_type": None}),
        ("cleo", {"p_resource_id": "x" * 201}), ("cleo", {"p_metadata": [1]}), ("cleo", {"p_metadata": None}),
        ("cleo", {"p_metadata": {"x": "y" * 9000}}), ("eve", {}), ("unknown", {}),
    ],
)  # fmt: skip
def test_a_forged_or_oversized_event_is_refused(
    database: Database, acme: str, who: str, changed: dict[str, Any]
) -> None:
    values: dict[str, Any] = {
        "p_organization_id": acme, "p_action": "client.exported", "p_resource_type": "report", "p_resource_id": "7", "p_metadata": {}, "p_user_id": None,
    } | changed  # fmt: skip
    if values["p_organization_id"] == "globex":
        values["p_organization_id"] = database.value("select id from public.organizations where name = 'Globex'")
    if values["p_user_id"]:
        values["p_user_id"] = profile_id(database, values["p_user_id"])
    values["p_metadata"] = json.dumps(values["p_metadata"]) if values["p_metadata"] is not None else None
    named = ", ".join(f"{name} => %s" for name in values)
    with pytest.raises(psycopg.DatabaseError) as refused, database.acting("authenticated", claims(who)):
        database.execute(f"select public.log_audit_event({named})", *values.values())
    assert refused.value.sqlstate in ("PT403", "PT400")
    assert read_new_entries(database) == []


LOG_METADATA = LOG.replace("p_resource_id", "p_metadata => %s, p_resource_id")


def test_an_event_has_at_most_64_levels(database: Database, acme: str) -> None:
    with database.acting("authenticated", claims("dee")):
        database.execute(LOG_METADATA, acme, "client.exported", nest(LEVELS))
    [entry] = read_new_entries(database)
    assert entry["metadata"] == json.loads(nest(LEVELS))
    with (
        pytest.raises(psycopg.DatabaseError, match="more than 64 levels") as refused,
        database.acting("authenticated", claims("dee")),
    ):
        database.execute(LOG_METADATA, acme, "client.exported", nest(LEVELS + 1))
    assert refused.value.sqlstate == "PT400"


def log(database: Database, name: str, organization: str) -> psycopg.DatabaseError | None:
    """Logs an event as this person; returns the refusal. The Data API's own limit plays no part: nothing calls it here."""
    try:
        with database.connection.transaction(), database.acting("authenticated", claims(name)):
            database.execute(LOG, organization, "client.exported")
    except psycopg.DatabaseError as error:
        return error
    return None


def test_a_person_may_log_a_burst_of_a_hundred_events_and_twenty_a_minute_after_that(
    database: Database, acme: str
) -> None:
    assert log(database, "dee", acme) is None
    # With a time in the future nothing refills, however slow this test is.
    database.execute("update app.rate_limits set refilled_at = refilled_at + interval '1 hour'")
    assert not any(log(database, "dee", acme) for _ in range(99))
    assert len(read_new_entries(database)) == 100
    database.execute("update app.rate_limits set refilled_at = clock_timestamp()")
    refused = log(database, "dee", acme)
    assert refused is not None
    assert (refused.sqlstate, refused.diag.message_primary) == ("PT429", "You log too many audit events.")
    assert refused.diag.message_hint == "Try again in 3 s."
    database.execute("update app.rate_limits set refilled_at = clock_timestamp() - interval '6 seconds'")
    assert [log(database, "dee", acme) is None for _ in range(3)] == [True, True, False]


def test_each_person_and_each_organization_has_its_own_limit_of_events(database: Database, acme: str) -> None:
    globex = database.value("select id from public.organizations where name = 'Globex'")
    database.execute(
        "insert into public.organization_memberships (organization_id, user_id, role) values (%s, %s, 'member')",
        globex,
        profile_id(database, "cleo"),
    )
    log(database, "cleo", acme)
    database.execute("update app.rate_limits set tokens = 0")
    assert log(database, "cleo", acme)
    assert log(database, "cleo", globex) is None
    assert log(database, "dee", acme) is None


def test_the_service_has_no_limit_of_events(database: Database, acme: str) -> None:
    with database.acting("service_role", {"role": "service_role"}):
        for _ in range(101):
            database.execute(LOG, acme, "billing.paid")
    assert database.value("select count(*) from app.rate_limits") == 0


def test_a_fault_in_the_limit_does_not_refuse_an_event(database: Database, acme: str) -> None:
    database.execute("alter table app.rate_limits rename to rate_limits_elsewhere")
    assert log(database, "dee", acme) is None


def test_an_erasure_removes_the_limit_of_every_organization(database: Database, acme: str) -> None:
    def hash_of(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    log(database, "dee", acme)
    assert database.rows("select caller, bucket from app.rate_limits") == [
        (hash_of("user_dee"), f"audit:{hash_of(acme)}")
    ]
    database.execute("select set_config('request.jwt.claims', '', true)")
    erase(database, "user_dee")
    assert database.value("select count(*) from app.rate_limits") == 0


def test_the_service_may_name_the_actor(database: Database, acme: str) -> None:
    ada = profile_id(database, "ada")
    with database.acting("service_role", {"role": "service_role"}):
        database.execute(LOG.replace("p_resource_id", "p_user_id => %s, p_resource_id"), acme, "billing.paid", ada)
        database.execute(LOG, acme, "billing.failed")
    assert [(entry["action"], entry["user_id"], entry["actor"]) for entry in read_new_entries(database)] == [
        ("billing.failed", None, "service"), ("billing.paid", str(ada), None),
    ]  # fmt: skip


# --- reading, and protection from changes


@pytest.mark.parametrize(
    ("name", "second_factor", "sees"),
    [("ada", True, True), ("ada", False, False), ("cleo", True, False), ("eve", True, False)],
)
def test_only_owners_with_a_second_factor_read_their_tenants_entries(
    database: Database, acme: str, name: str, second_factor: bool, sees: bool
) -> None:
    create_specimens(database, acme, "Apollo")
    with database.acting("authenticated", claims(name, fva=[0, 0 if second_factor else -1])):
        seen = database.value("select count(*) from public.audit_logs where action = 'specimen.created'")
    assert seen == int(sees)


CHANGES = ("update public.audit_logs set action = 'x'", "delete from public.audit_logs", "truncate public.audit_logs")


@pytest.mark.parametrize(
    "command", [*CHANGES, "insert into public.audit_logs (action, resource_type) values ('x', 'y')"]
)
@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_no_api_role_may_write_the_trail(database: Database, acme: str, role: str, command: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.acting(role, claims("ada", role=role)):
        database.execute(command)


@pytest.mark.parametrize("command", CHANGES)
@pytest.mark.parametrize("partition", [False, True])
def test_the_owner_cannot_change_it_by_mistake(database: Database, acme: str, command: str, partition: bool) -> None:
    place = database.value("select max(tableoid::regclass::text) from public.audit_logs")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"), database.connection.transaction():
        database.execute(command.replace("public.audit_logs", place) if partition else command)


# --- months


def insert_at(database: Database, *moments: str) -> None:
    database.execute(
        "insert into public.audit_logs (action, resource_type, created_at) select 'test.done', 'test', m from unnest(%s::timestamptz[]) as m",
        list(moments),
    )


def partition_of(database: Database, moment: str) -> str:
    return str(database.value("select tableoid::regclass::text from public.audit_logs where created_at = %s", moment))


def test_the_partitions_of_the_next_months_exist(database: Database) -> None:
    names = {
        name
        for (name,) in database.rows(
            "select relname::text from pg_class where relname like 'audit_logs\\_20%%' and relkind = 'r'"
        )
    }
    for month in range(4):
        assert (
            database.value(
                "select 'audit_logs_' || to_char((now() at time zone 'UTC') + %s * interval '1 month', 'YYYY_MM')",
                month,
            )
            in names
        )


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Asia/Kolkata"])
def test_a_month_begins_at_midnight_utc_in_any_session_time_zone(database: Database, zone: str) -> None:
    database.execute("select set_config('TimeZone', %s, true)", zone)
    for month in ("2031-03-15", "2031-10-15", "2032-02-15", "2031-12-15"):
        database.execute("select app.make_audit_partition(%s::timestamptz)", f"{month} 12:00+00")
    moments = {
        "2031-03-01 00:00:00+00": "app.audit_logs_2031_03", "2031-03-31 23:59:59.999999+00": "app.audit_logs_2031_03",
        "2031-10-26 00:30:00+00": "app.audit_logs_2031_10", "2032-02-29 23:59:59.999999+00": "app.audit_logs_2032_02",
        "2031-12-31 23:59:59.999999+00": "app.audit_logs_2031_12", "2032-01-01 00:00:00+00": "app.audit_logs_default",
    }  # fmt: skip
    insert_at(database, *moments)
    assert {moment: partition_of(database, moment) for moment in moments} == moments


def test_entries_in_the_default_partition_are_moved_with_a_warning(database: Database) -> None:
    warnings: list[str] = []
    database.connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    insert_at(database, "2019-05-05 00:00+00", "2019-05-06 00:00+00", "2040-01-01 00:00+00")
    assert partition_of(database, "2019-05-05 00:00+00") == "app.audit_logs_default"
    database.execute("select app.make_audit_partitions()")
    assert partition_of(database, "2019-05-05 00:00+00") == "app.audit_logs_2019_05"
    assert partition_of(database, "2040-01-01 00:00+00") == "app.audit_logs_2040_01"
    assert sorted(warnings) == [
        "1 audit entries of audit_logs_2040_01 were in the default partition.",
        "2 audit entries of audit_logs_2019_05 were in the default partition.",
    ]


def test_a_new_partition_is_protected_like_the_others(database: Database) -> None:
    database.execute("select app.make_audit_partition('2035-06-01')")
    assert database.value(
        "select relrowsecurity and relforcerowsecurity from pg_class where oid = 'app.audit_logs_2035_06'::regclass"
    )
    for role in ("anon", "authenticated", "service_role"):
        assert not database.value(
            "select has_table_privilege(%s, 'app.audit_logs_2035_06', 'select, insert, update, delete, truncate')", role
        )
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"), database.connection.transaction():
        database.execute("truncate app.audit_logs_2035_06")


# This test's own: other tests share the server, and some commit.
INTERVENTIONS = (
    "select kind, range_start::text, range_end::text, entries, stored_at is not null, happened_at is not null "
    "from app.audit_interventions where planned_at = now() order by happened_at"
)


def test_retention_drops_whole_months_and_records_it(database: Database) -> None:
    for month in ("2019-05-01", "2019-06-01"):
        database.execute("select app.make_audit_partition(%s)", month)
    insert_at(database, "2019-05-05 00:00+00", "2019-05-06 00:00+00")
    assert database.value("select app.drop_audit_partitions()") == 2
    assert database.value("select to_regclass('app.audit_logs_2019_05')") is None
    may = ("retention", "2019-05-01 00:00:00+00", "2019-06-01 00:00:00+00", 2)
    assert database.rows(INTERVENTIONS) == [(*may, False, True)]
    assert database.value("select app.drop_audit_partitions()") == 0


def test_with_a_store_a_month_waits_for_its_receipt(database: Database) -> None:
    """An empty month needs none. A plan that no longer describes its month is replaced."""
    for month in ("2019-05-01", "2019-06-01", "2019-07-01"):
        database.execute("select app.make_audit_partition(%s)", month)
    insert_at(database, "2019-06-05 00:00+00", "2019-07-05 00:00+00")
    pending = "select app.pending_receipt()"
    assert database.value("select app.drop_audit_partitions(true)") == 1
    outdated = database.value(pending)["digest"]
    database.execute("select public.confirm_receipt(%s)", outdated)
    insert_at(database, "2019-06-06 00:00+00")
    assert database.value("select app.drop_audit_partitions(true)") == 0
    june = ("retention", "2019-06-01 00:00:00+00", "2019-07-01 00:00:00+00", 2)
    assert database.rows(INTERVENTIONS) == [(*june, False, False)]
    assert database.value(pending)["digest"] != outdated
    database.execute("select public.confirm_receipt(%s)", outdated)
    assert database.value("select app.drop_audit_partitions(true)") == 0
    for dropped in (1, 1, 0):
        if receipt := database.value(pending):
            database.execute("select public.confirm_receipt(%s)", receipt["digest"])
        assert database.value("select app.drop_audit_partitions(true)") == dropped
    july = ("retention", "2019-07-01 00:00:00+00", "2019-08-01 00:00:00+00", 1)
    assert database.rows(INTERVENTIONS) == [(*june, True, True), (*july, True, True)]


# --- erasure


def begin_erasure(database: Database, name: str) -> Any:
    """Records the erasure of a person, without hiding them."""
    return database.value(
        "insert into app.erasure_log (subject_hash, person, requested_by) select app.person_hash(p.clerk_user_id), "
        "(p.id, p.clerk_user_id, '{}'::text[])::app.person, 'person' from public.profiles as p where p.clerk_user_id = %s returning receipt",
        f"user_{name}",
    )


def apply_erasure(database: Database, receipt: Any, person: Any, *, has_store: bool = False) -> bool:
    """Whether nothing planned is left to do."""
    applied = """
      select not a.is_waiting from app.erasure_log as l
      cross join lateral app.apply_erasure(l, (%s, 'user_cleo', '{}')::app.person, %s) as a
      where l.receipt = %s
    """
    return bool(database.value(applied, person, has_store, receipt))


def plan_erasure(database: Database) -> tuple[Any, Any]:
    """Plans the erasure of Cleo's entries. Returns the receipt of the erasure and her id."""
    cleo = profile_id(database, "cleo")
    receipt = begin_erasure(database, "cleo")
    database.execute(
        "select app.erase_audit_entries((%s, 'user_cleo', '{}')::app.person, jsonb_agg(jsonb_build_array(a.id, a.created_at))) "
        "from public.audit_logs as a where a.user_id = %s or a.subject_ids @> array[%s]", cleo, cleo, cleo,
    )  # fmt: skip
    return receipt, cleo


NAMED = "select count(*) from public.audit_logs where user_id = %s or subject_ids @> array[%s]"


def test_a_plan_changes_no_entry_and_waits_for_its_receipt(database: Database, acme: str) -> None:
    receipt, cleo = plan_erasure(database)
    assert database.value(NAMED, cleo, cleo) == 2
    assert not apply_erasure(database, receipt, cleo, has_store=True)
    assert database.value(NAMED, cleo, cleo) == 2
    pending = database.value("select app.pending_receipt(%s)", receipt)
    assert (pending["kind"], pending["erasure"], pending["entries"]) == ("erasure", str(receipt), 2)
    database.execute("select public.confirm_receipt(%s)", pending["digest"])
    assert apply_erasure(database, receipt, cleo, has_store=True)
    assert database.value(NAMED, cleo, cleo) == 0
    assert database.value("select app.pending_receipt(%s)", receipt) is None


def test_a_plan_that_no_longer_fits_is_not_carried_out(database: Database, acme: str) -> None:
    receipt, cleo = plan_erasure(database)
    database.execute("select set_config('app.audit_intervention', 'on', true)")
    database.execute(
        "update public.audit_logs set action = 'x.y' where user_id = %s or subject_ids @> array[%s]", cleo, cleo
    )
    assert apply_erasure(database, receipt, cleo)
    assert database.value(NAMED, cleo, cleo) == 2
    assert database.rows(INTERVENTIONS) == []


def test_trouble_of_the_server_does_not_discard_a_plan(database: Database, acme: str) -> None:
    receipt, cleo = plan_erasure(database)
    database.execute(
        "create function public.test_fail_entry() returns trigger language plpgsql as $$ begin raise sqlstate '53100' using message = 'full'; end; $$"
    )
    database.execute(
        "create trigger fail_entry before update on public.audit_logs for each row execute function public.test_fail_entry()"
    )
    with pytest.raises(psycopg.errors.DiskFull), database.connection.transaction():
        apply_erasure(database, receipt, cleo)
    assert len(database.rows(INTERVENTIONS)) == 1


def test_an_erasure_keeps_the_entries_and_removes_the_person(database: Database, acme: str) -> None:
    set_headers(database, x_forwarded_for="203.0.113.9", user_agent="Firefox")
    with database.acting("authenticated", claims("cleo", act={"sub": "user_support"})):
        create_specimens(database, acme, "Apollo", "Gemini", "Mercury")
    read_new_entries(database)
    cleo = profile_id(database, "cleo")
    receipt = begin_erasure(database, "cleo")
    # Five entries: the three specimens, her profile and her membership.
    hers = "(select id, created_at from public.audit_logs where user_id = %s or subject_ids @> array[%s] limit 2)"
    keys = f"(select coalesce(jsonb_agg(jsonb_build_array(a.id, a.created_at)), '[]') from {hers} as a)"
    plan_two = f"select app.erase_audit_entries((%s, 'user_cleo', '{{}}')::app.person, {keys})"
    planned = []
    for _ in range(4):
        planned.append(database.value(plan_two, cleo, cleo, cleo))
        assert apply_erasure(database, receipt, cleo)
    assert planned == [2, 2, 1, 0]
    rows = database.rows(
        "select user_id, actor, impersonator, ip_address, user_agent from public.audit_logs where action = 'specimen.created'"
    )
    assert rows == [(None, None, None, None, None)] * 3
    assert [(row[0], row[3]) for row in database.rows(INTERVENTIONS)] == [
        ("erasure", 2),
        ("erasure", 2),
        ("erasure", 1),
    ]
    changed = "select count(*) from app.audit_erasures as e join app.audit_interventions as i on i.id = e.intervention_id where i.erasure = %s"
    assert database.value(changed, receipt) == 5
    assert not database.value(
        "select exists (select from public.audit_logs as a where a::text like '%%' || %s || '%%')", str(cleo)
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.connection.transaction():
        database.execute("delete from public.audit_logs")


def test_the_entries_of_a_purged_tenant_stay(database: Database, acme: str) -> None:
    create_specimens(database, acme, "Apollo")
    database.execute("delete from public.organizations where id = %s", acme)
    assert "specimen.created" in {
        entry["action"] for entry in read_new_entries(database) if entry["organization_id"] == acme
    }


def test_large_entries_do_not_stop_the_seals(database: Database) -> None:
    """A member's changes of 64 kB of metadata are entries of 128 kB. Sealing all at once would exceed the job's timeout."""
    database.execute(
        "insert into public.audit_logs (action, resource_type, created_at, changes) "
        "select 'client.large', 'test', now() - interval '3 hours' + n / 10 * interval '1 second', "
        "  jsonb_build_object('after', repeat(md5(n::text), 4000)) from generate_series(1, 600) as n"
    )
    for _ in range(20):
        if not database.rows("select from app.seal_audit()"):
            break
    large = database.rows("select entries from app.audit_seals where entries > 50 order by sequence")
    assert len(large) >= 3
    assert max(entries for (entries,) in large) <= 200
    [[shown]] = database.connection.execute(audit_trail.QUERY.read_bytes(), {"proven": []}).fetchall()
    assert {each["state"] for each in shown["ranges"]} == {"intact"}
