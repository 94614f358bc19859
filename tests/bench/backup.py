"""`./scripts/bench backup`: time and memory of backups and restores, compared with pg_dump and pg_restore."""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import httpx
import psycopg
import pyrage
from rich.console import Console
from rich.progress import track

from scripts.backup import programs
from scripts.backup.drill import SCRATCH_SETTINGS
from scripts.backup.manifest import BEFORE, Manifest
from scripts.backup.programs import Programs
from scripts.backup.store import BackupStore
from scripts.errors import Failure
from scripts.local import bulk
from scripts.local.stack import CHECKOUT
from scripts.scratch.postgres import stop
from scripts.scratch.server import free_ports, scratch_folder, scratch_server
from tests.bench import report
from tests.bench.scratch import scratch_postgres


class Size(NamedTuple):
    """The approximate size of the uncompressed dump, and the numbers of backups and restores to measure."""

    megabytes: int
    backups: int
    restores: int


SIZES: Final = (Size(10, 5, 3), Size(200, 3, 2), Size(2_000, 1, 1))
QUICK_SIZES: Final = (Size(5, 2, 1), Size(50, 2, 1))

PLAIN: Final = "pg_dump -Fc -Z0 to a file"
GZIP: Final = "pg_dump -Fc to a file"
FOLDER: Final = "ballast backup run, folder"
BUCKET: Final = "ballast backup run, bucket"
BACKUPS: Final = (PLAIN, GZIP, FOLDER, BUCKET)
PG_RESTORE: Final = "pg_restore -1"
RESTORE: Final = "ballast backup restore"
DRILL: Final = "ballast backup drill"
RESTORES: Final = (PG_RESTORE, RESTORE, DRILL)

MAX_RATIO: Final = 1.3
MAX_MEMORY_MB: Final = 150
# The largest allowed difference in memory between the smallest and the largest database.
MAX_GROWTH_MB: Final = 20
SAMPLE_SECONDS: Final = 0.01
START_SECONDS: Final = 30
MEGABYTE: Final = 1_000_000

MONTHS: Final = 13
# One megabyte is an organization with its people and projects, and one entry per project and month.
MEMBERS_PER_MEGABYTE: Final = 10
PROJECTS_PER_MEGABYTE: Final = 110
# Texts consist of random words: constant texts would compress unrealistically well.
WORDS: Final = """
    create or replace function pg_temp.words(number integer) returns text language sql volatile as $$
        select string_agg(s.part[1 + floor(random() * 24)] || s.part[1 + floor(random() * 24)]
            || case when random() < 0.5 then s.part[1 + floor(random() * 24)] else '' end, ' ')
        from generate_series(1, number),
            (select '{ba,co,di,fe,ga,hu,in,jo,ka,le,mo,na,or,pi,qua,re,st,tu,un,ver,wi,ex,ly,za}'::text[]) as s (part)
    $$
"""
# Audit entries like those of updates of these projects.
FILL: Final = """
    with described as (
        update public.projects set title = pg_temp.words(3), description = pg_temp.words(20)
        where description is null
        returning *
    )
    insert into public.audit_logs (
        organization_id, user_id, action, resource_type, resource_id, metadata, changes, ip_address, user_agent,
        request_id, created_at
    )
    select organization_id, created_by, 'project.updated', 'project', id, jsonb_build_object('title', title),
        jsonb_build_object(
            'before', jsonb_build_object('title', pg_temp.words(3), 'description', pg_temp.words(10)),
            'after', jsonb_build_object('title', title, 'description', pg_temp.words(10)),
            'redacted', jsonb_build_array()
        ),
        '192.0.2.0'::inet + floor(random() * 256)::integer,
        format(
            'Mozilla/5.0 (%%s) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%%s.0.0.0 Safari/537.36',
            (array['X11; Linux x86_64', 'Windows NT 10.0; Win64; x64', 'Macintosh; Intel Mac OS X 10_15_7'])[
                1 + floor(random() * 3)
            ], 100 + floor(random() * 40)
        ),
        gen_random_uuid(), now() - (month - random()) * interval '30 days'
    from described cross join generate_series(1, %(months)s) as month
"""
COUNT: Final = "select (select count(*) from public.audit_logs), (select count(*) from public.projects)"

Admin = psycopg.Connection[Any]


class BackupWrong(Failure):
    """A dump or a backup failed or lacks rows. Its timings cannot be compared."""


class StoreDidNotStart(Failure):
    """The simulated S3 did not start."""


class Rows(NamedTuple):
    """The numbers of rows in a database."""

    entries: int
    projects: int


@dataclass(frozen=True)
class Run:
    """The time and memory of a command: CPU seconds include child processes, memory is its own peak in MB."""

    seconds: float
    cpu_seconds: float
    memory: float
    output: str


@dataclass
class Measurements:
    """The measurements for one size: the runs of each kind, and the stored bytes of each kind of backup."""

    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    stored: dict[str, int] = field(default_factory=dict)

    def seconds(self, kind: str) -> list[float]:
        return [run.seconds for run in self.runs[kind]]

    def cpu_seconds(self, kind: str) -> list[float]:
        return [run.cpu_seconds for run in self.runs[kind]]

    def memory(self, kind: str) -> float:
        return max(run.memory for run in self.runs[kind])

    @property
    def name(self) -> str:
        return f"{self.stored[PLAIN] / MEGABYTE:,.0f} MB"


@dataclass(frozen=True)
class Bench:
    """The server to back up, the PostgreSQL programs, and the stores."""

    url: str
    chosen: Programs
    folder: Path
    bucket_url: str
    bucket: dict[str, str]
    identity: pyrage.x25519.Identity

    @property
    def plain(self) -> Path:
        return self.folder / "plain"

    @property
    def store(self) -> BackupStore:
        return BackupStore((self.folder / "store").as_uri())

    def ballast(self, *words: str, backup_url: str) -> Run:
        """Runs a verb of `ballast backup` as a process. Raises BackupWrong."""
        names = ("BACKUP_", "SUPABASE_", "SENTRY_", "AWS_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(names)} | {
            "ENVIRONMENT": "test",
            "BALLAST_HOME": str(self.folder / "home"),
            "DATABASE_URL": self.url,
            "BACKUP_URL": backup_url,
            "BACKUP_RECIPIENTS": str(self.identity.to_public()),
            "BACKUP_IDENTITY": str(self.identity),
        }
        return run([sys.executable, "-m", "scripts.cli", "backup", *words, "--json"], environment | self.bucket)

    def postgres(self, program: str, *words: str, url: str) -> Run:
        """Runs a PostgreSQL program on a database. Raises BackupWrong."""
        target, environment = programs.split_password(url)
        return run([self.chosen[program], f"--dbname={target}", "--no-password", *words], environment)


@click.command("backup", short_help="Backups and restores, compared with pg_dump and pg_restore.")
@click.option(
    "--quick", is_flag=True, help=f"Up to {QUICK_SIZES[-1].megabytes} MB: under two minutes, with the same checks."
)
@click.option("--megabytes", type=click.IntRange(1), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def bench_backup(quick: bool, megabytes: int | None, as_json: bool) -> None:
    """Compare backups with pg_dump, and restores and drills with pg_restore, for databases of up to 2 GB.

    \b
    Example: ./scripts/bench backup --json > backup.json
    """
    tiny = (Size(megabytes, 1, 1),) if megabytes else None
    measure(tiny or (QUICK_SIZES if quick else SIZES)).show(as_json=as_json)


def measure(sizes: tuple[Size, ...]) -> report.Report:
    """Backs up and restores a database that grows to each of these sizes. Raises BackupWrong."""
    console = Console(stderr=True)
    measured: list[Measurements] = []
    with (
        scratch_folder("bench") as folder,
        scratch_postgres(folder, shared_buffers="512MB", max_wal_size="4GB") as server,
        bucket_server() as endpoint,
        psycopg.connect(server.url("supabase_admin"), autocommit=True) as admin,
    ):
        (folder / "store").mkdir()
        bucket = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "eu-central-1",
        }
        identity = pyrage.x25519.Identity.generate()
        bench = Bench(server.url(), programs.choose_programs(admin), folder, "s3://bench", bucket, identity)
        for size in sizes:
            with console.status(f"Filling to {size.megabytes:,} MB …"):
                rows = fill(admin, size.megabytes)
            measured.append(Measurements())
            for _ in track(range(size.backups), f"{size.megabytes:,} MB: backups", console=console):
                for kind in random.sample(BACKUPS, len(BACKUPS)):
                    measured[-1].runs[kind].append(back_up(bench, kind, rows, measured[-1]))
            for _ in track(range(size.restores), f"{size.megabytes:,} MB: restores", console=console):
                for kind in random.sample(RESTORES, len(RESTORES)):
                    measured[-1].runs[kind].append(restore(bench, kind, rows))
        machine = report.machine(admin)
    return report.Report("backup", machine, list(_cases(measured)), list(_aims(measured)))


def fill(admin: Admin, megabytes: int) -> Rows:
    """Adds tenants, people, projects and audit entries until the dump has about this size."""
    admin.execute("set role postgres")  # the owner of every table in production: a drill would report another one
    for month in range(MONTHS + 1):
        admin.execute("select app.make_audit_partition(now() - %s * interval '1 month')", [month])
    admin.execute("reset role")
    admin.execute(WORDS)
    admin.execute("set session_replication_role = replica")  # no triggers: only FILL creates audit entries
    for _ in bulk.fill(admin, bulk.Size(megabytes, MEMBERS_PER_MEGABYTE, PROJECTS_PER_MEGABYTE)):
        pass
    admin.execute(FILL, {"months": MONTHS})
    admin.execute("reset session_replication_role")
    admin.execute("vacuum (analyze)")
    admin.execute("checkpoint")
    projects = megabytes * PROJECTS_PER_MEGABYTE
    rows = Rows(projects * MONTHS, projects)
    require(rows, count_rows(admin), "filled")
    return rows


def count_rows(admin: Admin) -> Rows:
    [row] = admin.execute(COUNT).fetchall()
    return Rows(*row)


def require(wanted: Rows, found: Rows, deed: str) -> None:
    """Raises BackupWrong if the numbers of rows differ."""
    if wanted != found:
        raise BackupWrong(
            f"{found.entries:,} audit entries and {found.projects:,} projects were {deed} instead of"
            f" {wanted.entries:,} and {wanted.projects:,}."
        )


def back_up(bench: Bench, kind: str, rows: Rows, measured: Measurements) -> Run:
    """Makes a dump or a backup, and keeps the last of each kind. Raises BackupWrong unless it has every row."""
    if kind in {PLAIN, GZIP}:
        file = bench.plain if kind == PLAIN else bench.folder / "gzip"
        file.unlink(missing_ok=True)
        schemas = ("--schema=public", "--schema=app", "--schema=ops", "--schema=supabase_migrations")
        compression = ("--compress=0",) if kind == PLAIN else ()
        taken = bench.postgres("pg_dump", "--format=custom", *compression, *schemas, f"--file={file}", url=bench.url)
        measured.stored[kind] = file.stat().st_size
        return taken
    if kind == FOLDER:
        for name in bench.store.names():
            bench.store.discard(name)
        backup_url = bench.store.url
    else:
        empty_bucket(bench.bucket["AWS_ENDPOINT_URL"])
        backup_url = bench.bucket_url
    taken = bench.ballast("run", backup_url=backup_url)
    manifest = Manifest.model_validate_json(taken.output)
    require(rows, read_counts(manifest), "backed up")
    measured.stored[kind] = manifest.size_bytes
    return taken


def read_counts(manifest: Manifest) -> Rows:
    entries = sum(rows for table, rows in manifest.rows.items() if table.partition(".")[2].startswith("audit_logs"))
    return Rows(entries, manifest.rows["public.projects"])


def restore(bench: Bench, kind: str, rows: Rows) -> Run:
    """Restores the backup in the folder or the plain dump into a new server. Raises BackupWrong if rows are missing."""
    if kind == DRILL:
        taken = bench.ballast("drill", "latest", backup_url=bench.store.url)
        if not json.loads(taken.output)["passed"]:
            raise BackupWrong("The drill did not pass.")
        return taken
    with (
        scratch_folder("bench") as folder,
        scratch_server(folder, **SCRATCH_SETTINGS) as server,
        psycopg.connect(server.url("supabase_admin"), autocommit=True) as admin,
    ):
        if kind == RESTORE:
            taken = bench.ballast("restore", "latest", "--to", server.url(), backup_url=bench.store.url)
        else:
            admin.execute("drop schema public cascade")  # the dump creates it
            admin.execute(bench.store.read(bench.store.find("latest"), BEFORE))
            url = server.url("supabase_admin")
            taken = bench.postgres("pg_restore", "--single-transaction", str(bench.plain), url=url)
        require(rows, count_rows(admin), "restored")
        return taken


def run(command: list[str], environment: dict[str, str]) -> Run:
    """Runs a command and measures it. Raises BackupWrong with its output if it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            with watch_memory(process) as peak:
                output, errors = process.communicate()
        except BaseException:
            process.terminate()
            raise
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise BackupWrong(f"{' '.join(command[:5])} … exited with {process.returncode}: {(output + errors)[-2000:]}")
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu_seconds, max(peak), output)


@contextmanager
def watch_memory(process: subprocess.Popen[str]) -> Iterator[list[float]]:
    """Samples the peak memory of the process in MB: the value is no longer available after the process has ended."""
    peaks = [0.0]
    done = threading.Event()

    def sample() -> None:
        status = Path(f"/proc/{process.pid}/status")
        while not done.wait(SAMPLE_SECONDS):
            with suppress(FileNotFoundError, ProcessLookupError):
                lines = status.read_text().splitlines()
                peaks.extend(int(line.split()[1]) * 1024 / MEGABYTE for line in lines if line.startswith("VmHWM"))

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        yield peaks
    finally:
        done.set()
        sampling.join()


@contextmanager
def bucket_server() -> Iterator[str]:
    """Starts a simulated S3 in a separate process and returns its address. Raises StoreDidNotStart."""
    port = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                empty_bucket(endpoint)
                break
            time.sleep(0.1)
        else:
            raise StoreDidNotStart("The simulated S3 did not answer: check that the package moto is installed.")
        yield endpoint
    finally:
        stop(process)


def empty_bucket(endpoint: str) -> None:
    httpx.post(f"{endpoint}/moto-api/reset", timeout=START_SECONDS).raise_for_status()
    httpx.put(f"{endpoint}/bench", timeout=START_SECONDS).raise_for_status()


def _cases(measured: list[Measurements]) -> Iterator[report.Case]:
    """Compares each kind with PostgreSQL's program: by time, and backups also by CPU time."""
    for size in measured:
        for kinds in (BACKUPS, RESTORES):
            for kind in kinds:
                yield report.case(f"{size.name}: {kind}", size.seconds(kind), size.seconds(kinds[0]))
        for kind in BACKUPS:
            yield report.case(f"{size.name}: {kind}: CPU", size.cpu_seconds(kind), size.cpu_seconds(PLAIN))


def _aims(measured: list[Measurements]) -> Iterator[report.Aim]:
    largest = measured[-1]
    for other, limit in ((PLAIN, MAX_RATIO), (GZIP, 1)):
        ratio = round(statistics.median(largest.seconds(FOLDER)) / statistics.median(largest.seconds(other)), 2)
        yield report.at_most(f"{largest.name}: {FOLDER}: ratio to {other} at most", ratio, limit)
    for size in measured:
        dump, gzip, ours = (round(size.stored[kind] / MEGABYTE, 1) for kind in (PLAIN, GZIP, FOLDER))
        yield report.at_most(f"{size.name}: {FOLDER}: MB stored, of {dump:,}, at most as by {GZIP}", ours, gzip)
    kinds = (FOLDER, BUCKET, RESTORE, DRILL)
    for size in measured:
        for kind in kinds:
            memory = round(size.memory(kind))
            yield report.at_most(f"{size.name}: {kind}: memory, MB at most", memory, MAX_MEMORY_MB)
    for kind in kinds:
        growth = round(largest.memory(kind) - measured[0].memory(kind), 1)
        yield report.at_most(f"growth of the memory of {kind}, MB at most", growth, MAX_GROWTH_MB)
