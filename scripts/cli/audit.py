"""`ballast audit`: seals and verifies the audit trail, and maintains its monthly partitions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import click
from psycopg.rows import class_row
from rich.console import Console
from rich.table import Table

from scripts.cli import options
from scripts.cli.output import print_json, print_table
from scripts.errors import Failure
from scripts.health import audit_trail
from scripts.health.audit_trail import Verification, format_entries, format_time
from scripts.schema import database
from scripts.schema.database import Connection
from service.audit_store import AuditStore, ChainDiverged
from service.erasure_ledger import LedgerUnavailable

UNPROVEN = 3


class StoreFailed(Failure):
    """The store in BACKUP_URL cannot be read or written."""


class StoreMissing(Failure):
    """The command needs the store, and BACKUP_URL is not set."""

    exit_code = 2


class SealsDiverged(Failure):
    """The chain does not contain the newest stored seal."""


@dataclass(frozen=True)
class Seal:
    """A row of app.audit_seals; `seal` is in hex."""

    sequence: int
    range_start: datetime
    range_end: datetime
    entries: int
    seal: str


def _parse_seals(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the given seals in lower case. Raises BadParameter for any other text."""
    if not all(re.fullmatch(r"[0-9a-fA-F]{64}", value) for value in values):
        raise click.BadParameter("A seal has 64 hexadecimal digits: copy it from the output of `ballast audit seal`.")
    return tuple(value.lower() for value in values)


@click.group(epilog="Example: ballast audit verify")
def audit() -> None:
    """Seal and verify the audit trail, and maintain its monthly partitions."""


@audit.command(epilog="Example: ballast audit seal --json >> seals.json")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def seal(url: str | None, as_json: bool) -> None:
    """Seal the new complete entries, and store the seals.

    Stores them in BACKUP_URL and prints them. An administrator who rewrites the trail can also rewrite the seals in the
    database; only a copy proves it. Without BACKUP_URL, store a copy where database administrators cannot change it.
    """
    store = open_store(url)
    with options.open_database(url, requires="app.audit_seals") as connection:
        seals = seal_trail(connection)
        stored = store_seals(connection, store) if store else None
    if as_json:
        print_json(seals)
        return
    for each in seals:
        range_ = f"{format_time(each.range_start)} to {format_time(each.range_end)}"
        click.echo(f"{each.sequence}  {range_}  {format_entries(each.entries)}  {each.seal}")
    if not seals:
        click.echo("Nothing to seal: every complete entry is sealed.")
    if stored is not None:
        database.echo_err(f"New seals stored in BACKUP_URL: {stored:,}.")
    elif seals:
        database.echo_err(
            "Store them elsewhere: `ballast audit verify --seal …` proves that no sealed entry was rewritten."
        )


@audit.command(epilog="Example: ballast audit verify --seal $(tail -1 seals.txt)")
@options.url_option
@click.option(
    "--seal",
    "known_seals",
    metavar="HEX",
    multiple=True,
    callback=_parse_seals,
    help="A stored copy of a seal; it must be in the chain. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def verify(url: str | None, known_seals: tuple[str, ...], as_json: bool) -> None:
    """Recompute every seal, and compare it with BACKUP_URL.

    Exits with 1 if entries, seals or records were changed, or the store lacks a receipt, or the chain lacks a stored
    seal. Exits with 3 if the trail is unproven: nothing contradicts it, but BACKUP_URL is not set, or no seal is stored
    there yet. docs/audit.md says what to do.

    Changes by erasures and retention are allowed if their receipts are in the store; the table shows them. Reads the
    whole trail.
    """
    verification = read_verification(url, known_seals)
    problems, doubts = list(verification.list_problems()), list(verification.list_doubts())
    if as_json:
        anchored = verification.anchored and verification.anchored.sequence
        print_json({"problems": problems, "unproven": doubts, "anchored": anchored, **asdict(verification.trail)})
    else:
        _print(verification)
    for line in [*problems, *(f"Unproven: {doubt}" for doubt in doubts)]:
        database.echo_err(line)
    if problems or doubts:
        sys.exit(1 if problems else UNPROVEN)


@audit.command(epilog='Example: ballast audit accept --reason "restored the backup of 3 March"')
@options.url_option
@click.option("--reason", required=True, metavar="TEXT", help="Why these gaps are known; it is stored with them.")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
def accept(url: str | None, reason: str, yes: bool) -> None:
    """Accept the gaps that a restore left in the proof.

    After a restore, the chain lacks the newest stored seals. Erasures and drops of months from before BACKUP_URL was
    set have no receipts: these are gaps too. Lists the gaps, asks you to confirm, and stores them with the reason in
    BACKUP_URL. `ballast audit verify` then no longer reports them. Changed entries cannot be accepted.
    """
    store = open_store(url)
    if store is None:
        raise StoreMissing("BACKUP_URL is not set. Set BACKUP_URL: what you accept is stored with the backups.")
    verification = read_verification(url, ())
    seals = [each.name for each in verification.missing_seals()]
    unproven = verification.unproven()
    for name in seals:
        click.echo(f"The stored seal {name} is not in the chain.")
    for each in unproven:
        click.echo(f"{each.describe()} has no receipt in the store.")
    if not seals and not unproven:
        click.echo("Nothing to accept.")
        return
    if not yes:
        click.confirm("Accept all of them?", abort=True)
    with _store_failures():
        store.accept(
            {
                "seals": seals,
                "interventions": [each.digest for each in unproven],
                "reason": reason,
                "accepted_at": datetime.now(UTC).isoformat(),
            }
        )
    click.echo("Accepted.")


@audit.command(epilog="Example: ballast audit maintain")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def maintain(url: str | None, as_json: bool) -> None:
    """Create and drop monthly partitions.

    The coming months get partitions. Those that are older than the retention period are dropped, after a receipt of
    each was stored in BACKUP_URL.
    """
    store = open_store(url)
    with options.open_database(url, requires="app.audit_seals") as connection:
        made, dropped = maintain_partitions(connection, store)
    if as_json:
        print_json({"made": made, "dropped": dropped})
        return
    for partition in made:
        click.echo(f"Created {partition}")
    for partition in dropped:
        click.echo(f"Dropped {partition}")
    if not made and not dropped:
        click.echo("Nothing to do: the coming months have partitions, and none is older than the retention period.")


def open_store(url: str | None) -> AuditStore | None:
    """Returns the store in BACKUP_URL, or None; a local stack's only for its own database."""
    backup_url = options.build_environment(url).get("BACKUP_URL")
    return AuditStore(backup_url) if backup_url else None


def read_verification(url: str | None, known_seals: tuple[str, ...]) -> Verification:
    """Verifies the trail. Raises StoreFailed."""
    store = open_store(url)
    with (
        _store_failures(),
        options.open_database(url, requires="app.audit_seals") as connection,
        Console(stderr=True).status("Reading the audit trail …"),
    ):
        return audit_trail.verify(connection, store, known_seals)


def seal_trail(connection: Connection) -> list[Seal]:
    """Seals the complete entries; each range is at most a month."""
    query = "select sequence, range_start, range_end, entries, encode(seal, 'hex') as seal from app.seal_audit()"
    return connection.cursor(row_factory=class_row(Seal)).execute(query).fetchall()


def store_seals(connection: Connection, store: AuditStore) -> int:
    """Stores the seals that are not stored yet, and returns how many. Raises StoreFailed and SealsDiverged."""

    def seals_after(newest: int, seal: str | None) -> Any:
        [[found]] = connection.execute("select app.seals_after(%s, %s)", [newest, seal]).fetchall()
        return found

    with _store_failures():
        try:
            return store.anchor(seals_after)
        except ChainDiverged as failure:
            raise SealsDiverged(f"{failure} No seal was stored: `ballast audit verify` shows what changed.") from None


def maintain_partitions(connection: Connection, store: AuditStore | None) -> tuple[list[str], list[str]]:
    """Returns the created and the dropped partitions. A partition may be in both lists. Raises StoreFailed."""
    before = list_partitions(connection)
    connection.execute("select app.make_audit_partitions()")
    between = list_partitions(connection)
    connection.execute("select app.drop_audit_partitions(%s)", [store is not None])
    while store is not None and (receipt := _find_pending_receipt(connection)):
        with _store_failures():
            store.put_receipt(receipt)
        connection.execute("select public.confirm_receipt(%s)", [receipt["digest"]])
        connection.execute("select app.drop_audit_partitions(true)")
    after = list_partitions(connection)
    return sorted(between - before), sorted(between - after)


def list_partitions(connection: Connection) -> set[str]:
    """Returns the names of the partitions, with their schema."""
    query = "select inhrelid::regclass::text from pg_inherits where inhparent = 'public.audit_logs'::regclass"
    return {name for (name,) in connection.execute(query)}


def _find_pending_receipt(connection: Connection) -> Any:
    found = connection.execute("select app.pending_receipt()").fetchone()
    return found and found[0]


@contextmanager
def _store_failures() -> Iterator[None]:
    try:
        yield
    except LedgerUnavailable as failure:
        raise StoreFailed(str(failure)) from None


def _print(verification: Verification) -> None:
    trail = verification.trail
    table = Table("Seals", "Range", "Entries", "Erased", "State")
    # Consecutive valid ranges share a row; each broken range has its own.
    for _, group in groupby(trail.ranges, key=lambda each: each.sequence if each.difference else each.state):
        run = list(group)
        first, last = run[0], run[-1]
        color = "yellow" if first.state == "unproven" else "green"
        table.add_row(
            str(first.sequence) if first is last else f"{first.sequence} to {last.sequence} ({len(run):,})",
            f"{format_time(first.range_start)} to {format_time(last.range_end)}",
            f"{sum(each.sealed for each in run):,}",
            f"{sum(each.erased for each in run):,}",
            f"[red]{first.state}: {first.difference}[/]" if first.difference else f"[{color}]{first.state}[/]",
        )
    if trail.ranges:
        print_table(table)
        since = f"since the last seal, {format_time(trail.ranges[-1].range_end)}"
    else:
        since = "and no seal yet: `ballast audit seal` creates the first"
    click.echo(f"{format_entries(trail.unsealed)} {since}.")
    for each in trail.interventions:
        if each.kind == "retention":
            click.echo(f"{each.describe()} followed a retention period of {each.retention_days:g} days.")
    for before, changed in verification.retention_changes():
        click.echo(
            f"The retention period changed from {before:g} to {changed.retention_days:g} days before seal"
            f" {changed.sequence}, {format_time(changed.range_end)}."
        )
    if anchored := verification.anchored:
        click.echo(
            f"The newest seal that is stored outside the database is {anchored.sequence},"
            f" {format_time(anchored.range_end)}. `postgres` can recompute what comes after it."
        )
