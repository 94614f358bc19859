"""`ballast inbox`: lists the received Clerk events, and retries or dismisses failed ones."""

from __future__ import annotations

import getpass
import sys
from typing import Any

import click
import psycopg
from psycopg.rows import dict_row
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from scripts.cli import options
from scripts.cli.output import print_json, print_table
from scripts.errors import Failure
from scripts.schema import database
from scripts.schema.database import Connection

# Without `event`: it is personal data, which is shown only with --payload.
COLUMNS = (
    "message_id, type, outcome, attempts, received_at, applied_at, next_attempt_at, error, dismissed_by, "
    "dismissal_reason"
)


class NoSuchMessage(Failure):
    """No event with this message id was received."""


class NotDismissed(Failure):
    """The event cannot be dismissed: there is none with this id, or it did not fail."""


@click.group(epilog="Example: ballast inbox list")
def inbox() -> None:
    """List, show, retry or dismiss received Clerk events."""


@inbox.command("list", epilog="Example: ballast inbox list --failed")
@options.url_option
@click.option("--failed/--all", default=True, help="List only failed events (the default), or all.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="The maximum number of events.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_(url: str | None, failed: bool, limit: int, as_json: bool) -> None:
    """List events, newest first."""
    with options.open_database(url, requires="app.webhook_events") as connection:
        messages = list_messages(connection, failed=failed, limit=limit)
    if as_json:
        print_json(messages)
    elif messages:
        print_messages(messages)
    else:
        click.echo("No event has failed." if failed else "No event has been received yet.")


@inbox.command(epilog="Example: ballast inbox show msg_2abc")
@options.url_option
@click.option("--payload", is_flag=True, help="Also print the event. It is personal data.")
@click.argument("message_id")
def show(url: str | None, payload: bool, message_id: str) -> None:
    """Print the record of one event as JSON."""
    columns = f"{COLUMNS}, event" if payload else COLUMNS
    with options.open_database(url, requires="app.webhook_events") as connection:
        query = f"select {columns} from app.webhook_events where message_id = %s"  # noqa: S608 - columns are ours
        message = connection.cursor(row_factory=dict_row).execute(query.encode(), [message_id]).fetchone()
    if message is None:
        raise NoSuchMessage(f"No event {message_id} has been received: `ballast inbox list --all` lists all ids.")
    print_json(message)


@inbox.command(epilog="Example: ballast inbox retry --all-failed")
@options.url_option
@click.option("--all-failed", is_flag=True, help="Retry every failed event, oldest first.")
@click.argument("message_ids", metavar="[MESSAGE_ID]...", nargs=-1)
def retry(url: str | None, all_failed: bool, message_ids: tuple[str, ...]) -> None:
    """Apply failed events again. The exit code is 1 if one fails again."""
    if all_failed == bool(message_ids):
        raise click.UsageError("Pass message ids or --all-failed.")
    with options.open_database(url, requires="app.webhook_events") as connection:
        chosen = list_failed_ids(connection) if all_failed else list(message_ids)
        if not chosen:
            click.echo("No event has failed.")
            return
        console = Console(stderr=True)
        outcomes = {
            message_id: retry_message(connection, message_id)
            for message_id in track(chosen, "Applying", console=console, disable=not console.is_terminal)
        }
    for message_id, outcome in outcomes.items():
        click.echo(f"{message_id} {outcome or 'unknown: no such event has been received'}")
    if any(outcome in (None, "failed") for outcome in outcomes.values()):
        database.echo_err("`ballast inbox list` shows why an event failed.")
        sys.exit(1)


@inbox.command(epilog="Example: ballast inbox dismiss msg_2abc --reason 'It has no user id'")
@options.url_option
@click.option("--reason", required=True, help="Why the event is given up. The event and the audit trail keep it.")
@click.option("--by", default=getpass.getuser, help="Who dismisses it; by default your user name on this computer.")
@click.argument("message_id")
def dismiss(url: str | None, reason: str, by: str, message_id: str) -> None:
    """Give up a failed event that can never be applied.

    It is not retried any more, and a later delivery of it by Clerk changes nothing. `ballast status` still reports
    other events that fail.
    """
    with options.open_database(url, requires="app.webhook_events") as connection:
        try:
            row = connection.execute("select ops.dismiss_webhook(%s, %s, %s)", [message_id, reason, by]).fetchone()
        except (psycopg.errors.RaiseException, psycopg.errors.CheckViolation) as error:
            raise NotDismissed(" ".join(filter(None, [error.diag.message_primary, error.diag.message_hint]))) from None
    click.echo(row[0] if row else "")


def list_messages(connection: Connection, *, failed: bool, limit: int) -> list[dict[str, Any]]:
    """Returns the newest events as dicts of COLUMNS, without their payload."""
    query = f"""
        select {COLUMNS} from app.webhook_events
        where not %s or outcome = 'failed' order by received_at desc, message_id limit %s
    """  # noqa: S608 - columns are ours
    return connection.cursor(row_factory=dict_row).execute(query.encode(), [failed, limit]).fetchall()


def list_failed_ids(connection: Connection) -> list[str]:
    """The ids of failed messages, in the order of their arrival."""
    query = "select message_id from app.webhook_events where outcome = 'failed' order by received_at, message_id"
    return [message_id for (message_id,) in connection.execute(query)]


def retry_message(connection: Connection, message_id: str) -> str | None:
    """The new outcome; None if the message does not exist. An error that ends the attempt is recorded."""
    try:
        row = connection.execute("select app.retry_clerk_event(%s)", [message_id]).fetchone()
    except psycopg.Error as error:
        if connection.closed or error.sqlstate is None:
            raise
        connection.execute("select public.record_event_failure(%s, %s)", [message_id, error.sqlstate])
        return "failed"
    return row[0] if row else None


def print_messages(messages: list[dict[str, Any]]) -> None:
    """Prints messages with the columns COLUMNS as a table. Ids stay on one line, so that they can be copied."""
    table = Table(Column("Message", no_wrap=True), Column("Outcome", no_wrap=True), "Event", box=None)
    for message in messages:
        attempts = f"{message['attempts']} attempt{'' if message['attempts'] == 1 else 's'}"
        event = f"{message['type']}, {message['received_at']:%Y-%m-%d %H:%M:%S%z}, {attempts}"
        error = f": {message['error']}" if message["error"] else ""
        dismissal = f" (dismissed by {message['dismissed_by']}: {message['dismissal_reason']})"
        note = error + dismissal if message["dismissed_by"] else error
        table.add_row(message["message_id"], message["outcome"], escape(event + note))
    print_table(table)
