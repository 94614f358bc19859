"""Tests every role, table and command on the own and on another tenant, through the Data API with supabase-py.

The permissions of a role are read from public.role_permissions. The permission that a command on a table needs is declared here,
or in tests/tables. The first test fails if a table of the API is missing in both. The thorough tests also use a restored database.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgrest.exceptions import APIError
from psycopg.rows import dict_row
from supabase import Client, ClientOptions, create_client

from tests.conftest import ROOT, Stack, running_stack
from tests.tenant_tables import FUNCTIONS, TABLES, VIEWS, Function, TenantTable, View, fill_placeholders

COMMANDS = ("select", "insert", "update", "delete")
SIGNED_IN = "(being signed in)"
MEMBERS_ONLY = "(belonging to the organization)"


@dataclass(frozen=True)
class Access:
    """The permission, or one of the two conditions above, that each command on a table needs. A missing command is forbidden.

    `row` creates or finds a row of the given organization. A client sends `new` and `changed`, and selects `columns`.
    `table` is a tenant table of the product; its parents are filled before each row.
    """

    needs: dict[str, str]
    row: str
    new: dict[str, Any]
    changed: dict[str, Any]
    columns: str = "*"
    table: TenantTable | None = None


GIVEN = "(select * from public.organizations where clerk_org_id = %(organization)s)"
ORGANIZATION = "(select id from public.organizations where clerk_org_id = %(organization)s)"
ACCESS = {
    "organizations": Access(
        needs={"select": MEMBERS_ONLY, "update": "organization:update"},
        row="select * from public.organizations where clerk_org_id = %(organization)s",
        new={"clerk_org_id": "org_forged", "name": "Forged", "organization_id": None}, changed={"settings": {"theme": "dark"}},
    ),
    "profiles": Access(
        needs={"select": "members:read"},
        row=f"""select p.* from public.profiles as p join public.organization_memberships as m on m.user_id = p.id
            where m.organization_id = {ORGANIZATION} and p.clerk_user_id is distinct from %(person)s
            order by p.clerk_user_id = 'user_ada' limit 1""",
        new={"clerk_user_id": "user_forged", "organization_id": None}, changed={"full_name": "Another name"}, columns="id, full_name",
    ),
    "organization_memberships": Access(
        needs={"select": "members:read"},
        row=f"select * from public.organization_memberships where organization_id = {ORGANIZATION} limit 1",
        new={"role": "owner"}, changed={"role": "owner"},
    ),
    "organization_invitations": Access(
        needs={"select": "members:read"},
        row=f"""insert into public.organization_invitations (organization_id, clerk_invitation_id, email, role)
            values ({ORGANIZATION}, 'orginv_' || gen_random_uuid(), 'guest@example.com', 'member') returning *""",
        new={"clerk_invitation_id": "orginv_forged", "email": "x@example.com", "role": "owner"}, changed={"role": "owner"},
    ),
    "audit_logs": Access(
        needs={"select": "audit:read"},
        row=f"""insert into public.audit_logs (organization_id, action, resource_type)
            values ({ORGANIZATION}, 'test.done', 'test') returning *""",
        new={"action": "forged", "resource_type": "x"}, changed={"action": "forged"}, columns="id, action",
    ),
    "backup_logs": Access(
        needs={},
        row="insert into public.backup_logs (filename, backup_type, status) values (gen_random_uuid()::text, 'manual', 'started') returning *",
        new={"filename": "y", "backup_type": "manual", "status": "started", "organization_id": None}, changed={"status": "failed"},
    ),
    "roles": Access(
        needs={"select": SIGNED_IN},
        row="select * from public.roles limit 1",
        new={"key": "forged", "name": "Forged", "rank": 99, "organization_id": None}, changed={"rank": 99},
    ),
    "role_permissions": Access(
        needs={"select": SIGNED_IN},
        row="select * from public.role_permissions limit 1",
        new={"role": "viewer", "permission": "members:forge", "organization_id": None}, changed={"permission": "members:forge"},
    ),
} | {
    name: Access(
        needs=table.needs, new=table.new, changed=table.changed, table=table,
        row=f"{table.insert(GIVEN)} returning *",
    )
    for name, table in TABLES.items()
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A caller: the effective role, and the user whose token is sent. Without a user, an API key is sent."""

    name: str
    role: str | None
    user: str | None = None
    home: str = "org_acme"
    other: str = "org_globex"
    second_factor: bool = True


PEOPLE = (
    Person("owner", "owner", "user_eve", "org_globex", "org_acme"),
    Person("admin", "admin", "user_ben"),
    Person("member", "member", "user_cleo"),
    Person("viewer", "viewer", "user_dee"),
    Person("owner without second factor", "viewer", "user_eve", "org_globex", "org_acme", second_factor=False),
    Person("admin without second factor", "viewer", "user_ben", second_factor=False),
    Person("anonymous", None),
    Person("the service's own key", None),
)


@pytest.fixture(scope="module", params=["live", pytest.param("restored", marks=pytest.mark.thorough)])
def stack(request: pytest.FixtureRequest, stack: Stack, home: Path) -> Iterator[Stack]:
    """The running stack, and another one whose database is restored from a backup of it."""
    if request.param == "live":
        yield stack
        return
    with running_stack(home / "restored") as other:
        target = other.environment["DATABASE_URL"]
        with psycopg.connect(target, autocommit=True) as connection:
            connection.execute("delete from public.organizations")
        for words in (["run"], ["restore", "latest", "--to", target, "--replace", "postgres"]):
            done = stack.ballast("backup", *words)
            assert done.returncode == 0, done.stdout + done.stderr
        yield other


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True, row_factory=dict_row) as connection:
        began = connection.execute("select now()").fetchone()
        yield connection
        connection.execute("delete from public.organization_invitations")
        connection.execute("delete from public.backup_logs")
        for table in reversed(TABLES):
            connection.execute(f"delete from public.{table} where created_at >= %(now)s".encode(), began)


def client(stack: Stack, person: Person) -> Client:
    key = "SUPABASE_SECRET_KEY" if person.name == "the service's own key" else "SUPABASE_PUBLISHABLE_KEY"
    token = stack.token(person.user, person.home, second_factor=person.second_factor) if person.user else None
    return client_with(stack.environment["SUPABASE_URL"], stack.environment[key], token)


@functools.cache
def client_with(url: str, key: str, token: str | None) -> Client:
    """Creating a client takes longer than most requests, so clients are cached while their token is valid."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return create_client(url, key, ClientOptions(headers=headers))


def is_allowed(database: psycopg.Connection[dict[str, Any]], person: Person, need: str | None, tenant: str) -> bool:
    if person.role is None or need is None:
        return False
    if need == SIGNED_IN:
        return True
    if tenant != person.home:
        return False
    return need == MEMBERS_ONLY or bool(
        database.execute(
            "select from public.role_permissions where role = %s and permission = %s", (person.role, need)
        ).rowcount
    )


def find_tenant(database: psycopg.Connection[dict[str, Any]], organization: str) -> str:
    row = database.execute(
        "select id::text from public.organizations where clerk_org_id = %s", [organization]
    ).fetchone()
    assert row is not None
    return str(row["id"])


def make_rows(database: psycopg.Connection[dict[str, Any]], names: list[str], organization: str) -> dict[str, str]:
    """Makes a row of each table, with the rows that it refers to. Returns the ids by table, in braces."""
    made = {}
    for name in names:
        for table in TABLES[name].ancestors():
            database.execute(table.insert(GIVEN).encode(), {"organization": organization})
        statement = f"{TABLES[name].insert(GIVEN)} returning id::text"
        row = database.execute(statement.encode(), {"organization": organization}).fetchone()
        assert row is not None
        made[f"{{{name}}}"] = row["id"]
    return made


def make_parents(database: psycopg.Connection[dict[str, Any]], access: Access, organization: str) -> dict[str, str]:
    """Makes the rows that a row of the table refers to, and returns their ids by column."""
    if access.table is None or not access.table.parents:
        return {}
    for table in access.table.ancestors():
        database.execute(table.insert(GIVEN).encode(), {"organization": organization})
    found = database.execute(access.table.choose_parents(GIVEN).encode(), {"organization": organization}).fetchone()
    assert found is not None
    return found["jsonb_build_object"]  # type: ignore[no-any-return]


def try_command(
    asking: Client, table: str, command: str, row: dict[str, Any], tenant_id: str, parents: dict[str, str]
) -> bool:
    """Whether the command succeeded. A refusal must be an empty answer or the code 42501."""
    access = ACCESS[table]
    key = next(name for name in ("id", "permission", "key") if name in row)
    try:
        match command:
            case "select":
                answer = asking.table(table).select(access.columns).eq(key, row[key]).execute()
            case "insert":
                new = {"organization_id": tenant_id} | parents | fill_placeholders(access.new)
                answer = (
                    asking.table(table)
                    .insert({name: value for name, value in new.items() if value is not None})
                    .execute()
                )
            case "update":
                changed = fill_placeholders(access.changed) or parents
                answer = asking.table(table).update(changed).eq(key, row[key]).execute()
            case _:
                answer = asking.table(table).delete().eq(key, row[key]).execute()
    except APIError as refusal:
        if refusal.code != "42501":
            raise
        return False
    return len(answer.data) > 0


def count(database: psycopg.Connection[dict[str, Any]], table: str) -> int:
    rows = database.execute(f"select count(*) as rows from public.{table}").fetchone()  # type: ignore[arg-type]
    assert rows is not None
    return int(rows["rows"])


def test_every_table_of_the_api_is_tested(database: psycopg.Connection[dict[str, Any]]) -> None:
    tables = database.execute(
        "select relname, has_any_column_privilege('authenticated', oid, 'select, insert, update') "
        "or has_table_privilege('authenticated', oid, 'delete') as is_granted "
        "from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f')"
    ).fetchall()
    tested = ACCESS.keys() | VIEWS.keys()
    assert {row["relname"] for row in tables if row["is_granted"]} <= tested, "Describe it in tests/tables/<name>.toml."
    assert tested <= {row["relname"] for row in tables}


def test_every_function_that_a_product_adds_for_clients_is_tested(database: psycopg.Connection[dict[str, Any]]) -> None:
    """A product's functions are in functions/9_tables."""
    created = re.compile(r"create or replace function public\.(\w+)\(")
    names = {name for file in (ROOT / "functions/9_tables").glob("*.sql") for name in created.findall(file.read_text())}
    callable_ = database.execute(
        "select distinct proname::text from pg_proc where pronamespace = 'public'::regnamespace and proname = any(%s) "
        "and has_function_privilege('authenticated', oid, 'execute')",
        [list(names)],
    )
    assert {row["proname"] for row in callable_} == FUNCTIONS.keys(), "Describe it in tests/tables/<function>.toml."


@pytest.mark.parametrize(
    ("person", "table", "command"),
    list(itertools.product(PEOPLE, ACCESS, COMMANDS)),
    ids=lambda value: value.name if isinstance(value, Person) else value,
)
@pytest.mark.parametrize("tenant", ["own", "another"])
def test_access(
    stack: Stack, database: psycopg.Connection[dict[str, Any]], person: Person, table: str, command: str, tenant: str
) -> None:
    check_access(stack, database, person, table, command, person.home if tenant == "own" else person.other)


@pytest.fixture
def further_roles(database: psycopg.Connection[dict[str, Any]]) -> Iterator[list[str]]:
    """The roles that no one of PEOPLE has: those of a product, and one that is added here. Dee may be given each."""
    database.execute(
        "insert into public.roles (key, name, rank) select 'tested', 'Tested', min(n) from generate_series(2, 99) as n"
        " where n > (select min(rank) from public.roles) and n not in (select rank from public.roles)"
    )
    database.execute(
        "insert into public.role_permissions select distinct 'tested', permission from public.role_permissions"
        " where role = 'viewer' or permission = 'audit:read'"
    )
    known = [person.role for person in PEOPLE if person.role]
    keys = database.execute("select key from public.roles where key <> all(%s) order by rank", (known,)).fetchall()
    yield [row["key"] for row in keys]
    give_dee_role(database, "viewer")
    database.execute("delete from public.roles where key = 'tested'")


def give_dee_role(database: psycopg.Connection[dict[str, Any]], role: str) -> None:
    database.execute(
        "update public.organization_memberships set role = %s where user_id = (select id from public.profiles where clerk_user_id = 'user_dee')",
        (role,),
    )


def test_access_in_every_further_role(
    stack: Stack, database: psycopg.Connection[dict[str, Any]], further_roles: list[str]
) -> None:
    for role in further_roles:
        give_dee_role(database, role)
        for table, command in itertools.product(ACCESS, COMMANDS):
            check_access(stack, database, Person(role, role, "user_dee"), table, command, "org_acme")


def check_access(
    stack: Stack,
    database: psycopg.Connection[dict[str, Any]],
    person: Person,
    table: str,
    command: str,
    organization: str,
) -> None:
    access = ACCESS[table]
    values = {"organization": organization, "person": person.user}
    make_parents(database, access, organization)
    row = database.execute(access.row, values).fetchone()  # type: ignore[arg-type]
    parents = make_parents(database, access, organization)
    assert row is not None
    tenant_id = find_tenant(database, organization)
    rows = count(database, table)

    did = try_command(client(stack, person), table, command, row, tenant_id, parents)

    assert did == is_allowed(database, person, access.needs.get(command), organization), (person.name, table, command)
    if not did or command == "select":
        assert count(database, table) == rows
        key = next(name for name in ("id", "permission", "key") if name in row)
        assert database.execute(f"select * from public.{table} where {key} = %s", (row[key],)).fetchone() == row  # type: ignore[arg-type]


@pytest.mark.parametrize("person", PEOPLE, ids=lambda person: person.name)
@pytest.mark.parametrize("view", VIEWS.values(), ids=lambda view: view.name)
@pytest.mark.parametrize("tenant", ["own", "another"])
def test_a_view_shows_the_rows_of_tenants_in_which_the_caller_has_the_permission(
    stack: Stack, database: psycopg.Connection[dict[str, Any]], person: Person, view: View, tenant: str
) -> None:
    organization = person.home if tenant == "own" else person.other
    make_rows(database, view.rows, organization)
    asking = client(stack, person).table(view.name).select("organization_id")
    try:
        found = asking.eq("organization_id", find_tenant(database, organization)).execute().data
    except APIError as refusal:
        if refusal.code != "42501":
            raise
        found = []
    assert bool(found) == is_allowed(database, person, view.needs.get("select"), organization)


@pytest.mark.parametrize("view", VIEWS)
def test_clients_do_not_write_through_a_view(database: psycopg.Connection[dict[str, Any]], view: str) -> None:
    grants = database.execute(
        "select privilege_type, grantee from information_schema.role_table_grants where table_schema = 'public' "
        "and table_name = %s and grantee in ('anon', 'authenticated', 'PUBLIC') and privilege_type <> 'SELECT'",
        [view],
    )
    assert grants.fetchall() == []


@pytest.mark.parametrize("person", PEOPLE, ids=lambda person: person.name)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda function: function.name)
@pytest.mark.parametrize("tenant", ["own", "another"])
def test_a_function_serves_callers_who_have_the_permission(
    stack: Stack, database: psycopg.Connection[dict[str, Any]], person: Person, function: Function, tenant: str
) -> None:
    """A refusal is an error, or an answer without a value: null, false, or an empty list."""
    organization = person.home if tenant == "own" else person.other
    given = make_rows(database, function.rows, organization) | {"{organization}": find_tenant(database, organization)}
    arguments = {name: given.get(str(value), value) for name, value in function.arguments.items()}
    [returns] = database.execute(
        "select distinct prorettype = 'void'::regtype as nothing from pg_proc "
        "where pronamespace = 'public'::regnamespace and proname = %s",
        [function.name],
    ).fetchall()
    try:
        answer = client(stack, person).rpc(function.name, fill_placeholders(arguments)).execute().data
        did = bool(answer) or returns["nothing"]
    except APIError as refusal:
        if not re.fullmatch(r"42501|PT4\d\d", str(refusal.code)):
            raise
        did = False
    assert did == is_allowed(database, person, function.needs, organization)
