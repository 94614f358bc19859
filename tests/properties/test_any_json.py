"""JSON of any depth and size, wherever someone may write it, never stops an erasure, an export, a CSV, a backup or its restore.

A write may be refused. What is accepted passes all five. The columns come from the catalogue.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.rows import dict_row

from service.audit_csv import COLUMNS, Range, as_csv, read_pages
from service.export import Export, write_json
from tests import events, people
from tests.conftest import Claims, Database, OwnDatabase, ServerElsewhere, own_database
from tests.deep_json import LEVELS, list_arguments, list_columns, nest
from tests.people import ADA, ADA_EMAILS, BEN
from tests.scripts.conftest import Vault

Connection = psycopg.Connection[Any]

# --- any JSON, as text, because Python cannot write deep values

STRINGS = st.text(max_size=12) | st.sampled_from(
    [
        ADA,
        *ADA_EMAILS,
        f"<{ADA_EMAILS[0].upper()}>",
        BEN,
        "",
        "\0",
        "\ud800",
        "\u2028",
        '"\\',
        "=1+1;x",
        "null",
        "erased",
        "a" * 3000,
    ]
)
NUMBERS = st.sampled_from(["0", "-1.5", "1e300", "9" * 400, "1e99999", "123456789012345678901"])
SCALARS = NUMBERS | st.sampled_from(["true", "false", "null"]) | STRINGS.map(json.dumps)


def join_object(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in pairs) + "}"


BRANCHES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: f"[{','.join(parts)}]")
        | st.lists(st.tuples(STRINGS, inner), max_size=4).map(join_object)
    ),
    max_leaves=10,
)
# Around the limit of 64 levels, of Python (about 1,000), of PostgreSQL's stack (about 16,000), and of its parser.
DEPTHS = st.integers(0, 66) | st.sampled_from(
    [0, 0, 55, 60, 61, 62, 63, 64, 300, 900, 2_000, 6_000, 12_000, 16_300, 30_000]
)
WIDTHS = st.sampled_from([1, 1, 1, 2, 50, 1_000])
OPENINGS = st.sampled_from([("[", "]"), ('{"a":', "}"), (f'{{"{ADA}":', "}"), ('[0,{"":', "},1]")])
MOST_CHARACTERS = 100_000


@st.composite
def texts(draw: st.DrawFn) -> str:
    value, depth, width, (opening, closing) = draw(BRANCHES), draw(DEPTHS), draw(WIDTHS), draw(OPENINGS)
    depth = min(depth, MOST_CHARACTERS // len(opening + closing))
    width = min(width, 1 + MOST_CHARACTERS // (len(value) + 1))
    wide = f"[{','.join([value] * width)}]" if width > 1 else value
    deep = f"{opening * depth}{wide}{closing * depth}"
    return draw(st.sampled_from([deep, f'{{"x":{deep}}}', f'{{"x":{deep}}}']))


# --- everywhere someone may write it

# How to call our functions that take JSON. The role is authenticated where it may call it, otherwise service_role.
FUNCTIONS = {
    "log_audit_event": "select public.log_audit_event(id, 'client.done', 'report', p_metadata => %s) from public.organizations where name = 'Acme'",
    "record_job": "select public.record_job('probe', %s, true, 1)",
    "record_drill": f"""select public.record_drill(
        '{{"id": "{uuid4()}", "filename": "database/probe", "backup_type": "manual", "created_at": "2026-01-01T00:00:00Z"}}', %s)""",
    "export_page": "select public.export_page(gen_random_uuid(), %s, 10)",
}
# A browser writes unsafe_metadata through Clerk's API. Only Clerk sends unknown types, which are stored as they are.
EVENTS = {
    "user.updated": lambda: events.user(ADA, email=ADA_EMAILS[0], unsafe_metadata="HERE"),
    "organizationMembership.updated": lambda: {
        "id": "orgmem_any",
        "public_user_data": {"user_id": ADA},
        "role": "HERE",
    },
    "session.touched": lambda: {"id": "sess_any", "user_id": ADA, "client": "HERE"},
}
# An argument or a column with a size, levels or a form that is not allowed; text that is not JSON for PostgreSQL.
REFUSALS = {"23514", "PT400", "PT404", "22P02", "22P05", "54001", "54000", "22003"}


@dataclass(frozen=True)
class Door:
    """One way to write JSON: a statement with one parameter, as a role."""

    name: str
    role: str
    statement: str

    def write(self, database: Database, text: str) -> bool:
        """Writes as the role. False if it is refused; any other error fails the test."""
        claims: Claims = {"role": self.role} | ({"sub": ADA, "fva": [0, 0]} if self.role == "authenticated" else {})
        try:
            with database.connection.transaction(), database.acting(self.role, claims):
                return database.execute(self.statement, text).rowcount > 0
        except psycopg.Error as error:
            if error.sqlstate not in REFUSALS:
                raise
            return False


def find_doors(database: Database) -> list[Door]:
    columns = [
        Door(f"{table}.{column}", "authenticated", f'update {table} set "{column}" = %s')
        for table, column in list_columns(database)
        if database.value("select has_column_privilege('authenticated', %s::regclass, %s, 'update')", table, column)
    ]
    roles = dict(sorted(list_arguments(database), key=lambda each: each[1], reverse=True))
    functions = [Door(name, roles[name], statement) for name, statement in FUNCTIONS.items()]
    inbox = [
        Door(
            kind, "service_role",
            sql.SQL("select public.receive_clerk_event(gen_random_uuid()::text, replace({}, '\"HERE\"', %s))")
            .format(json.dumps({"type": kind, "data": data(), "timestamp": events.START}).replace("%", "%%"))
            .as_string(),
        )
        for kind, data in EVENTS.items()
    ]  # fmt: skip
    return [*columns, *functions, *inbox]


# --- the five


@dataclass(frozen=True)
class World:
    """People of several organizations in every table. `accepted` collects what the examples wrote, for one backup."""

    database: Database
    doors: list[Door]
    vault: Vault
    accepted: list[tuple[Door, str]] = field(default_factory=list)

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """Calls a function like DataApi.call()."""
        named = sql.SQL(", ").join(sql.SQL("{} => %s").format(sql.Identifier(name)) for name in arguments)
        query = sql.SQL("select to_jsonb(r) as row from {}({}) as r").format(sql.Identifier("public", function), named)
        values = [json.dumps(each) if isinstance(each, dict) else each for each in arguments.values()]
        with self.database.acting("service_role", {"role": "service_role"}):
            cursor = self.database.connection.cursor(row_factory=dict_row)
            rows = [each["row"] for each in cursor.execute(query, values).fetchall()]
        return rows if function in {"export_page", "audit_page"} else rows[0]

    def check(self, text: str) -> None:
        """Writes the text through every door, checks all but the backup, and rolls back."""
        with self.database.connection.transaction(force_rollback=True):
            accepted = [door for door in self.doors if door.write(self.database, text)]
            note(f"{len(text)} characters, accepted by {[door.name for door in accepted]}")
            if accepted:
                self.accepted.extend((door, text) for door in accepted)
                self.export()
                self.read_csv()
                self.erase()

    def export(self) -> None:
        begun = self.call("begin_export", {"clerk_user_id": ADA, "requested_by": "administrator"})
        export = Export.of(self.call, begun)
        document = json.loads(b"".join(write_json(export)))
        export.end(failed=False)
        assert [each["clerk_user_id"] for each in document["profile"]] == [ADA]

    def read_csv(self) -> None:
        [[organization, entries]] = self.database.rows(
            "select o.id::text, count(a.id) from public.organizations as o join public.audit_logs as a on a.organization_id = o.id "
            "where o.name = 'Acme' group by 1"
        )
        pages = read_pages(self, organization, Range(datetime(2000, 1, 1, tzinfo=UTC), None))  # type: ignore[arg-type]
        text = b"".join(as_csv(pages)).decode("utf-8-sig")
        csv.field_size_limit(10**8)
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert (len(rows), {tuple(row) for row in rows}) == (entries, {COLUMNS})

    def erase(self) -> None:
        receipt = self.call("request_erasure", {"clerk_user_id": ADA, "requested_by": "administrator"})["receipt"]
        for _ in range(50):
            step = self.call("continue_erasure", {"receipt": receipt})
            if step["state"] != "running":
                break
        assert (step["state"], step.get("skipped", 0)) == ("erased", 0)

    def back_up_and_restore(self) -> None:
        """Writes everything that was accepted again, and proves a backup of it."""
        for door, text in self.accepted:
            self.database.execute("delete from app.rate_limits")
            assert door.write(self.database, text)
        report = json.loads(self.vault.run_to_end("drill", self.vault.back_up(), "--json").stdout)
        assert [check for check in report["checks"] if not check["passed"]] == []


@pytest.fixture
def world(server: OwnDatabase | ServerElsewhere, tmp_path: Path) -> Iterator[World]:
    if isinstance(server, ServerElsewhere):
        pytest.skip("the test commits to a database of its own")
    (tmp_path / "backups").mkdir()
    with own_database(server) as own, psycopg.connect(own.url(), autocommit=True) as connection:
        database = Database(connection)
        with connection.transaction():
            people.fill_database(database)
        vault = Vault(own.url(), (tmp_path / "backups").as_uri(), tmp_path)
        yield World(database, find_doors(database), vault)


def test_every_door_accepts_an_object_with_64_levels(world: World) -> None:
    """Otherwise the test below could pass because every write is refused. A page that does not exist is not exported."""
    refusing = [door.name for door in world.doors if not door.write(world.database, nest(LEVELS))]
    assert refusing == ["export_page"]


@pytest.fixture
def json_settings(request: pytest.FixtureRequest) -> settings:
    """Each example writes through every door, so there are fewer than in other tests."""
    examples = 60 if request.config.getoption("--thorough") else 20
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def test_accepted_json_stops_no_erasure_export_csv_backup_or_restore(world: World, json_settings: settings) -> None:
    check = given(texts())(world.check)
    for levels in (63, 64, 65, 66, 990, 2_000, 16_300):
        check = example(nest(levels))(check)
    json_settings(check)()
    world.back_up_and_restore()
