"""`./scripts/bench realtime`: the latency from a commit to its subscribers, and the cost for the writer."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import click
import psycopg
from psycopg import sql
from rich.console import Console
from rich.progress import track

from scripts.local import bulk
from scripts.local.clerk.server import Keys
from scripts.local.stack import Stack
from scripts.scratch.server import scratch_folder
from tests.bench import report, rls
from tests.bench.keep_cores_busy import keep_cores_busy
from tests.bench.scratch import scratch_postgres, scratch_stack
from tests.bench.subscribers import BROADCAST, CHANGES, Audience, Event, EventsLost, start_listeners

EVENTS, QUICK_EVENTS = 300, 50
WARM_UP: Final = 5
MANY_ROWS: Final = 1_000
# Statements of many rows are slow, so fewer of them are enough.
MANY_ROWS_SHARE: Final = 20
TOKEN_SECONDS: Final = 3_600
MAX_MEDIAN_MS: Final = {1: 10, 100: 50}

NO_TRIGGER: Final = "no trigger"
# The trigger that is enabled while a write is timed. realtime.sql creates the alternatives to ours.
TRIGGERS: Final = {
    NO_TRIGGER: None,
    "our statement trigger": "broadcast_insert",
    "statement trigger, realtime.send() per row": "bench_send",
    "row trigger, realtime.broadcast_changes()": "bench_row",
}
SETUP: Final = Path(__file__).with_name("realtime.sql")
INSERT: Final = """
    insert into public.projects (organization_id, title)
    select %s, number::text from generate_series(%s::int, %s) as number
"""

Admin = psycopg.Connection[Any]


class Case(NamedTuple):
    """A number of subscribers to one feature, and the number of rows per statement."""

    feature: str
    subscribers: int
    rows: int

    @property
    def name(self) -> str:
        what = "" if self.rows == 1 else f", the last of {_rows(self.rows)}"
        return f"{self.feature}, {self.subscribers} subscriber{'s' if self.subscribers > 1 else ''}{what}"


CASES: Final = tuple(
    Case(feature, subscribers, rows)
    for subscribers, rows in ((1, 1), (10, 1), (100, 1), (10, MANY_ROWS))
    for feature in (CHANGES, BROADCAST)
)


class Write(NamedTuple):
    """An insert with a number of rows, and the trigger that it fires."""

    rows: int
    trigger: str


def topic_of(organization: UUID) -> str:
    """The private topic on which the organization's projects are broadcast."""
    return f"org:{organization}:projects:read"


@dataclass(frozen=True)
class Tenant:
    """An organization on a running stack, with a connection to write to it and a token for each member."""

    admin: Admin
    environment: dict[str, str]
    organization: UUID
    tokens: list[str]

    def audience(self, case: Case) -> Audience:
        url, key = f"{self.environment['SUPABASE_URL']}/realtime/v1", self.environment["SUPABASE_PUBLISHABLE_KEY"]
        return Audience(
            case.name, case.feature, url, key, f"org:{self.organization}:projects:read", self.tokens[: case.subscribers]
        )

    def insert(self, first: int, last: int) -> None:
        """Commits projects whose titles are these numbers."""
        self.admin.execute(INSERT, [self.organization, first, last])


@click.command("realtime", short_help="The latency from a commit to its subscribers.")
@click.option("--quick", is_flag=True, help=f"{QUICK_EVENTS} commits per case: under a minute, with the same checks.")
@click.option("--events", type=click.IntRange(1), help=f"Commits per case. Default: {EVENTS}.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def bench_realtime(quick: bool, events: int | None, as_json: bool) -> None:
    """Measure the latency from a commit to its subscribers with Postgres Changes and Broadcast, and the cost of a write.

    \b
    Example: ./scripts/bench realtime --json > realtime.json
    """
    measure(events or (QUICK_EVENTS if quick else EVENTS)).show(as_json=as_json)


def measure(events: int) -> report.Report:
    """Times `events` writes for each audience, and with each trigger. Raises EventsLost."""
    console, number = Console(stderr=True), {1: events, MANY_ROWS: max(1, events // MANY_ROWS_SHARE)}
    with scratch_folder("bench") as folder, ExitStack() as servers:
        with scratch_postgres(folder) as server, psycopg.connect(server.url(), autocommit=True) as admin:
            machine = report.machine(admin)
            writes = time_writes(admin, number, console)
        with console.status("Starting a stack …"):
            stack = servers.enter_context(scratch_stack(folder, service_workers=1))
            admin = servers.enter_context(psycopg.connect(stack.postgres.url(), autocommit=True))
            tenant = fill(admin, stack, max(case.subscribers for case in CASES))
        latencies = {case: time_case(tenant, case, number[case.rows], console) for case in CASES}
    cases = [*_latency_rows(latencies), *_write_rows(writes)]
    return report.Report("realtime", machine, cases, list(_aims(latencies)))


def fill(admin: Admin, stack: Stack, members: int) -> Tenant:
    """Creates an organization with `members` members."""
    for _ in bulk.fill(admin, bulk.Size(organizations=1, members=members, projects=0)):
        pass
    people = admin.execute(
        """
        select o.id, o.clerk_org_id, p.clerk_user_id
        from public.organizations as o
        join public.organization_memberships as m on m.organization_id = o.id
        join public.profiles as p on p.id = m.user_id
        where starts_with(o.clerk_org_id, 'org_bulk_')
        """
    ).fetchall()
    environment, keys = stack.environment(), Keys(stack.clerk_folder)
    session = {"iss": environment["CLERK_ISSUER"], "exp": int(time.time()) + TOKEN_SECONDS}
    tokens = [keys.sign({**json.loads(rls.claims(user, clerk_org)), **session}) for _, clerk_org, user in people]
    return Tenant(admin, environment, people[0][0], tokens)


def time_case(tenant: Tenant, case: Case, statements: int, console: Console) -> list[float]:
    """Measures seconds from each commit to the event of its last row, per subscriber.

    The value is negative if the event arrives before the commit has returned to the writer.
    """
    committed: dict[int, float] = {}
    last = 0
    with start_listeners(tenant.audience(case)) as subscribers:
        for rows in track([1] * WARM_UP + [case.rows] * statements, case.name, console=console):
            tenant.insert(last + 1, last + rows)
            committed[last + rows] = time.monotonic()
            last += rows
            subscribers.wait(rows)
        events = subscribers.events()
    require_all(case, events, last)
    measured = [event for event in events if event.number in committed and event.number > WARM_UP]
    return [event.at - committed[event.number] for event in measured]


def require_all(case: Case, events: list[Event], writes: int) -> None:
    """Raises EventsLost unless each subscriber received the writes 1 to `writes`, in this order."""
    received = defaultdict(list)
    for event in events:
        received[event.subscriber].append(event.number)
    for subscriber in range(case.subscribers):
        numbers = received[subscriber]
        if numbers != list(range(1, writes + 1)):
            lost, doubled = writes - len(set(numbers)), len(numbers) - len(set(numbers))
            raise EventsLost(
                f"{case.name}: of {writes} events a subscriber missed {lost} and received {doubled} twice,"
                f" {'in order' if numbers == sorted(numbers) else 'not in order'}."
            )


def time_writes(admin: Admin, number: dict[int, int], console: Console) -> dict[Write, list[float]]:
    """Times inserts with each trigger. `number` maps rows per insert to inserts. The triggers take turns."""
    admin.execute(SETUP.read_bytes())
    [[organization]] = admin.execute(
        "insert into public.organizations (clerk_org_id, name) values ('org_bench', 'Benchmark') returning id"
    ).fetchall()
    timings: dict[Write, list[float]] = defaultdict(list)
    with keep_cores_busy():
        for rows, rounds in number.items():
            for _ in track(range(rounds), f"insert of {_rows(rows)}", console=console):
                for write in random.sample([Write(rows, trigger) for trigger in TRIGGERS], len(TRIGGERS)):
                    timings[write].append(time_write(admin, organization, write))
    return timings


def time_write(admin: Admin, organization: UUID, write: Write) -> float:
    """Times one insert, and rolls it back. The same insert runs once before, so that planning is not measured."""
    trigger = TRIGGERS[write.trigger]
    with admin.transaction(force_rollback=True):
        if trigger:
            admin.execute(sql.SQL("alter table public.projects enable trigger {}").format(sql.Identifier(trigger)))
        admin.execute(INSERT, [organization, 1, write.rows])
        start = time.perf_counter()
        admin.execute(INSERT, [organization, 1, write.rows])
        seconds = time.perf_counter() - start
        count = "select count(*) from realtime.messages where topic = %s"
        [[messages]] = admin.execute(count, [topic_of(organization)]).fetchall()
    if messages != (2 * write.rows if trigger else 0):
        raise EventsLost(f"{write.trigger}: two inserts of {_rows(write.rows)} sent {messages} messages.")
    return seconds


def _rows(number: int) -> str:
    return f"{number:,} row{'s' if number > 1 else ''}"


def _latency_rows(latencies: dict[Case, list[float]]) -> Iterator[report.Case]:
    """Compares each case with Postgres Changes for the same number of subscribers."""
    for case, seconds in latencies.items():
        yield report.case(case.name, seconds, latencies[case._replace(feature=CHANGES)])


def _write_rows(writes: dict[Write, list[float]]) -> Iterator[report.Case]:
    for write in sorted(writes, key=lambda each: (each.rows, list(TRIGGERS).index(each.trigger))):
        baseline = writes[write._replace(trigger=NO_TRIGGER)]
        yield report.case(f"insert of {_rows(write.rows)}: {write.trigger}", writes[write], baseline)


def _aims(latencies: dict[Case, list[float]]) -> Iterator[report.Aim]:
    for case, seconds in latencies.items():
        if case.rows == 1 and case.subscribers in MAX_MEDIAN_MS:
            median = report.case(case.name, seconds, None).median_ms
            yield report.at_most(f"{case.name}: median ms at most", median, MAX_MEDIAN_MS[case.subscribers])
    # Otherwise EventsLost was raised.
    yield report.at_most("events lost at most", 0, 0)
