"""Broadcasts: which rows and columns are sent on which topic, and who may receive, send and be present."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.conftest import Claims, Database

Message = tuple[str, str, dict[str, Any]]


@pytest.fixture
def tenants(database: Database) -> dict[str, str]:
    return make_tenants(database)


def make_tenants(database: Database) -> dict[str, str]:
    """Creates Acme with Ada (owner), Cleo (member) and Dee (viewer), and Globex with Eve. Returns ids by name."""
    database.execute(
        "insert into public.organizations (clerk_org_id, name) values ('org_acme', 'Acme'), ('org_globex', 'Globex')"
    )
    database.execute(
        "with people (name, org, role) as (values ('ada', 'org_acme', 'owner'), ('cleo', 'org_acme', 'member'), "
        "('dee', 'org_acme', 'viewer'), ('eve', 'org_globex', 'owner')), "
        "profile as (insert into public.profiles (clerk_user_id) select 'user_' || name from people returning id, clerk_user_id) "
        "insert into public.organization_memberships (organization_id, user_id, role) "
        "select o.id, profile.id, people.role from people join profile on clerk_user_id = 'user_' || name "
        "join public.organizations as o on o.clerk_org_id = people.org"
    )
    mark_as_read(database)
    return dict(database.rows("select name, id::text from public.organizations"))


def claims(person: str, *, second_factor: bool = True) -> Claims:
    return {"sub": f"user_{person}", "role": "authenticated", "fva": [0, 0 if second_factor else -1]}


def mark_as_read(database: Database) -> None:
    database.execute("create temporary table if not exists read_messages (id uuid) on commit drop")
    database.execute("insert into read_messages select id from realtime.messages")


def read_new_messages(database: Database) -> list[Message]:
    """The unread messages. Those of one transaction have the same time, so they are sorted by other columns."""
    rows = database.rows(
        "select topic, event, payload from realtime.messages where extension = 'broadcast' and private "
        "and id not in (select id from read_messages) order by event = 'DELETE', event, payload -> 'record' ->> 'title'"
    )
    mark_as_read(database)
    return rows  # type: ignore[return-value]


def create(database: Database, organization: str, *titles: str) -> None:
    database.execute(
        "insert into public.specimens (organization_id, title) select %s, unnest(%s::text[])",
        organization,
        list(titles),
    )


# --- sending


def test_an_insert_broadcasts_the_readable_columns_on_the_topic_of_the_organization(
    database: Database, tenants: dict[str, str]
) -> None:
    create(database, tenants["Acme"], "Apollo")
    row = database.value("select to_jsonb(p) from public.specimens as p")
    assert read_new_messages(database) == [
        (
            f"org:{tenants['Acme']}:specimens:read",
            "INSERT",
            {"schema": "public", "table": "specimens", "operation": "INSERT", "record": row, "old_record": None},
        )
    ]


def test_columns_that_clients_may_not_select_are_never_sent(database: Database, tenants: dict[str, str]) -> None:
    database.execute("revoke select on public.specimens from authenticated")
    database.execute("grant select (id, title) on public.specimens to authenticated")
    create(database, tenants["Acme"], "Apollo")
    database.execute("update public.specimens set title = 'Gemini', description = 'secret'")
    records = [payload["record"].keys() for _, _, payload in read_new_messages(database)]
    assert records == [{"id", "title"}, {"id", "title"}]


def test_a_delete_broadcasts_only_the_primary_key(database: Database, tenants: dict[str, str]) -> None:
    create(database, tenants["Acme"], "Apollo")
    [identifier] = [payload["record"]["id"] for _, _, payload in read_new_messages(database)]
    database.execute("delete from public.specimens")
    assert read_new_messages(database) == [
        (
            f"org:{tenants['Acme']}:specimens:read",
            "DELETE",
            {
                "schema": "public",
                "table": "specimens",
                "operation": "DELETE",
                "record": None,
                "old_record": {"id": identifier},
            },
        )
    ]


def test_an_update_is_sent_only_if_a_readable_column_changed(database: Database, tenants: dict[str, str]) -> None:
    create(database, tenants["Acme"], "Apollo", "Gemini")
    read_new_messages(database)
    database.execute("update public.specimens set title = title")
    assert read_new_messages(database) == []
    database.execute("update public.specimens set title = 'Mercury' where title in ('Apollo', 'Mercury')")
    [(_, event, payload)] = read_new_messages(database)
    assert (event, payload["record"]["title"], payload["old_record"]) == ("UPDATE", "Mercury", None)
    database.execute("revoke select on public.specimens from authenticated")
    database.execute("grant select (id) on public.specimens to authenticated")
    database.execute("update public.specimens set description = 'hidden'")
    assert read_new_messages(database) == []


def test_moving_a_row_to_another_tenant_is_a_delete_for_the_old_one(
    database: Database, tenants: dict[str, str]
) -> None:
    create(database, tenants["Acme"], "Apollo")
    read_new_messages(database)
    database.execute("update public.specimens set organization_id = %s", tenants["Globex"])
    received = {(topic, event): payload for topic, event, payload in read_new_messages(database)}
    assert received.keys() == {
        (f"org:{tenants['Globex']}:specimens:read", "UPDATE"),
        (f"org:{tenants['Acme']}:specimens:read", "DELETE"),
    }
    assert received[f"org:{tenants['Acme']}:specimens:read", "DELETE"]["record"] is None


def test_one_statement_sends_each_tenant_its_own_rows(database: Database, tenants: dict[str, str]) -> None:
    database.execute("insert into public.specimens (organization_id, title) select id, name from public.organizations")
    assert {(topic, payload["record"]["title"]) for topic, _, payload in read_new_messages(database)} == {
        (f"org:{identifier}:specimens:read", name) for name, identifier in tenants.items()
    }


def test_a_thousand_rows_are_one_insert_of_messages(database: Database, tenants: dict[str, str]) -> None:
    create(database, tenants["Acme"], *(f"Project {number}" for number in range(1000)))
    # Rows of one statement have the same command number.
    statements = (
        "select count(distinct (xmin::text, cmin::text)) from realtime.messages "
        "where id not in (select id from read_messages)"
    )
    assert (database.value(statements), len(read_new_messages(database))) == (1, 1000)


def test_a_write_through_the_api_is_broadcast(database: Database, tenants: dict[str, str]) -> None:
    with database.acting("authenticated", claims("cleo")):
        create(database, tenants["Acme"], "Apollo")
    assert [event for _, event, _ in read_new_messages(database)] == ["INSERT"]


def test_members_and_invitations_are_sent_on_the_members_topic(database: Database, tenants: dict[str, str]) -> None:
    topic = f"org:{tenants['Acme']}:members:read"
    database.execute("update public.organization_memberships set role = 'viewer' where role = 'member'")
    [(where, event, payload)] = read_new_messages(database)
    assert (where, event, payload["table"], payload["record"]["role"]) == (
        topic,
        "UPDATE",
        "organization_memberships",
        "viewer",
    )
    database.execute(
        "insert into public.organization_invitations (organization_id, clerk_invitation_id, email, role) values (%s, 'orginv_1', 'x@example.com', 'member')",
        tenants["Acme"],
    )
    assert [(where, payload["table"]) for where, _, payload in read_new_messages(database)] == [
        (topic, "organization_invitations")
    ]


def test_deleting_an_organization_broadcasts_the_deletion_of_its_rows(
    database: Database, tenants: dict[str, str]
) -> None:
    create(database, tenants["Acme"], "Apollo")
    read_new_messages(database)
    database.execute("delete from public.organizations where name = 'Acme'")
    assert {(payload["table"], event) for _, event, payload in read_new_messages(database)} == {
        ("specimens", "DELETE"), ("organization_memberships", "DELETE"),
    }  # fmt: skip


def test_a_failed_broadcast_does_not_fail_the_write(superuser: Database) -> None:
    tenants = make_tenants(superuser)
    warnings: list[str] = []
    superuser.connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    superuser.execute("alter table realtime.messages add constraint full_up check (false) not valid")
    create(superuser, tenants["Acme"], "Apollo")
    superuser.execute("update public.specimens set title = 'Gemini'")
    assert superuser.value("select title from public.specimens") == "Gemini"
    assert warnings == ["A change of public.specimens was not broadcast (23514)."] * 2


def make_messages_fail(superuser: Database, error: str) -> None:
    superuser.execute(
        f"create function public.test_fail_message() returns trigger language plpgsql as "
        f"$$ begin raise sqlstate '{error}' using message = 'trouble'; end; $$"
    )
    superuser.execute(
        "create trigger fail_message before insert on realtime.messages for each row execute function public.test_fail_message()"
    )


@pytest.mark.parametrize("error", ["23514", "40P01", "53100", "55P03", "57P01"])
def test_a_lost_broadcast_never_fails_the_write_and_is_counted(superuser: Database, error: str) -> None:
    tenants = make_tenants(superuser)
    make_messages_fail(superuser, error)
    create(superuser, tenants["Acme"], "Apollo", "Gemini")
    superuser.execute("update public.specimens set title = 'Mercury' where title = 'Gemini'")
    superuser.execute("delete from public.specimens where title = 'Mercury'")
    assert superuser.rows("select title from public.specimens") == [("Apollo",)]
    counted = (
        "select relation, error, lost from app.lost_records where kind = 'broadcast' and backend = pg_backend_pid()"
    )
    assert superuser.rows(counted) == [("public.specimens", error, 4)]


def test_a_lost_broadcast_that_cannot_even_be_counted_does_not_fail_the_write(superuser: Database) -> None:
    tenants = make_tenants(superuser)
    make_messages_fail(superuser, "53100")
    superuser.execute("alter table app.lost_records rename to away")
    create(superuser, tenants["Acme"], "Apollo")
    assert superuser.rows("select title from public.specimens") == [("Apollo",)]


def test_a_write_succeeds_if_the_role_authenticated_does_not_exist(superuser: Database) -> None:
    tenants = make_tenants(superuser)
    warnings: list[str] = []
    superuser.connection.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    superuser.execute("alter role authenticated rename to renamed")
    create(superuser, tenants["Acme"], "Apollo")
    assert superuser.value("select count(*) from public.specimens") == 1
    assert warnings == ["A change of public.specimens was not broadcast (42704)."]


def test_one_call_switches_broadcasts_on_for_another_table(database: Database, tenants: dict[str, str]) -> None:
    database.execute(
        "create table public.test_probes (number integer, organization_id uuid references public.organizations, total numeric, "
        "primary key (organization_id, number))"
    )
    database.execute("grant select on public.test_probes to authenticated")
    database.execute("insert into public.role_permissions (role, permission) values ('owner', 'billing:read')")
    for _ in range(2):
        database.execute("select app.broadcast('public.test_probes', 'billing:read')")
    database.execute("insert into public.test_probes values (1, %s, 9.5)", tenants["Acme"])
    database.execute("delete from public.test_probes")
    key = {"organization_id": tenants["Acme"], "number": 1}
    topic = f"org:{tenants['Acme']}:billing:read"
    assert [(where, event, payload["record"], payload["old_record"]) for where, event, payload in read_new_messages(database)] == [
        (topic, "INSERT", key | {"total": 9.5}, None), (topic, "DELETE", None, key),
    ]  # fmt: skip


# --- receiving, sending, presence


def is_allowed(
    database: Database, command: str, person: str, topic: str, extension: str = "broadcast", **how: bool
) -> bool:
    """Probes the policies as Realtime does: by reading a message on the topic, or by inserting one."""
    probe = "insert into realtime.messages (topic, extension) values (%s, %s)"
    if command == "read":
        database.execute(probe, topic, extension)
    try:
        with database.acting("authenticated", claims(person, **how)):
            database.execute("select set_config('realtime.topic', %s, true)", topic)
            if command == "read":
                return bool(
                    database.value(
                        "select count(*) from realtime.messages where topic = %s and extension = %s", topic, extension
                    )
                )
            database.execute(probe, topic, extension)
            return True
    except psycopg.errors.InsufficientPrivilege:
        return False


@pytest.mark.parametrize("extension", ["broadcast", "presence"])
@pytest.mark.parametrize("suffix", [":specimens:read", ":members:read", ":presence"])
@pytest.mark.parametrize("person", ["ada", "cleo", "dee", "eve", "stranger"])
def test_only_members_receive_messages_of_their_organization(
    database: Database, tenants: dict[str, str], person: str, suffix: str, extension: str
) -> None:
    assert is_allowed(database, "read", person, f"org:{tenants['Acme']}{suffix}", extension) == (
        person in ("ada", "cleo", "dee")
    )


def test_a_member_without_a_permission_does_not_receive_its_topic(database: Database, tenants: dict[str, str]) -> None:
    audit = f"org:{tenants['Acme']}:audit:read"
    assert is_allowed(database, "read", "ada", audit)
    assert not is_allowed(database, "read", "ada", audit, second_factor=False)
    assert not is_allowed(database, "read", "dee", audit)
    database.execute("delete from public.role_permissions where role = 'viewer' and permission = 'specimens:read'")
    assert not is_allowed(database, "read", "dee", f"org:{tenants['Acme']}:specimens:read")
    assert is_allowed(database, "read", "dee", f"org:{tenants['Acme']}:presence")
    assert is_allowed(database, "read", "dee", f"org:{tenants['Acme']}:members:read")
    database.execute("delete from public.role_permissions where role = 'viewer' and permission = 'members:read'")
    assert not is_allowed(database, "read", "dee", f"org:{tenants['Acme']}:presence")


@pytest.mark.parametrize("person", ["ada", "cleo", "dee", "eve"])
@pytest.mark.parametrize("suffix", ["", ":members:read", ":audit:read", ":presence", ":specimens:read", ":else"])
def test_clients_cannot_send_broadcasts(database: Database, tenants: dict[str, str], person: str, suffix: str) -> None:
    assert not is_allowed(database, "write", person, f"org:{tenants['Acme']}{suffix}")


@pytest.mark.parametrize(("person", "present"), [("ada", True), ("dee", True), ("eve", False), ("stranger", False)])
def test_members_can_be_present_on_the_presence_topic_only(
    database: Database, tenants: dict[str, str], person: str, present: bool
) -> None:
    assert is_allowed(database, "write", person, f"org:{tenants['Acme']}:presence", "presence") == present
    for suffix in ("", ":specimens:read", ":members:read"):
        assert not is_allowed(database, "write", person, f"org:{tenants['Acme']}{suffix}", "presence")


@pytest.mark.parametrize(
    "topic",
    ["", "org:", "org::presence", ":presence", "org:null", "org:%", "org:org_acme", "room", "a'b\\", "\ud7ff" * 2000],
)
def test_an_odd_topic_is_refused_without_an_error(database: Database, tenants: dict[str, str], topic: str) -> None:
    for command in ("read", "write"):
        for extension in ("broadcast", "presence"):
            assert not is_allowed(database, command, "ada", topic, extension)


def test_anon_neither_receives_nor_sends(database: Database, tenants: dict[str, str]) -> None:
    create(database, tenants["Acme"], "Apollo")
    with database.acting("anon", claims("ada")):
        assert database.value("select count(*) from realtime.messages") == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.acting("anon", claims("ada")):
        database.execute(
            "insert into realtime.messages (topic, extension) values (%s, 'broadcast')",
            f"org:{tenants['Acme']}:specimens:read",
        )


def test_users_cannot_change_or_delete_messages(database: Database, tenants: dict[str, str]) -> None:
    create(database, tenants["Acme"], "Apollo")
    with database.acting("authenticated", claims("ada")):
        assert database.execute("update realtime.messages set payload = '{}'").rowcount == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.acting("authenticated", claims("ada")):
        database.execute("delete from realtime.messages")


# --- tables of any shape


def record_broadcasts(database: Database, definition: str, granted: str, *statements: str) -> list[dict[str, Any]]:
    """Creates a table of this shape, runs the statements, and returns the payloads that it broadcast."""
    database.execute(f"create table public.test_shaped ({definition})")
    database.execute(f"grant select ({granted}) on public.test_shaped to authenticated")
    database.execute("select app.broadcast('public.test_shaped', 'specimens:read')")
    for statement in statements:
        database.execute(statement)
    return [payload for _, _, payload in read_new_messages(database)]


@pytest.mark.parametrize(
    "name",
    ["n", "o", "hidden", "not_key", "permission", "change", "deletion", "record", "topic", "payload", "new_rows"],
)
@pytest.mark.parametrize(
    ("kind", "value"), [("jsonb", '{"secret": "LEAK"}'), ("text", "LEAK"), ("boolean", "true"), ("integer", "5")]
)
def test_no_column_name_leaks_hidden_data_or_prevents_broadcasts(
    database: Database, tenants: dict[str, str], name: str, kind: str, value: str
) -> None:
    payloads = record_broadcasts(
        database, f"id integer primary key, organization_id uuid, {name} {kind}", "id, organization_id",
        f"insert into public.test_shaped values (1, '{tenants['Acme']}', '{value}')",
        "update public.test_shaped set id = 2", "delete from public.test_shaped",
    )  # fmt: skip
    record = {"id": 1, "organization_id": tenants["Acme"]}
    assert [(payload["operation"], payload["record"], payload["old_record"]) for payload in payloads if payload["operation"] != "DELETE"] == [
        ("INSERT", record, None), ("UPDATE", record | {"id": 2}, None),
    ]  # fmt: skip
    assert sorted(payload["old_record"]["id"] for payload in payloads if payload["operation"] == "DELETE") == [1, 2]


def test_a_delete_sends_neither_hidden_nor_included_columns_of_the_primary_key(
    database: Database, tenants: dict[str, str]
) -> None:
    insert = f"insert into public.test_shaped values (1, 2, '{tenants['Acme']}', 'LEAK')"
    definition = "id integer, part integer, organization_id uuid, secret text, primary key (id, part) include (secret)"
    payloads = record_broadcasts(database, definition, "id, organization_id", insert, "delete from public.test_shaped")
    assert payloads[1]["old_record"] == {"id": 1}
    assert "LEAK" not in str(payloads)


@pytest.mark.parametrize(
    ("definition", "permission", "reason"),
    [
        ("organization_id uuid, secret text", "specimens:read", "no primary key"),
        ("id integer primary key", "specimens:read", "no organization_id"),
        ("id integer primary key, organization_id text", "specimens:read", "no organization_id"),
        ("id integer primary key, organization_id uuid", "invoices:reed", "No role has the permission"),
    ],
)
def test_a_table_that_cannot_be_broadcast_is_refused(
    database: Database, definition: str, permission: str, reason: str
) -> None:
    database.execute(f"create table public.test_shaped ({definition})")
    with pytest.raises(psycopg.errors.RaiseException, match=reason):
        database.execute("select app.broadcast('public.test_shaped', %s)", permission)
