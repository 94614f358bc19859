"""Runs the checks of `ballast doctor`.

Each check passes, fails with a remedy, or is skipped. Checks change nothing, except that the service stores a ping per
webhook secret.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx

from scripts.errors import Failure
from scripts.health.checks_backups import check_encryption, check_pg_dump, check_store
from scripts.health.checks_clerk import (
    check_clerk_keys,
    check_exposed_schemas,
    check_instance,
    check_jwt_templates,
    check_publishable_key,
    check_secret_key,
    check_session_token_role,
    check_third_party_auth,
)
from scripts.health.checks_database import (
    check_advisors,
    check_migrations,
    check_role_timeouts,
)
from scripts.health.checks_service import (
    check_jobs_token,
    check_redis,
    check_service,
    check_webhook_secrets,
)
from scripts.health.checks_settings import check_keys, check_settings
from scripts.health.context import CheckFailed, CheckSkipped, Context, Finding

CHECKS: dict[str, Callable[[Context], str]] = {
    "settings": check_settings,
    "keys": check_keys,
    "Clerk's keys": check_clerk_keys,
    "publishable key": check_publishable_key,
    "secret key": check_secret_key,
    "third-party auth": check_third_party_auth,
    "role claim": check_session_token_role,
    "Clerk instance": check_instance,
    "JWT templates": check_jwt_templates,
    "exposed schemas": check_exposed_schemas,
    "role timeouts": check_role_timeouts,
    "migrations": check_migrations,
    "advisors": check_advisors,
    "pg_dump": check_pg_dump,
    "backup store": check_store,
    "recipients": check_encryption,
    "service": check_service,
    "webhook secret": check_webhook_secrets,
    "jobs token": check_jobs_token,
    "Redis": check_redis,
}


def run_checks(context: Context) -> list[Finding]:
    """Runs every check, even if others fail."""
    return [run_check(name, context) for name in CHECKS]


def run_check(name: str, context: Context) -> Finding:
    """Runs one check."""
    try:
        return Finding(name, "passed", context.redact(CHECKS[name](context)))
    except CheckSkipped as reason:
        return Finding(name, "skipped", context.redact(str(reason)))
    except CheckFailed as failure:
        return Finding(name, "failed", context.redact(failure.found), context.redact(failure.remedy))
    except Failure as failure:
        found, _, remedy = str(failure).partition("\n")
        return Finding(name, "failed", context.redact(found), context.redact(remedy))
    except httpx.HTTPError as failure:
        found = f"The server does not answer: {type(failure).__name__}."
        return Finding(name, "failed", found, "Check the URL, and that this machine can reach it.")
    except (httpx.InvalidURL, ValueError) as failure:  # the message may quote the value
        found = f"A variable of this check is malformed: {type(failure).__name__}."
        return Finding(name, "failed", found, "Compare the variables with .env.example.")
