"""`./scripts/bench migrate`: how long writers wait, and what fails, while `migrate up` changes a database in use."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import click
import psycopg
from rich.console import Console
from rich.progress import track

from scripts.errors import Failure
from scripts.local import bulk
from scripts.schema import migrations, sql_files
from scripts.scratch.postgres import Postgres
from scripts.scratch.server import scratch_folder
from tests.bench import report, rls
from tests.bench.scratch import scratch_postgres
from tests.bench.webhooks import deliveries

ROUNDS, QUICK_ROUNDS = 10, 3
PROJECTS_PER_ORGANIZATION: Final = 1_000
ORGANIZATIONS, QUICK_ORGANIZATIONS = 500, 50
MEMBERS: Final = 5
QUIET_SECONDS: Final = 3
# Each client pauses after a transaction, so that two cores are not the limit.
PAUSE_SECONDS: Final = 0.05
# A report or a dump holds its locks for this long, then comes again after the pause.
LONG_READ_SECONDS, LONG_READ_PAUSE_SECONDS = 5, 2
MAX_WAIT_MS: Final = 1_000

PROJECTS, EVENTS, READS = "projects written", "Clerk events", "projects read"
WRITES: Final = (PROJECTS, EVENTS)
CLIENTS: Final = {PROJECTS: 4, EVENTS: 2, READS: 2}

INDEX: Final = "create index {concurrently} if not exists projects_bench_{number}_idx on public.projects (status);\n"
# The migrations of each round, by name. Every policy reads the memberships: a transaction that locks them, and then
# another table, deadlocks with people who write. An index of a table with rows is built by hand before the release.
MIGRATIONS: Final = {
    "columns": """\
alter table public.organization_memberships add column bench_{number} text;
alter table public.projects add column bench_{number} text;
""",
    "table": """\
create table public.test_bench_{number} (
  id uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  project_id uuid not null references public.projects on delete cascade
);
create index on public.test_bench_{number} (project_id);
alter table public.test_bench_{number} enable row level security, force row level security;
""",
    "index": INDEX,
}
# One of the two conditions is that of the checkout; each round changes the trigger to the other one.
TRIGGER_FILE: Final = "functions/9_tables/projects.sql"
TRIGGER_CONDITIONS: Final = ("old.* is distinct from new.*", "new.* is distinct from old.*")

Admin = psycopg.Connection[Any]


class WritesLost(Failure):
    """A committed write is not in the database, or a finished migration left a file pending."""


class Person(NamedTuple):
    """An owner: their claims, their organization, and some of its projects."""

    claims: str
    organization: UUID
    projects: list[UUID]


@dataclass
class Observed:
    """The transactions of one phase by kind: the seconds of each, the messages of failed ones, the rows inserted."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in CLIENTS})
    failures: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in CLIENTS})
    inserted: list[UUID] = field(default_factory=list)

    def longest_ms(self, *kinds: str) -> float:
        return round(max(chain.from_iterable(self.seconds[kind] for kind in kinds), default=0) * 1_000)

    def failed(self, *kinds: str) -> int:
        return sum(len(self.failures[kind]) for kind in kinds)


class Outcome(NamedTuple):
    """A run of `migrate up`: its duration, what it printed meanwhile, and the message if it failed."""

    seconds: float
    notices: list[str]
    failure: str | None


@dataclass
class Measurements:
    """`quiet` is traffic without a migration; `alone` is `migrate up` without traffic."""

    quiet: Observed = field(default_factory=Observed)
    busy: Observed = field(default_factory=Observed)
    alone: list[Outcome] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    deadlocks: int = 0
    retries: int = 0


@click.command("migrate", short_help="What a migration costs people who write.")
@click.option(
    "--quick", is_flag=True, help=f"{QUICK_ROUNDS} migrations of a tenth of the data: a minute, with the same checks."
)
@click.option("--rounds", type=click.IntRange(1), help=f"Number of migrations. Default: {ROUNDS}.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def bench_migrate(quick: bool, rounds: int | None, as_json: bool) -> None:
    """Change every function and policy, a trigger, a column, a table and an index while clients write and read.

    \b
    Example: ./scripts/bench migrate --json > migrate.json
    """
    organizations = QUICK_ORGANIZATIONS if quick or rounds else ORGANIZATIONS
    measure(organizations, rounds or (QUICK_ROUNDS if quick else ROUNDS)).show(as_json=as_json)


def measure(organizations: int, rounds: int) -> report.Report:
    """Migrates a temporary database `rounds` times without traffic and with it, in turns. Raises WritesLost."""
    console = Console(stderr=True)
    with (
        scratch_folder("bench") as folder,
        scratch_postgres(folder, shared_buffers="512MB", max_wal_size="4GB") as server,
        psycopg.connect(server.url("supabase_admin"), autocommit=True) as admin,
        ProcessPoolExecutor(1, get_context("spawn")) as process,
    ):
        machine = report.machine(admin)
        with console.status("Making the tenants …"):
            size = bulk.Size(organizations, MEMBERS, PROJECTS_PER_ORGANIZATION)
            for _ in bulk.fill(admin, size):
                pass
            people = choose_people(admin)
            root = copy_checkout(folder / "checkout")
        measured, numbers = Measurements(), count(1)

        def migrate() -> Outcome:
            return process.submit(run_migrate, server.url(), root).result()

        before = count_deadlocks(admin)
        for _ in track(range(rounds), "migrate up", console=console):
            change(root, next(numbers))
            measured.alone.append(migrate())
            with traffic(server, people, measured.quiet):
                time.sleep(QUIET_SECONDS)
            number = next(numbers)
            change(root, number)
            with traffic(server, people, measured.busy):
                prepare(server, number)
                measured.outcomes.append(migrate())
        measured.deadlocks = count_deadlocks(admin) - before
        measured.retries = (server.folder / "server.log").read_text().count("due to lock timeout")
        explain(measured, console)
        require_writes(admin, measured.quiet.inserted + measured.busy.inserted)
        require_state(server, root, measured.outcomes[-1])
    return report.Report("migrate", machine, list(_cases(measured)), list(_aims(measured, rounds)))


def copy_checkout(root: Path) -> Path:
    """Copies the three folders that `migrate up` applies."""
    for name in ("migrations", "functions", "policies"):
        shutil.copytree(sql_files.ROOT / name, root / name)
    return root


def change(root: Path, number: int) -> None:
    """Changes every function and policy file and a trigger, and adds migrations."""
    for file in [*root.glob("functions/**/*.sql"), *root.glob("policies/*.sql")]:
        with file.open("a") as end:
            end.write(f"-- Change {number} of the benchmark.\n")
    trigger = root / TRIGGER_FILE
    before, after = TRIGGER_CONDITIONS if TRIGGER_CONDITIONS[0] in trigger.read_text() else TRIGGER_CONDITIONS[::-1]
    trigger.write_text(trigger.read_text().replace(before, after))
    for name, text in MIGRATIONS.items():
        written = text.format(number=number, concurrently="")
        sql_files.write_next_migration(f"bench_{name}_{number}", written, root=root)


def prepare(server: Postgres, number: int) -> None:
    """Builds the index by hand, as docs/upgrade.md advises, and drops that of the round before."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"drop index concurrently if exists public.projects_bench_{number - 1}_idx".encode())
        connection.execute(INDEX.format(number=number, concurrently="concurrently").encode())


def run_migrate(url: str, root: Path) -> Outcome:
    """Runs `migrate up` in a process of its own, so that it does not slow down the clients."""
    notices: list[str] = []
    failure = None
    start = time.perf_counter()
    try:
        migrations.up(url, root=root, notify=notices.append)
    except Failure as error:
        failure = str(error)
    return Outcome(time.perf_counter() - start, notices, failure)


def choose_people(admin: Admin) -> list[Person]:
    """Chooses as many owners as there are clients, each of another organization."""
    rows = admin.execute(
        """
        select p.clerk_user_id, o.clerk_org_id, o.id,
            array(select j.id from public.projects as j where j.organization_id = o.id limit 50)
        from public.organizations as o
        join public.organization_memberships as m on m.organization_id = o.id and m.role = 'owner'
        join public.profiles as p on p.id = m.user_id
        order by o.clerk_org_id
        limit %s
        """,
        [sum(CLIENTS.values())],
    )
    return [
        Person(rls.claims(user, clerk_org), organization, projects) for user, clerk_org, organization, projects in rows
    ]


# --- the clients ---


@contextmanager
def traffic(server: Postgres, people: list[Person], observed: Observed) -> Iterator[None]:
    """Runs all clients and a long reader in threads during the block, and waits for their last transaction."""
    stop = threading.Event()
    owners = iter(people)
    threads = [threading.Thread(target=read_for_long, args=(server, stop))]
    for kind, number in CLIENTS.items():
        for _ in range(number):
            arguments = (server, kind, next(owners), observed, stop)
            threads.append(threading.Thread(target=run_client, args=arguments))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def run_client(server: Postgres, kind: str, person: Person, observed: Observed, stop: threading.Event) -> None:
    """Repeats one kind of transaction, logged in as the Data API is, and with prepared statements as it has them."""
    with psycopg.connect(server.url("authenticator"), autocommit=True) as connection:
        act = ACTIONS[kind](person, observed)
        while not stop.wait(PAUSE_SECONDS):
            start = time.perf_counter()
            try:
                act(connection)
            except psycopg.Error as error:
                observed.failures[kind].append(error.diag.message_primary or str(error))
            except WritesLost as error:
                observed.failures[kind].append(str(error))
            observed.seconds[kind].append(time.perf_counter() - start)


Act = Callable[[Admin], None]


def write_project(person: Person, observed: Observed) -> Act:
    """Inserts a project and updates another."""
    changes = enumerate(cycle(person.projects))

    def act(connection: Admin) -> None:
        number, other = next(changes)
        with connection.transaction():
            become(connection, "authenticated", person.claims)
            [[project]] = connection.execute(
                "insert into public.projects (organization_id, title) values (%s, 'Benchmark') returning id",
                [person.organization],
            ).fetchall()
            updated = connection.execute(
                "update public.projects set description = %s where id = %s",
                [f"Change {number}", other],
            ).rowcount
        observed.inserted.append(project)
        if updated != 1:
            raise WritesLost(f"An update changed {updated} rows.")

    return act


def read_projects(person: Person, _: Observed) -> Act:
    def act(connection: Admin) -> None:
        with connection.transaction():
            become(connection, "authenticated", person.claims)
            rows = connection.execute(
                "select id, title, status from public.projects where organization_id = %s "
                "order by created_at desc limit 50",
                [person.organization],
            ).fetchall()
        if len(rows) != 50:
            raise WritesLost(f"An owner sees {len(rows)} projects instead of 50.")

    return act


def receive_events(person: Person, _: Observed) -> Act:
    """Receives the events of new organizations with people and memberships, as the service passes them on."""
    messages = chain.from_iterable(deliveries(1_000_000, f"{person.organization.hex[:12]}_{time.time_ns()}"))

    def act(connection: Admin) -> None:
        message = next(messages)
        with connection.transaction():
            become(connection, "service_role", "{}")
            row = connection.execute(
                "select public.receive_clerk_event(%s, %s) ->> 'outcome'",
                [message.message_id, json.dumps(message.event)],
            ).fetchone()
        if row is None or row[0] in ("failed", "ignored"):
            raise WritesLost(f"An event's outcome is {row and row[0]}.")

    return act


ACTIONS: Final = {PROJECTS: write_project, EVENTS: receive_events, READS: read_projects}


def become(connection: Admin, role: str, claims: str) -> None:
    connection.execute(
        "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)", [role, claims]
    )


def read_for_long(server: Postgres, stop: threading.Event) -> None:
    """Reads like a report: its locks are held until its transaction ends."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        while not stop.is_set():
            with connection.transaction():
                for table in ("organizations", "organization_memberships", "projects"):
                    connection.execute(f"select count(*) from public.{table}".encode())
                stop.wait(LONG_READ_SECONDS)
            stop.wait(LONG_READ_PAUSE_SECONDS)


# --- the results ---


def count_deadlocks(admin: Admin) -> int:
    [[number]] = admin.execute("select sum(deadlocks) from pg_stat_database").fetchall()
    return int(number)


def explain(measured: Measurements, console: Console) -> None:
    """Prints each kind of failure of the clients and of `migrate up`, and what `migrate up` said meanwhile."""
    for kind, messages in measured.busy.failures.items():
        for message, number in Counter(messages).items():
            console.print(f"{kind}: {number} x {message}", markup=False, highlight=False)
    for outcome in measured.outcomes:
        for line in [*outcome.notices, *([f"migrate up failed: {outcome.failure}"] if outcome.failure else [])]:
            console.print(line, markup=False, highlight=False)


def require_writes(admin: Admin, inserted: list[UUID]) -> None:
    """Raises WritesLost unless each row whose insert was committed is there."""
    [[found]] = admin.execute("select count(*) from public.projects where id = any(%s)", [inserted]).fetchall()
    if found != len(inserted):
        raise WritesLost(f"Of {len(inserted)} committed projects {found} are in the database.")


def require_state(server: Postgres, root: Path, last: Outcome) -> None:
    """Raises WritesLost if `migrate up` succeeded but a file is not applied."""
    states = migrations.list_states(server.url(), root=root)
    pending = [f"{each.path} is {each.state}" for each in states if each.state not in ("applied", "current")]
    if pending and last.failure is None:
        raise WritesLost("\n".join(pending))


def _cases(measured: Measurements) -> Iterator[report.Case]:
    for kind in CLIENTS:
        quiet, busy = measured.quiet.seconds[kind], measured.busy.seconds[kind]
        yield report.case(f"{kind}, no migration, longest {measured.quiet.longest_ms(kind):,.0f} ms", quiet, quiet)
        yield report.case(f"{kind}, during migrations, longest {measured.busy.longest_ms(kind):,.0f} ms", busy, quiet)
    alone = [outcome.seconds for outcome in measured.alone]
    yield report.case("migrate up, no traffic", alone, alone)
    busy = [outcome.seconds for outcome in measured.outcomes]
    yield report.case(f"migrate up, with traffic, {measured.retries} retries", busy, alone)


def _aims(measured: Measurements, rounds: int) -> Iterator[report.Aim]:
    applied = sum(outcome.failure is None for outcome in measured.outcomes)
    yield report.at_least("migrations applied, at least", applied, rounds)
    yield report.at_most("longest wait of a writer: ms at most", measured.busy.longest_ms(*WRITES), MAX_WAIT_MS)
    yield report.at_most("longest wait of a reader: ms at most", measured.busy.longest_ms(READS), MAX_WAIT_MS)
    yield report.at_most("failed writes at most", measured.busy.failed(*WRITES), 0)
    yield report.at_most("failed reads at most", measured.busy.failed(READS), 0)
    yield report.at_most("deadlocks at most", measured.deadlocks, 0)
