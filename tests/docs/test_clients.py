"""docs/clients.md: its examples run unchanged, the page in Chromium on an origin that is not the service's.

So does the page without a bundler in docs/local-stack.md.

The thorough tests install the packages of tests/docs/clients/ into a temporary folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from scripts.local.clerk.client import ClerkClient
from tests.conftest import ROOT, Stack

TEXT = (ROOT / "docs/clients.md").read_text()
TOKEN_SECONDS = 5
PATIENCE = 15
SUPABASE_JS = ROOT / "node_modules/@supabase/supabase-js/dist/umd/supabase.js"
# What docs/local-stack.md shows, and the variable with this stack's value.
UNBUNDLED_SETTINGS = {
    "http://127.0.0.1:54321": "SUPABASE_URL",
    "http://127.0.0.1:54323": "SERVICE_URL",
    "http://127.0.0.1:54324": "CLERK_ISSUER",
    "sb_publishable_…": "SUPABASE_PUBLISHABLE_KEY",
}
# What a bundler resolves. Clerk's stand-in has no sign-in page, so its client signs in at once.
IMPORT_MAP = """
<script src="/supabase-umd.js"></script>
<script type="importmap">
  {"imports": {"@supabase/supabase-js": "/supabase.js", "@clerk/clerk-js": "/clerk.js", "ballast-client": "/ballast.js"}}
</script>
"""
CLERK_JS = """
import { Clerk as StandIn } from "/stand-in.js";
export class Clerk extends StandIn {
  async load() {
    this.signIn({ user: { id: "user_ada" }, organization: null, secondFactor: true });
    globalThis.clerk = this;
  }
}
"""

Connection = psycopg.Connection[Any]


def find_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def database(stack: Stack) -> Iterator[Connection]:
    """A connection as postgres. No person has chosen an organization yet. Afterwards it deletes the tests' projects."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("update public.profiles set current_organization_id = null")
        yield connection
        connection.execute("delete from public.projects where title like 'docs %'")


@pytest.fixture
def acme(database: Connection) -> str:
    return find_organization(database, "org_acme")


def find_organization(database: Connection, clerk_id: str) -> str:
    query = "select id::text from public.organizations where clerk_org_id = %s"
    [[identifier]] = database.execute(query, [clerk_id]).fetchall()
    return str(identifier)


def titles(database: Connection, organization: str) -> list[str]:
    rows = database.execute(
        "select title from public.projects where organization_id = %s order by created_at desc, id desc", [organization]
    )
    return [title for (title,) in rows]


def add(database: Connection, organization: str, *names: str) -> None:
    for name in names:
        database.execute("insert into public.projects (organization_id, title) values (%s, %s)", [organization, name])


def read_unbundled_page(environment: dict[str, str]) -> str:
    """The page of docs/local-stack.md, with the addresses and the key of this stack."""
    [page] = re.findall(r"^```html\n(.*?)^```", (ROOT / "docs/local-stack.md").read_text(), re.DOTALL | re.MULTILINE)
    for shown, name in UNBUNDLED_SETTINGS.items():
        assert page.count(shown) == 1
        page = page.replace(shown, environment[name])
    return str(page)


@pytest.fixture
def site(stack: Stack) -> Iterator[str]:
    """Serves the documented page at the origin of a development server."""
    environment = stack.environment
    settings = {
        "clerkPublishableKey": environment["CLERK_ISSUER"],
        "supabaseUrl": environment["SUPABASE_URL"],
        "publishableKey": environment["SUPABASE_PUBLISHABLE_KEY"],
        "serviceUrl": environment["SERVICE_URL"],
    }
    [html] = find_blocks("html")
    [app] = [block for block in find_blocks("js") if block.startswith("// app.js\n")]
    files = {
        "/": html.replace("<script", IMPORT_MAP + "<script"),
        "/blank": "<!doctype html>" + IMPORT_MAP,
        "/app.js": app,
        "/settings.js": f"export const settings = {json.dumps(settings)};",
        "/supabase-umd.js": SUPABASE_JS.read_text(),
        "/supabase.js": "export const { createClient } = globalThis.supabase;",
        "/ballast.js": (ROOT / "clients/ballast.js").read_text(),
        "/clerk.js": CLERK_JS,
        "/stand-in.js": (ROOT / "service/demo_page/clerk.js").read_text(),
        "/unbundled/": read_unbundled_page(environment),
        "/unbundled/supabase.js": SUPABASE_JS.read_text(),
        "/unbundled/ballast.js": (ROOT / "clients/ballast.js").read_text(),
        "/unbundled/clerk.js": (ROOT / "service/demo_page/clerk.js").read_text(),
    }

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path)
            self.send_response(404 if body is None else 200)
            kind = "javascript" if self.path.endswith(".js") else "html"
            self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", urlsplit(stack.other_origin).port or 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield stack.other_origin
        server.shutdown()


@pytest.fixture
def page(chromium: Browser, site: str) -> Iterator[Page]:
    context = chromium.new_context(base_url=site)
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    yield page
    context.close()


def shorten_tokens(page: Page, stack: Stack) -> list[str]:
    """Makes the page's tokens live 5 s instead of 60. Returns a list to which each issued token is added."""
    issued: list[str] = []

    def shorten(route: Route) -> None:
        wanted = json.loads(route.request.post_data or "{}") | {"lifetime": TOKEN_SECONDS}
        response = route.fetch(post_data=json.dumps(wanted))
        issued.append(response.json()["token"])
        route.fulfill(response=response)

    page.route(f"{stack.environment['CLERK_ISSUER']}/stand-in/tokens", shorten)
    return issued


def test_the_browser_app_shows_what_the_database_holds_while_tokens_expire(
    stack: Stack, page: Page, database: Connection, acme: str
) -> None:
    issued = shorten_tokens(page, stack)
    shown = page.locator("li")
    page.goto("/")
    expect(shown).to_have_text(titles(database, acme))
    add(database, acme, "docs one", "docs two")
    database.execute("update public.projects set title = 'docs three' where title = 'docs one'")
    database.execute("delete from public.projects where title = 'docs two'")
    expect(shown).to_have_text(titles(database, acme))
    tokens = len(issued)
    deadline = time.monotonic() + PATIENCE
    while len(issued) == tokens:  # Realtime closes the channel when its token expires
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    add(database, acme, "docs four")
    expect(shown).to_have_text(titles(database, acme))


def test_the_browser_app_writes_switches_and_calls_the_service(page: Page, database: Connection, acme: str) -> None:
    globex = find_organization(database, "org_globex")
    shown, message, picker = page.locator("li"), page.get_by_role("status"), page.get_by_label("Organization")
    page.goto("/")
    expect(picker).to_have_value(acme)
    page.get_by_label("Title").fill("docs written")
    page.get_by_role("button", name="Create").click()
    expect(shown.first).to_have_text("docs written")

    picker.select_option("Globex")
    expect(shown).to_have_text(titles(database, globex))
    assert page.evaluate("clerk.organization.id") == "org_globex"
    choice = "select current_organization_id::text from public.profiles where clerk_user_id = 'user_ada'"
    assert database.execute(choice).fetchone() == (globex,)
    page.get_by_label("Title").fill("docs refused")
    page.get_by_role("button", name="Create").click()
    expect(message).to_contain_text("row-level security")
    page.get_by_role("button", name="Who am I?").click()
    expect(message).to_have_text("Ada Winter")

    page.reload()  # the new session has no active organization, so the stored choice counts
    expect(picker).to_have_value(globex)


def test_the_page_without_a_bundler_signs_in_at_the_stand_in(page: Page) -> None:
    page.goto("/unbundled/")
    expect(page.get_by_role("status")).to_have_text("Ada Winter")


FOLLOW = """async ({ organizationId, table = "projects", ...options }) => {
  const { createBallastClient } = await import("ballast-client");
  const { Clerk } = await import("@clerk/clerk-js");
  const { settings } = await import("/settings.js");
  const clerk = new Clerk(settings.clerkPublishableKey);
  await clerk.load();
  globalThis.ballast = createBallastClient(clerk, { ...supabase, ...settings });
  globalThis.rows = ballast.follow(table, { organizationId, onChange() {}, ...options });
}"""


def wait_until_shown(page: Page, expression: str, expected: object) -> None:
    """Waits until the expression, which may use `rows`, has this value."""
    compare = f"(expected) => rows.isLoaded && JSON.stringify({expression}) === JSON.stringify(expected)"
    page.wait_for_function(compare, arg=expected)


def test_more_rows_than_one_request_returns_are_followed(page: Page, database: Connection, acme: str) -> None:
    # All of one statement have the same created_at.
    database.execute(
        "insert into public.projects (organization_id, title) select %s, 'docs ' || n from generate_series(1, 1100) as n",
        [acme],
    )
    expected = titles(database, acme)
    page.goto("/blank")
    page.evaluate(FOLLOW, {"organizationId": acme, "pageSize": 1050})
    wait_until_shown(page, "rows.rows.map(({ title }) => title)", expected[:1050])
    assert page.evaluate("rows.hasMore") is True
    page.evaluate("rows.more()")
    wait_until_shown(page, "rows.rows.map(({ title }) => title)", expected)
    assert page.evaluate("rows.hasMore") is False
    page.evaluate("rows.reload()")
    wait_until_shown(page, "rows.rows.map(({ title }) => title)", expected)
    page.evaluate("rows.close()")
    page.evaluate(FOLLOW, {"organizationId": acme, "pageSize": float("inf")})
    wait_until_shown(page, "rows.rows.map(({ title }) => title)", expected)


def test_only_rows_with_the_given_values_are_followed(page: Page, database: Connection, acme: str) -> None:
    add(database, acme, "docs one", "docs two")
    page.goto("/blank")
    page.evaluate(FOLLOW, {"organizationId": acme, "where": {"status": "archived"}})
    wait_until_shown(page, "rows.rows.filter(({ status }) => status !== 'archived')", [])
    database.execute("update public.projects set status = 'archived' where title in ('docs one', 'docs two')")
    ours = "rows.rows.map(({ title }) => title).filter((title) => title.startsWith('docs ')).sort()"
    wait_until_shown(page, ours, ["docs one", "docs two"])
    database.execute("update public.projects set status = 'active' where title = 'docs one'")
    wait_until_shown(page, ours, ["docs two"])


def test_embedded_rows_are_read_again_after_a_broadcast(page: Page, database: Connection, acme: str) -> None:
    page.goto("/blank")
    columns = "id, created_at, title, organization:organizations(name)"
    page.evaluate(FOLLOW, {"organizationId": acme, "columns": columns})
    page.wait_for_function("rows.isLoaded && ballast.live === 'live'")
    add(database, acme, "docs embedded")
    page.wait_for_function("rows.rows[0].title === 'docs embedded' && rows.rows[0].organization.name === 'Acme'")


def test_the_module_has_the_version_of_the_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert json.loads((ROOT / "clients/package.json").read_text())["version"] == project["version"]


# --- Python


@pytest.fixture
def example() -> ModuleType:
    [source] = find_blocks("python")
    module = ModuleType("example")
    exec(compile(source, "docs/clients.md", "exec"), module.__dict__)  # noqa: S102
    return module


def test_the_python_program_follows_while_tokens_expire(
    stack: Stack, database: Connection, acme: str, example: ModuleType
) -> None:
    clerk = ClerkClient(stack.environment["CLERK_ISSUER"])
    shown: list[list[str]] = []
    issued: list[str] = []

    async def get_token() -> str:
        issued.append(clerk.token("user_cleo", "org_acme", lifetime=TOKEN_SECONDS)["token"])
        return issued[-1]

    def show(rows: list[Any]) -> None:
        shown.append([row["title"] for row in rows])

    async def until_shown() -> None:
        async with asyncio.timeout(PATIENCE):
            while not shown or sorted(shown[-1]) != sorted(titles(database, acme)):
                await asyncio.sleep(0.05)

    async def story() -> None:
        names = ("SUPABASE_URL", "SUPABASE_PUBLISHABLE_KEY")
        client, session = await example.connect(*(stack.environment[name] for name in names), get_token)
        assert session["profile"]["full_name"] == "Cleo Santos"
        following = asyncio.create_task(example.follow(client, acme, get_token, show))
        await until_shown()
        add(database, acme, "docs one")
        await until_shown()
        tokens = len(issued)
        async with asyncio.timeout(PATIENCE):
            while len(issued) == tokens:  # Realtime closes the channel when its token expires
                await asyncio.sleep(0.05)
        add(database, acme, "docs two")
        await until_shown()
        database.execute("delete from public.projects where title = 'docs one'")
        await until_shown()
        following.cancel()
        me = await example.call_service(stack.environment["SERVICE_URL"], "/api/v1/me", get_token)
        assert me["profile"]["clerk_user_id"] == "user_cleo"

    # In a thread of its own, because Playwright runs an event loop in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, story()).result()


@pytest.mark.thorough
def test_the_python_program_has_correct_types(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(find_blocks("python")[0])
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", tmp_path / "example.py"]
    ran = subprocess.run(mypy, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


# --- TypeScript, with the real packages

# Where the examples of each section go. React's are used in two folders.
FOLDERS = {
    "Organizations": ["browser"],
    "A browser app": ["browser"],
    "React": ["nextjs", "native"],
    "Next.js": ["nextjs"],
    "React Native": ["native"],
    "An edge function": ["edge"],
}
EDGE_FUNCTION = "edge/supabase/functions/archive/index.ts"
# A mistake in a copy of each file, which the compiler must find.
MISTAKES = {
    "browser/app.js": ("redirectToSignIn", "redirectToLogIn"),
    "nextjs/server.ts": ("{ getToken }", "{ getJwt }"),
    "nextjs/app/live_projects.tsx": ("{ id, title }", "{ id, headline }"),
    "native/App.tsx": ("item.title", "item.headline"),
    EDGE_FUNCTION: ('status: "archived"', 'state: "archived"'),
}
RUN_EDGE_FUNCTION = """
import { readFileSync, writeFileSync } from "node:fs";
import typescript from "typescript";
const [, , file, requests] = process.argv;
const options = { compilerOptions: { target: "es2022", module: "esnext" } };
writeFileSync("function.mjs", typescript.transpileModule(readFileSync(file, "utf8"), options).outputText);
globalThis.WebSocket ??= class {}; // as Deno has, and Node.js 22
globalThis.Deno = { env: { get: (name) => process.env[name] }, serve: (handler) => (globalThis.handler = handler) };
await import("./function.mjs");
const answers = [];
for (const { headers, ...options } of JSON.parse(requests)) {
  const answer = await handler(new Request("http://function.example/archive", { headers, ...options }));
  answers.push({ status: answer.status, headers: Object.fromEntries(answer.headers), text: await answer.text() });
}
console.log(JSON.stringify(answers));
"""


def write_examples(folder: Path) -> None:
    """Writes each example to the file that its first line names."""
    for section in re.split("^## ", TEXT, flags=re.MULTILINE):
        title, _, text = section.partition("\n")
        for place in FOLDERS.get(title, []):
            for code in re.findall(r"^```(?:js|tsx?)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
                file = folder / place / code.partition("\n")[0].removeprefix("// ")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(code)
    for place in ("nextjs", "native", "edge/supabase/types"):
        (folder / place).mkdir(exist_ok=True)
        shutil.copy(ROOT / "supabase/types/database.ts", folder / place)
    names = "clerkPublishableKey", "supabaseUrl", "publishableKey", "serviceUrl"
    (folder / "browser/settings.js").write_text(f"export const settings = {json.dumps(dict.fromkeys(names, ''))};")


@pytest.fixture(scope="module")
def examples() -> Iterator[Path]:
    """A folder with the examples and the packages that they use."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "examples"
        shutil.copytree(ROOT / "tests/docs/clients", folder, ignore=shutil.ignore_patterns("node_modules"))
        subprocess.run(["npm", "ci", "--silent", "--no-audit"], cwd=folder, check=True)
        [install] = [line for line in find_blocks("sh")[0].splitlines() if line.startswith("npm install")]
        command = install.replace("../ballast/clients", str(ROOT / "clients"))
        subprocess.run([*command.split(), "--no-save", "--silent", "--no-audit"], cwd=folder, check=True)
        write_examples(folder)
        yield folder


@pytest.mark.thorough
@pytest.mark.parametrize("place", ["browser", "nextjs", "native", "edge"])
def test_the_examples_match_the_packages(examples: Path, place: str) -> None:
    """The compiler reports an error in each copy with a mistake, and none in the examples themselves."""
    wrong = []
    for name, (right, mistake) in MISTAKES.items():
        if name.startswith(f"{place}/"):
            file = examples / name
            assert right in file.read_text()
            file.with_name(f"wrong_{file.name}").write_text(file.read_text().replace(right, mistake))
            wrong.append(str(Path(name).with_name(f"wrong_{file.name}")))
    tsc = [examples / "node_modules/.bin/tsc", "-p", f"{place}.json"]
    ran = subprocess.run(tsc, cwd=examples, capture_output=True, text=True, check=False)
    found = {line.partition("(")[0] for line in ran.stdout.splitlines() if not line.startswith(" ")}
    assert found == set(wrong), ran.stdout


@pytest.mark.thorough
def test_react_native_needs_another_url(examples: Path) -> None:
    """supabase-js sets the protocol of a URL."""
    url = (examples / "node_modules/react-native/Libraries/Blob/URL.js").read_text()
    assert "get protocol(" in url
    assert "set protocol(" not in url, "remove the polyfill from docs/clients.md"


@pytest.mark.thorough
def test_the_types_of_the_module_are_those_of_its_comments(tmp_path: Path) -> None:
    tsc = [ROOT / "node_modules/.bin/tsc", "-p", "clients", "--outDir", tmp_path]
    subprocess.run(tsc, cwd=ROOT, check=True)
    written = (ROOT / "clients/ballast.d.ts").read_text()
    assert (tmp_path / "ballast.d.ts").read_text() == written, "run node_modules/.bin/tsc -p clients"


@pytest.mark.thorough
def test_the_edge_function_acts_for_the_person(examples: Path, stack: Stack, database: Connection, acme: str) -> None:
    (examples / "run.mjs").write_text(RUN_EDGE_FUNCTION)
    environment = {
        "SUPABASE_URL": stack.environment["SUPABASE_URL"],
        "SUPABASE_PUBLISHABLE_KEYS": json.dumps({"default": stack.environment["SUPABASE_PUBLISHABLE_KEY"]}),
        "ALLOWED_ORIGINS": stack.other_origin,
    }
    body = json.dumps({"organization_id": acme})

    def archive(user: str, organization: str) -> dict[str, object]:
        return {
            "method": "POST",
            "headers": {
                "Authorization": f"Bearer {stack.token(user, organization)}",
                "Content-Type": "application/json",
            },
            "body": body,
        }

    requests = [
        {"method": "OPTIONS", "headers": {"Origin": stack.other_origin}},
        {"method": "OPTIONS", "headers": {"Origin": "https://other.example"}},
        {"method": "POST", "headers": {}, "body": body},
        {"method": "POST", "headers": {"Authorization": "Bearer not-a-token"}, "body": body},
        archive("user_eve", "org_globex"),
        archive("user_cleo", "org_acme"),
    ]
    before = database.execute("select id::text, status from public.projects").fetchall()
    active = "select id::text from public.projects where organization_id = %s and status = 'active'"
    expected = {identifier for (identifier,) in database.execute(active, [acme])}
    try:
        ran = subprocess.run(
            ["node", "run.mjs", EDGE_FUNCTION, json.dumps(requests)],
            cwd=examples, env=os.environ | environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        for identifier, status in before:
            database.execute("update public.projects set status = %s where id = %s", [status, identifier])
    own, foreign, missing, invalid, stranger, member = json.loads(ran.stdout)
    assert own["headers"]["access-control-allow-origin"] == stack.other_origin
    assert "access-control-allow-origin" not in foreign["headers"]
    assert [answer["status"] for answer in (missing, invalid, stranger, member)] == [401, 401, 200, 200]
    assert json.loads(stranger["text"]) == {"ids": []}
    assert set(json.loads(member["text"])["ids"]) == expected != set()
