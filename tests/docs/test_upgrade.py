"""docs/upgrade.md, "Expand, then contract": the previous service and clients work after each file of its example."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from scripts.schema import migrations, sql_files
from tests.conftest import ROOT, Stack, running_stack

pytestmark = pytest.mark.thorough

SECTION = (ROOT / "docs/upgrade.md").read_text().partition("## Expand, then contract\n")[2].partition("\n## ")[0]
PARAMETER, *RELEASES = (
    dict(re.findall(r"^```sql (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for text in re.split(r"^### ", SECTION, flags=re.MULTILINE)
)
FINDER = "functions/9_tables/find_projects.sql"
# The previous state: a function that clients call, and a view that they read.
BEFORE = """\
drop function if exists public.find_projects(text, text);
create or replace function public.find_projects(title text) returns setof public.projects
language sql stable security invoker set search_path = pg_catalog, pg_temp
as $$ select * from public.projects as p where p.title = find_projects.title; $$;
grant execute on function public.find_projects(text) to authenticated;
"""
VIEW = """\
create or replace view public.project_states with (security_invoker = true) as
select id, status{more} from public.projects;
grant select on public.project_states to authenticated;
"""
GRANT_NAME = "grant insert (name), update (name) on public.projects to authenticated;\n"


@dataclass(frozen=True)
class Release:
    """The running service, and a client that reads and writes a project by one of its two columns."""

    stack: Stack
    column: str = "title"
    finds: bool = True

    def use(self) -> None:
        """Does what people and Clerk do: each request must succeed, and find what it wrote."""
        environment = self.stack.environment
        headers = {"Authorization": f"Bearer {self.stack.token('user_ada', 'org_acme')}"}
        with httpx.Client(base_url=environment["SERVICE_URL"], headers=headers, timeout=30) as service:
            assert service.get("/readyz").status_code == 200
            me = self.succeed(service.get("/api/v1/me"))
        [acme] = [each["id"] for each in me["organizations"] if each["clerk_org_id"] == "org_acme"]
        sent = self.stack.ballast(
            "clerk", "send", "user.created", "--data", json.dumps({"id": f"user_{secrets.token_hex(8)}"})
        )
        assert (sent.returncode, "processed" in sent.stdout) == (0, True), sent.stdout + sent.stderr
        headers |= {"apikey": environment["SUPABASE_PUBLISHABLE_KEY"], "Prefer": "return=representation"}
        with httpx.Client(base_url=f"{environment['SUPABASE_URL']}/rest/v1", headers=headers, timeout=30) as api:
            self.write(api, acme)

    def write(self, api: httpx.Client, organization: str) -> None:
        words, selected = f"Words {secrets.token_hex(4)}", {"select": f"id,{self.column},status"}
        row = {"organization_id": organization, self.column: words}
        [made] = self.succeed(api.post("/projects", params=selected, json=row))
        assert made[self.column] == words
        changed = {self.column: f"{words}, changed", "status": "archived"}
        found = {"id": f"eq.{made['id']}"}
        assert self.succeed(api.patch("/projects", params=selected | found, json=changed)) == [made | changed]
        assert self.succeed(api.get("/projects", params=selected | found)) == [made | changed]
        state = self.succeed(api.get("/project_states", params=found | {"select": "id,status"}))
        assert state == [{"id": made["id"], "status": "archived"}]
        if self.finds:
            [again] = self.succeed(api.post("/rpc/find_projects", json={"title": changed[self.column]}))
            assert again["id"] == made["id"]
        entry = {"p_organization_id": organization, "p_action": "client.reminded", "p_resource_type": "mail"}
        assert self.succeed(api.post("/rpc/log_audit_event", json=entry))
        assert len(self.succeed(api.delete("/projects", params=selected | found))) == 1

    @staticmethod
    def succeed(response: httpx.Response) -> Any:
        assert response.is_success, f"{response.request.method} {response.url}: {response.text}"
        return response.json()


@dataclass(frozen=True)
class Checkout:
    """A changed copy of the checkout, and the stack's database."""

    root: Path
    url: str

    def write(self, files: dict[str, str]) -> None:
        for path, text in files.items():
            (self.root / path).write_text(text)

    def edit(self, path: str, edit: Callable[[str], str]) -> None:
        before = (self.root / path).read_text()
        (self.root / path).write_text(edit(before))
        assert (self.root / path).read_text() != before

    def apply(self, release: Release) -> list[str]:
        """Applies the files, and uses the previous release after each one. Returns their paths."""
        applied: list[str] = []

        def use(file: sql_files.Migration | sql_files.Source) -> None:
            applied.append(file.path)
            # With PostgREST's old cache, and with a new one: on hosted Supabase each change reloads it.
            release.use()
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute("notify pgrst, 'reload schema'")
            release.use()

        migrations.up(self.url, root=self.root, on_applied=use)
        return applied


@pytest.fixture(scope="module")
def stack(home: Path) -> Iterator[Stack]:
    """A stack of its own, because its schema changes."""
    with running_stack(home / "upgraded") as stack:
        yield stack


@pytest.fixture
def checkout(stack: Stack, tmp_path: Path) -> Checkout:
    checkout = Checkout(tmp_path, stack.environment["DATABASE_URL"])
    for name in ("migrations", "functions", "policies"):
        shutil.copytree(ROOT / name, tmp_path / name)
    checkout.write({FINDER: BEFORE, "functions/9_tables/project_states.sql": VIEW.format(more="")})
    migrations.up(checkout.url, root=checkout.root)
    return checkout


def test_a_new_parameter_without_the_end_of_the_old_signature_breaks_its_callers(
    stack: Stack, checkout: Checkout
) -> None:
    checkout.write({FINDER: PARAMETER[FINDER].partition("\n")[2]})
    with pytest.raises(AssertionError, match="find_projects"):
        checkout.apply(Release(stack))


def test_the_previous_release_works_after_each_file(stack: Stack, checkout: Checkout) -> None:
    title, name = Release(stack), Release(stack, "name", finds=False)
    title.use()

    # A new parameter, a column of a view, a column with a default, a changed policy.
    checkout.write(PARAMETER | {
        "functions/9_tables/project_states.sql": VIEW.format(more=", created_at"),
        "migrations/20981201000000_add_rank.sql": "alter table public.projects add column rank int not null default 0;\n",
    })  # fmt: skip
    checkout.edit("policies/projects.sql", lambda text: text.replace('"read with', '"members read with'))
    assert len(checkout.apply(title)) == 4

    for release, before in zip(RELEASES, (title, title, name, name), strict=True):
        checkout.write(release)
        if release is RELEASES[0]:
            checkout.edit("policies/projects.sql", lambda text: text + GRANT_NAME)
        if release is RELEASES[2]:
            (checkout.root / FINDER).write_text("drop function if exists public.find_projects(text, text);\n")
            checkout.edit("functions/9_tables/projects.sql", lambda text: text.replace("title", "name"))
            checkout.edit("policies/projects.sql", lambda text: text.replace("title, ", ""))
        assert set(release) <= set(checkout.apply(before))
    name.use()
