"""`ballast person`: what people may ask of us, done by an administrator: a copy of their data, and erasure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from scripts.cli import options
from scripts.cli.output import print_json, print_table
from scripts.errors import Failure
from scripts.schema import database
from scripts.schema.database import Connection
from service.clerk_api import CLERK_API_URL, ClerkApi
from service.data_api import Call
from service.erasure import Eraser
from service.erasure_ledger import LedgerStore, LedgerUnavailable
from service.export import Export, write_json, write_zip

WRITERS = {".json": write_json, ".zip": write_zip}
NOT_FOUND = "PT404"


class NothingHeld(Failure):
    """The database holds nothing of this person."""


class FormatUnknown(Failure):
    """The file's name says neither JSON nor ZIP."""

    exit_code = 2


class SoleOwner(Failure):
    """Organizations would be without an owner."""


class NotComplete(Failure):
    """An erasure has yet to be carried on: something outside the database failed, or others' transactions still run."""


class ClerkUnknown(Failure):
    """Nobody says which Clerk the person is to be deleted at."""


class LedgerMissing(Failure):
    """There is no ledger to read, or it cannot be read."""


@click.group(epilog="Example: ballast person export user_2abc --output ada.zip")
def person() -> None:
    """Give people a copy of their data, or erase them."""


@person.command("export", epilog="Example: ballast person export user_2abc --output ada.zip")
@options.url_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A .zip or .json; ID.zip by default.",
)
@click.argument("clerk_user_id", metavar="ID")
def export_command(url: str | None, output: Path | None, clerk_user_id: str) -> None:
    """Write all that is held of the person with this Clerk ID to a file, which only you may read.

    It is recorded in the audit trail, and in what the person is told of it.
    """
    file = output or Path(f"{clerk_user_id}.zip")
    if file.suffix not in WRITERS:
        raise FormatUnknown(f"{file} is neither .zip nor .json.")
    with options.open_database(url, requires="app.personal_data") as connection:
        records = write_export(connection, clerk_user_id, file)
    click.echo(f"{file}: {records:,} {'record' if records == 1 else 'records'}")


@person.command("erase", epilog="Example: ballast person erase user_2abc --yes")
@options.url_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
@click.argument("clerk_user_id", metavar="ID")
def erase_command(url: str | None, yes: bool, as_json: bool, clerk_user_id: str) -> None:
    """Erase the person with this Clerk ID: here, then at Clerk. It cannot be undone.

    Exits with 1 when it is not complete yet; `ballast person resume` carries on.
    """
    external = connect_external_services(url)
    with options.open_database(url, requires="app.personal_data") as connection:
        if not yes:
            click.confirm(f"Erase {clerk_user_id} for good?", abort=True, err=True)
        asked = _make_call(connection)(
            "request_erasure", {"clerk_user_id": clerk_user_id, "requested_by": "administrator"}
        )
        if "sole_owner_of" in asked:
            names = ", ".join(f"{each['name']} ({each['clerk_org_id']})" for each in asked["sole_owner_of"])
            raise SoleOwner(
                f"The only owner of {names}. Make somebody else an owner, or delete it in Clerk; then repeat."
            )
        [done] = carry_out_erasures(connection, external, [asked["receipt"]])
    show_receipts([done], as_json=as_json)


@person.command(epilog="Example: ballast person resume")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def resume(url: str | None, as_json: bool) -> None:
    """Carry on with every erasure that is not complete, also with those that are due only later.

    Exits with 1 when one is still not.
    """
    with options.open_database(url, requires="app.personal_data") as connection:
        unfinished = connection.execute(
            "select receipt::text from app.erasure_log where state <> 'complete' order by requested_at"
        ).fetchall()
        done = carry_out_erasures(connection, connect_external_services(url), [receipt for (receipt,) in unfinished])
    show_receipts(done, as_json=as_json)


@person.command(epilog="Example: ballast person replay --database-url $RESTORED")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def replay(url: str | None, as_json: bool) -> None:
    """Erase again whoever a restored backup brought back, by the ledger beside the backups (BACKUP_URL)."""
    external = connect_external_services(url)
    if external.ledger is None:
        raise LedgerMissing("Set BACKUP_URL: the ledger of erasures lies beside the backups.")
    try:
        ledger = list(external.ledger.entries())
    except LedgerUnavailable as failure:
        raise LedgerMissing(f"{failure} Nothing was erased.") from None
    with options.open_database(url, requires="app.personal_data") as connection:
        returned = connection.execute("select app.replay_erasures(%s)::text", [Jsonb(ledger)]).fetchall()
        done = carry_out_erasures(connection, external, [receipt for (receipt,) in returned])
    database.echo_err(f"{len(ledger):,} in the ledger, {len(done):,} of them in this database.")
    show_receipts(done, as_json=as_json)


def write_export(connection: Connection, clerk_user_id: str, file: Path) -> int:
    """Writes the file, whole or not at all, and returns how many records it has. Raises NothingHeld."""
    call = _make_call(connection)
    begun = call("begin_export", {"clerk_user_id": clerk_user_id, "requested_by": "administrator"})
    running = Export.of(call, begun)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    records = 0
    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            [[total]] = connection.execute("select app.count_export_records(%s)", [running.id]).fetchall()
            task = progress.add_task("Records", total=total)

            def on_progress(entries: int) -> None:
                nonlocal records
                records += entries
                progress.update(task, completed=records)

            unfinished.touch(mode=0o600)
            with unfinished.open("wb") as output:
                output.writelines(WRITERS[file.suffix](running, on_progress))
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        if not connection.broken:
            running.end(failed=True)
        raise
    running.end(failed=False)
    return records


@dataclass(frozen=True)
class ExternalServices:
    """What an erasure ends with. Without a ledger, a restored backup would not know of it."""

    clerk: ClerkApi
    ledger: LedgerStore | None


def connect_external_services(url: str | None) -> ExternalServices:
    """The Clerk and the store that go with the database: the stand-ins only with their own. Raises ClerkUnknown."""
    environment = options.build_environment(url)
    if "CLERK_SECRET_KEY" not in environment:
        raise ClerkUnknown("Set CLERK_SECRET_KEY: who is erased is deleted at Clerk too.")
    clerk = ClerkApi(environment.get("CLERK_API_URL", CLERK_API_URL), environment["CLERK_SECRET_KEY"])
    return ExternalServices(clerk, LedgerStore(environment["BACKUP_URL"]) if "BACKUP_URL" in environment else None)


def carry_out_erasures(connection: Connection, external: ExternalServices, receipts: list[str]) -> list[dict[str, Any]]:
    """Carries erasures out as far as it goes, and returns their receipts."""
    if external.ledger is None:
        database.echo_err("BACKUP_URL is not set: a backup that is restored will not know of this.")
    call = _make_call(connection)
    eraser = Eraser(call, external.clerk, external.ledger)
    with Console(stderr=True).status("Erasing …") as status:

        def on_step(step: dict[str, Any]) -> None:
            status.update(f"Erasing … {sum(step['counts'].values()):,} rows")

        for receipt in receipts:
            # A busy person takes longer than the service would give it at once.
            while eraser.carry_out(receipt, on_step) == "running" and not _is_waiting(connection, receipt):
                pass
    return [call("erasure_receipt", {"receipt": receipt}) for receipt in receipts]


def _is_waiting(connection: Connection, receipt: str) -> bool:
    """Whether all is done that can be now: the rest waits for transactions that began before."""
    row = connection.execute(
        "select settled_at is not null from app.erasure_log where receipt = %s", [receipt]
    ).fetchone()
    return row == (True,)


def _make_call(connection: Connection) -> Call:
    """Calls functions as DataApi.call() does. Raises NothingHeld."""

    def call(function: str, arguments: dict[str, Any]) -> Any:
        named = sql.SQL(", ").join(sql.SQL("{} => %s").format(sql.Identifier(name)) for name in arguments)
        query = sql.SQL("select * from {}({})").format(sql.Identifier("public", function), named)
        values = [Jsonb(value) if isinstance(value, list | dict) else value for value in arguments.values()]
        try:
            rows = connection.cursor(row_factory=dict_row).execute(query, values).fetchall()
        except psycopg.Error as error:
            if error.sqlstate != NOT_FOUND:
                raise
            raise NothingHeld(f"{error.diag.message_primary} {error.diag.message_hint}") from None
        # A function that returns a value is a table of one column with its own name.
        return rows[0][function] if rows and function in rows[0] else rows

    return call


def show_receipts(receipts: list[dict[str, Any]], *, as_json: bool) -> None:
    """Prints the receipts of erasures. Raises NotComplete if one is not complete."""
    if as_json:
        print_json(receipts)
    elif receipts:
        table = Table(Column("Receipt", no_wrap=True), "State", "Rows erased or changed", box=None)
        for each in receipts:
            counts = ", ".join(f"{count:,} {name}" for name, count in each["counts"].items())
            table.add_row(each["receipt"], each["state"], counts)
        print_table(table)
    else:
        click.echo("Nothing to erase.")
    if any(each["state"] != "complete" for each in receipts):
        raise NotComplete("Not complete: `select * from ops.erasures` says why; `ballast person resume` carries on.")
