"""Whether the variables are complete and the keys are in their places."""

from __future__ import annotations

from scripts.health.context import CheckFailed, Context, read_claims, use_environment
from service.settings import SettingsInvalid, load


def check_settings(context: Context) -> str:
    """Every variable is there and of its form, as the service asks at its start."""
    with use_environment(context.environment):
        try:
            loaded = load()
        except SettingsInvalid as failure:
            raise CheckFailed(str(failure), "Set them as .env.example says, and start the service anew.") from None
    missing = loaded.missing_for_backups()
    note = f" No backups are made without {', '.join(missing)}." if missing else ""
    return f"Complete for {loaded.environment}.{note}"


def check_keys(context: Context) -> str:
    """The publishable key is no secret one, and Clerk's are those of an instance for this environment."""
    publishable, secret = context["SUPABASE_PUBLISHABLE_KEY"], context["SUPABASE_SECRET_KEY"]
    if _read_role(publishable) != "anon":
        raise CheckFailed(
            "SUPABASE_PUBLISHABLE_KEY is not the publishable key: browsers would get what passes by every policy.",
            "Take sb_publishable_… of Project settings → API keys. If the other one was ever published, revoke it.",
        )
    if _read_role(secret) != "service_role":
        raise CheckFailed(
            "SUPABASE_SECRET_KEY is not a secret key.", "Take sb_secret_… of Supabase's Project settings → API keys."
        )
    clerk = context["CLERK_SECRET_KEY"]
    if context.environment.get("ENVIRONMENT") == "production" and not clerk.startswith("sk_live_"):
        raise CheckFailed(
            "CLERK_SECRET_KEY is a development instance's: deletions at Clerk would find nobody.",
            "Take sk_live_… of the production instance, and its Frontend API URL as CLERK_ISSUER.",
        )
    return "Publishable, secret and Clerk's key are each of their kind."


def _read_role(key: str) -> str:
    """What an API key stands for: anon or service_role. Older keys are JWTs that say so."""
    if not key.startswith("eyJ"):
        return "anon" if key.startswith("sb_publishable_") else "service_role" if key.startswith("sb_secret_") else ""
    return str(read_claims(key).get("role", ""))
