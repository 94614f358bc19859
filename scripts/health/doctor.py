"""Runs the checks of `ballast doctor`: all lights of `ballast status`, and what only an outside view shows.

Each check passes, warns or fails with a remedy, or is skipped. Checks change nothing, except that the service stores a
ping per webhook secret.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx

from scripts.errors import Failure
from scripts.health import traffic_lights
from scripts.health.checks_backups import check_encryption, check_pg_dump, check_store
from scripts.health.checks_clerk import (
    check_clerk_keys,
    check_clerk_roles,
    check_exposed_schemas,
    check_instance,
    check_jwt_templates,
    check_publishable_key,
    check_secret_key,
    check_session_token_role,
    check_third_party_auth,
)
from scripts.health.checks_clocks import check_clocks
from scripts.health.checks_database import check_advisors, check_mail_kinds, check_migrations
from scripts.health.checks_service import (
    check_jobs,
    check_redis,
    check_service,
    check_webhook_secrets,
)
from scripts.health.checks_settings import check_keys, check_settings
from scripts.health.context import CheckFailed, CheckSkipped, CheckWarned, Context, Finding, Outcome

CHECKS: dict[str, Callable[[Context], str]] = {
    "settings": check_settings,
    "keys": check_keys,
    "clocks": check_clocks,
    "Clerk's keys": check_clerk_keys,
    "publishable key": check_publishable_key,
    "secret key": check_secret_key,
    "third-party auth": check_third_party_auth,
    "role claim": check_session_token_role,
    "Clerk instance": check_instance,
    "Clerk roles": check_clerk_roles,
    "JWT templates": check_jwt_templates,
    "exposed schemas": check_exposed_schemas,
    "migrations": check_migrations,
    "mail kinds": check_mail_kinds,
    "advisors": check_advisors,
    "pg_dump": check_pg_dump,
    "backup store": check_store,
    "recipients": check_encryption,
    "service": check_service,
    "webhook secret": check_webhook_secrets,
    "jobs": check_jobs,
    "Redis": check_redis,
}


# A red light fails here too, so `status` and `doctor` agree on every rule of ops.health.
OUTCOMES: dict[traffic_lights.Light, Outcome] = {"green": "passed", "yellow": "warning", "red": "failed"}


def run_checks(context: Context) -> list[Finding]:
    """Runs every check, even if others fail."""
    return [*(run_check(name, context) for name in CHECKS), *read_lights(context)]


def read_lights(context: Context) -> list[Finding]:
    """The lights of `ballast status`, each as a check `light: <name>`."""
    try:
        found = traffic_lights.run_checks(
            context.database_url, is_local=context.is_local, environment=context.environment
        )
    except CheckSkipped as reason:
        return [Finding("lights", "skipped", context.redact(str(reason)))]
    return [_convert_light(each, context) for each in found]


def _convert_light(check: traffic_lights.Check, context: Context) -> Finding:
    name, facts = f"light: {check.name}", context.redact(traffic_lights.format_facts(check.facts))
    if check.status == "green":
        return Finding(name, "passed", facts or "OK.")
    return Finding(name, OUTCOMES[check.status], facts or f"The light is {check.status}.", context.redact(check.advice))


def run_check(name: str, context: Context) -> Finding:
    """Runs one check."""
    try:
        return Finding(name, "passed", context.redact(CHECKS[name](context)))
    except CheckSkipped as reason:
        return Finding(name, "skipped", context.redact(str(reason)))
    except CheckFailed as failure:
        outcome: Outcome = "warning" if isinstance(failure, CheckWarned) else "failed"
        return Finding(name, outcome, context.redact(failure.found), context.redact(failure.remedy))
    except Failure as failure:
        found, _, remedy = str(failure).partition("\n")
        return Finding(name, "failed", context.redact(found), context.redact(remedy))
    except httpx.HTTPError as failure:
        found = f"The server does not answer: {type(failure).__name__}."
        return Finding(name, "failed", found, "Check the URL, and that this machine can reach it.")
    except (httpx.InvalidURL, ValueError) as failure:  # the message may quote the value
        found = f"A variable of this check is malformed: {type(failure).__name__}."
        return Finding(name, "failed", found, "Compare the variables with .env.example.")
