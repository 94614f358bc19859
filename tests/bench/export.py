"""`./scripts/bench export`: time and memory of a person's data export, and the time of an erasure's steps."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import httpx
import psutil
import psycopg
from rich.console import Console
from rich.progress import track

from scripts.cli.person import write_export
from scripts.errors import Failure
from scripts.local.clerk.client import ClerkClient
from scripts.local.processes import RunRecord
from scripts.local.stack import Stack
from scripts.scratch.server import scratch_folder
from tests.bench import report
from tests.bench.scratch import scratch_stack

SIZES: Final = (1_000, 100_000, 1_000_000)
QUICK_SIZES: Final = (1_000, 20_000)
RUNS: Final = 3
PERSON: Final = "user_ada"
MONTHS: Final = 13
MAX_RATIO: Final = 3
MAX_SERVICE_MB: Final = 100
# The largest allowed difference in memory between the smallest and the largest export.
MAX_GROWTH_MB: Final = 20
MAX_STEP_MS: Final = 1_000
SAMPLE_SECONDS: Final = 0.02
MEGABYTE: Final = 1_000_000

# Audit entries like those of project updates.
FILL: Final = """
    insert into public.audit_logs (
        organization_id, user_id, action, resource_type, resource_id, metadata, changes, ip_address, user_agent,
        request_id, created_at
    )
    select gen_random_uuid(), p.id, 'project.updated', 'project', gen_random_uuid(), '{"title": "Project"}',
        '{"before": {"title": "Old"}, "after": {"title": "Project"}, "redacted": []}', '192.0.2.1',
        'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0',
        gen_random_uuid(), now() - n * interval '390 days' / %(entries)s
    from public.profiles as p, generate_series(1, %(entries)s) as n
    where p.clerk_user_id = %(person)s
"""
# The same rows in the same format, by the fastest way to read them from PostgreSQL.
COPY: Final = """
    copy (
        select row_to_json(x)
        from (
            select id, created_at, organization_id, action, resource_type, resource_id, request_id, ip_address,
                user_agent, metadata, changes
            from public.audit_logs
            where user_id = (select id from public.profiles where clerk_user_id = '{person}')
            order by created_at, id
        ) as x
    ) to stdout
"""

Admin = psycopg.Connection[Any]


class ExportWrong(Failure):
    """An export lacks rows. Its timings cannot be compared."""


@dataclass
class Peaks:
    """Peak memory in MB: of the service's largest process, and of the largest database session."""

    service: float = 0
    database: float = 0


@dataclass
class Measurements:
    """The measurements for one size: seconds of each run, and peak memory."""

    copy: list[float] = field(default_factory=list)
    command: list[float] = field(default_factory=list)
    json: list[float] = field(default_factory=list)
    zip: list[float] = field(default_factory=list)
    peaks: Peaks = field(default_factory=Peaks)


@click.command("export", short_help="Time and memory of a person's data export.")
@click.option("--quick", is_flag=True, help=f"Up to {QUICK_SIZES[-1]:,} rows: half a minute, with the same checks.")
@click.option("--rows", type=click.IntRange(2), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def bench_export(quick: bool, rows: int | None, as_json: bool) -> None:
    """Compare the export of a person with many audit entries with COPY, and time the steps of their erasure.

    \b
    Example: ./scripts/bench export --json > export.json
    """
    sizes = (rows // 2, rows) if rows else QUICK_SIZES if quick else SIZES
    measure(sizes).show(as_json=as_json)


def measure(sizes: tuple[int, ...]) -> report.Report:
    """Exports a person whose rows grow to each of these sizes, then erases them. Raises ExportWrong."""
    console = Console(stderr=True)
    measured: dict[int, Measurements] = {}
    with (
        scratch_folder("bench") as folder,
        scratch_stack(folder, service_workers=1) as stack,
        psycopg.connect(stack.postgres.url("supabase_admin"), autocommit=True) as admin,
    ):
        machine = report.machine(admin)
        for size in sizes:
            fill(admin, size)
            measured[size] = Measurements()
            for _ in track(range(RUNS), f"{size:,} rows", console=console):
                measure_once(stack, admin, folder, size, measured[size])
        with console.status("Erasing …"):
            steps = erase(admin)
    return report.Report("export", machine, list(_cases(measured, steps)), list(_aims(measured, steps)))


def fill(admin: Admin, entries: int) -> None:
    """Replaces the audit trail with entries of the person over thirteen months."""
    admin.execute("set session_replication_role = replica")  # the trail is append-only
    admin.execute("truncate public.audit_logs")
    admin.execute("reset session_replication_role")
    for month in range(MONTHS + 1):
        admin.execute("select app.make_audit_partition(now() - %s * interval '1 month')", [month])
    admin.execute(FILL.encode(), {"entries": entries, "person": PERSON})
    admin.execute("vacuum (analyze) public.audit_logs")
    admin.execute("checkpoint")


def measure_once(stack: Stack, admin: Admin, folder: Path, entries: int, measured: Measurements) -> None:
    """Measures COPY and the exports as JSON and ZIP. Raises ExportWrong unless the exports have every row."""
    measured.copy.append(measure_seconds(lambda: copy(admin, folder / "copy")))
    with psycopg.connect(stack.postgres.url(), autocommit=True) as connection:
        measured.command.append(measure_seconds(lambda: write_export(connection, PERSON, folder / "command.json")))
    with watch_memory(stack, measured.peaks):
        measured.json.append(measure_seconds(lambda: export(stack, admin, "application/json", folder / "export.json")))
        measured.zip.append(measure_seconds(lambda: export(stack, admin, "application/zip", folder / "export.zip")))
    for file in ("export.json", "command.json"):
        rows = (folder / file).read_bytes().count(b'"project.updated"')
        if rows != entries:
            raise ExportWrong(f"{rows:,} rows were exported instead of {entries:,}.")


def measure_seconds(act: Callable[[], object]) -> float:
    """Returns the duration in seconds."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def copy(admin: Admin, file: Path) -> None:
    with file.open("wb") as output, admin.cursor().copy(COPY.format(person=PERSON).encode()) as rows:
        output.writelines(rows)


def export(stack: Stack, admin: Admin, accept: str, file: Path) -> None:
    """Downloads an export from the service. Raises ExportWrong if the service refuses."""
    admin.execute("update app.exports set outcome = 'failed'")  # otherwise the next export is allowed in an hour
    environment = stack.environment()
    token = ClerkClient(environment["CLERK_ISSUER"]).token(PERSON)["token"]
    headers = {"Authorization": f"Bearer {token}", "Accept": accept, "Accept-Encoding": "identity"}
    url = f"{environment['SERVICE_URL']}/api/v1/gdpr/export"
    with file.open("wb") as output, httpx.stream("GET", url, headers=headers, timeout=60) as answer:
        if not answer.is_success:
            raise ExportWrong(f"The service answered {answer.status_code}.")
        output.writelines(answer.iter_bytes())


@contextmanager
def watch_memory(stack: Stack, peaks: Peaks) -> Iterator[None]:
    """Samples the memory of the service and the database sessions while the block runs."""
    services = RunRecord.read(stack.home).services
    service, database = (psutil.Process(services[name].pid) for name in ("service", "postgres"))
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peaks.service = max(peaks.service, *(own_memory(each, "rss") for each in service.children()))
            peaks.database = max(peaks.database, *(own_memory(each, "anonymous") for each in database.children()))

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        yield
    finally:
        done.set()
        sampling.join()


def own_memory(process: psutil.Process, kind: str) -> float:
    """A process's memory in MB, 0 if it has ended. Either rss, or anonymous memory, without PostgreSQL's cache."""
    try:
        if kind == "rss":
            return process.memory_info().rss / MEGABYTE
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return 0
    return next(
        (int(line.split()[1]) * 1024 / MEGABYTE for line in status.splitlines() if line.startswith("RssAnon")), 0
    )


def erase(admin: Admin) -> list[float]:
    """Times each step of the person's erasure. First makes an admin an owner, so that no organization loses its last one."""
    admin.execute("update public.organization_memberships set role = 'owner' where role = 'admin'")
    row = admin.execute("select public.request_erasure(%s, 'administrator') ->> 'receipt'", [PERSON]).fetchone()
    seconds: list[float] = []
    state = ("running",)
    while state == ("running",):
        start = time.perf_counter()
        state = admin.execute("select public.continue_erasure(%s) ->> 'state'", row).fetchone() or ("lost",)
        seconds.append(time.perf_counter() - start)
    if admin.execute("select from public.audit_logs where user_id is not null limit 1").rowcount:
        raise ExportWrong("The erasure left audit entries of the person.")
    return seconds


def _cases(measured: dict[int, Measurements], steps: list[float]) -> Iterator[report.Case]:
    for size, each in measured.items():
        yield report.case(f"{size:,} rows: COPY", each.copy, each.copy)
        yield report.case(f"{size:,} rows: ballast person export, JSON", each.command, each.copy)
        yield report.case(f"{size:,} rows: service, JSON", each.json, each.copy)
        yield report.case(f"{size:,} rows: service, ZIP", each.zip, each.copy)
    yield report.case(f"erasing {max(measured):,} rows: a step", steps, steps)
    yield report.case(f"erasing {max(measured):,} rows: all steps", [sum(steps)], steps)


def _aims(measured: dict[int, Measurements], steps: list[float]) -> Iterator[report.Aim]:
    for size, each in measured.items():
        for name, seconds in (("command", each.command), ("service", each.json)):
            ratio = round(statistics.median(seconds) / statistics.median(each.copy), 2)
            yield report.at_most(f"{size:,} rows: {name}, JSON: ratio to COPY at most", ratio, MAX_RATIO)
        yield report.at_most(f"{size:,} rows: service's memory, MB at most", round(each.peaks.service), MAX_SERVICE_MB)
    peaks = [each.peaks for each in measured.values()]
    for part in ("service", "database"):
        growth = round(getattr(peaks[-1], part) - getattr(peaks[0], part), 1)
        yield report.at_most(f"growth of the {part}'s memory, MB at most", growth, MAX_GROWTH_MB)
    yield report.at_most("longest step of the erasure, ms at most", round(max(steps) * 1000), MAX_STEP_MS)
