"""`ballast clerk`: sends signed events to the service, imports Clerk's data, and compares it with the database."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from scripts.clerk.backfill import KindReport, OnProgress, backfill, require_same_instance
from scripts.clerk.listing import MAX_PAGE_SIZE, ClerkListing, Incomplete, Kind, open_listing
from scripts.clerk.reconcile import DIFFERENCES, Comparison, Report
from scripts.cli import options
from scripts.cli.output import print_json, print_table
from scripts.errors import Failure
from scripts.local.clerk.client import ClerkClient, NotRunning, require_stand_in
from scripts.local.stack import client_environment
from scripts.schema import database
from scripts.schema.database import Connection

# The number of differences that are listed one by one.
MAX_SHOWN = 50


class NotStored(Failure):
    """The service did not store the event."""


class InvalidData(Failure):
    """--data is not a JSON object."""

    exit_code = 2


class InvalidSecret(Failure):
    """CLERK_WEBHOOK_SECRETS does not begin with a secret that can sign."""

    exit_code = 2


@click.group(epilog="Example: ballast clerk send user.created")
def clerk() -> None:
    """Send signed Clerk events to the service, import Clerk's data, or compare it with the database."""


@clerk.command("send", epilog="""Example: ballast clerk send user.created --data '{"id": "user_zoe"}'""")
@click.argument("event_type", metavar="TYPE")
@click.option("--data", default="{}", help="The event's data as JSON, @FILE, or - for standard input.")
@click.option("--message-id", help="The message's id at Svix. Sending the same id again is a redelivery.")
@click.option("--timestamp", type=int, metavar="MS", help="The time of the event, in milliseconds since 1970.")
@click.option("--json", "as_json", is_flag=True, help="Print the service's answer, and its reason, as JSON.")
def send_command(event_type: str, data: str, message_id: str | None, timestamp: int | None, as_json: bool) -> None:
    """Send an event and print its outcome.

    The Clerk stand-in adds the fields that the data lacks. An event that changes nothing is stale, ignored or a
    duplicate, and the reason is printed. The exit code is 1 if the event failed, or if the service did not store it.
    """
    require_stand_in("Change the object there; Clerk sends the event itself.")
    environment = client_environment()
    answer = send(environment, event_type, _parse_data(data), message_id, timestamp)
    reason = find_reason(environment, answer)
    if as_json:
        click.echo(json.dumps(answer | {"reason": reason}))
    else:
        click.echo(f"{answer['type']} {answer['message_id']}: {answer['outcome']}")
        if reason:
            database.echo_err(reason)
    if answer["outcome"] == "failed":
        sys.exit(1)


def find_reason(environment: dict[str, str], answer: dict[str, Any]) -> str | None:
    """Returns why an event changed nothing, and what to do; None if it was applied."""
    if answer["outcome"] == "processed":
        return None
    with database.connect(environment["DATABASE_URL"]) as connection:
        query = "select outcome, error from app.webhook_events where message_id = %s"
        outcome, error = connection.execute(query, [answer["message_id"]]).fetchone() or (answer["outcome"], None)
    if answer["outcome"] == "duplicate":
        return f"The message {answer['message_id']} arrived before, and was {outcome}. Use another --message-id."
    if outcome == "failed":
        retry = f"`ballast inbox retry {answer['message_id']}`"
        return f"{error}\nCorrect the data and send it as a new message, or run {retry}."
    if outcome == "ignored":
        return error or f"Ballast applies no {answer['type']} events with this data: nothing changed."
    return "Nothing changed: the recorded state of the object is as new as this event, or newer."


def send(
    environment: dict[str, str],
    event_type: str,
    data: dict[str, Any],
    message_id: str | None = None,
    timestamp: int | None = None,
) -> dict[str, Any]:
    """Completes, signs and posts the event once. Returns the service's response {message_id, type, outcome}.

    Without a message id each call sends a new message. `timestamp` is in milliseconds.
    Raises NotStored, InvalidSecret, and NotRunning if the service or the stand-in does not answer.
    """
    from scripts.local.clerk import svix  # noqa: PLC0415 - needs aiohttp, which the service's image does not have

    secret = _read_secret(environment)
    stand_in = ClerkClient(environment["CLERK_ISSUER"])
    completed = stand_in.event(event_type, data, message_id=message_id, timestamp=timestamp)
    url = f"{environment['SERVICE_URL']}/webhooks/clerk"
    body = svix.encode_body(completed["event"])
    headers = svix.sign_headers(secret, completed["message_id"], body)
    try:
        answer = httpx.post(url, content=body, headers=headers, timeout=svix.ATTEMPT_SECONDS)
    except httpx.HTTPError as error:
        raise NotRunning(
            f"The service does not answer at {url} ({type(error).__name__}): see `ballast status`."
        ) from None
    if answer.status_code != httpx.codes.OK:
        raise NotStored(
            f"The service returned {answer.status_code} and did not store the event: {answer.text[:500]}\n"
            "Correct the event, or see the service's log."
        )
    stored: dict[str, Any] = answer.json()
    return stored


def _read_secret(environment: dict[str, str]) -> str:
    """The first secret, which signs. Raises InvalidSecret."""
    secret = environment["CLERK_WEBHOOK_SECRETS"].split(",")[0].strip()
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise InvalidSecret("The first secret in CLERK_WEBHOOK_SECRETS is not base64: copy the whole secret, whsec_….")
    return secret


def _parse_data(given: str) -> dict[str, Any]:
    """The JSON object of --data. Raises InvalidData."""
    try:
        text = sys.stdin.read() if given == "-" else Path(given[1:]).read_text() if given.startswith("@") else given
        data = json.loads(text)
    except OSError as error:
        raise InvalidData(f"--data names a file that cannot be read: {error}.") from None
    except ValueError as error:
        raise InvalidData(f"--data is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise InvalidData('--data is not a JSON object like {"id": "user_zoe"}.')
    # A whole event, as Clerk's dashboard shows it, is accepted too.
    return data["data"] if data.get("object") == "event" and isinstance(data.get("data"), dict) else data


@clerk.command("backfill", epilog="Example: ballast clerk backfill")
@options.url_option
@click.option("--restart", is_flag=True, help="Start from the beginning instead of resuming an interrupted run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def backfill_command(url: str | None, restart: bool, as_json: bool) -> None:
    """Import all data from Clerk.

    These are users, organizations, memberships, pending invitations, roles, permissions and the
    organizations' subscriptions.
    You can run it at any time, repeatedly, and while webhooks arrive: known objects are skipped. It resumes a run that
    was interrupted in the last day. Needs CLERK_SECRET_KEY. The exit code is 1 if an object was refused, or if Clerk
    counts more objects than it lists.
    """
    started = time.monotonic()
    with (
        open_listing(options.build_environment(url)) as listing,
        _open_mirror(url, listing) as connection,
        _show_progress() as advance,
    ):
        merged = backfill(connection, listing, advance, restart=restart)
    seconds = time.monotonic() - started
    if as_json:
        print_json({"seconds": round(seconds, 1), "kinds": merged})
    else:
        _show_backfill(merged, seconds)
    if any(each.refused or each.incomplete for each in merged):
        sys.exit(1)


@clerk.command("reconcile", epilog="Example: ballast clerk reconcile --fix")
@options.url_option
@click.option("--fix", is_flag=True, help="Change the database to match Clerk.")
@click.option(
    "--sample",
    type=click.IntRange(1, MAX_PAGE_SIZE),
    metavar="N",
    help="Compare only N objects of each kind; remove nothing.",
)
@click.option(
    "--yes-delete-many",
    "delete_many",
    is_flag=True,
    help="With --fix: remove all objects that Clerk does not have, without a limit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def reconcile_command(url: str | None, fix: bool, sample: int | None, delete_many: bool, as_json: bool) -> None:
    """Compare Clerk's data with the database.

    These are users, organizations, memberships, pending invitations, roles, permissions and the
    organizations' subscriptions.
    Reports objects that are missing here, stale, have the wrong role, or are orphaned (deleted at Clerk). With --fix,
    orphaned people are erased, as after a user.deleted event. Needs CLERK_SECRET_KEY.
    The exit code is 1 if a difference was not fixed, or if Clerk counts more objects than it lists. A kind that Clerk
    refuses to list is not compared: this is reported on stderr, and does not change the exit code.
    """
    with (
        open_listing(options.build_environment(url)) as listing,
        _open_mirror(url, listing) as connection,
        _show_progress() as advance,
    ):
        comparison = Comparison(connection, listing, fix, delete_many)
        report = comparison.compare_sample(sample) if sample else comparison.compare_all(advance)
    if as_json:
        print_json(asdict(report) | {"remaining": report.remaining})
    else:
        _show_report(report, fix=fix)
    for kind, reason in report.skipped.items():
        database.echo_err(f"{kind}: not compared. {reason}")
    if report.remaining or report.incomplete:
        sys.exit(1)


@contextmanager
def _open_mirror(url: str | None, listing: ClerkListing) -> Iterator[Connection]:
    """Connects to the database that mirrors this Clerk instance. Raises NotMigrated or OtherInstance."""
    with options.open_database(url, requires="app.clerk_backfills") as connection:
        require_same_instance(connection, listing)
        yield connection


@contextmanager
def _show_progress() -> Iterator[OnProgress]:
    """A progress bar per kind on stderr, if it is a terminal. Yields its update function: kind, done, total."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(kind: Kind, done: int, total: int | None) -> None:
            if kind.name not in tasks:
                tasks[kind.name] = bars.add_task(kind.plural.title(), total=total)
            bars.update(tasks[kind.name], completed=done)

        yield advance


def _show_backfill(merged: list[KindReport], seconds: float) -> None:
    table = Table("Kind", "In Clerk", "Changed", "Refused")
    for each in merged:
        table.add_row(each.kind, f"{each.listed:,}", f"{each.changed:,}", f"{len(each.refused):,}")
    print_table(table)
    click.echo(f"{seconds:.1f} seconds")
    for each in merged:
        for refused in each.refused:
            database.echo_err(f"{each.kind} {refused.clerk_id}: {refused.error}")
        if each.incomplete:
            _show_missing(each.incomplete)
        if each.skipped:
            database.echo_err(each.skipped)


def _show_report(report: Report, *, fix: bool) -> None:
    """Prints the counts, up to MAX_SHOWN differences, and the notes."""
    counts = Counter((each.kind, each.difference) for each in report.differences)
    fixed = Counter(each.kind for each in report.differences if each.fixed)
    table = Table("Kind", "Compared", *(each.capitalize() for each in DIFFERENCES), *(["Fixed"] if fix else []))
    for kind, compared in report.compared.items():
        found = [counts[kind, each] for each in DIFFERENCES]
        table.add_row(kind, *(f"{each:,}" for each in (compared, *found, *([fixed[kind]] if fix else []))))
    for kind in report.skipped:
        table.add_row(kind, "not compared")
    print_table(table)
    for each in report.differences[:MAX_SHOWN]:
        name = each.clerk_id or f"{each.person} in {each.organization}"
        columns = f" ({', '.join(each.columns)})" if each.difference != "missing" and each.columns else ""
        click.echo(f"{each.kind} {name}: {each.difference}{columns}{', fixed' if each.fixed else ''}")
    if len(report.differences) > MAX_SHOWN:
        click.echo(f"… and {len(report.differences) - MAX_SHOWN:,} more. --json lists all of them.")
    notes = [f"{each.kind}: {each.note}" for each in report.differences if each.note]
    for note in dict.fromkeys(notes):
        database.echo_err(note)
    for incomplete in report.incomplete:
        _show_missing(incomplete)


def _show_missing(incomplete: Incomplete) -> None:
    """Prints what Clerk counts but does not list: up to MAX_SHOWN organizations and ids."""
    database.echo_err(incomplete.message)
    missing = [
        f"{organization} has {counted:,} {incomplete.plural}, but Clerk lists {listed:,}."
        for organization, (listed, counted) in incomplete.organizations.items()
    ]
    missing += [f"{incomplete.kind} {clerk_id} is missing from the list." for clerk_id in incomplete.unlisted]
    for line in missing[:MAX_SHOWN]:
        database.echo_err(line)
    if len(missing) > MAX_SHOWN:
        database.echo_err(f"… and {len(missing) - MAX_SHOWN:,} more. --json lists all of them.")
    if unknown := incomplete.missing - len(incomplete.unlisted):
        database.echo_err(f"The database does not know the other {unknown:,}.")
