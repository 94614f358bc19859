"""The health of a database, in traffic lights: whether it is what the files say, and every row of ops.health.

The rules are in the views ops.<subject>_health, which ops.health lists. A new view shows by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql
from psycopg.rows import dict_row

from scripts.errors import Failure
from scripts.schema import migrations
from scripts.schema.database import Connection, connect

Light = Literal["green", "yellow", "red"]
LIGHTS: tuple[Light, ...] = ("green", "yellow", "red")
CURRENT_STATES = {"applied", "current"}

METRICS_TIMEOUT = httpx.Timeout(5)
# Of the answers that the cache was asked for: more than so many past Redis, and Redis is in trouble.
MAX_ERROR_SHARE = 0.1

# Nobody needs these where a developer plays: what is missing there is said, and is no failure.
PRODUCTION_CHECKS = {"backup", "job", "mail"}


@dataclass(frozen=True)
class Check:
    """A row of `ballast status`: what was looked at, how it is, what was found, and what to do."""

    name: str
    status: Light
    advice: str
    facts: dict[str, Any]


def run_checks(url: str, *, is_local: bool) -> list[Check]:
    """Every check of the database, of which only the first when it does not answer or was never migrated."""
    try:
        files = check_migrations(url)
        with connect(url) as connection:
            found = [files, *read_health_views(connection)]
    except Failure as failure:
        return [Check("database", "red", str(failure), {})]
    return [_relax_for_local_stack(each) if is_local else each for each in found]


def check_migrations(url: str) -> Check:
    """Whether every file is applied as it is. Locks nothing: `ballast migrate check` finds drift, and does."""
    states = migrations.list_states(url)
    behind = Counter(state for _, state in states if state not in CURRENT_STATES)
    if not behind:
        return Check("migrations", "green", "OK.", {"files": len(states)})
    is_undecided = behind.keys() & migrations.ADVICE.keys()
    advice = "Run `ballast migrate status`." if is_undecided else "Run `ballast migrate up`."
    return Check("migrations", "red", advice, {"files": len(states), **behind})


def read_health_views(connection: Connection) -> Iterator[Check]:
    """A check per row of ops.health, by name, with the facts of ops.<subject>_health. None before `migrate up`."""
    if connection.execute("select to_regclass('ops.health')").fetchone() == (None,):
        return
    for subject, status, advice in connection.execute("select * from ops.health order by subject").fetchall():
        query = sql.SQL("select * from {}").format(sql.Identifier("ops", f"{subject}_health"))
        row = connection.cursor(row_factory=dict_row).execute(query).fetchone() or {}
        facts = {name: value for name, value in row.items() if name not in {"status", "advice"}}
        yield Check(subject, status, advice, facts)


def check_cache(environment: Mapping[str, str]) -> Check | None:
    """How often the service's cache knew the answer, since it started. None without SERVICE_URL and METRICS_TOKEN."""
    url, token = environment.get("SERVICE_URL"), environment.get("METRICS_TOKEN")
    if not url or not token:
        return None
    try:
        answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=METRICS_TIMEOUT)
        answer.raise_for_status()
        did = {
            sample.labels["what"]: int(sample.value)
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == "ballast_cache_total"
        }
    except (httpx.HTTPError, ValueError):
        return Check("cache", "yellow", "The service shows no /metrics: see SERVICE_URL and METRICS_TOKEN.", {})
    hits, misses, errors = (did.get(what, 0) for what in ("hits", "misses", "errors"))
    asked = hits + misses + errors
    facts = {"hit_rate": f"{hits / asked:.0%}" if asked else None, "hits": hits, "misses": misses, "errors": errors}
    if errors > MAX_ERROR_SHARE * asked:
        return Check("cache", "yellow", "Redis does not answer as it should: run `ballast doctor`.", facts)
    return Check("cache", "green", "OK.", facts)


def find_worst_light(found: list[Check]) -> Light:
    """The light of all of them."""
    return max((each.status for each in found), key=LIGHTS.index, default="green")


def format_facts(facts: dict[str, Any]) -> str:
    """What was found on one line: `received 24h 12, lag 1 s`. What is null or nought is left out."""
    said = (
        f"{name.replace('_', ' ')} {_format_value(value)}" for name, value in facts.items() if value or value is False
    )
    return ", ".join(said)


def _format_value(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, timedelta):
        return _format_duration(value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _format_duration(length: timedelta) -> str:
    seconds = length.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _relax_for_local_stack(check: Check) -> Check:
    if check.name in PRODUCTION_CHECKS and check.status == "red":
        return replace(check, status="yellow")
    return check
