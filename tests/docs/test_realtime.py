"""The client in docs/realtime.md, run unchanged in Chromium, on the whole stack."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import psycopg
import pytest
from playwright.sync_api import Browser, Page

from tests.conftest import ROOT, Stack
from tests.service.outside import Answer, Outside, running_outside

SUPABASE_JS = (ROOT / "node_modules/@supabase/supabase-js/dist/umd/supabase.js").read_text()
FIRST_TOKEN_SECONDS = 5
PAGE = """
<!doctype html>
<script src="/supabase.js"></script>
<script type="importmap">{"imports": {"@supabase/supabase-js": "/module.js"}}</script>
<script type="module">
  Object.assign(globalThis, GLOBALS);
  globalThis.clerk = { session: { getToken: async () => globalThis.token } };
  globalThis.shown = [];
  const { follow } = await import("/client.js");
  globalThis.end = follow(ORGANIZATION, (projects) => { shown = projects.map((project) => project.title).sort() });
</script>
"""


@pytest.fixture
def organization(stack: Stack) -> Iterator[str]:
    """The id of Globex. The test's projects are deleted afterwards."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        [[identifier]] = connection.execute(
            "select id::text from public.organizations where clerk_org_id = 'org_globex'"
        ).fetchall()
        yield str(identifier)
        connection.execute("delete from public.projects where title like 'docs %'")


@pytest.fixture
def site() -> Iterator[Outside]:
    with running_outside() as server:
        yield server


@pytest.fixture
def page(stack: Stack, chromium: Browser, site: Outside, organization: str) -> Iterator[Page]:
    [client] = re.findall(r"```js\n(.*?)```", (ROOT / "docs/realtime.md").read_text(), re.DOTALL)
    names = ("SUPABASE_URL", "SUPABASE_PUBLISHABLE_KEY")
    token = stack.token("user_eve", "org_globex", lifetime=FIRST_TOKEN_SECONDS)
    settings = {name: stack.environment[name] for name in names} | {"token": token}
    files = {
        "/": (
            "text/html",
            PAGE.replace("GLOBALS", json.dumps(settings)).replace("ORGANIZATION", json.dumps(organization)),
        ),
        "/supabase.js": ("text/javascript", SUPABASE_JS),
        "/module.js": ("text/javascript", "export const { createClient } = globalThis.supabase;"),
        "/client.js": ("text/javascript", client),
    }

    def answer(path: str, *_: object) -> Answer:
        content_type, body = files.get(path, ("text/plain", ""))
        return 200, {"Content-Type": f"{content_type}; charset=utf-8"}, body.encode()

    site.answer = answer
    context = chromium.new_context()
    page = context.new_page()
    page.goto(site.url)
    yield page
    context.close()


def test_the_documented_client_shows_what_the_database_holds(stack: Stack, page: Page, organization: str) -> None:
    def titles() -> list[str]:
        rows = database.execute(
            'select title from public.projects where organization_id = %s order by title collate "C"', [organization]
        )
        return [title for (title,) in rows]

    def wait_until_shown() -> None:
        page.wait_for_function("titles => JSON.stringify(shown) === JSON.stringify(titles)", arg=titles())

    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as database:
        wait_until_shown()
        database.execute(
            "insert into public.projects (organization_id, title) values (%s, 'docs one'), (%s, 'docs two')",
            [organization] * 2,
        )
        wait_until_shown()
        database.execute("update public.projects set title = 'docs three' where title = 'docs one'")
        database.execute("delete from public.projects where title = 'docs two'")
        wait_until_shown()
        page.wait_for_timeout(FIRST_TOKEN_SECONDS * 1000)  # the server closes the channel when its token expires
        database.execute(
            "insert into public.projects (organization_id, title) values (%s, 'docs four')", [organization]
        )
        page.evaluate("token => { globalThis.token = token }", stack.token("user_eve", "org_globex", lifetime=600))
        wait_until_shown()
        page.evaluate("end()")
