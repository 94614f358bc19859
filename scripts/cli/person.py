"""`ballast person`: exports or erases a person's data at their request."""

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
from service.audit_store import AuditStore
from service.clerk_api import CLERK_API_URL, ClerkApi
from service.data_api import Call, CallFailed
from service.erasure import Eraser
from service.erasure_ledger import LedgerStore, LedgerUnavailable
from service.export import Export, write_json, write_zip
from service.settings import CLERK_KEY

WRITERS = {".json": write_json, ".zip": write_zip}
NOT_FOUND = "PT404"


class NothingHeld(Failure):
    """The database has no data of this person."""


class FormatUnknown(Failure):
    """The file name ends neither in .json nor in .zip."""

    exit_code = 2


class SoleOwner(Failure):
    """An erasure would leave organizations without an owner."""


class NotComplete(Failure):
    """An erasure is not complete: a step or an external service failed, rows were skipped, or old transactions run."""


class ClerkUnknown(Failure):
    """CLERK_SECRET_KEY is not set."""


class LedgerMissing(Failure):
    """The erasure ledger is not configured, or cannot be read."""


@click.group(epilog="Example: ballast person export user_2abc --output ada.zip")
def person() -> None:
    """Export or erase a person's data."""


@person.command("export", epilog="Example: ballast person export user_2abc --output ada.zip")
@options.url_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A .zip or .json file. Default: ID.zip.",
)
@click.argument("clerk_user_id", metavar="ID")
def export_command(url: str | None, output: Path | None, clerk_user_id: str) -> None:
    """Write all data of the person with this Clerk ID to a file.

    Only you may read the file. The audit trail records the export, which also appears in the exports of the person's
    own data.
    """
    file = output or Path(f"{clerk_user_id}.zip")
    if file.suffix not in WRITERS:
        raise FormatUnknown(f"{file} is neither .zip nor .json: choose a file name with one of these endings.")
    with options.open_database(url, requires="app.personal_data") as connection:
        records = write_export(connection, clerk_user_id, file)
    click.echo(f"{file}: {records:,} {'record' if records == 1 else 'records'}")


@person.command("erase", epilog="Example: ballast person erase user_2abc --yes")
@options.url_option
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
@click.argument("clerk_user_id", metavar="ID")
def erase_command(url: str | None, yes: bool, as_json: bool, clerk_user_id: str) -> None:
    """Erase the person with this Clerk ID.

    The person is erased in the database, then at Clerk. This cannot be undone.

    Exits with 1 if the erasure is not complete yet: `ballast person resume` continues it.
    """
    external = connect_external_services(url)
    with options.open_database(url, requires="app.personal_data") as connection:
        if not yes:
            click.confirm(f"Erase {clerk_user_id} permanently?", abort=True, err=True)
        asked = make_call(connection)(
            "request_erasure", {"clerk_user_id": clerk_user_id, "requested_by": "administrator"}
        )
        if "sole_owner_of" in asked:
            names = ", ".join(f"{each['name']} ({each['clerk_org_id']})" for each in asked["sole_owner_of"])
            raise SoleOwner(
                f"This person is the only owner of {names}. Transfer each organization to another member with "
                "`select ops.transfer_ownership('org_…', 'user_…');`, or delete it in Clerk; then run this again."
            )
        [done] = carry_out_erasures(connection, external, [asked["receipt"]])
    show_receipts([done], as_json=as_json)


@person.command(epilog="Example: ballast person resume")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def resume(url: str | None, as_json: bool) -> None:
    """Continue every incomplete erasure.

    Does not wait for their next scheduled attempt, and retries the rows that were skipped because they could not be
    erased. Exits with 1 if an erasure is still incomplete.
    """
    with options.open_database(url, requires="app.personal_data") as connection:
        connection.execute("update app.erasure_failures set next_attempt_at = now() where next_attempt_at > now()")
        unfinished = connection.execute(
            "select receipt::text from app.erasure_log where state <> 'complete' order by requested_at"
        ).fetchall()
        done = carry_out_erasures(connection, connect_external_services(url), [receipt for (receipt,) in unfinished])
    show_receipts(done, as_json=as_json)


@person.command(epilog="Example: ballast person replay --database-url $RESTORED")
@options.url_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def replay(url: str | None, as_json: bool) -> None:
    """Repeat erasures in a restored backup.

    Erases again the people that the backup brought back, by the ledger in BACKUP_URL.
    """
    external = connect_external_services(url)
    if external.ledger is None:
        raise LedgerMissing("BACKUP_URL is not set. Set BACKUP_URL: the ledger of erasures is stored with the backups.")
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
    """Writes the complete file or none, and returns the number of records. Raises NothingHeld."""
    call = make_call(connection)
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
    """Clerk, and the stores in BACKUP_URL. Without a ledger, a restored backup brings erased people back unnoticed."""

    clerk: ClerkApi
    ledger: LedgerStore | None
    audit_store: AuditStore | None


def connect_external_services(url: str | None) -> ExternalServices:
    """Returns Clerk and the ledger for the database; a local stack's only for its own database. Raises ClerkUnknown."""
    environment = options.build_environment(url)
    if "CLERK_SECRET_KEY" not in environment:
        raise ClerkUnknown("CLERK_SECRET_KEY is not set. Set CLERK_SECRET_KEY: an erasure also deletes the Clerk user.")
    key = environment["CLERK_SECRET_KEY"].strip()
    if CLERK_KEY.fullmatch(key) is None:
        raise ClerkUnknown(
            "CLERK_SECRET_KEY is malformed: copy the key that begins with sk_live_ or sk_test_ from Clerk."
        )
    clerk = ClerkApi(environment.get("CLERK_API_URL", CLERK_API_URL), key)
    store = environment.get("BACKUP_URL")
    return ExternalServices(clerk, LedgerStore(store) if store else None, AuditStore(store) if store else None)


def carry_out_erasures(connection: Connection, external: ExternalServices, receipts: list[str]) -> list[dict[str, Any]]:
    """Carries out erasures as far as possible now, and returns their receipts."""
    if external.ledger is None:
        database.echo_err(
            "BACKUP_URL is not set, so the erasure is not in the ledger: a restored backup brings the person back."
        )
    call = make_call(connection)

    def call_step(function: str, arguments: dict[str, Any]) -> Any:
        try:
            return call(function, arguments)
        except psycopg.DatabaseError as error:
            raise CallFailed(function, error.sqlstate or type(error).__name__) from None

    eraser = Eraser(call_step, external.clerk, external.ledger, external.audit_store)
    with Console(stderr=True).status("Erasing …") as status:

        def on_step(step: dict[str, Any]) -> None:
            status.update(f"Erasing … {sum(step['counts'].values()):,} rows")

        for receipt in receipts:
            # A person with much data takes longer than one call of the service may. Without progress, the rest waits
            # for older transactions to end, or cannot be erased yet.
            before, progress = None, _read_progress(connection, receipt)
            while progress != before and eraser.carry_out(receipt, on_step) == "running":
                before, progress = progress, _read_progress(connection, receipt)
    return [call("erasure_receipt", {"receipt": receipt}) for receipt in receipts]


def _read_progress(connection: Connection, receipt: str) -> tuple[Any, ...] | None:
    """What changes while an erasure finds rows that it can erase."""
    return connection.execute(
        "select counts, batches, settled_at is not null,"
        " (select count(*) from app.erasure_failures as f where f.receipt = l.receipt)"
        " from app.erasure_log as l where receipt = %s",
        [receipt],
    ).fetchone()


def make_call(connection: Connection) -> Call:
    """Returns a function that calls SQL functions as DataApi.call() does. That function raises NothingHeld."""

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
        # `select * from f()` of a scalar function returns one column, named like the function.
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
    if skipped := sum(each["skipped"] for each in receipts):
        raise NotComplete(
            f"Not complete: {skipped:,} {'row' if skipped == 1 else 'rows'} could not be erased. The view "
            "ops.erasure_failures names table, key and error. Remove the cause, then run `ballast person resume`."
        )
    if any(each["state"] != "complete" for each in receipts):
        raise NotComplete(
            "Not complete yet: `select * from ops.erasures` shows the reason; `ballast person resume` continues it."
        )
