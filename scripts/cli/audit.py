"""`ballast audit`: seals and verifies the audit trail, and maintains its monthly partitions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby

import click
from psycopg.rows import class_row
from rich.console import Console
from rich.table import Table

from scripts.cli import options
from scripts.cli.output import print_json, print_table
from scripts.schema import database
from scripts.schema.database import Connection

DIFFERENCES = {
    "broken": "entries were changed, removed or inserted",
    "seal broken": "it does not follow from the previous seal: a seal was changed or removed",
}


@dataclass(frozen=True)
class Seal:
    """A row of app.audit_seals; `seal` is in hex."""

    sequence: int
    range_start: datetime
    range_end: datetime
    entries: int
    seal: str


@dataclass(frozen=True)
class Range:
    """A row of app.verify_audit(): a sealed range and its present contents. `seal` is in hex."""

    sequence: int
    range_start: datetime
    range_end: datetime
    sealed: int
    found: int
    erased: int
    state: str
    seal: str

    @property
    def difference(self) -> str | None:
        """The problem, or None. Erasures and retention may change a range without a problem."""
        what = DIFFERENCES.get(self.state)
        return what and f"{what} (sealed {_format_entries(self.sealed)}, found {self.found:,})"


@dataclass(frozen=True)
class Verification:
    """The result. `unsealed` entries are newer than the last seal; `too_old` entries are older than the first range."""

    ranges: list[Range]
    unsealed: int
    too_old: int
    unknown_seals: list[str]

    def list_problems(self) -> Iterator[str]:
        """Yields a line for each kind of problem. Of the broken ranges, only the first is listed."""
        for broken in [each for each in self.ranges if each.difference][:1]:
            yield f"The first broken range is {broken.sequence}, {_format_range(broken)}: {broken.difference}."
        if self.too_old:
            yield f"{_format_entries(self.too_old)} inserted before the first sealed range."
        for seal in self.unknown_seals:
            yield f"The seal {seal} is not in the chain: the chain was rewritten, or this is another database."


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
    """Seal the new complete entries, and print the seals.

    Store a copy where database administrators cannot change it. An administrator who rewrites the trail can also
    rewrite the seals in the database; only a copy proves it.
    """
    with options.open_database(url, requires="app.audit_seals") as connection:
        seals = seal_trail(connection)
    if as_json:
        print_json(seals)
    elif seals:
        for each in seals:
            click.echo(f"{each.sequence}  {_format_range(each)}  {_format_entries(each.entries)}  {each.seal}")
        database.echo_err(
            "Store them elsewhere: `ballast audit verify --seal …` proves that no sealed entry was rewritten."
        )
    else:
        click.echo("Nothing to seal: every complete entry is sealed.")


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
    """Recompute every seal. Exits with 1 if entries or seals were changed.

    Changes by erasures and retention are recorded, and therefore allowed; the table shows them. Reads the whole trail.
    """
    with (
        options.open_database(url, requires="app.audit_seals") as connection,
        Console(stderr=True).status("Reading the audit trail …"),
    ):
        verification = verify_chain(connection, known_seals)
    problems = list(verification.list_problems())
    if as_json:
        print_json({"problems": problems, **asdict(verification)})
    else:
        _print(verification)
    for problem in problems:
        database.echo_err(problem)
    if problems:
        sys.exit(1)


@audit.command(epilog="Example: ballast audit maintain")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def maintain(url: str | None, as_json: bool) -> None:
    """Create and drop monthly partitions.

    The coming months get partitions. Those that are older than the retention period are dropped.
    """
    with options.open_database(url, requires="app.audit_seals") as connection:
        made, dropped = maintain_partitions(connection)
    if as_json:
        print_json({"made": made, "dropped": dropped})
        return
    for partition in made:
        click.echo(f"Created {partition}")
    for partition in dropped:
        click.echo(f"Dropped {partition}")
    if not made and not dropped:
        click.echo("Nothing to do: the coming months have partitions, and none is older than the retention period.")


def seal_trail(connection: Connection) -> list[Seal]:
    """Seals the complete entries; each range is at most a month."""
    query = "select sequence, range_start, range_end, entries, encode(seal, 'hex') as seal from app.seal_audit()"
    return connection.cursor(row_factory=class_row(Seal)).execute(query).fetchall()


def verify_chain(connection: Connection, known_seals: tuple[str, ...]) -> Verification:
    """Recomputes the chain from one snapshot of the database. `known_seals` (in hex) must be in the chain."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        ranges = (
            connection.cursor(row_factory=class_row(Range))
            .execute("""
                select sequence, range_start, range_end, sealed, found, erased, state, encode(seal, 'hex') as seal
                from app.verify_audit()
            """)
            .fetchall()
        )
        start, end = (ranges[0].range_start, ranges[-1].range_end) if ranges else (None, None)
        [[unsealed, too_old]] = connection.execute(
            """
            select count(*) filter (where %(end)s::timestamptz is null or created_at >= %(end)s),
                count(*) filter (where created_at < %(start)s)
            from public.audit_logs
            """,
            {"start": start, "end": end},
        ).fetchall()
    chain = {each.seal for each in ranges}
    return Verification(ranges, unsealed, too_old, [each for each in known_seals if each not in chain])


def maintain_partitions(connection: Connection) -> tuple[list[str], list[str]]:
    """Returns the created and the dropped partitions. A partition may be in both lists."""
    before = list_partitions(connection)
    connection.execute("select app.make_audit_partitions()")
    between = list_partitions(connection)
    connection.execute("select app.drop_audit_partitions()")
    after = list_partitions(connection)
    return sorted(between - before), sorted(between - after)


def list_partitions(connection: Connection) -> set[str]:
    """Returns the names of the partitions, with their schema."""
    query = "select inhrelid::regclass::text from pg_inherits where inhparent = 'public.audit_logs'::regclass"
    return {name for (name,) in connection.execute(query)}


def _print(verification: Verification) -> None:
    table = Table("Seals", "Range", "Entries", "Erased", "State")
    # Consecutive valid ranges share a row; each broken range has its own.
    for _, group in groupby(verification.ranges, key=lambda each: each.sequence if each.difference else each.state):
        run = list(group)
        first, last = run[0], run[-1]
        table.add_row(
            str(first.sequence) if first is last else f"{first.sequence} to {last.sequence} ({len(run):,})",
            f"{_format_time(first.range_start)} to {_format_time(last.range_end)}",
            f"{sum(each.sealed for each in run):,}",
            f"{sum(each.erased for each in run):,}",
            f"[red]{first.state}: {first.difference}[/]" if first.difference else f"[green]{first.state}[/]",
        )
    if verification.ranges:
        print_table(table)
        since = f"since the last seal, {_format_time(verification.ranges[-1].range_end)}"
    else:
        since = "and no seal yet: `ballast audit seal` creates the first"
    click.echo(f"{_format_entries(verification.unsealed)} {since}.")


def _format_range(sealed: Seal | Range) -> str:
    return f"{_format_time(sealed.range_start)} to {_format_time(sealed.range_end)}"


def _format_time(moment: datetime) -> str:
    """Formats a time in UTC, in which the months of the ranges begin."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _format_entries(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'}"
