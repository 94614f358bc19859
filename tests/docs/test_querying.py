"""docs/querying.md: its programs run unchanged in supabase-js, and the Data API answers as the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from postgrest import CountMethod, ReturnMethod
from postgrest.exceptions import APIError
from supabase import Client, ClientOptions, create_client

from tests.conftest import ROOT, Stack

PAGE = (ROOT / "docs/querying.md").read_text()
TITLE = "docs/querying.md"
MANY = 1001
COLOR = "red"
DRAFT = str(uuid.uuid4())
ABSENT = str(uuid.UUID(int=0xDEAD))
Json = Any
HTTP = httpx.Client(timeout=30)
# Two tables as `ballast new table` writes them, with a reference inside the tenant. Clients make the ids of page_clients, which the page
# advises against.
TABLES = """
create table public.page_clients (
  id uuid primary key default gen_random_uuid(), organization_id uuid not null references public.organizations on delete cascade,
  name text not null check (length(name) < 200), unique (organization_id, name), unique (organization_id, id)
);
create table public.page_invoices (
  id uuid primary key default gen_random_uuid(), organization_id uuid not null references public.organizations on delete cascade,
  client_id uuid, draft_id uuid, number text, unique (organization_id, draft_id), foreign key (organization_id, client_id) references public.page_clients (organization_id, id) on delete restrict
);
do $$
declare
  name text;
begin
  foreach name in array array['page_clients', 'page_invoices'] loop
    execute format('alter table public.%I enable row level security, force row level security', name);
    execute format('grant select, insert, delete on public.%I to authenticated', name);
    execute format(
      'create policy own on public.%I to authenticated using (organization_id = any((select app.own_org_ids())::uuid[]))', name
    );
  end loop;
end;
$$;
grant update (name) on public.page_clients to authenticated;
"""
DROPPED = "drop table public.page_invoices, public.page_clients; drop function public.projects_by_ids(uuid[])"


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[psycopg.Connection[Any]]:
    """The stack's database, with the tables above and the function of the page. They and the projects are removed."""
    [function] = re.findall(r"^```sql\n(create function.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(f"{TABLES}{function}; notify pgrst, 'reload schema'".encode())
        try:
            yield connection
        finally:
            connection.execute(f"{DROPPED}; notify pgrst, 'reload schema'".encode())
            connection.execute("delete from public.projects where description = %s or title = 'Roof'", [TITLE])


@pytest.fixture(scope="module")
def acme(database: psycopg.Connection[Any]) -> str:
    return organization(database, "org_acme")


def organization(database: psycopg.Connection[Any], clerk_id: str) -> str:
    [[identifier]] = database.execute(
        "select id::text from public.organizations where clerk_org_id = %s", [clerk_id]
    ).fetchall()
    return str(identifier)


def person(database: psycopg.Connection[Any], clerk_id: str) -> str:
    [[identifier]] = database.execute(
        "select id::text from public.profiles where clerk_user_id = %s", [clerk_id]
    ).fetchall()
    return str(identifier)


@pytest.fixture(scope="module")
def projects(database: psycopg.Connection[Any], acme: str) -> list[str]:
    """The ids of more projects of Acme than one answer has. The first one has a color and the number 10."""
    rows = database.execute(
        "insert into public.projects (organization_id, title, description, metadata) "
        """select %s, n::text, %s, case when n = 1 then jsonb_build_object('color', %s::text, 'n', 10) else '{}' end """
        "from generate_series(1, %s) as n returning id::text", [acme, TITLE, COLOR, MANY],
    )  # fmt: skip
    return [str(identifier) for (identifier,) in rows]


SignIn = Callable[..., Client]


@pytest.fixture(scope="module")
def sign_in(stack: Stack, database: psycopg.Connection[Any]) -> SignIn:
    """Returns a function that makes a client with a person's token. The Data API has read the new tables."""

    def client(user: str = "user_cleo", organization: str = "org_acme", **options: Any) -> Client:
        headers = {"Authorization": f"Bearer {stack.token(user, organization, **options)}"}
        url, key = stack.environment["SUPABASE_URL"], stack.environment["SUPABASE_PUBLISHABLE_KEY"]
        return create_client(url, key, ClientOptions(headers=headers, httpx_client=HTTP))

    deadline = time.monotonic() + 10
    while not all(
        send(stack, "cleo", "GET", path).is_success for path in ("page_invoices", "rpc/projects_by_ids?ids={}")
    ):
        assert time.monotonic() < deadline, "The Data API has not read the new tables within 10 s."
        time.sleep(0.05)
    return client


@pytest.fixture
def cleo(sign_in: SignIn) -> Client:
    return sign_in()


def send(
    stack: Stack,
    user: str,
    method: str,
    path: str,
    body: Json = None,
    prefer: str = "",
    accept: str = "*/*",
    token: str = "",
) -> httpx.Response:
    headers = {"apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"], "Prefer": prefer, "Accept": accept}
    if user:
        headers["Authorization"] = f"Bearer {token or stack.token(f'user_{user}', 'org_acme')}"
    return HTTP.request(method, f"{stack.environment['SUPABASE_URL']}/rest/v1/{path}", headers=headers, json=body)


# --- the programs of the page

HARNESS = """
import { createClient } from "@supabase/supabase-js";
const { SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, TOKEN, GIVEN } = process.env;
const supabase = createClient(SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, {
  accessToken: async () => TOKEN,
  realtime: { transport: globalThis.WebSocket ?? class {} },
});
const { organizationId, ids, draftId, existing, absent } = JSON.parse(GIVEN);
const warnings = [];
console.warn = (text) => warnings.push(text);
const runs = [];
async function run(program) {
  for (const projectId of [existing, absent]) runs.push(await program(projectId));
}
PROGRAMS
console.log(JSON.stringify({ runs, warnings }));
"""
PROGRAM = """
await run(async (projectId) => {
  %s
  return typeof data !== "undefined" ? { data, error } : typeof projects !== "undefined" ? projects : changed;
});
"""


@pytest.fixture(scope="module")
def ran(
    stack: Stack, sign_in: SignIn, projects: list[str], acme: str, tmp_path_factory: pytest.TempPathFactory
) -> Json:
    """Runs every program of the page as Cleo, each with the id of a project and with one that does not exist."""
    programs = re.findall(r"^```js\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    text = HARNESS.replace("PROGRAMS", "".join(PROGRAM % program for program in programs))
    text = text.replace('"invoices"', '"page_invoices"')
    given = {"organizationId": acme, "ids": projects[:200], "draftId": DRAFT, "existing": projects[1], "absent": ABSENT}
    environment = {"TOKEN": stack.token("user_cleo", "org_acme"), "GIVEN": json.dumps(given)}
    output = subprocess.run(
        ["node", "--input-type=module", "--eval", text],
        cwd=ROOT,
        env=os.environ | stack.environment | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    answers = json.loads(output.stdout)
    headings = [
        re.findall(r"^### (.*)$", PAGE[: PAGE.index(f"```js\n{program}")], re.MULTILINE)[-1] for program in programs
    ]
    runs = answers["runs"]
    found: dict[str, Json] = {"warnings": answers["warnings"]}
    for number, name in enumerate(headings):
        found.setdefault(name, []).extend(runs[2 * number : 2 * number + 2])
    return found


def test_the_program_reads_the_readable_columns_of_profiles(ran: Json) -> None:
    [answer, _] = ran["Name the columns"]
    assert answer["error"] is None
    assert "Ada Winter" in {profile["full_name"] for profile in answer["data"]}


def test_the_program_reads_members_with_their_profiles(ran: Json) -> None:
    [answer, _] = ran["Members with their profiles"]
    assert {"owner": "Ada Winter", "member": "Cleo Santos"}.items() <= {
        each["role"]: each["person"]["full_name"] for each in answer["data"]
    }.items()


def test_the_program_reads_more_rows_than_one_answer_has(ran: Json, projects: list[str]) -> None:
    [read, _] = ran["More than 1,000 rows"]
    assert set(projects) <= {project["id"] for project in read}
    assert len({project["id"] for project in read}) == len(read) > MANY


def test_the_program_reads_many_ids_with_a_function(ran: Json, projects: list[str]) -> None:
    [answer, _] = ran["Many ids"]
    assert {project["id"] for project in answer["data"]} == set(projects[:200])


def test_the_program_finds_a_text_in_json(ran: Json, projects: list[str]) -> None:
    [answer, _] = ran["JSON columns"]
    assert projects[0] in {project["id"] for project in answer["data"]}


def test_the_program_inserts_a_row_and_gets_its_id(ran: Json, database: psycopg.Connection[Any]) -> None:
    for answer in ran["Insert"]:
        assert answer["data"].keys() == {"id", "created_at"}
        assert database.execute("delete from public.projects where id = %s", [answer["data"]["id"]]).rowcount == 1


def test_the_program_updates_an_existing_row_and_inserts_a_missing_one(
    ran: Json, database: psycopg.Connection[Any], projects: list[str]
) -> None:
    existing, absent, *_ = ran["Upsert, and ids made by a client"]
    assert ([row["id"] for row in existing["data"]], absent["data"]) == ([projects[1]], [])
    title = "select title, description from public.projects where id = %s"
    assert database.execute(title, [projects[1]]).fetchone() == ("Roof", TITLE)
    inserted = database.execute("delete from public.projects where title = 'Roof' and description is null")
    assert inserted.rowcount >= 1


def test_the_program_sends_a_draft_twice_and_writes_it_once(ran: Json, cleo: Client) -> None:
    *_, first, second = ran["Upsert, and ids made by a client"]
    assert (first["error"], second["error"]) == (None, None)
    written: Json = cleo.table("page_invoices").select("number").eq("draft_id", DRAFT).execute().data
    assert written == [{"number": "2026-17"}]


def test_the_program_notices_that_nothing_was_changed(ran: Json, projects: list[str]) -> None:
    changed, unchanged = ran["Update and delete"]
    assert ([row["id"] for row in changed["data"]], unchanged) == ([projects[1]], {"data": [], "error": None})
    assert ran["warnings"] == ["The project does not exist, or you may not change it."]


# --- the table of tables


def test_the_table_lists_the_grants(database: psycopg.Connection[Any]) -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*) \| (.*) \| (.*) \| (yes|no) \|$", PAGE, re.MULTILINE)
    tables = [(table, row) for names, *row in rows for table in re.findall(r"\w+", names)]
    for table, (*listed, deletes) in tables:
        columns = database.execute(
            "select a.attname, has_column_privilege('authenticated', a.attrelid, a.attnum, 'select'), "
            "has_column_privilege('authenticated', a.attrelid, a.attnum, 'insert'), "
            "has_column_privilege('authenticated', a.attrelid, a.attnum, 'update') "
            "from pg_catalog.pg_attribute as a where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped",
            [f"public.{table}"],
        ).fetchall()
        every = {name for name, *_ in columns}
        for command, text in enumerate(listed, start=1):
            named = set(re.findall(r"`(\w+)`", text))
            expected = every - named if text.startswith("every column") else named
            assert {column[0] for column in columns if column[command]} == expected, (table, text)
        may_delete = "select has_table_privilege('authenticated', %s, 'delete')"
        assert database.execute(may_delete, [f"public.{table}"]).fetchone() == (deletes == "yes",), table
    assert {"projects", "profiles", "organizations", "audit_logs", "roles"} <= {table for table, _ in tables}


# --- what the page says about reading


@pytest.mark.parametrize("query", [
    "profiles?select=*", "audit_logs?select=*", "profiles?select=id&last_seen_at=not.is.null", "profiles?select=id&order=last_seen_at",
])  # fmt: skip
def test_a_column_without_a_grant_is_refused(stack: Stack, query: str) -> None:
    answer = send(stack, "cleo", "GET", query)
    assert (answer.status_code, answer.json()["code"]) == (403, "42501")


def test_start_session_returns_the_callers_own_values(cleo: Client) -> None:
    profile = cleo.rpc("start_session").execute().data["profile"]
    assert {"preferences", "current_organization_id"} <= profile.keys()


def test_members_with_profiles_need_a_hint(stack: Stack) -> None:
    ambiguous = send(stack, "cleo", "GET", "organization_memberships?select=role,profiles(full_name)")
    assert (ambiguous.status_code, ambiguous.json()["code"]) == (300, "PGRST201")
    named = "organization_memberships?select=role,profiles!organization_memberships_user_id_fkey(full_name)"
    assert send(stack, "cleo", "GET", named).is_success


def test_profiles_are_embedded_step_by_step(cleo: Client) -> None:
    columns = "name, organization_memberships(role, profiles!user_id(full_name))"
    read: Json = cleo.table("organizations").select(columns).execute().data
    assert "Ada Winter" in {each["profiles"]["full_name"] for each in read[0]["organization_memberships"]}


def test_a_reference_of_several_columns_is_embedded(cleo: Client, acme: str) -> None:
    client = cleo.table("page_clients").insert({"organization_id": acme, "name": "Embedded"}).execute().data[0]
    invoice = {"organization_id": acme, "client_id": client["id"]}
    cleo.table("page_invoices").insert(invoice).execute()
    for hint in ("", "!page_invoices_organization_id_client_id_fkey"):
        read = cleo.table("page_invoices").select(f"page_clients{hint}(name)").eq("client_id", client["id"]).execute()
        assert read.data == [{"page_clients": {"name": "Embedded"}}]


@pytest.mark.parametrize("path", ["projects?select=id", "projects?select=id&limit=5000", "rpc/projects_by_ids"])
def test_an_answer_has_at_most_1000_rows_and_no_error(stack: Stack, projects: list[str], path: str) -> None:
    is_function = path.startswith("rpc/")
    body = {"ids": projects} if is_function else None
    answer = send(stack, "cleo", "POST" if is_function else "GET", path, body)
    assert (answer.status_code, len(answer.json())) == (200, 1000)
    assert len(projects) > 1000


def test_a_list_of_embedded_rows_has_at_most_1000(cleo: Client, projects: list[str], acme: str) -> None:
    read: Json = cleo.table("organizations").select("projects(id)").eq("id", acme).execute().data
    assert len(read[0]["projects"]) == 1000


def test_an_offset_beyond_the_last_row_is_refused_only_with_a_count(stack: Stack, projects: list[str]) -> None:
    path = "projects?select=id&offset=100000"
    assert send(stack, "cleo", "GET", path).json() == []
    refused = send(stack, "cleo", "GET", path, prefer="count=exact")
    assert (refused.status_code, refused.json()["code"]) == (416, "PGRST103")


def test_an_exact_count_counts_the_rows_of_the_caller(sign_in: SignIn, projects: list[str]) -> None:
    def count(client: Client) -> Any:
        query = client.table("projects").select("id", count=CountMethod.exact, head=True)
        return query.eq("description", TITLE).execute().count

    assert (count(sign_in()), count(sign_in("user_eve", "org_globex"))) == (MANY, 0)


def test_a_hundred_ids_fit_into_4_kb(cleo: Client, projects: list[str]) -> None:
    query = cleo.table("projects").select("id").in_("id", projects[:100])
    assert len(query.execute().data) == 100
    assert len(str(query.request.params)) < 4096


def test_the_python_client_refuses_urls_over_64_kb(cleo: Client) -> None:
    with pytest.raises(httpx.InvalidURL):
        cleo.table("projects").select("id").in_("id", [ABSENT] * 1900).execute()


@pytest.mark.parametrize(("condition", "expected"), [
    ("metadata->>n=gt.5", 0), ("metadata->n=gt.5", 1), (f"metadata->>color=eq.{COLOR}", 1), (f"metadata->color=eq.{COLOR}", "22P02"),
    (f'metadata->color=eq."{COLOR}"', 1), (f'metadata=cs.{{"color":"{COLOR}"}}', 1),
    ("title=eq.null", 0), ("created_by=eq.null", "22P02"), ("created_by=is.null", MANY), ("created_by=neq." + ABSENT, 0),
])  # fmt: skip
def test_filters_find(stack: Stack, projects: list[str], condition: str, expected: int | str) -> None:
    path = f"projects?select=id&description=eq.{TITLE}&{condition}"
    answer = send(stack, "cleo", "HEAD" if isinstance(expected, int) else "GET", path, prefer="count=exact")
    if isinstance(expected, int):
        assert int(answer.headers["Content-Range"].rpartition("/")[2]) == expected
    else:
        assert (answer.status_code, answer.json()["code"]) == (400, expected)


# --- what the page says about writing


def test_an_insert_returns_nothing_unless_asked(stack: Stack, acme: str) -> None:
    project = {"organization_id": acme, "title": "Quiet", "description": TITLE}
    answer = send(stack, "cleo", "POST", "projects", project)
    assert (answer.status_code, answer.text) == (201, "")


@pytest.mark.parametrize("column", ["id", "created_by", "created_at", "updated_at"])
def test_the_database_sets_some_columns_itself(stack: Stack, acme: str, column: str) -> None:
    refused = send(stack, "cleo", "POST", "projects", {"organization_id": acme, "title": "x", column: None})
    assert (refused.status_code, refused.json()["code"]) == (403, "42501")
    assert refused.json()["message"] == "permission denied for table projects"


def test_the_python_client_returns_all_columns_by_default(cleo: Client) -> None:
    name = {"full_name": "Cleo Santos"}
    with pytest.raises(APIError, match="permission denied"):
        cleo.table("profiles").update(name).eq("clerk_user_id", "user_cleo").execute()
    cleo.table("profiles").update(name, returning=ReturnMethod.minimal).eq("clerk_user_id", "user_cleo").execute()


def test_rows_with_different_columns_need_the_defaults(cleo: Client, acme: str) -> None:
    rows = [{"organization_id": acme, "title": "One", "description": TITLE}]
    rows.append(rows[0] | {"status": "archived"})
    with pytest.raises(APIError) as refused:
        cleo.table("projects").insert(rows).execute()
    assert refused.value.code == "23502"
    created: Json = cleo.table("projects").insert(rows, default_to_null=False).execute().data
    assert [row["status"] for row in created] == ["active", "archived"]


def test_several_rows_are_written_together_or_not_at_all(
    cleo: Client, database: psycopg.Connection[Any], acme: str
) -> None:
    own = {"organization_id": acme, "title": "Together", "description": TITLE}
    foreign = own | {"organization_id": organization(database, "org_globex")}
    with pytest.raises(APIError, match="row-level security"):
        cleo.table("projects").insert([own, foreign]).execute()
    assert cleo.table("projects").select("id").eq("title", "Together").execute().data == []


def test_an_upsert_of_a_new_row_is_refused(cleo: Client, acme: str) -> None:
    with pytest.raises(APIError) as refused:
        cleo.table("projects").upsert({"organization_id": acme, "title": "Upserted"}).execute()
    assert (refused.value.code, refused.value.message) == ("42501", "permission denied for table projects")


def test_an_id_that_a_client_makes_shows_that_another_tenant_has_it(
    sign_in: SignIn, database: psycopg.Connection[Any], acme: str
) -> None:
    taken, globex = str(uuid.uuid4()), organization(database, "org_globex")
    sign_in().table("page_clients").insert({"id": taken, "organization_id": acme, "name": "Taken"}).execute()
    eve = sign_in("user_eve", "org_globex")
    with pytest.raises(APIError) as refused:
        eve.table("page_clients").insert({"id": taken, "organization_id": globex, "name": "x"}).execute()
    assert (refused.value.code, refused.value.details) == ("23505", None)


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_change_that_the_policies_exclude_succeeds_without_rows(
    stack: Stack, projects: list[str], method: str
) -> None:
    path, body = f"projects?id=eq.{projects[2]}", {"title": "Renamed"} if method == "PATCH" else None
    assert send(stack, "dee", method, path, body).status_code == 204
    answer = send(stack, "dee", method, path, body, prefer="return=representation")
    assert (answer.status_code, answer.json()) == (200, [])


def test_an_owner_without_the_second_factor_changes_no_rows(sign_in: SignIn, projects: list[str]) -> None:
    ada = sign_in("user_ada", second_factor=False)
    assert ada.table("projects").update({"title": "x"}).eq("id", projects[2]).execute().data == []
    with pytest.raises(APIError) as refused:
        ada.table("projects").update({"title": "x"}).eq("id", projects[2]).select("id").single().execute()
    assert refused.value.code == "PGRST116"
    [acme] = [each for each in ada.rpc("start_session").execute().data["organizations"] if each["slug"] == "acme"]
    assert acme["limited_by"] == "second_factor"


# --- errors

Request = tuple[str, str, str, Json]


def failing_requests(database: psycopg.Connection[Any], acme: str, projects: list[str]) -> list[tuple[str, Request]]:
    """At least one request for each code of the table of errors."""
    globex = organization(database, "org_globex")
    project = {"organization_id": acme, "title": "Refused"}
    event = {"p_organization_id": acme, "p_action": "client.read", "p_resource_type": "page"}
    client = {"organization_id": acme, "name": "Twice"}
    database.execute(
        "with referred as (insert into public.page_clients (organization_id, name) values (%s, 'Referred') returning *) "
        "insert into public.page_invoices (organization_id, client_id) select organization_id, id from referred", [acme],
    )  # fmt: skip
    restricted = "23001" if database.info.server_version >= 180000 else "23503"
    return [
        ("42501", ("", "GET", "projects?select=id", None)),
        ("42501", ("cleo", "GET", "profiles?select=*", None)),
        ("42501", ("dee", "POST", "projects", project)),
        ("42501", ("cleo", "POST", "projects", project | {"organization_id": globex})),
        ("42501", ("cleo", "POST", "rpc/receive_clerk_event", {"message_id": "x", "event": {}})),
        ("PGRST205", ("cleo", "GET", "no_such_table", None)),
        ("PGRST202", ("cleo", "POST", "rpc/projects_by_ids", {"names": []})),
        ("PGRST204", ("cleo", "POST", "projects", project | {"nope": 1})),
        ("42703", ("cleo", "GET", "projects?nope=eq.1", None)),
        ("42703", ("cleo", "GET", "projects?select=nope", None)),
        ("42703", ("cleo", "GET", "projects?order=nope", None)),
        ("22P02", ("cleo", "GET", "projects?id=eq.x", None)),
        ("23502", ("cleo", "POST", "projects", {"organization_id": acme})),
        ("23514", ("cleo", "POST", "projects", project | {"title": ""})),
        ("23503", ("cleo", "POST", "page_invoices", {"organization_id": acme, "client_id": ABSENT})),
        (restricted, ("cleo", "DELETE", "page_clients?name=eq.Referred", None)),
        ("23505", ("cleo", "POST", "page_clients", [client, client])),
        ("21000", ("ada", "DELETE", "projects", None)),
        ("PGRST201", ("cleo", "GET", "organization_memberships?select=profiles(id)", None)),
        ("PGRST200", ("cleo", "GET", "organizations?select=profiles(id)", None)),
        ("PGRST200", ("cleo", "GET", "page_invoices?select=page_clients!client_id(name)", None)),
        ("PT400", ("cleo", "POST", "rpc/log_audit_event", event | {"p_resource_type": ""})),
        ("PT403", ("cleo", "POST", "rpc/log_audit_event", event | {"p_organization_id": globex})),
        ("PT404", ("ada", "POST", "rpc/prepare_removal", {"organization_id": acme, "profile_id": ABSENT})),
        ("PT409", ("ada", "POST", "rpc/prepare_removal", {"organization_id": acme, "profile_id": person(database, "user_ada")})),
        ("PT429", ("dee", "POST", "rpc/log_audit_event", event)),
    ]  # fmt: skip


def listed_errors() -> dict[str, set[int]]:
    """The statuses of each code in the page's table."""
    listed: dict[str, set[int]] = {}
    for statuses, codes in re.findall(r"^\| (\d{3}(?:, \d{3})*) \| (`\w+`.*?) \|", PAGE, re.MULTILINE):
        names = re.findall(r"`([A-Z0-9]{5,8})`", codes)
        several = [int(status) for status in statuses.split(", ")]
        for name, status in zip(names, several if len(several) > 1 else several * len(names), strict=True):
            listed.setdefault(name, set()).add(status)
    return listed


def test_each_error_of_the_table_has_its_status_and_quotes_no_row(
    stack: Stack, sign_in: SignIn, database: psycopg.Connection[Any], acme: str, projects: list[str]
) -> None:
    database.execute(
        "insert into app.rate_limits (caller, bucket, tokens, refilled_at) "
        "values (app.rate_limit_caller('user_dee'), 'audit:' || app.rate_limit_caller(%s), 0, now()) "
        "on conflict on constraint rate_limits_pkey do update set tokens = 0, refilled_at = now()", [acme],
    )  # fmt: skip
    listed, seen = listed_errors(), {}
    try:
        for code, (user, method, path, body) in failing_requests(database, acme, projects):
            answer = send(stack, user, method, path, body)
            assert answer.json()["code"] == code, (path, answer.text)
            seen.setdefault(code, set()).add(answer.status_code)
            details = json.dumps(answer.json()["details"])
            assert not any(value in details for value in (acme, ABSENT, "Refused", "Twice")), (path, details)
    finally:
        database.execute("delete from app.rate_limits where caller = app.rate_limit_caller('user_dee')")
    for code, token in (("PGRST303", stack.token("user_cleo", "org_acme", lifetime=-60)), ("PGRST301", "x")):
        refused = send(stack, "cleo", "GET", "projects", token=token)
        assert refused.json()["code"] == code
        seen[code] = {refused.status_code}
    single = send(stack, "cleo", "GET", f"projects?id=eq.{ABSENT}", accept="application/vnd.pgrst.object+json")
    seen[single.json()["code"]] = {single.status_code}
    if database.info.server_version < 180000:
        del listed["23001"]
    assert seen == listed | {"21000": {400}}


def test_the_service_answers_problem_documents(stack: Stack) -> None:
    [example] = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    expected = json.loads(example)
    answer = httpx.get(f"{stack.environment['SERVICE_URL']}/api/v1/me")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json().keys() == expected.keys()
    assert (answer.json()["type"], answer.status_code) == (expected["type"], expected["status"])
