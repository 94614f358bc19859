"""Checks that the variables are complete, and that each key has the right kind."""

from __future__ import annotations

from scripts.health.context import CheckFailed, Context, read_claims, use_environment
from service.settings import SettingsInvalid, load


def check_settings(context: Context) -> str:
    """Checks every variable, as the service does when it starts."""
    with use_environment(context.environment):
        try:
            loaded = load()
        except SettingsInvalid as failure:
            raise CheckFailed(str(failure), "Set them as .env.example describes, and restart the service.") from None
    missing = loaded.missing_for_backups()
    note = f" Backups also need {', '.join(missing)}." if missing else ""
    return f"Complete for {loaded.environment}.{note}"


def check_keys(context: Context) -> str:
    """Checks that no keys are swapped, and that production has a production key of Clerk."""
    publishable, secret = context["SUPABASE_PUBLISHABLE_KEY"], context["SUPABASE_SECRET_KEY"]
    if _read_role(publishable) != "anon":
        raise CheckFailed(
            "SUPABASE_PUBLISHABLE_KEY is not a publishable key: browsers would get a key that bypasses all policies.",
            "Copy sb_publishable_… from Project settings → API keys. If a secret key was published, revoke it.",
        )
    if _read_role(secret) != "service_role":
        raise CheckFailed(
            "SUPABASE_SECRET_KEY is not a secret key.", "Copy sb_secret_… from Supabase's Project settings → API keys."
        )
    clerk = context["CLERK_SECRET_KEY"]
    if context.environment.get("ENVIRONMENT") == "production" and not clerk.startswith("sk_live_"):
        raise CheckFailed(
            "CLERK_SECRET_KEY belongs to a development instance, which does not have the production users.",
            "Copy sk_live_… from the production instance, and set CLERK_ISSUER to its Frontend API URL.",
        )
    return "The publishable, secret and Clerk keys have the right kind."


def _read_role(key: str) -> str:
    """Returns the role of an API key: anon or service_role. Older keys are JWTs with this claim."""
    if not key.startswith("eyJ"):
        return "anon" if key.startswith("sb_publishable_") else "service_role" if key.startswith("sb_secret_") else ""
    return str(read_claims(key).get("role", ""))
