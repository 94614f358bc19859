"""Checks that Clerk and Supabase's Data API accept the configured keys and tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import httpx

from scripts.health.context import (
    TIMEOUT,
    CheckFailed,
    CheckSkipped,
    CheckWarned,
    Context,
    join_some,
    parse_json,
    read_claims,
    read_error_message,
)
from scripts.schema import database
from service.clerk_api import API_VERSION, CLERK_API_URL

# Clerk's Supabase integration adds this role to session tokens. PostgREST uses whatever role a token contains.
EXPECTED_ROLE = "authenticated"
# PostgREST's errors about a token's exp, nbf and iat.
CLOCK_ERRORS = re.compile("JWT (expired|not yet valid|issued at future)")
CLERK_REMEDY = "Check CLERK_SECRET_KEY, and CLERK_API_URL if you set it."


def check_clerk_keys(context: Context) -> str:
    """Checks that Clerk's JWKS has keys for RS256, which verify its tokens."""
    url = f"{context['CLERK_ISSUER'].rstrip('/')}/.well-known/jwks.json"
    remedy = "Set CLERK_ISSUER to the Frontend API URL from Clerk's dashboard (API keys), without a path."
    answer = httpx.get(url, timeout=TIMEOUT)
    keys = parse_json(answer).get("keys") if answer.is_success else None
    if not isinstance(keys, list):
        raise CheckFailed(f"{url} returns {answer.status_code} without keys.", remedy)
    usable = [key for key in keys if key.get("kty") == "RSA" and key.get("alg", "RS256") == "RS256" and key.get("kid")]
    if not usable:
        raise CheckFailed(f"{url} has no key for RS256.", remedy)
    return f"{len(usable)} key{'' if len(usable) == 1 else 's'} for RS256."


def check_publishable_key(context: Context) -> str:
    """Checks that a call with the key reaches the database, and is refused there: anon has no grants."""
    answer = _call_data_api(context, "GET", "role_permissions?limit=1", context["SUPABASE_PUBLISHABLE_KEY"])
    if answer.is_success and parse_json(answer, list):
        raise CheckFailed(
            "Anonymous callers can read public.role_permissions.",
            "Run `ballast migrate check`: a grant has drifted.",
        )
    if answer.is_success or parse_json(answer).get("code") == "42501":
        return "The Data API answers, and returns nothing to anonymous callers."
    raise CheckFailed(
        f"The Data API returns {answer.status_code}: {read_error_message(answer)}",
        "Check SUPABASE_URL and SUPABASE_PUBLISHABLE_KEY, and that the Data API is on and public is an exposed schema.",
    )


def check_secret_key(context: Context) -> str:
    """Checks that public.ready() returns true for the service."""
    answer = _call_data_api(context, "POST", "rpc/ready", context["SUPABASE_SECRET_KEY"])
    if answer.is_success and answer.text.strip() == "true":
        return "The service reaches the database with it."
    raise CheckFailed(
        f"public.ready() returns {answer.status_code}: {read_error_message(answer)}",
        "Check SUPABASE_SECRET_KEY; if it is right, run `ballast migrate up` and `notify pgrst, 'reload schema'`.",
    )


def check_third_party_auth(context: Context) -> str:
    """Checks that the Data API accepts a Clerk session token."""
    answer = httpx.post(
        _build_data_api_url(context, "rpc/my_permissions"),
        headers={
            "apikey": context["SUPABASE_PUBLISHABLE_KEY"],
            "Authorization": f"Bearer {_find_session_token(context)}",
        },
        timeout=TIMEOUT,
    )
    if answer.is_success:
        return "The Data API accepts a Clerk session token."
    message = read_error_message(answer)
    if CLOCK_ERRORS.search(message):
        raise CheckFailed(
            f"The Data API rejects a Clerk session token for its time: {message}",
            "If the token is less than a minute old, this is clock skew: the check `clocks` names the wrong clock.",
        )
    raise CheckFailed(
        f"The Data API rejects a Clerk session token with {answer.status_code}: {message}",
        "Enter CLERK_ISSUER in Supabase under Authentication → Third-party auth → Clerk. Activate Clerk's Supabase "
        'integration, which adds "role": "authenticated" to tokens. A token is valid for 60 seconds.',
    )


def check_session_token_role(context: Context) -> str:
    """Checks that the claim `role` of a session token is "authenticated", and not taken from a user's metadata."""
    role = read_claims(_find_session_token(context)).get("role")
    if role == EXPECTED_ROLE:
        return f'A session token has the role "{EXPECTED_ROLE}".'
    raise CheckFailed(
        f"A session token has the role {json.dumps(role)[:100]}.",
        "In Clerk, remove `role` from Sessions → Customize session token, and activate the Supabase integration, which "
        f'sets "{EXPECTED_ROLE}". Use another claim for your own roles.',
    )


def check_instance(context: Context) -> str:
    """Checks that the database accepts events of one instance only, the one to which CLERK_SECRET_KEY belongs."""
    answer = _call_clerk(context, "instance")
    instance = parse_json(answer).get("id") if answer.is_success else None
    if not isinstance(instance, str):
        raise CheckFailed(
            f"Clerk returns {answer.status_code} instead of its instance: {read_error_message(answer)}", CLERK_REMEDY
        )
    with database.connect(context.database_url) as connection:
        row = connection.execute("select clerk_instance_id from app.settings").fetchone()
    pinned = row[0] if row else None
    remedy = f"In the SQL editor: update app.settings set clerk_instance_id = '{instance}'."  # noqa: S608 - advice, which is not run
    if pinned is None and context.is_local:
        return f"Not pinned to {instance}: the local stack accepts events of any instance."
    if pinned is None:
        raise CheckFailed("No Clerk instance is pinned: the examples of Clerk's dashboard would change rows.", remedy)
    if pinned != instance:
        raise CheckFailed(
            f"{pinned} is pinned, but CLERK_SECRET_KEY belongs to {instance}, whose events are ignored.",
            f"Use the key of {pinned}. If the key is right: {remedy}",
        )
    return f"Only events of {instance} are applied."


def check_clerk_roles(context: Context) -> str:
    """Checks that each role in Clerk is mapped, and that one of them maps to each role that may be invited."""
    answer = _call_clerk(context, "organization_roles?limit=500")
    listed = parse_json(answer).get("data") if answer.is_success else None
    if not isinstance(listed, list):
        raise CheckFailed(
            f"Clerk returns {answer.status_code} instead of its roles: {read_error_message(answer)}", CLERK_REMEDY
        )
    keys = sorted(each["key"] for each in listed)
    with database.connect(context.database_url) as connection:
        mapped = dict(connection.execute("select key, role from app.clerk_roles").fetchall())
        invitable = connection.execute("select key from public.roles where may_be_invited order by rank desc")
        missing = [key for (key,) in invitable if key not in {mapped.get(each) for each in keys}]
    if unmapped := [key for key in keys if key not in mapped]:
        raise CheckWarned(
            f"Not mapped, so their members have the lowest role: {join_some(unmapped)}.",
            f"In the SQL editor: insert into app.clerk_roles values ('{unmapped[0]}', 'member'), or another role.",  # noqa: S608 - advice
        )
    if missing:
        raise CheckWarned(
            f"No role in Clerk maps to {join_some(missing)}, so no one can be invited in it.",
            f"Create org:{missing[0]} in Clerk (docs/deploy.md, section 1). Without custom roles, in the SQL editor: "  # noqa: S608 - advice
            f"update public.roles set may_be_invited = false where key = '{missing[0]}'.",
        )
    return f"{len(keys)} in Clerk, each mapped."


def check_jwt_templates(context: Context) -> str:
    """Checks that no JWT template sets another role. Clerk's API does not list the claims of session tokens."""
    answer = _call_clerk(context, "jwt_templates?limit=500")
    if not answer.is_success or not isinstance(parse_json(answer, object), list):
        raise CheckFailed(
            f"Clerk returns {answer.status_code} instead of its JWT templates: {read_error_message(answer)}",
            CLERK_REMEDY,
        )
    roles = {template["name"]: template["claims"].get("role", EXPECTED_ROLE) for template in answer.json()}
    if odd := [name for name, role in roles.items() if role != EXPECTED_ROLE]:
        raise CheckFailed(
            f"JWT templates in Clerk set another role than {EXPECTED_ROLE}: {join_some(odd)}.",
            f'In Clerk, under JWT templates, remove the claim `role` or set it to "{EXPECTED_ROLE}".',
        )
    return f"{len(roles)} in Clerk; none sets another role."


def _find_session_token(context: Context) -> str:
    if context.session_token:
        return context.session_token
    mint_token = context.local.mint_token if context.local else None
    if mint_token is None or context.environment.get("ENVIRONMENT") != "local":
        raise CheckSkipped("Pass --session-token with the result of `await Clerk.session.getToken()` in a browser.")
    with database.connect(context.database_url) as connection:
        row = connection.execute(
            "select clerk_user_id from public.profiles where not banned order by created_at limit 1"
        ).fetchone()
    if row is None:
        raise CheckSkipped("The local stack has no active user: run `ballast seed`.")
    return mint_token(row[0])


def check_exposed_schemas(context: Context) -> str:
    """Checks that the Data API does not expose the schemas app and ops."""
    for schema, relation in (("app", "settings"), ("ops", "tenants")):
        answer = _call_data_api(
            context, "GET", f"{relation}?limit=1", context["SUPABASE_SECRET_KEY"], {"Accept-Profile": schema}
        )
        if parse_json(answer).get("code") != "PGRST106":
            raise CheckFailed(
                f"The Data API exposes the schema {schema} ({answer.status_code}).",
                "Remove it from the exposed schemas in Supabase: Project settings → Data API.",
            )
    return "app and ops are not exposed."


def _call_clerk(context: Context, path: str) -> httpx.Response:
    return httpx.get(
        f"{(context.environment.get('CLERK_API_URL') or CLERK_API_URL).rstrip('/')}/v1/{path}",
        headers={"Authorization": f"Bearer {context['CLERK_SECRET_KEY']}", "Clerk-API-Version": API_VERSION},
        timeout=TIMEOUT,
    )


def _build_data_api_url(context: Context, path: str) -> str:
    return f"{context['SUPABASE_URL'].rstrip('/')}/rest/v1/{path}"


def _call_data_api(
    context: Context, method: str, path: str, key: str, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    # As in the service: Supabase's gateway accepts a key that is not a JWT as bearer token if it equals the apikey.
    sent = {"apikey": key, "Authorization": f"Bearer {key}"} | dict(headers or {})
    return httpx.request(method, _build_data_api_url(context, path), headers=sent, timeout=TIMEOUT)
