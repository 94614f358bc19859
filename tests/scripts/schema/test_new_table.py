"""`ballast new table`: its files apply, follow the rules and give strangers no access; a refusal leaves no file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from scripts.cli import ballast
from scripts.schema import drift, migrations, new_table, sql_files
from scripts.schema.new_table import TYPES, TableRefused, parse_table, render, write
from scripts.schema.sql_files import ROOT
from tests import people
from tests.conftest import Claims, Database
from tests.db.test_erasure import erase, find_texts
from tests.db.test_personal_data import export_all
from tests.deep_json import nest
from tests.people import ADA, identifiers
from tests.schema import SPECIMENS
from tests.scripts.schema.test_bundle import push, write_bundle
from tests.scripts.schema.test_migrate import Project

SOURCES = ("migrations", "functions", "policies")
# For each type, a column and a nullable column.
COLUMNS = " ".join(f"a_{name}:{name} b_{name}:{name}?" for name in TYPES)
# Tables with references of each kind.
REFERENCES = {
    "example_clients": "name:text(unique)",
    "example_invoices": "client:ref(example_clients) number:text(unique)? amount:integer(unique)? status:enum(draft,sent,paid)",
    "example_comments": "invoice:ref(example_invoices,cascade) client:ref(example_clients)? answered:ref(example_comments)? body:text",
}
PAGE = (ROOT / "docs/extend.md").read_text()


def copy_to(folder: Path, *names: str) -> Path:
    for name in names:
        here = ROOT / name
        if here.is_dir():
            shutil.copytree(here, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(here, folder / name)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that `ballast new table` reads. Tests must not change it."""
    return copy_to(tmp_path_factory.mktemp("sources"), *SOURCES)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another copy, with a new table example_rows that has columns of every type."""
    folder = copy_to(tmp_path_factory.mktemp("checkout"), *SOURCES)
    write(parse_table("example_rows", COLUMNS), root=folder)
    for name, columns in REFERENCES.items():
        write(parse_table(name, columns), root=folder)
    return folder


@pytest.fixture(scope="module")
def url(checkout: Path, lasting_database: Callable[..., str]) -> str:
    """A database to which the checkout is applied."""
    url = lasting_database()
    migrations.up(url, root=checkout)
    return url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with psycopg.connect(url) as connection, connection.transaction(force_rollback=True):
        yield Database(connection)


@pytest.fixture
def acme(database: Database) -> str:
    """The id of an organization with a person of each role; user_stranger belongs to another organization."""
    database.execute(
        "insert into public.organizations (clerk_org_id, name) values ('org_acme', 'Acme'), ('org_globex', 'Globex')"
    )
    database.execute(
        "with people (role, org) as (values ('owner', 'org_acme'), ('admin', 'org_acme'), ('member', 'org_acme'), "
        "('viewer', 'org_acme'), ('stranger', 'org_globex')), "
        "profile as (insert into public.profiles (clerk_user_id) select 'user_' || role from people returning id, clerk_user_id) "
        "insert into public.organization_memberships (organization_id, user_id, role) "
        "select o.id, profile.id, case people.role when 'stranger' then 'owner' else people.role end "
        "from people join profile on clerk_user_id = 'user_' || role join public.organizations as o on o.clerk_org_id = people.org"
    )
    return str(database.value("select id from public.organizations where name = 'Acme'"))


def claims(role: str) -> Claims:
    return {"sub": f"user_{role}", "role": "authenticated", "fva": [0, 0]}


INSERT = (
    "insert into public.example_rows (organization_id, a_text, a_integer, a_bigint, a_numeric, a_date, a_timestamptz, a_uuid) "
    "values (%s, 'Apollo', 1, 2, 3.5, '2026-01-31', '2026-01-31Z', gen_random_uuid())"
)


# --- the files that it writes


def test_an_applied_table_has_no_drift(url: str, checkout: Path) -> None:
    plan, drifted = drift.check(url, root=checkout)
    assert (plan.is_empty, drifted) == (True, [])


def test_bundles_add_it_to_projects_that_supabase_deploys(tmp_path: Path, new_database: Callable[..., str]) -> None:
    folder = copy_to(tmp_path, *SOURCES)
    write_bundle(folder)
    write(parse_table("example_rows", "title:text"), root=folder)
    write_bundle(folder)
    theirs = Project(folder, new_database())
    push(theirs)
    assert theirs.up().is_empty
    assert theirs.check() == []


def test_its_policies_have_the_form_of_the_projects_policies() -> None:
    projects = parse_table("projects", "title:text description:text? status:text metadata:jsonb")
    written = {source.path: source.text for source in sql_files.read_files(ROOT).sources}
    assert render("policies.sql", projects) == written["policies/projects.sql"]


def test_linters_accept_its_files(tmp_path: Path) -> None:
    """With short names, and with the longest possible ones."""
    longest = " ".join(f"{letter * 32}:{name}" for letter, name in zip("bcdefghij", TYPES, strict=True))
    longest += f" {'k' * 20}:ref({'l' * 32})? {'m' * 32}:uuid(unique) {'n' * 32}:enum({','.join(letter * 20 for letter in 'opqrstuv')})"
    tables = [parse_table("example_rows", COLUMNS), parse_table("a" * 32, longest)]
    tables += [parse_table(name, columns) for name, columns in REFERENCES.items()]
    for table in tables:
        (tmp_path / table.name).mkdir()
        for template in ("migration.sql", "policies.sql", "functions.sql"):
            (tmp_path / table.name / template).write_text(render(template, table, table.parents.values()).lstrip())
    (tmp_path / ".sqlfluff").write_bytes((ROOT / ".sqlfluff").read_bytes())
    programs = Path(sys.executable).parent
    for command in (
        [programs / "sqlfluff", "lint", "."],
        [programs / "squawk", "--config", ROOT / ".squawk.toml", *tmp_path.glob("*/migration.sql")],
    ):
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def may(database: Database, role: str, statement: str, *values: object) -> bool:
    """Whether the statement affects a row when a person with that role runs it."""
    try:
        with database.acting("authenticated", claims(role)):
            return database.execute(statement, *values).rowcount > 0
    except psycopg.errors.InsufficientPrivilege:
        return False


def test_each_role_has_the_same_permissions_as_on_projects(database: Database, acme: str) -> None:
    database.execute(INSERT, acme)
    allowed = {
        role: "".join(
            word[0] for word, statement, *values in (
                ("create", INSERT, acme), ("read", "select from public.example_rows"),
                ("update", "update public.example_rows set a_text = 'Gemini'"), ("delete", "delete from public.example_rows where created_by is null"),
            ) if may(database, role, statement, *values)
        )
        for role in ("viewer", "stranger", "member", "admin")
    }  # fmt: skip
    assert allowed == {"viewer": "r", "stranger": "", "member": "cru", "admin": "crud"}


@pytest.mark.parametrize("column", ["id", "created_by", "created_at", "updated_at"])
def test_clients_cannot_write_system_columns(database: Database, acme: str, column: str) -> None:
    assert may(database, "owner", INSERT, acme)
    assert not may(
        database, "owner", f"insert into public.example_rows (organization_id, {column}) values (%s, null)", acme
    )
    assert not may(database, "owner", f"update public.example_rows set {column} = {column}")
    assert not may(database, "owner", "update public.example_rows set organization_id = organization_id")


def test_a_row_records_its_author_and_its_last_change(database: Database, acme: str) -> None:
    may(database, "member", INSERT, acme)
    assert (
        database.value(
            "select p.clerk_user_id from public.example_rows as s join public.profiles as p on p.id = s.created_by"
        )
        == "user_member"
    )
    database.execute("update public.example_rows set updated_at = '2020-01-01', a_integer = 7")
    assert database.value("select updated_at = now() from public.example_rows")


def test_a_change_is_broadcast_to_members_and_audited(database: Database, acme: str) -> None:
    may(database, "member", INSERT, acme)
    topic, payload = database.rows(
        "select topic, payload from realtime.messages where payload ->> 'table' = 'example_rows'"
    )[0]
    assert (topic, payload["operation"], payload["record"]["a_text"]) == (
        f"org:{acme}:example_rows:read",
        "INSERT",
        "Apollo",
    )
    entry = database.rows(
        "select p.clerk_user_id, a.organization_id::text, a.metadata from public.audit_logs as a "
        "join public.profiles as p on p.id = a.user_id where a.action = 'example_row.created'"
    )
    assert entry == [("user_member", acme, {"a_text": "Apollo"})]
    with database.acting("authenticated", claims("viewer")):
        assert f"org:{acme}:example_rows:read" in database.value("select app.topics()")


def test_rows_are_exported_and_lose_their_author_at_erasure(database: Database) -> None:
    database.execute(SPECIMENS.read_text())
    people.fill_database(database)
    acme = database.value("select id from public.organizations where name = 'Acme'")
    people.act(database, ADA, INSERT, acme)
    [row] = export_all(database)["example_rows"]
    assert (row["a_text"], row["a_numeric"], row["b_text"]) == ("Apollo", 3.5, None)
    texts = identifiers(database)
    erase(database)
    assert find_texts(database, texts) == {}
    assert database.rows("select a_text, created_by from public.example_rows") == [("Apollo", None)]


def test_the_privacy_page_lists_it(database: Database) -> None:
    assert "Which example rows you created" in {
        line["data"] for line in database.value("select public.privacy_notice()")
    }


@pytest.mark.parametrize(("type_name", "value"), [
    ("text", "''"), ("text", "repeat('x', 201)"), ("numeric", "'NaN'"), ("numeric", "'infinity'"), ("numeric", "-1e15"),
    ("date", "'infinity'"), ("timestamptz", "'-infinity'"), ("jsonb", "'[]'"), ("jsonb", "jsonb_build_object('x', repeat('x', 65537))"),
    ("jsonb", f"'{nest(65)}'"),
])  # fmt: skip
def test_values_that_clients_could_not_read_are_refused(
    database: Database, acme: str, type_name: str, value: str
) -> None:
    database.execute(INSERT, acme)
    for column in (f"a_{type_name}", f"b_{type_name}"):
        with pytest.raises(psycopg.errors.CheckViolation), database.connection.transaction():
            database.execute(f"update public.example_rows set {column} = {value}")
    database.execute(f"update public.example_rows set b_{type_name} = null")


def test_omitted_columns_have_a_default_or_are_refused(database: Database, acme: str) -> None:
    database.execute(INSERT, acme)
    assert database.rows("select a_boolean, a_jsonb, b_boolean, b_jsonb, b_date from public.example_rows") == [
        (False, {}, None, None, None)
    ]
    with pytest.raises(psycopg.errors.NotNullViolation):
        database.execute("insert into public.example_rows (organization_id) values (%s)", acme)


@pytest.mark.parametrize(("name", "arguments"), [
    ("invoices", "'public.invoices')"), ("companies", "'public.companies', 'company')"), ("addresses", "'public.addresses', 'address')"),
    ("boxes", "'public.boxes', 'box')"), ("data", "'public.data')"),
    # Clients may log actions with the prefix `client.`: they must not be able to forge entries about this table.
    ("clients", "'public.clients', 'clients')"),
])  # fmt: skip
def test_audit_entries_use_the_singular_of_the_table(name: str, arguments: str) -> None:
    assert f"select app.audit({arguments};" in render("functions.sql", parse_table(name, "amount:numeric"))


# --- references and keys


def fail(database: Database, role: str, statement: str, *values: object) -> str:
    """The error code, detail and message of a statement of a person with that role."""
    with pytest.raises(psycopg.Error) as caught, database.acting("authenticated", claims(role)):
        database.execute(statement, *values)
    return f"{caught.value.sqlstate} {caught.value.diag.message_primary} {caught.value.diag.message_detail}"


def add(database: Database, table: str, organization: str, **values: object) -> str:
    """Inserts a row as the owner of the database, and returns its id."""
    columns = {"organization_id": organization} | values
    text = f"insert into public.{table} ({', '.join(columns)}) values ({', '.join(['%s'] * len(columns))}) returning id::text"
    return str(database.value(text, *columns.values()))


@pytest.fixture
def globex(database: Database, acme: str) -> str:
    return str(database.value("select id from public.organizations where name = 'Globex'"))


def test_a_member_cannot_refer_to_another_tenants_row_nor_see_whether_it_exists(
    database: Database, acme: str, globex: str
) -> None:
    theirs = add(database, "example_clients", globex, name="Secret")
    ours = add(database, "example_clients", acme, name="Ours")
    invoice = add(database, "example_invoices", acme, client_id=ours, number="1")
    missing = database.value("select gen_random_uuid()::text")
    for statement in (
        f"insert into public.example_invoices (organization_id, client_id, number) values ('{acme}', %s, '2')",
        f"update public.example_invoices set client_id = %s where id = '{invoice}'",
    ):
        errors = {fail(database, "member", statement, identifier) for identifier in (theirs, missing)}
        assert len({error.replace(theirs, "").replace(missing, "") for error in errors}) == 1, errors
        assert {error[:5] for error in errors} == {"23503"}


def test_no_other_tenant_prevents_a_deletion(database: Database, acme: str, globex: str) -> None:
    theirs = add(database, "example_clients", globex, name="Secret")
    fail(
        database,
        "member",
        f"insert into public.example_invoices (organization_id, client_id) values ('{acme}', %s)",
        theirs,
    )
    assert may(database, "stranger", "delete from public.example_clients where id = %s", theirs)


def test_no_key_of_a_new_table_joins_tenants(database: Database) -> None:
    assert [found for found in drift.find_tenant_keys(database.connection) if "example_" in found.name] == []


def test_a_reference_has_an_index_that_begins_with_its_columns(database: Database) -> None:
    indexes = [
        name for (name,) in database.rows("select indexdef from pg_indexes where tablename = 'example_comments'")
    ]
    for column in ("invoice_id", "client_id", "answered_id"):
        assert [index for index in indexes if index.endswith(f"(organization_id, {column})")]


def test_a_deletion_is_prevented_or_cascades_or_clears_only_the_reference(database: Database, acme: str) -> None:
    client = add(database, "example_clients", acme, name="Ours")
    other = add(database, "example_clients", acme, name="Other")
    invoice = add(database, "example_invoices", acme, client_id=client)
    comment = add(database, "example_comments", acme, invoice_id=invoice, client_id=other, body="A")
    add(database, "example_comments", acme, invoice_id=invoice, answered_id=comment, body="B")
    delete = "delete from public.example_{} where id = %s".format
    assert fail(database, "owner", delete("clients"), client)[:5] in {"23001", "23503"}
    assert may(database, "owner", delete("clients"), other)
    assert database.rows("select organization_id::text, client_id from public.example_comments where body = 'A'") == [
        (acme, None)
    ]
    assert may(database, "owner", delete("comments"), comment)
    assert database.rows("select organization_id::text, answered_id from public.example_comments") == [(acme, None)]
    assert may(database, "owner", delete("invoices"), invoice)
    assert database.value("select count(*) from public.example_comments") == 0
    assert may(database, "owner", delete("clients"), client)


def test_rows_deleted_by_a_cascade_are_audited_and_broadcast(database: Database, acme: str) -> None:
    client = add(database, "example_clients", acme, name="Ours")
    invoice = add(database, "example_invoices", acme, client_id=client)
    comment = add(database, "example_comments", acme, invoice_id=invoice, body="A")
    assert may(database, "owner", "delete from public.example_invoices where id = %s", invoice)
    entries = database.rows(
        "select p.clerk_user_id, a.organization_id::text, a.resource_id from public.audit_logs as a "
        "join public.profiles as p on p.id = a.user_id where a.action = 'example_comment.deleted'"
    )
    assert entries == [("user_owner", acme, comment)]
    messages = database.rows(
        "select topic, payload -> 'old_record' ->> 'id' from realtime.messages "
        "where payload ->> 'table' = 'example_comments' and payload ->> 'operation' = 'DELETE'"
    )
    assert messages == [(f"org:{acme}:example_comments:read", comment)]


def test_unique_values_are_unique_in_an_organization(database: Database, acme: str, globex: str) -> None:
    for organization in (acme, globex):
        client = add(database, "example_clients", organization, name="Same")
        for number, amount in ((None, None), (None, None), ("1", 1)):
            add(database, "example_invoices", organization, client_id=client, number=number, amount=amount)
    insert = f"insert into public.example_clients (organization_id, name) values ('{acme}', 'Same')"
    assert fail(database, "member", insert)[:5] == "23505"


def test_an_enum_accepts_its_values_and_its_first_is_the_default(database: Database, acme: str) -> None:
    client = add(database, "example_clients", acme, name="Ours")
    add(database, "example_invoices", acme, client_id=client)
    assert database.value("select status from public.example_invoices") == "draft"
    assert may(database, "member", "update public.example_invoices set status = 'paid'")
    assert fail(database, "member", "update public.example_invoices set status = 'lost'")[:5] == "23514"


def test_retention_deletes_an_organization_with_its_references(database: Database, acme: str) -> None:
    for number in range(3):
        client = add(database, "example_clients", acme, name=f"C{number}")
        invoice = add(database, "example_invoices", acme, client_id=client)
        add(database, "example_comments", acme, invoice_id=invoice, client_id=client, body="A")
    database.execute("update public.organizations set deleted_at = now() - interval '1 year' where id = %s", acme)
    for _ in range(50):
        answer = database.value("select public.run_retention()")
        assert answer["failed"] == {}
        if answer["done"]:
            break
    assert database.value("select count(*) from public.organizations where id = %s", acme) == 0


def test_an_organization_with_references_can_be_deleted_at_once(database: Database, acme: str) -> None:
    client = add(database, "example_clients", acme, name="Ours")
    add(
        database,
        "example_comments",
        acme,
        invoice_id=add(database, "example_invoices", acme, client_id=client),
        body="A",
    )
    database.execute("delete from public.organizations where id = %s", acme)
    assert database.value("select count(*) from public.example_comments") == 0


@pytest.mark.parametrize(
    ("definition", "rest", "has_key"),
    [
        ("id uuid primary key, organization_id uuid not null, unique (organization_id, id)", "", True),
        ("ID uuid, Organization_ID uuid, PRIMARY KEY ( organization_id , id )", "", True),
        ("id uuid primary key, organization_id uuid not null", 'alter table only public."example_old" add unique (organization_id, id);', True),
        ("id uuid primary key, organization_id uuid not null", "create unique index a on public.example_old using btree (organization_id, id);", True),
        ("id uuid primary key, organization_id uuid not null, unique (id, organization_id)", "", False),
        ("id uuid primary key, organization_id uuid not null", "create index a on public.example_old (organization_id, id);", False),
        ("id uuid primary key, organization_id uuid not null -- unique (organization_id, id)\n", "", False),
        ("id uuid primary key, organization_id uuid not null", "create unique index a on public.example_old (organization_id, id) where true;", False),
    ],
)  # fmt: skip
def test_the_migration_adds_the_key_that_an_older_parent_lacks(
    tmp_path: Path, definition: str, rest: str, has_key: bool
) -> None:
    folder = copy_to(tmp_path, *SOURCES)
    made = f"create table public.example_old ({definition});\n{rest}"
    (folder / "migrations/20261201000000_example_old.sql").write_text(made)
    (folder / "functions/9_tables/example_old.sql").write_text("-- Nothing.\n")
    [path, *_] = write(parse_table("example_new", "old:ref(example_old)"), root=folder)
    text = (folder / path).read_text()
    assert ("create unique index if not exists example_old_organization_id_id_idx on" in text) != has_key
    assert "\n-- squawk-ignore" in text or has_key


def test_a_table_can_refer_to_an_older_table(tmp_path: Path, new_database: Callable[..., str]) -> None:
    folder = copy_to(tmp_path, *SOURCES)
    old = "create table public.example_old (id uuid primary key, organization_id uuid references public.organizations);"
    (folder / "migrations/20261201000000_example_old.sql").write_text(old)
    (folder / "functions/9_tables/example_old.sql").write_text("-- Nothing.\n")
    write(parse_table("example_new", "old:ref(example_old)"), root=folder)
    url = new_database()
    migrations.up(url, root=folder)
    with psycopg.connect(url) as connection:
        [[found]] = connection.execute(
            "select pg_get_constraintdef(oid) from pg_constraint where conname like 'example_new%old_id_fkey'"
        )
    assert (
        found == "FOREIGN KEY (organization_id, old_id) REFERENCES example_old(organization_id, id) ON DELETE RESTRICT"
    )


# --- refusals


def read_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "columns", "reason"), [
    ("Invoices", "a:text", "is not a valid table name"), ("", "a:text", "is not a valid table name"), ("invoices2", "a:text", "is not a valid table name"),
    ("in voices", "a:text", "is not a valid table name"), ("invoices;drop", "a:text", "is not a valid table name"), ("../invoices", "a:text", "is not a valid table name"),
    ("_invoices", "a:text", "is not a valid table name"), ("invoices\n", "a:text", "is not a valid table name"), ("i" * 33, "a:text", "at most 32"),
    ("order", "a:text", "a reserved word in SQL"), ("user", "a:text", "a reserved word in SQL"),
    ("example_rows", "", "needs at least one column"), ("example_rows", " ", "needs at least one column"), ("example_rows", "a:text a:date", "Duplicate column: a. Name"),
    ("example_rows", "Title:text", "is not a valid column name"), ("example_rows", "a-b:text", "is not a valid column name"), ("example_rows", ":text", "is not a valid column name"),
    ("example_rows", "a'b:text", "is not a valid column name"), ("example_rows", f"{'a' * 33}:text", "at most 32"), ("example_rows", "a:text, b:text", "no supported type"),
    ("example_rows", "id:uuid", "Every table has a column"), ("example_rows", "created_by:uuid", "Every table has a column"),
    ("example_rows", "organization:ref(projects)", "Every table has a column organization_id: choose another name than organization"),
    ("example_rows", "group:text", "reserved by PostgreSQL"), ("example_rows", "ctid:text", "reserved by PostgreSQL"), ("example_rows", "columns:text", "reserved by PostgreSQL"),
    ("example_rows", "a", "no supported type"), ("example_rows", "a:", "no supported type"), ("example_rows", "a:money", "no supported type"),
    ("example_rows", "a:text??", "no supported type"), ("example_rows", "a:TEXT", "no supported type"), ("example_rows", "a:text:b", "no supported type"),
    ("projects", "a:text", "already creates projects"), ("profiles", "a:text", "already creates profiles"), ("audit_logs", "a:text", "already creates audit_logs"),
    ("members", "a:text", "already has permissions members:"), ("audit", "a:text", "already has permissions audit:"), ("billing", "a:text", "already has permissions billing:"),
    ("example_rows", "a:ref(example_missing)", "There is no table example_missing whose rows belong to an organization"), ("example_rows", "a:ref(profiles)", "There is no table profiles"),
    ("example_rows", "a:ref(organizations)", "There is no table organizations"), ("example_rows", "a:ref(organization_memberships)", "or refer to one of "),
    ("example_rows", "a:ref(example_rows)", "Write a:ref(example_rows)?"), ("example_rows", "a:ref()", "is not valid: write ref(table)"),
    ("example_rows", 'a:ref("projects")', "is not valid: write ref(table)"), ("example_rows", "a:ref(public.projects)", "is not valid: write ref(table)"),
    ("example_rows", "a:ref(projects,set null)", "is not valid: write ref(table)"), ("example_rows", "a:ref(projects", "no supported type"),
    ("example_rows", "a:ref(projects) a_id:uuid", "Duplicate column: a_id"), ("a" * 32, f"{'a' * 32}:ref(projects)", "more than 63"),
    ("example_rows", "a:enum(b)", "two or more different"), ("example_rows", "a:enum(b,b)", "two or more different"), ("example_rows", "a:enum(b,'c')", "without quotes"),
    ("example_rows", "a:enum(b,)", "two or more different"), ("example_rows", "a:enum(B,c)", "two or more different"), ("example_rows", "a:enum", "no supported type"), ("example_rows", "a:ref", "no supported type"),
    ("example_rows", "a:boolean(unique)", "a boolean cannot be unique"), ("example_rows", "a:text(other)", "no supported type"), ("example_rows", "a:enum(b,c)(unique)", "no supported type"),
    ("activity", "a:text", "for something else"), ("mail", "a:text", "for something else"),
])  # fmt: skip
def test_a_refused_table_leaves_no_file(sources: Path, name: str, columns: str, reason: str) -> None:
    before = read_contents(sources)
    with pytest.raises(TableRefused, match=re.escape(reason)):
        write(parse_table(name, columns), root=sources)
    assert read_contents(sources) == before


@pytest.mark.parametrize(
    "path",
    [
        "policies/example_leftovers.sql",
        "functions/9_tables/example_leftovers.sql",
        "tests/tables/example_leftovers.toml",
    ],
)
def test_existing_files_are_not_overwritten(tmp_path: Path, path: str) -> None:
    folder = copy_to(tmp_path, *SOURCES)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text("-- mine\n")
    before = read_contents(folder)
    with pytest.raises(TableRefused, match=re.escape(f"{path} already exists")):
        write(parse_table("example_leftovers", "a:text"), root=folder)
    assert read_contents(folder) == before


def test_the_same_table_is_refused_a_second_time(checkout: Path) -> None:
    before = read_contents(checkout)
    with pytest.raises(TableRefused, match=r"_add_example_rows\.sql already creates example_rows"):
        write(parse_table("example_rows", "a:text"), root=checkout)
    assert read_contents(checkout) == before


def test_reserved_words_are_those_of_the_server(database: Database) -> None:
    words = {word for (word,) in database.rows("select word from pg_get_keywords() where catcode in ('R', 'T')")}
    assert words <= new_table.RESERVED_WORDS
    if database.value("select current_setting('server_version_num')::integer >= 180000"):
        assert words == new_table.RESERVED_WORDS


def test_a_refusal_is_one_line_with_advice() -> None:
    ran = CliRunner().invoke(ballast, ["new", "table", "projects", "--columns", "a:text"])
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert re.fullmatch(
        r"ballast: migrations/\d{14}_projects\.sql already creates projects: choose another name\.\n", ran.stderr
    )


# --- docs/extend.md


def run_script(folder: Path, script: str, **more: str) -> str:
    """Runs commands in a copy of the checkout, with the copy's code, and returns their output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=os.environ | {"PATH": path, "PYTHONPATH": str(folder)} | more, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def rename(block: str) -> str:
    """Gives the page's objects names that a product does not have."""
    return re.sub(r"\b(clients|invoices|comments|invoice_totals)\b", r"example_\1", block)


def find_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.thorough
def test_the_steps_of_the_page_create_a_table_whose_tests_pass(
    tmp_path: Path, new_database: Callable[..., str]
) -> None:
    """Except that ./scripts/test runs only the cases of the new objects, and that these have unused names."""
    folder = copy_to(
        tmp_path,
        *SOURCES,
        "scripts",
        "service",
        "tests",
        "supabase",
        "pyproject.toml",
        "gunicorn.conf.py",
        ".env.example",
    )
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    [make, apply, _] = map(rename, find_blocks("sh"))
    url = new_database()
    [view] = [rename(block) for block in find_blocks("sql") if "create or replace view" in block]
    [described] = [rename(block) for block in find_blocks("toml") if 'kind = "view"' in block]
    (folder / "functions/9_tables/example_invoice_totals.sql").write_text(view)
    (folder / "tests/tables/example_invoice_totals.toml").write_text(described)
    printed = run_script(folder, make)
    written = re.findall(r"^Wrote (.+)$", printed, re.MULTILINE)
    assert len(written) == 12
    assert all((folder / path).exists() for path in written)
    for path, number in re.findall(r"^  (\S+):(\d+)  ", printed, re.MULTILINE):
        assert path in written
        assert (folder / path).read_text().splitlines()[int(number) - 1].strip()
    command = "./scripts/test --keep --table example_invoices"
    assert apply.count(command) == 1
    tests = (
        "python -m pytest -q -p no:cacheprovider tests/db/test_schema_rules.py tests/db/test_claims.py tests/db/test_personal_data.py tests/db/test_plans.py "
        "tests/api/test_access.py -k 'not restored and (example_invoice and (member or viewer or read) or matrix or registered or "
        "a_scan_of_all or owner_sees or without_an_identity or test_rule and comment)'"
    )
    printed = run_script(folder, apply.replace(command, tests), DATABASE_URL=url)
    assert f"Applied {written[0]}" in printed
    assert "Wrote database.ts, database.py." in printed
    assert int(re.findall(r"(\d+) passed", printed)[0]) > 25
    assert "failed" not in printed
    assert "PublicExampleInvoices" in (folder / "supabase/types/database.py").read_text()
