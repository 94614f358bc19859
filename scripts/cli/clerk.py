"""`ballast clerk`: an event, signed as Svix signs it, sent to the service, and what became of it; and the two commands
that read Clerk's directory: backfill.py, reconcile.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from scripts.clerk.backfill import backfill_command
from scripts.clerk.reconcile import reconcile_command
from scripts.errors import Failure
from scripts.local.clerk.client import ClerkClient, NotRunning
from scripts.local.stack import client_environment


class NotStored(Failure):
    """The service did not take the event."""


class InvalidData(Failure):
    """--data is not a JSON object."""

    exit_code = 2


@dataclass(frozen=True)
class Event:
    """What `send` sends. Without a message id each sending is a new message; `timestamp` is in milliseconds."""

    type: str
    data: dict[str, Any]
    message_id: str | None = None
    timestamp: int | None = None


@click.group(epilog="Example: ballast clerk send user.created")
def clerk() -> None:
    """Send signed Clerk events to the service, load Clerk's directory, compare with it."""


clerk.add_command(backfill_command)
clerk.add_command(reconcile_command)


@clerk.command("send", epilog="""Example: ballast clerk send user.created --data '{"id": "user_zoe"}'""")
@click.argument("event_type", metavar="TYPE")
@click.option("--data", default="{}", help="The event's data as JSON, @FILE, or - for standard input.")
@click.option("--message-id", help="Svix's id of the message. The same id again is a redelivery.")
@click.option("--timestamp", type=int, metavar="MS", help="When it happened, in milliseconds since 1970.")
@click.option("--json", "as_json", is_flag=True, help="Print the service's answer as JSON.")
def send_command(event_type: str, data: str, message_id: str | None, timestamp: int | None, as_json: bool) -> None:
    """Send an event of TYPE, for example user.created. Exits with 1 unless the service stored it.

    What the data lacks is filled in from what Clerk's stand-in knows.
    """
    answer = send(client_environment(), Event(event_type, _data(data), message_id, timestamp))
    click.echo(json.dumps(answer) if as_json else f"{answer['type']} {answer['message_id']}: {answer['outcome']}")


def send(environment: dict[str, str], event: Event) -> dict[str, Any]:
    """Completes, signs and posts the event once. Returns the service's answer {message_id, type, outcome}.

    Raises NotStored, and NotRunning when nobody answers.
    """
    from scripts.local.clerk import svix  # noqa: PLC0415 - sends by aiohttp, which the service's image does not have

    completed = ClerkClient(environment["CLERK_ISSUER"]).event(
        event.type, event.data, message_id=event.message_id, timestamp=event.timestamp
    )
    url = f"{environment['SERVICE_URL']}/webhooks/clerk"
    body = svix.body_of(completed["event"])
    headers = svix.signed_headers(environment["CLERK_WEBHOOK_SECRETS"].split(",")[0], completed["message_id"], body)
    try:
        answer = httpx.post(url, content=body, headers=headers, timeout=svix.ATTEMPT_SECONDS)
    except httpx.HTTPError as error:
        raise NotRunning(f"The service does not answer at {url} ({error}): see `ballast status`.") from None
    if answer.status_code != httpx.codes.OK:
        raise NotStored(f"The service answered {answer.status_code}, so the event is not stored: {answer.text[:500]}")
    stored: dict[str, Any] = answer.json()
    return stored


def _data(given: str) -> dict[str, Any]:
    """The JSON object that --data means. Raises InvalidData."""
    try:
        text = sys.stdin.read() if given == "-" else Path(given[1:]).read_text() if given.startswith("@") else given
        data = json.loads(text)
    except OSError as error:
        raise InvalidData(f"--data names a file that cannot be read: {error}.") from None
    except ValueError as error:
        raise InvalidData(f"--data is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise InvalidData('--data is not a JSON object like {"id": "user_zoe"}.')
    # A whole event, as Clerk's dashboard shows it, is as good as its data.
    return data["data"] if data.get("object") == "event" and isinstance(data.get("data"), dict) else data
