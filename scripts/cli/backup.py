"""`ballast backup`: make, verify, restore and prune backups."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import click
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Column, Table

from scripts.backup.backup_log import BackupLog
from scripts.backup.borrowed import Place
from scripts.backup.cron_monitors import report_to_monitor
from scripts.backup.drill import Drill, DrillFailed, run_drill
from scripts.backup.extract import DATABASE_VARIABLE, Extract, Format, require_free, write_extract
from scripts.backup.progress import progress_bar
from scripts.backup.restore import may_replace, open_backup, read_keys, restore_and_check
from scripts.backup.restore_engine import Backup, Target
from scripts.backup.retention import DAY, DEFAULT_RPO, ListedBackup, Plan, Policy, apply_plan, list_backups, make_plan
from scripts.backup.run import Task, open_store, read_recipients, run_backup
from scripts.backup.store import CLOCK_TOLERANCE
from scripts.backup.verify import verify_backup
from scripts.cli import options
from scripts.cli.output import print_json, print_table, show_checks
from scripts.schema import database
from scripts.scratch.server import exit_on_sigterm, scratch_folder
from service.audit_store import AuditStore
from service.backup_names import BackupType, filename_of

NEXT_STEPS = (
    "Clear the cache, which predates the restore: run FLUSHDB on the Upstash database.",
    "Finish the repeated erasures in Clerk and the ledger: ballast person resume",
    "Accept that the audit trail now lacks its newest stored seals: ballast audit accept",
    "Apply newer migrations, if the code is newer than the backup: ballast migrate up",
    "Replay the Clerk messages since the backup, in the Clerk dashboard (Webhooks, the endpoint).",
    "Restart the service and reload open browsers: their Realtime connections belong to the old database.",
)

NUMBER = click.IntRange(min=0)
UNITS = (("day", DAY), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1)))


@click.group(epilog="Example: ballast backup run")
def backup() -> None:
    """Back up the database, prove backups with test restores, and restore them."""


@backup.command(epilog="Example: ballast backup run --json")
@options.url_option
@click.option(
    "--type",
    "backup_type",
    type=click.Choice(["manual", "automated"]),
    default="manual",
    show_default=True,
    help="Whether a person or a schedule started it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option(
    "--log", "backup_id", type=click.UUID, hidden=True, help="The row of backup_logs that the service created."
)
@click.option("--name", hidden=True, help="The name of the backup in that row.")
def run(url: str | None, backup_type: BackupType, as_json: bool, backup_id: UUID | None, name: str | None) -> None:
    """Make an encrypted backup of the database.

    The backup is one consistent snapshot, even during writes. It is stored in BACKUP_URL, encrypted for
    BACKUP_RECIPIENTS. Only one backup of a database runs at a time. Exits with 1 on failure; then no partial backup is
    left.
    """
    environment = options.build_environment(url)
    task = Task(
        options.choose_url(url),
        open_store(environment),
        read_recipients(environment),
        BackupLog.of(environment),
        str(backup_id or uuid4()),
        backup_type,
        name or "",
    )
    with exit_on_sigterm(), progress_bar() as bar:
        manifest = run_backup(task, bar)
    if as_json:
        click.echo(manifest.model_dump_json(indent=2))
    else:
        rows = sum(manifest.rows.values())
        click.echo(
            f"{manifest.name}: {rows:,} rows, {decimal(manifest.dump_bytes)} as {decimal(manifest.size_bytes)}"
            f"{'' if manifest.is_encrypted else ', not encrypted'}, in {manifest.duration_seconds:.1f} s"
        )


@backup.command(epilog="Example: ballast backup restore latest --to $NEW_DATABASE_URL")
@click.argument("wanted", metavar="ID")
@click.option(
    "--to", "url", metavar="URL", required=True, help="URL of the database to restore into, as the role postgres."
)
@click.option(
    "--replace", "typed", metavar="PROJECT", help="Drop existing data first. Type the project's name to confirm."
)
@options.identity_option
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def restore(wanted: str, url: str, typed: str | None, identity: Path | None, as_json: bool) -> None:
    """Restore a backup in one transaction, then check the result.

    ID is that of the backup, or `latest`. The database must not contain Ballast tables, unless --replace names the
    project. Erasures since the backup are repeated. Exits with 1 if nothing was restored or a check failed.
    """
    environment = options.build_environment(None)
    store = open_store(environment)
    with (
        scratch_folder("restore") as folder,
        database.connect(url, notify=database.echo_err, own_session=True) as connection,
        progress_bar() as bar,
    ):
        backup = open_backup(store, wanted, read_keys(environment, identity), folder)
        target = Target(url, connection, replace=may_replace(connection, typed))
        done = list(restore_and_check(backup, target, bar, AuditStore(store.url)))
    show_checks(done, as_json=as_json)
    if not as_json:
        for line in NEXT_STEPS:
            database.echo_err(f"Next: {line}")
    if not all(check.passed for check in done):
        sys.exit(1)


@backup.command(epilog="Example: ballast backup drill latest")
@click.argument("wanted", metavar="[ID]", default="latest")
@options.identity_option
@options.url_option
@options.place_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def drill(wanted: str, identity: Path | None, url: str | None, place: Place, as_json: bool) -> None:
    """Prove a backup by a test restore.

    The backup (the latest, or ID) is restored into a temporary PostgreSQL and checked. The report is stored with the
    backup and in public.backup_logs. Exits with 1 if a check failed.
    """
    environment = options.build_environment(url)
    store = open_store(environment)
    log = BackupLog.of(environment)
    with scratch_folder("drill") as folder, report_to_monitor("ballast-restore-drill"):
        with progress_bar() as bar:
            backup = open_backup(store, wanted, read_keys(environment, identity), folder, place)
            report = run_drill(backup, bar)
        log.record_drill(backup.manifest, filename_of(report.backup), asdict(report))
        _show_drill(report, as_json=as_json)
        body = json.dumps(asdict(report), indent=2).encode()
        store.put_report(report.backup, body)
        if not report.passed:
            raise DrillFailed(f"{report.backup} is not proven: do not rely on it. Make another backup.")


@backup.command(epilog="Example: ballast backup verify latest --identity key.txt")
@click.argument("wanted", metavar="[ID]", default="latest")
@options.identity_option
def verify(wanted: str, identity: Path | None) -> None:
    """Compare the files of a backup with their checksums.

    Reads the latest backup, or ID. With the key, also checks that the dump decrypts and decompresses completely. Needs
    no database. Unlike `ballast backup drill`, it does not prove that PostgreSQL can restore the backup. Exits with 1
    if a file is damaged or missing.
    """
    environment = options.build_environment(None)
    store = open_store(environment)
    manifest = store.manifest(store.find(wanted))
    keys = read_keys(environment, identity)
    with scratch_folder("verify") as folder, progress_bar() as bar:
        backup = Backup(store, manifest, keys, folder)
        is_readable = bool(keys) or not manifest.is_encrypted
        verify_backup(backup, bar, decrypt=is_readable)
    if is_readable:
        content = f"{'decrypted and ' if manifest.is_encrypted else ''}decompressed to {decimal(manifest.dump_bytes)}"
    else:
        content = "not decrypted"
        database.echo_err(
            "Without a key only the checksums were compared: pass --identity FILE, or set BACKUP_IDENTITY."
        )
    files = len(manifest.files)
    click.echo(f"{manifest.name}: {files} files, {decimal(manifest.size_bytes)}, all checksums match; {content}.")


@backup.command("list", epilog="Example: ballast backup list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_command(as_json: bool) -> None:
    """List the backups in BACKUP_URL, newest first.

    Shows the age and size of each backup, and the last drill that proved it. Needs no database. Problems are red: a
    damaged backup, a failed drill, a latest backup older than a day, or one dated in the future because a clock is
    wrong.
    """
    store = open_store(options.build_environment(None))
    backups = list_backups(store)[::-1]
    now = datetime.now(UTC)
    if as_json:
        print_json([_backup_as_json(each, now) for each in backups])
    elif backups:
        _show_backups(backups, now)
    else:
        click.echo(f"There is no backup in {store.url} yet. Run `ballast backup run` to make one.")


@backup.command(epilog="Example: ballast backup prune --dry-run")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and change nothing.")
@click.option("--daily", type=NUMBER, default=7, show_default=True, metavar="N", help="Days to keep.")
@click.option("--weekly", type=NUMBER, default=4, show_default=True, metavar="N", help="Weeks to keep.")
@click.option("--monthly", type=NUMBER, default=12, show_default=True, metavar="N", help="Months to keep.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def prune(dry_run: bool, daily: int, weekly: int, monthly: int, as_json: bool) -> None:
    """Delete old backups from BACKUP_URL.

    Keeps the newest backup of each of the last N days, weeks and months that have one. Also keeps the newest backup,
    those made less than a day before it, the newest proven one, unreadable ones, and those dated in the future. Deletes
    files of interrupted runs that are a day older than the newest file in the store. Times are UTC and those of the
    database. Exits with 1 if a deletion failed.
    """
    store = open_store(options.build_environment(None))
    plan = make_plan(store, Policy(daily, weekly, monthly))
    if not as_json:
        _show_plan(plan)
    failed = [] if dry_run else apply_plan(store, plan)
    if as_json:
        to_delete = [each.name for each in plan.to_delete]
        leftovers = [each.path for each in plan.leftovers]
        print_json(
            {"dry_run": dry_run, "kept": plan.to_keep, "going": to_delete, "leftovers": leftovers, "failed": failed}
        )
    elif not dry_run:
        deleted = len(plan.to_delete) + len(plan.leftovers) - len(failed)
        click.echo(f"{deleted} deleted, {len(plan.to_keep)} kept.")
    if failed:
        sys.exit(1)


@backup.command(epilog="Example: ballast backup extract latest --organization org_2abc --output acme.sql")
@click.argument("wanted", metavar="ID")
@click.option("--organization", metavar="ORG", required=True, help="The organization's uuid or Clerk id (org_…).")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    required=True,
    help="The script to write, or the folder for csv. It must not exist yet.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["sql", "csv"]),
    default="sql",
    show_default=True,
    help="A psql script, or a folder with one file per table. A spreadsheet would run formulas in these files.",
)
@options.identity_option
@options.place_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def extract(  # noqa: PLR0913, PLR0917 - an argument per option
    wanted: str,
    organization: str,
    output: Path,
    output_format: Format,
    identity: Path | None,
    place: Place,
    as_json: bool,
) -> None:
    """Write one organization's rows from a backup to a file.

    The backup (its ID, or `latest`) is restored into a temporary PostgreSQL and checked. Erasures since the backup are
    repeated there. Only you may read the file. Put the rows back with psql: the script inserts missing rows and changes
    no existing ones. You can run it repeatedly. The organization's audit entries are not written: nothing may be added
    to the sealed trail. Read them in the database, or restore the backup and read them there.
    """
    environment = options.build_environment(None)
    require_free(output)
    with scratch_folder("extract") as folder, progress_bar() as bar:
        backup = open_backup(open_store(environment), wanted, read_keys(environment, identity), folder, place)
        done = write_extract(backup, organization, output, output_format, bar)
    _show_extract(done, as_json=as_json)


def _show_drill(report: Drill, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    show_checks(report.checks, as_json=False)
    age = "unknown" if report.rpo_seconds is None else str(timedelta(seconds=round(report.rpo_seconds)))
    click.echo(
        f"{report.backup}: {'proven' if report.passed else 'NOT proven'}. Recovered {decimal(report.dump_bytes)} in"
        f" {report.rto_seconds} s (RTO); the age of the data is {age} (RPO)."
    )


def _show_extract(done: Extract, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    table = Table("Table", "Rows")
    for name, rows in done.rows.items():
        table.add_row(f"public.{name}", f"{rows:,}")
    print_table(table)
    path = shlex.quote(done.output)
    command = (
        f"psql {DATABASE_VARIABLE} --file={path}"
        if done.format == "sql"
        else f"cd {path} && psql {DATABASE_VARIABLE} --file=put-back.sql"
    )
    click.echo(
        f"The organization's audit entries ({', '.join(done.left_out)}) are not in it: nothing may be added to the"
        " sealed trail. To read old ones, restore the backup."
    )
    click.echo(f"{sum(done.rows.values()):,} rows of {done.organization}. To put back missing rows, run: {command}")


def _backup_as_json(backup: ListedBackup, now: datetime) -> dict[str, Any]:
    manifest, created_at = backup.manifest, backup.created_at
    return {
        "id": backup.name,
        "created_at": created_at.isoformat() if created_at else None,
        "ahead_seconds": round(backup.ahead.total_seconds()),
        "age_seconds": round((now - created_at).total_seconds()) if created_at else None,
        "size_bytes": manifest.size_bytes if manifest else None,
        "rows": sum(manifest.rows.values()) if manifest else None,
        "encrypted": manifest.is_encrypted if manifest else None,
        "proven_at": backup.proven_at.isoformat() if backup.proven_at else None,
        "last_drill_failed": backup.is_refuted,
        "damage": backup.damage,
    }


def _show_backups(backups: list[ListedBackup], now: datetime) -> None:
    table = Table(Column("Backup", no_wrap=True), "Age", "Size", "Rows", "Encrypted", "Proven", box=None)
    newest = next((each for each in backups if each.manifest is not None and not each.ahead), None)
    for each in backups:
        if each.manifest is None or each.created_at is None:
            table.add_row(f"[red]{each.name}", "", "", "", "", f"[red]{escape(each.damage or '')}")
            continue
        table.add_row(
            each.name,
            _describe_age(each, now - each.created_at, is_newest=each is newest),
            decimal(each.manifest.size_bytes),
            f"{sum(each.manifest.rows.values()):,}",
            "yes" if each.manifest.is_encrypted else "[red]no",
            _format_proof(each, now),
        )
    print_table(table)


def _describe_age(backup: ListedBackup, age: timedelta, *, is_newest: bool) -> str:
    if backup.ahead:
        return f"[red]dated {backup.ahead} ahead: a clock is wrong"
    return f"[red]{_format_age(age)}" if is_newest and age > DEFAULT_RPO else _format_age(age)


def _format_proof(backup: ListedBackup, now: datetime) -> str:
    when = f"{_format_age(now - backup.proven_at)} ago" if backup.proven_at else "never"
    if backup.proven_at and backup.proven_at > now + CLOCK_TOLERANCE:
        when = "dated in the future: a clock is wrong"
    if backup.is_refuted:
        return f"[red]last drill FAILED; proven: {when}"
    return f"[green]{when}" if backup.proven_at else when


def _show_plan(plan: Plan) -> None:
    table = Table("Backup", "", "Why")
    for name, reason in plan.to_keep.items():
        table.add_row(name, "[green]keep", escape(reason))
    for each in reversed(plan.to_delete):
        table.add_row(each.name, "[yellow]delete", f"made {each.created_at:%Y-%m-%d %H:%M}; no rule keeps it")
    for leftover in plan.leftovers:
        kind = "an unfinished upload" if leftover.upload_id else "an unfinished backup"
        table.add_row(leftover.path, "[yellow]delete", f"{kind}, last written {leftover.began_at:%Y-%m-%d %H:%M}")
    if table.rows:
        print_table(table)


def _format_age(age: timedelta) -> str:
    """Formats an age in its largest unit, such as `3 days`."""
    for name, unit in UNITS:
        if number := age // unit:
            return f"{number} {name}{'' if number == 1 else 's'}"
    return "seconds"
