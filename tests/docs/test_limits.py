"""docs/limits.md: its table matches the service's limits, and its example caches an answer in a running Redis."""

from __future__ import annotations

import re
import secrets
from typing import Any

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
