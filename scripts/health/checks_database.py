"""Whether the database is as the files say, and its statements end."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from scripts.health.context import CheckFailed, CheckSkipped, Context, join_some
from scripts.schema import database, drift, migrations

# Supabase's own.
STATEMENT_TIMEOUTS = {"anon": "3s", "authenticated": "8s"}
ADVISORS = migrations.ROOT / "node_modules/.bin/supabase"
ACCEPTED_ADVICE = migrations.ROOT / "tests/db/accepted_advice.toml"


def check_role_timeouts(context: Context) -> str:
    """A statement through the Data API is ended after a while."""
    with database.connect(context.database_url) as connection:
        # What is set for this database alone comes later, and counts.
        found = dict(
            connection.execute(
                "select r.rolname, split_part(c, '=', 2) from pg_db_role_setting as s "
                "join pg_roles as r on r.oid = s.setrole cross join unnest(s.setconfig) as c "
                "where r.rolname in ('anon', 'authenticated') and c like 'statement_timeout=%' and s.setdatabase in "
                "(0, (select oid from pg_database where datname = current_database())) order by s.setdatabase"
            ).fetchall()
        )
    unlimited = [role for role in STATEMENT_TIMEOUTS if found.get(role) in {None, "0"}]
    if unlimited:
        raise CheckFailed(
            f"Without a statement_timeout: {', '.join(unlimited)}. One slow query would hold a connection for ever.",
            "; ".join(f"alter role {role} set statement_timeout = '{STATEMENT_TIMEOUTS[role]}'" for role in unlimited)
            + "; notify pgrst, 'reload config'.",
        )
    return ", ".join(f"{role} {limit}" for role, limit in sorted(found.items()))


def check_migrations(context: Context) -> str:
    """Every migration is applied, and nothing has drifted. Locks tables for a moment, as `ballast migrate check`."""
    plan, drifted = drift.check(context.database_url)
    if not plan.is_empty:
        pending = [*plan.paths, *plan.removed]
        raise CheckFailed(f"Not applied: {join_some(pending)}.", "Run `ballast migrate up`.")
    if drifted:
        raise CheckFailed(
            f"Drifted: {join_some([f'{each.kind} {each.name} ({each.problem})' for each in drifted])}.",
            "See `ballast migrate check`: put what should stay into functions/ or policies/; drop what is undeclared.",
        )
    return f"{len(plan.files.migrations)} migrations, {len(plan.files.sources)} sources, no drift."


def check_advisors(context: Context) -> str:
    """Supabase's lints find nothing but what is explained in tests/db/accepted_advice.toml."""
    if not ADVISORS.exists():
        raise CheckSkipped("The Supabase CLI is not here: `npm ci` in the checkout installs it.")
    url = context.database_url
    if context.is_local:
        url += "?sslmode=disable"
    command = [str(ADVISORS), "db", "advisors", f"--remote={url}", "--level", "warn", "--output-format", "json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        results = json.loads(ran.stdout)["results"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        raise CheckSkipped("`supabase db advisors` gave no answer. See Advisors in Supabase's dashboard.") from None
    accepted = tomllib.loads(ACCEPTED_ADVICE.read_text())["accepted"] if ACCEPTED_ADVICE.exists() else []
    unexplained = [found["detail"] for found in results if not any(_is_accepted(entry, found) for entry in accepted)]
    if unexplained:
        raise CheckFailed(
            join_some(unexplained), "See Advisors in Supabase's dashboard: each has a page on what to do."
        )
    return "Nothing that is not explained."


def _is_accepted(entry: Mapping[str, str], finding: Mapping[str, Any]) -> bool:
    place = f"{finding['metadata'].get('schema')}.{finding['metadata'].get('name')}"
    return entry["advice"] == finding["name"] and fnmatchcase(place, entry["on"])
