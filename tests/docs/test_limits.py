"""docs/limits.md: its table matches the service's limits, its example caches an answer, and its edge hides estimates."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from service.limits import LIMITS, Limit, Per
from tests.conftest import ROOT, Stack
from tests.service.conftest import MakeApp

PAGE = (ROOT / "docs/limits.md").read_text()
SECONDS = {"a minute": 60, "an hour": 3600}


def test_the_table_matches_the_limits_of_the_service() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) (an? \w+) \| (\w+) \|", PAGE, re.MULTILINE)
    listed = {name: Limit(int(number.replace(",", "")), SECONDS[time], Per(per)) for name, number, time, per in rows}
    assert listed == LIMITS


def test_the_example_caches_an_answer_until_it_is_invalidated(make_app: MakeApp, stack: Stack) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    [invalidation] = re.findall(r"`(components\(\)\.cache\.invalidate\(.*\))`", PAGE)
    read: list[str] = []
    names: dict[str, Any] = {
        "clerk_org_id": f"org_{secrets.token_hex(6)}", "read_plan": lambda _: {"reads": read.append("x") or len(read)}
    }  # fmt: skip
    with make_app(**stack.environment).app_context():
        exec(example, names)  # noqa: S102 - the page is ours
        assert [names["plan_of"](names["clerk_org_id"]) for _ in range(2)] == [{"reads": 1}] * 2
        eval(invalidation, names)  # noqa: S307
        assert names["plan_of"](names["clerk_org_id"]) == {"reads": 2}


# --- estimates that show all tenants

TITLE = "Merger"
ROWS = 5000


@pytest.fixture(scope="module")
def merger(stack: Stack) -> Iterator[str]:
    """The path of a request for projects with a title that only Globex uses. Cleo is not a member of Globex."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(
            "insert into public.projects (organization_id, title) select o.id, %s from public.organizations as o, "
            "generate_series(1, %s) where o.clerk_org_id = 'org_globex'", [TITLE, ROWS],
        )  # fmt: skip
        connection.execute("analyze public.projects")
        yield f"/rest/v1/projects?title=eq.{TITLE}&select=id"
        connection.execute("delete from public.projects where title = %s", [TITLE])
        connection.execute("analyze public.projects")


def as_cleo(stack: Stack) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {stack.token('user_cleo', 'org_acme')}",
        "apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"],
    }


def count_rows(answer: Any) -> int:
    return int(answer.headers["Content-Range"].rpartition("/")[2])


@pytest.mark.parametrize(("kind", "low", "high"), [("exact", 0, 0), ("planned", ROWS // 2, 2 * ROWS)])
def test_a_planned_count_shows_rows_of_other_tenants(stack: Stack, merger: str, kind: str, low: int, high: int) -> None:
    answer = httpx.get(stack.environment["SUPABASE_URL"] + merger, headers=as_cleo(stack) | {"Prefer": f"count={kind}"})
    assert answer.json() == []
    assert low <= count_rows(answer) <= high


def test_a_plan_is_refused(stack: Stack, merger: str) -> None:
    accept = {"Accept": "application/vnd.pgrst.plan+json"}
    assert httpx.get(stack.environment["SUPABASE_URL"] + merger, headers=as_cleo(stack) | accept).status_code == 406


@pytest.mark.parametrize(("path", "status"), [
    ("projects?select=ctid,xmin&limit=1", 200), ("profiles?select=xmin&limit=1", 403), ("audit_logs?select=ctid&limit=1", 403),
])  # fmt: skip
def test_only_tables_that_hide_columns_hide_system_columns(stack: Stack, path: str, status: int) -> None:
    answer = httpx.get(f"{stack.environment['SUPABASE_URL']}/rest/v1/{path}", headers=as_cleo(stack))
    assert answer.status_code == status


def ask_worker(stack: Stack, folder: Path, path: str, headers: dict[str, str]) -> dict[str, Any]:
    """What the Worker of the page answers in front of the stack: {status, range}."""
    [worker] = re.findall(r"^```js\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "worker.mjs").write_text(worker)
    script = """
        import worker from "./worker.mjs";
        const { path, headers, env } = JSON.parse(process.argv[1]);
        const answer = await worker.fetch(new Request("https://edge.example.com" + path, { headers }), env);
        console.log(JSON.stringify({ status: answer.status, range: answer.headers.get("content-range") }));
    """
    env = {
        "SUPABASE_URL": stack.environment["SUPABASE_URL"],
        "PUBLISHABLE_KEY": stack.environment["SUPABASE_PUBLISHABLE_KEY"],
    }
    arguments = json.dumps({"path": path, "headers": headers, "env": env})
    ran = subprocess.run(
        ["node", "--input-type=module", "--eval", script, "--", arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


@pytest.mark.parametrize("prefer", [
    "count=planned", "count=estimated", "return=representation,count=planned", "Count=Planned", "count=planned, count=estimated",
])  # fmt: skip
def test_behind_the_worker_a_count_is_exact(stack: Stack, merger: str, tmp_path: Path, prefer: str) -> None:
    headers = as_cleo(stack) | {"apikey": "from a browser", "Prefer": prefer}
    assert ask_worker(stack, tmp_path, merger, headers) == {"status": 200, "range": "*/0"}


@pytest.mark.parametrize(
    "query", ["select=ctid", "select=id,x:xmin", "select=%63tid", "order=%78min", "or=(ctid.eq.1,id.eq.2)", "ctid=eq.1"]
)
def test_the_worker_refuses_system_columns(stack: Stack, tmp_path: Path, query: str) -> None:
    assert ask_worker(stack, tmp_path, f"/rest/v1/projects?{query}", as_cleo(stack))["status"] == 400


@pytest.mark.parametrize(("sent", "forwarded"), [
    ("count=planned", "count=exact"), ("return=minimal,count=estimated,handling=strict", "return=minimal,count=exact,handling=strict"),
    ("count=planned, count=estimated", "count=exact"), ("count=exact,count=planned", "count=exact"), ("Count=Planned", "count=exact"),
    ("return=representation", "return=representation"), ("", ""),
])  # fmt: skip
def test_the_expressions_for_nginx_leave_no_estimate(sent: str, forwarded: str) -> None:
    """Nginx itself is not here. Like it, this takes the first expression that matches."""
    [block] = re.findall(r"^map \$http_prefer .*?^}", PAGE, re.MULTILINE | re.DOTALL)
    result = sent
    for expression, value in re.findall(r'^ +"~\*(.*)" "(.*)";$', block, re.MULTILINE):
        if match := re.search(expression.replace("(?<", "(?P<"), sent, re.IGNORECASE):
            result = re.sub(r"\$\{(\w+)\}", lambda name: match[name[1]], value)
            break
    assert result == forwarded
