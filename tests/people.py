"""A small data set with Ada in every table, and a scan that finds her through the catalogue, not through our registry."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg

from tests import events
from tests.conftest import Claims, Database
from tests.events import MINUTE, SECOND, START, Json
from tests.tenant_tables import FOLDER, TABLES

ADA = "user_2AdaWinterAdaWinter"
ADA_EMAILS = ("Ada.Winter@example.com", "ada-at-home@example.org")
BEN, CLEO = "user_2BenBenBenBen", "user_2CleoCleoCleo"
# Ids and addresses of other people that begin or end like Ada's.
SIMILAR = {f"{ADA}s": "x.ada.winter@example.com", f"{ADA}-2": "ada.winter@example.community"}
FAR_FUTURE = int(time.time()) * SECOND + 12 * 60 * MINUTE  # after any request that a test makes, before tomorrow
SECRET = "a-value-that-the-product-keeps-secret"


def fill_database(database: Database) -> None:
    """Fills every table with data about Ada. She owns Acme with Ben, belongs to Globex and is invited to Initech."""
    sender = Sender(database)
    database.execute("insert into app.clerk_roles values ('org:boss', 'owner')")
    people = {ADA: ADA_EMAILS[0], BEN: "ben@example.com", CLEO: "cleo@example.com"} | SIMILAR
    users = {user_id: _user(user_id, email) for user_id, email in people.items()}
    users[ADA]["email_addresses"].append(events.email_address("idn_home", ADA_EMAILS[1]))
    users[ADA]["private_metadata"] = {"note": SECRET}
    acme = events.organization("org_acme", created_by=ADA)
    globex = events.organization("org_globex", created_by=BEN, name="Globex", slug="globex")
    initech = events.organization("org_initech", created_by=CLEO, name="Initech", slug="initech")
    for user in users.values():
        sender.send("user.created", user)
    for organization in (acme, globex, initech):
        sender.send("organization.created", organization)
    members = [
        (acme, ADA, "org:admin"), (acme, BEN, "org:boss"), (acme, CLEO, "org:member"), (globex, ADA, "org:admin"),
        (globex, BEN, "org:admin"), (initech, CLEO, "org:admin"), (initech, ADA, "org:member"), *((acme, each, "org:member") for each in SIMILAR),
    ]  # fmt: skip
    memberships = [
        events.membership(f"orgmem_{number}", organization, users[user_id], role)
        for number, (organization, user_id, role) in enumerate(members)
    ]
    for membership in memberships:
        sender.send("organizationMembership.created", membership)
    sender.send(
        "organizationMembership.deleted", memberships[6], START + MINUTE
    )  # Ada left Initech, which then invites her again
    for number, email in enumerate([ADA_EMAILS[1].upper(), "ben@example.net"]):
        invitation = events.invitation(f"orginv_{number}", "org_initech", email_address=email, expires_at=FAR_FUTURE)
        sender.send("organizationInvitation.created", invitation)
    database.execute("select ops.transfer_ownership('org_acme', %s)", ADA)
    # Events of unhandled types are stored too.
    sender.send("session.created", {"id": "sess_1", "user_id": ADA, "client_id": "client_1"}, START)
    sender.send(
        "email.created", {"id": "ema_1", "to_email_address": ADA_EMAILS[0], "data": {"otp_code": SECRET}}, START
    )

    act(
        database,
        ADA,
        "insert into public.specimens (organization_id, title) select id, 'Hers in ' || name from public.organizations",
    )
    act(database, BEN, "update public.specimens set title = 'Ben was here' where title = 'Hers in Acme'")
    act(database, ADA, "update public.profiles set full_name = 'Ada Summer'")
    act(database, ADA, "insert into public.specimens (organization_id, title) select id, 'For support' from public.organizations where name = 'Acme'",
        act={"sub": BEN})  # fmt: skip
    act(database, BEN, "insert into public.specimens (organization_id, title) select id, 'Ada as support' from public.organizations where name = 'Acme'",
        act={"sub": ADA})  # fmt: skip
    act(database, BEN, "delete from public.specimens where title = 'Ben was here'")
    act(database, BEN, "select public.log_audit_event(id, 'client.reminded', 'mail', %s, %s) from public.organizations where name = 'Acme'",
        ADA, json.dumps({"to": ADA_EMAILS[0], "copies": [CLEO, *SIMILAR.values()]}))  # fmt: skip
    act(
        database,
        BEN,
        "insert into public.specimens (organization_id, title) select id, 'Not hers' from public.organizations",
    )
    for table in TABLES.values():
        if "insert" not in table.needs:
            database.execute(table.insert("public.organizations"))
            continue
        for person in (ADA, BEN):
            act(database, person, table.insert("public.organizations"))
    for file in sorted(FOLDER.glob("*.sql")):  # rows of tables that were made by hand
        database.execute(file.read_text())
    # Two failed events that will be retried: one about her, one that only mentions her.
    database.execute("alter table public.organizations add constraint broken check (name <> 'Broken') not valid")
    sender.send("organization.updated", acme | {"name": "Broken", "updated_at": START + 2 * MINUTE}, expected="failed")
    database.execute("alter table public.profiles add constraint broken check (full_name <> 'Broken Broken') not valid")
    broken = {"first_name": "Broken", "last_name": "Broken", "updated_at": START + 2 * MINUTE}
    sender.send("user.updated", users[ADA] | broken, expected="failed")
    database.execute("alter table public.organizations drop constraint broken")
    database.execute("alter table public.profiles drop constraint broken")
    call(database, "begin_export", clerk_user_id=ADA, requested_by="administrator")
    # Mail to her, mail about her, and a suppressed address.
    hers = database.value("select id from public.profiles where clerk_user_id = %s", ADA)
    bens = database.value("select id from public.profiles where clerk_user_id = %s", BEN)
    acmes = database.value("select id from public.organizations where name = 'Acme'")
    database.execute("update app.settings set mail_enabled = true")
    call(database, "app.enqueue_mail", template="role_changed", person_id=hers, organization_id=acmes)
    call(database, "app.enqueue_mail", template="member_joined", person_id=bens, about_id=hers, organization_id=acmes)
    database.execute("update app.settings set mail_enabled = false")
    database.execute(
        "insert into app.mail_suppressions (person_id, address, reason) values (%s, %s, 'bounced')",
        hers,
        ADA_EMAILS[0].lower(),
    )


def act(database: Database, user_id: str, statement: str, *values: object, **claims: Any) -> None:
    """Runs a statement as the person, like a request to the Data API from their own IP address."""
    address = f"203.0.113.{1 + [ADA, BEN, CLEO].index(user_id)}"
    headers = {"x-forwarded-for": address, "user-agent": f"Browser of {user_id[6:9]}", "x-request-id": "r"}
    token: Claims = {"sub": user_id, "role": "authenticated", "fva": [0, 0]} | claims
    with database.acting("authenticated", token):
        database.execute("select set_config('request.headers', %s, true)", json.dumps(headers))
        database.execute(statement, *values)
    database.execute("select set_config('request.headers', '', true), set_config('request.jwt.claims', '', true)")


def call(database: Database, function: str, **arguments: object) -> Any:
    """Calls a function with named arguments. A name without a schema is one of public."""
    named = ", ".join(f"{name} => %s" for name in arguments)
    path = function if "." in function else f"public.{function}"
    return database.value(f"select {path}({named})", *arguments.values())


def finish_erasures(database: Database) -> None:
    """Continues all running erasures, as the service and the job do, until a pass over all tables finds nothing."""
    unfinished = "select receipt from app.erasure_log where state = 'running'"
    unfinished += " and (settled_at is null or found > 0 or next_rule is not null)"
    for _ in range(200):
        receipts = database.rows(unfinished)
        if not receipts:
            return
        for (receipt,) in receipts:
            call(database, "continue_erasure", receipt=receipt)
    raise AssertionError(database.rows("select * from app.erasure_log"))


def scan(database: Database, *texts: str) -> dict[str, int]:
    """Counts, per table, the rows that contain one of the texts in any case. Tables without such a row are omitted."""
    return {table: len(rows) for table in tables(database) if (rows := find_rows(database, table, *texts))}


def find_rows(database: Database, table: str, *texts: str) -> list[str]:
    """The table's rows, as text, that contain one of the texts. The identifiers in SIMILAR do not count."""
    row = "lower(t::text)"
    for similar in map(str.lower, (*SIMILAR, *SIMILAR.values())):
        row = f"replace({row}, '{similar}', '')"
    query = f"select t::text from {table} as t where exists (select from unnest(%s::text[]) as x where position(lower(x) in {row}) > 0)"
    return [text for (text,) in database.rows(query, list(texts))]


def tables(database: Database) -> list[str]:
    """All tables with our data, in all schemas. A partitioned table is listed once."""
    rows = database.rows(
        "select c.oid::regclass::text from pg_class as c where c.relkind in ('r', 'p') and not c.relispartition "
        "and c.relnamespace = any('{public,app,ops,realtime}'::regnamespace[]) order by 1"
    )
    return [table if "." in table else f"public.{table}" for (table,) in rows]


def delete_broadcasts(url: str) -> None:
    """Deletes Realtime's messages, as Supabase does after some days. Only a superuser may."""
    with psycopg.connect(url, user="supabase_admin") as connection:
        connection.execute("delete from realtime.messages")


def identifiers(database: Database) -> list[str]:
    """All identifiers of Ada."""
    return [str(database.value("select id from public.profiles where clerk_user_id = %s", ADA)), ADA, *ADA_EMAILS]


def _user(user_id: str, email: str) -> Json:
    addresses = [events.email_address("idn_primary", email)]
    return events.user(user_id, email=email, first_name=user_id[6:9], last_name="Winter", email_addresses=addresses)


class Sender:
    """Delivers Clerk's messages like the service."""

    def __init__(self, database: Database, first: int = 0) -> None:
        self.database = database
        self.number = first

    def send(self, kind: str, data: Json, timestamp: int | None = None, expected: str | None = None) -> str:
        """Sends a message, asserts its `expected` outcome (by default: any but failed), and returns its id."""
        self.number += 1
        event = events.event(kind, data, timestamp)
        message_id = f"msg_world_{self.number}"
        outcome = self.database.value(
            "select public.receive_clerk_event(%s, %s) ->> 'outcome'", message_id, json.dumps(event)
        )
        assert outcome == expected if expected else outcome != "failed", (kind, outcome)
        return message_id
