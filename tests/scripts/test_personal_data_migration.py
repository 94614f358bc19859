"""What was there before the registry: people who were deleted then are erased, entries and messages are found by whom they name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import psycopg

from scripts.migrations import ROOT
from tests import people
from tests.conftest import Database

MIGRATIONS = sorted((ROOT / "migrations").glob("*.sql"))
REGISTRY = next(file for file in MIGRATIONS if file.stem.endswith("_personal_data"))
VERIFIED = {"email_address": "Gone@Example.com", "verification": {"status": "verified"}}
ADA, BEN = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"


def test_an_installation_with_data_becomes_one_that_can_export_and_erase(new_database: Callable[..., str]) -> None:
    event = {
        "type": "user.created",
        "data": {
            "id": "user_gone",
            "email_addresses": [VERIFIED, {"email_address": "typed@example.com"}],
            "unsafe_metadata": {"referred_by": "carol@example.com"},
        },
    }
    with psycopg.connect(new_database()) as connection:
        for file in MIGRATIONS[: MIGRATIONS.index(REGISTRY)]:
            connection.execute(file.read_bytes())
        for statement, values in (
            ("insert into app.clerk_tombstones (kind, clerk_id, deleted_at) values ('user', 'user_gone', '2026-01-01Z'), ('organization', 'org_gone', '2026-01-01Z')", ()),
            ("insert into app.clerk_records (kind, clerk_id, organization_id, user_id, stamp, fields) values ('membership', 'orgmem_1', 'org_a', 'user_gone', row(true, now(), true, now(), null), '{}'), ('organization', 'org_a', null, null, row(true, now(), true, now(), null), '{\"created_by\": \"user_gone\", \"name\": \"A\"}')", ()),
            ("insert into app.clerk_tombstones (kind, clerk_id, organization_id, user_id, deleted_at) values ('membership', 'orgmem_0', 'org_a', 'user_gone', now())", ()),
            ("insert into app.webhook_events (message_id, type, event, outcome) values ('msg_1', 'user.created', %s, 'processed')", (json.dumps(event),)),
            ("insert into public.audit_logs (user_id, action, resource_type, resource_id, changes, metadata) values (null, 'profile.deleted', 'profile', %s, %s, '{}'), (%s, 'project.deleted', 'project', 'x', %s, '{}'), (%s, 'project.created', 'project', 'x', %s, '{}'), (null, 'member.left', 'member', 'x', '{}', %s)",
             (ADA, json.dumps({"before": {"clerk_user_id": "user_gone"}}), BEN, json.dumps({"before": {"created_by": ADA}}), ADA, json.dumps({"after": {"created_by": ADA}}), json.dumps({"user_id": BEN}))),
        ):  # fmt: skip
            connection.execute(statement, values or None)
        connection.execute(REGISTRY.read_bytes())

        subjects = connection.execute(
            "select action, subject_ids::text[] from public.audit_logs order by action"
        ).fetchall()
        assert subjects == [
            ("member.left", [BEN]),
            ("profile.deleted", [ADA]),
            ("project.created", None),
            ("project.deleted", [ADA]),
        ]
        [(mentions,)] = connection.execute("select mentions from app.webhook_events").fetchall()
        assert sorted(mentions) == ["carol@example.com", "gone@example.com", "typed@example.com", "user_gone"]
        [(salt,)] = connection.execute("select erasure_salt from app.settings").fetchall()
        gone = hashlib.sha256(salt + b"user_gone").hexdigest()
        tombstones = connection.execute("select clerk_id from app.clerk_tombstones where kind = 'user'").fetchall()
        assert tombstones == [(gone,)]
        pending = connection.execute(
            "select subject_hash, (person).id::text, (person).clerk_user_id, (person).emails, state from app.erasure_log"
        )
        assert pending.fetchall() == [(gone, ADA, "user_gone", ["gone@example.com"], "running")]

        for file in [*MIGRATIONS[MIGRATIONS.index(REGISTRY) + 1 :], *sorted((ROOT / "functions").rglob("*.sql"))]:
            connection.execute(file.read_bytes())
        [(receipt,)] = connection.execute("select * from app.pending_erasures()").fetchall()
        while connection.execute("select app.continue_erasure(%s) ->> 'state'", [receipt]).fetchall() == [("running",)]:
            pass
        connection.execute("select app.end_erasure(%s, false)", [receipt])
        assert people.scan(Database(connection), "user_gone", "gone@example.com", ADA) == {}
