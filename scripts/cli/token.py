"""`ballast token`: prints a session token, as Clerk would issue it, from the Clerk stand-in of the running stack."""

from __future__ import annotations

import json

import click

from scripts.local.clerk.client import ClerkClient, require_stand_in
from scripts.local.stack import client_environment


@click.command(epilog="Example: ballast token --user user_ada --org org_acme")
@click.option("--user", "user_id", required=True, metavar="ID", help="The user to sign in as, for example user_ada.")
@click.option("--org", "organization_id", metavar="ID", help="The session's active organization, for example org_acme.")
@click.option("--second-factor/--no-second-factor", default=True, help="Whether a second factor was verified just now.")
@click.option(
    "--lifetime", default=60, show_default=True, metavar="SECONDS", help="Clerk tokens are valid for 60 seconds."
)
@click.option("--json", "as_json", is_flag=True, help="Print token and claims as JSON.")
def token(user_id: str, organization_id: str | None, second_factor: bool, lifetime: int, as_json: bool) -> None:
    """Print a session token as Clerk would issue it."""
    require_stand_in("Sign in there; `await Clerk.session.getToken()` in your page's console returns a token.")
    clerk = ClerkClient(client_environment()["CLERK_ISSUER"])
    issued = clerk.token(user_id, organization_id, second_factor=second_factor, lifetime=lifetime)
    click.echo(json.dumps(issued, indent=2) if as_json else issued["token"])
