"""Every check of `ballast doctor`.

Each ends as passed, failed or skipped, with the remedy. None changes anything; the service stores a ping for each
webhook secret.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx

from scripts.errors import Failure
from scripts.health.checks_backups import a_pg_dump_fits, backups_are_encrypted, the_store_is_reachable
from scripts.health.checks_clerk import (
    clerk_publishes_its_keys,
    jwt_templates_have_the_role_of_people,
    only_public_is_exposed,
    session_tokens_have_the_role_of_people,
    supabase_trusts_clerk,
    the_data_api_knows_the_publishable_key,
    the_data_api_knows_the_secret_key,
)
from scripts.health.checks_database import (
    statements_of_people_end,
    the_advisors_are_content,
    the_schema_is_as_the_files_say,
)
from scripts.health.checks_service import (
    redis_answers,
    the_scheduler_is_let_in,
    the_service_is_ready,
    the_service_knows_the_webhook_secrets,
)
from scripts.health.checks_settings import keys_are_in_their_places, settings_are_complete
from scripts.health.patient import CheckFailed, CheckSkipped, Finding, Patient

CHECKS: dict[str, Callable[[Patient], str]] = {
    "settings": settings_are_complete,
    "keys": keys_are_in_their_places,
    "Clerk's keys": clerk_publishes_its_keys,
    "publishable key": the_data_api_knows_the_publishable_key,
    "secret key": the_data_api_knows_the_secret_key,
    "third-party auth": supabase_trusts_clerk,
    "role claim": session_tokens_have_the_role_of_people,
    "JWT templates": jwt_templates_have_the_role_of_people,
    "exposed schemas": only_public_is_exposed,
    "role timeouts": statements_of_people_end,
    "migrations": the_schema_is_as_the_files_say,
    "advisors": the_advisors_are_content,
    "pg_dump": a_pg_dump_fits,
    "backup store": the_store_is_reachable,
    "recipients": backups_are_encrypted,
    "service": the_service_is_ready,
    "webhook secret": the_service_knows_the_webhook_secrets,
    "jobs token": the_scheduler_is_let_in,
    "Redis": redis_answers,
}


def examined(patient: Patient) -> list[Finding]:
    """Runs every check, whatever becomes of the others."""
    return [examine(name, patient) for name in CHECKS]


def examine(name: str, patient: Patient) -> Finding:
    """Runs one check."""
    try:
        return Finding(name, "passed", patient.hidden(CHECKS[name](patient)))
    except CheckSkipped as reason:
        return Finding(name, "skipped", patient.hidden(str(reason)))
    except CheckFailed as failure:
        return Finding(name, "failed", patient.hidden(failure.found), patient.hidden(failure.remedy))
    except Failure as failure:
        found, _, remedy = str(failure).partition("\n")
        return Finding(name, "failed", patient.hidden(found), patient.hidden(remedy))
    except httpx.HTTPError as failure:
        found = f"No answer: {type(failure).__name__}."
        return Finding(name, "failed", found, "Check the URL, and the way to it from here.")
