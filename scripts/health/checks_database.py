"""Checks that the database matches the files, and that Supabase's advisors find nothing unexplained."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from scripts.backup.programs import split_password
from scripts.health.context import CheckFailed, CheckSkipped, Context, join_some
from scripts.schema import drift, sql_files
from scripts.schema.database import connect
from service.mail import find_faults

ADVISORS = sql_files.ROOT / "node_modules/.bin/supabase"
# Ballast's file, and a product's own: accepted_advice.<name>.toml.
ACCEPTED_ADVICE = "tests/db/accepted_advice*.toml"


def check_migrations(context: Context) -> str:
    """Checks that every file is applied and nothing has drifted. Locks tables briefly, as `ballast migrate check`."""
    plan, drifted = drift.check(context.database_url)
    if not plan.is_empty:
        pending = [*plan.paths, *plan.removed]
        raise CheckFailed(f"Not applied: {join_some(pending)}.", "Run `ballast migrate up`.")
    if drifted:
        raise CheckFailed(
            f"Drifted: {join_some([f'{each.kind} {each.name} ({each.problem})' for each in drifted])}.",
            "Run `ballast migrate check`, which says how to correct it.",
        )
    return f"{len(plan.files.migrations)} migrations, {len(plan.files.sources)} sources, no drift."


def check_mail_kinds(context: Context) -> str:
    """Checks that each registered kind of mail has templates that use only its data, and that its function exists."""
    with connect(context.database_url) as connection:
        if connection.execute("select to_regclass('app.mail_kinds')").fetchone() == (None,):
            raise CheckSkipped("The table app.mail_kinds is missing: run `ballast migrate up`.")
        registered = connection.execute(
            "select k.kind, k.example, to_regprocedure(k.data_function || '(app.email_outbox)') is null "
            "and k.data_function is not null from app.mail_kinds as k"
        ).fetchall()
    faults = find_faults({kind: example for kind, example, _ in registered})
    faults += [f"The function for the data of {kind} is gone." for kind, _, is_gone in registered if is_gone]
    if faults:
        raise CheckFailed(join_some(faults), "Correct the files, then run `ballast migrate up`: docs/mail.md.")
    return f"{len(registered)} kinds of mail have matching templates."


def check_advisors(context: Context) -> str:
    """Checks that Supabase's advisors report only findings that tests/db/accepted_advice.toml explains."""
    if not ADVISORS.exists():
        raise CheckSkipped("The Supabase CLI is not installed: run `npm ci` in the checkout.")
    url, environment = split_password(context.database_url)
    if context.is_local:
        url += "?sslmode=disable"
    command = [str(ADVISORS), "db", "advisors", f"--remote={url}", "--level", "warn", "--output-format", "json"]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        results = json.loads(ran.stdout)["results"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        raise CheckSkipped("`supabase db advisors` failed: see Advisors in Supabase's dashboard.") from None
    files = sql_files.ROOT.glob(ACCEPTED_ADVICE)
    accepted = [entry for file in files for entry in tomllib.loads(file.read_text())["accepted"]]
    unexplained = [found["detail"] for found in results if not any(_is_accepted(entry, found) for entry in accepted)]
    if unexplained:
        raise CheckFailed(
            join_some(unexplained), "See Advisors in Supabase's dashboard: each finding links to its remedy."
        )
    return "No unexplained findings."


def _is_accepted(entry: Mapping[str, str], finding: Mapping[str, Any]) -> bool:
    place = f"{finding['metadata'].get('schema')}.{finding['metadata'].get('name')}"
    return entry["advice"] == finding["name"] and fnmatchcase(place, entry["on"])
