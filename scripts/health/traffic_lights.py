"""The health of a database as traffic lights: whether every file is applied, and every row of ops.health.

The rules are in the views ops.<subject>_health, which ops.health lists. New views appear automatically.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql
from psycopg.rows import dict_row

from scripts.errors import Failure
from scripts.schema import history, migrations
from scripts.schema.database import Connection, connect

Light = Literal["green", "yellow", "red"]
LIGHTS: tuple[Light, ...] = ("green", "yellow", "red")
CURRENT_STATES = {"applied", "current"}

METRICS_TIMEOUT = httpx.Timeout(5)
# Without space for WAL, PostgreSQL stops. The stack's logs and backups are on the same disk.
MIN_FREE_BYTES = 500_000_000
LOW_FREE_BYTES = 2_000_000_000
# If Redis fails for a larger share of cache requests, the cache is yellow.
MAX_ERROR_SHARE = 0.1

# By the label `state` of the service's metric ballast_redis_up.
REDIS_ADVICE = {
    "unreachable": "The service does not reach Redis: check its UPSTASH_REDIS_REST_URL, and that Redis is running.",
    "hanging": "Redis hangs: it accepts connections and does not answer. Look at its load, or restart it.",
    "invalid": "Redis returns errors or no Redis answers: check the service's UPSTASH_REDIS_REST_… variables.",
}

# A local stack does not need these: there, a missing one is yellow instead of red.
PRODUCTION_CHECKS = {"backup", "job", "mail"}


@dataclass(frozen=True)
class Check:
    """A row of `ballast status`: the subject, its light, the advice, and the facts."""

    name: str
    status: Light
    advice: str
    facts: dict[str, Any]


def run_checks(url: str, *, is_local: bool, environment: Mapping[str, str]) -> list[Check]:
    """Runs every check. Returns only one of the database if it does not answer or was never migrated."""
    cache = check_cache(environment)
    return [*_check_database(url, is_local=is_local), *([cache] if cache else [])]


def _check_database(url: str, *, is_local: bool) -> list[Check]:
    try:
        files = check_migrations(url)
        with connect(url) as connection:
            found = [files, *read_health_views(connection)]
            found += check_disk(connection) if is_local else check_instance(connection)
    except Failure as failure:
        return [Check("database", "red", str(failure), {})]
    return [_relax_for_local_stack(each) if is_local else each for each in found]


def check_migrations(url: str) -> Check:
    """Checks that every file is applied. Takes no locks, unlike `ballast migrate check`, which also finds drift."""
    states = migrations.list_states(url)
    behind = Counter(state for _, state in states if state not in CURRENT_STATES)
    if not behind:
        return Check("migrations", "green", "OK.", {"files": len(states)})
    is_undecided = behind.keys() & history.ADVICE.keys()
    advice = "Run `ballast migrate status`." if is_undecided else "Run `ballast migrate up`."
    return Check("migrations", "red", advice, {"files": len(states), **behind})


def read_health_views(connection: Connection) -> Iterator[Check]:
    """Yields a check per row of ops.health, with the facts of ops.<subject>_health. Empty before `migrate up`."""
    if connection.execute("select to_regclass('ops.health')").fetchone() == (None,):
        return
    for subject, status, advice in connection.execute("select * from ops.health order by subject").fetchall():
        query = sql.SQL("select * from {}").format(sql.Identifier("ops", f"{subject}_health"))
        row = connection.cursor(row_factory=dict_row).execute(query).fetchone() or {}
        facts = {name: value for name, value in row.items() if name not in {"status", "advice"}}
        yield Check(subject, status, advice, facts)


def check_disk(connection: Connection) -> Iterator[Check]:
    """Checks how much space the disk of a database on this machine has left. SQL cannot see that.

    Yields nothing for a database in a container, whose folder is not here.
    """
    [[folder]] = connection.execute("show data_directory").fetchall()
    if not Path(folder).exists():
        return
    free = shutil.disk_usage(folder).free
    status: Light = "red" if free < MIN_FREE_BYTES else "yellow" if free < LOW_FREE_BYTES else "green"
    advice = "OK." if status == "green" else f"The disk of {folder} is almost full: delete files on it."
    yield Check("disk", status, advice, {"free": f"{free / 1e9:.1f} GB"})


def check_instance(connection: Connection) -> Iterator[Check]:
    """Checks that the database accepts events of one Clerk instance only. Yields nothing before `migrate up`.

    A local stack accepts those of any instance. `ballast doctor` also compares the instance with CLERK_SECRET_KEY.
    """
    if connection.execute("select to_regclass('app.settings')").fetchone() == (None,):
        return
    [[pinned]] = connection.execute("select clerk_instance_id from app.settings").fetchall()
    if pinned is None:
        advice = (
            "No Clerk instance is pinned: the examples of Clerk's dashboard would change rows. In the SQL editor: "
            "update app.settings set clerk_instance_id = 'ins_…'. `ballast doctor` names the instance."
        )
        yield Check("clerk", "yellow", advice, {})
    else:
        yield Check("clerk", "green", "OK.", {"instance": pinned})


def check_cache(environment: Mapping[str, str]) -> Check | None:
    """Returns the service's cache hit rate since its start; None without SERVICE_URL and METRICS_TOKEN."""
    url, token = environment.get("SERVICE_URL"), environment.get("METRICS_TOKEN")
    if not url or not token:
        return None
    try:
        answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=METRICS_TIMEOUT)
        answer.raise_for_status()
        samples = [each for family in text_string_to_metric_families(answer.text) for each in family.samples]
        did = {each.labels["what"]: int(each.value) for each in samples if each.name == "ballast_cache_total"}
        redis = next((each.labels["state"] for each in samples if each.name == "ballast_redis_up"), "up")
    except (httpx.HTTPError, ValueError):
        return Check("cache", "yellow", "/metrics is not available: check SERVICE_URL and METRICS_TOKEN.", {})
    hits, misses, errors = (did.get(what, 0) for what in ("hits", "misses", "errors"))
    asked = hits + misses + errors
    facts = {"hit_rate": f"{hits / asked:.0%}" if asked else None, "hits": hits, "misses": misses, "errors": errors}
    if redis != "up":
        return Check("cache", "yellow", REDIS_ADVICE[redis], facts)
    if errors > MAX_ERROR_SHARE * asked:
        return Check("cache", "yellow", "Redis fails for many requests: run `ballast doctor`.", facts)
    return Check("cache", "green", "OK.", facts)


def find_worst_light(found: list[Check]) -> Light:
    """Returns the worst light of all checks; green if there are none."""
    return max((each.status for each in found), key=LIGHTS.index, default="green")


def format_facts(facts: dict[str, Any]) -> str:
    """Formats facts on one line: `received 24h 12, lag 1 s`. Null and zero values are omitted."""
    facts_with_values = (
        f"{name.replace('_', ' ')} {_format_value(value)}" for name, value in facts.items() if value or value is False
    )
    return ", ".join(facts_with_values)


def _format_value(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, timedelta):
        return _format_duration(value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _format_duration(length: timedelta) -> str:
    """Formats 90 minutes as `90 min`, and 30 hours as `30 h`."""
    seconds = length.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _relax_for_local_stack(check: Check) -> Check:
    if check.name in PRODUCTION_CHECKS and check.status == "red":
        return replace(check, status="yellow")
    return check
