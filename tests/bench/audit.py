"""`./scripts/bench audit`: the cost of the audit trail for a write, and the time of a tenant's first page of it."""

from __future__ import annotations

import json
import random
import secrets
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import click
import psycopg
from psycopg import sql
from rich.console import Console
from rich.progress import track

from scripts.errors import Failure
from scripts.local import bulk
from scripts.scratch.server import scratch_folder
from tests.bench import report, rls
from tests.bench.keep_cores_busy import keep_cores_busy
from tests.bench.scratch import scratch_postgres

ENTRIES, QUICK_ENTRIES, FULL_ENTRIES = 1_000_000, 100_000, 10_000_000
TURNS, QUICK_TURNS = 40, 8
MANY_ROWS: Final = 1_000
# Statements per turn. The first one after switching triggers is planned again, so it is not measured.
TURN: Final = {1: 10, MANY_ROWS: 2}
# Statements of many rows are slow, so fewer turns are enough.
MANY_ROWS_SHARE: Final = 4
PAGES_PER_TURN: Final = 10
PAGE: Final = 50
TENANTS: Final = 1_000
MONTHS: Final = 13
MAX_RATIO: Final = 1.5
MAX_PAGE_MS: Final = 2

NONE: Final = "no audit"
OURS: Final = "ours"
GENERIC: Final = "row trigger, whole rows"
# The triggers that are enabled while a statement is timed, and the table that they write.
TRIGGERS: Final = {NONE: [], OURS: ["audit_insert", "audit_update"], GENERIC: ["bench_row"]}
LOGS: Final = {OURS: "public.audit_logs", GENERIC: "bench.log"}

SETUP: Final = Path(__file__).with_name("audit.sql")
STATEMENTS: Final = {
    "insert": """
        insert into public.projects (organization_id, title, description)
        select %(organization)s, 'Project ' || number, repeat('What it is about. ', 5)
        from generate_series(1, cardinality(%(projects)s::uuid[])) as number
    """,
    # Each time another value: an update that changes nothing is not recorded.
    "update": "update public.projects set title = %(title)s where id = any(%(projects)s)",
}
FIRST_PAGE: Final = f"""
    select
        id, created_at, organization_id, user_id, actor, impersonator, action, resource_type, resource_id, metadata,
        changes, ip_address, user_agent, request_id
    from public.audit_logs
    where organization_id = %s order by created_at desc, id desc limit {PAGE}
"""
# One month of entries like those of project updates, for random tenants and people.
FILL: Final = """
    insert into public.audit_logs (
        organization_id, user_id, action, resource_type, resource_id, metadata, changes, ip_address, user_agent,
        request_id, created_at
    )
    select case tenant when 1 then %(organization)s else md5(tenant::text)::uuid end,
        md5(format('%%s %%s', tenant, n %% 10))::uuid, 'project.updated', 'project', gen_random_uuid(),
        '{"title": "Project"}', '{"before": {"title": "Old"}, "after": {"title": "Project"}, "redacted": []}',
        '192.0.2.1', %(user_agent)s, gen_random_uuid(), first + n * (last - first) / %(entries)s
    from generate_series(0, %(entries)s - 1) as n,
        lateral (select 1 + floor(random() * %(tenants)s + 0 * n)::integer as tenant) as chosen,
        (select app.month_start(%(month)s) as first, least(app.next_month(%(month)s), now()) as last) as month
"""
HEADERS: Final = {
    "accept": "*/*",
    "content-type": "application/json",
    "x-forwarded-for": "192.0.2.1, 198.51.100.7",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0",
    "x-request-id": "8f6f3a52-9f0e-4a57-9d5c-1d0f3c5a7b11",
    "x-client-info": "supabase-js-web/2.46.1",
}

Admin = psycopg.Connection[Any]


class EntriesWrong(Failure):
    """A write was not recorded exactly once, or a page is not full. Such timings cannot be compared."""


class Write(NamedTuple):
    """A statement with `rows` rows and one way of auditing, in a trail with `entries` entries."""

    entries: int
    statement: str
    rows: int
    variant: str

    @property
    def name(self) -> str:
        return f"{self.entries:,} entries: {self.statement} of {self.rows:,} row{'s' if self.rows > 1 else ''}"


@dataclass(frozen=True)
class Tenant:
    """An organization with MANY_ROWS projects, its owner's claims, and connections of the administrator and the owner."""

    admin: Admin
    caller: Admin
    organization: UUID
    projects: list[UUID]
    claims: str


Timings = dict[Write, list[float]]


@click.command("audit", short_help="The cost of the audit trail for a write.")
@click.option("--quick", is_flag=True, help=f"Up to {QUICK_ENTRIES:,} entries: under a minute, with the same checks.")
@click.option("--full", is_flag=True, help=f"Also with {FULL_ENTRIES:,} entries; needs 10 GB of disk temporarily.")
@click.option("--entries", type=click.IntRange(MONTHS), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def bench_audit(quick: bool, full: bool, entries: int | None, as_json: bool) -> None:
    """Compare writes with our audit trail, without audit and with a row trigger. Also time a tenant's first page.

    \b
    Example: ./scripts/bench audit --json > audit.json
    """
    largest = entries or (QUICK_ENTRIES if quick else ENTRIES)
    sizes = [0, largest, *([FULL_ENTRIES] if full else [])]
    measure(sizes, 1 if entries else QUICK_TURNS if quick else TURNS).show(as_json=as_json)


def measure(sizes: list[int], turns: int) -> report.Report:
    """Times writes and pages in a trail that grows to each of these sizes. Raises EntriesWrong."""
    console = Console(stderr=True)
    writes: Timings = {}
    pages: dict[int, list[float]] = {}
    with (
        scratch_folder("bench") as folder,
        scratch_postgres(folder, shared_buffers="512MB", max_wal_size="4GB") as server,
        psycopg.connect(server.url("supabase_admin"), autocommit=True) as admin,
        psycopg.connect(server.url("authenticator"), autocommit=True, prepare_threshold=None) as caller,
    ):
        machine = report.machine(admin)
        tenant = set_up(admin, caller)
        for held, size in pairwise([0, *sizes]):
            fill(tenant, size - held, console)
            writes |= time_writes(tenant, cases(size), turns, console)
            admin.execute("vacuum (analyze) public.audit_logs")
            pages[size] = time_pages(tenant, turns * PAGES_PER_TURN)
    return report.Report("audit", machine, [*_write_rows(writes), *_page_rows(pages)], list(_aims(writes, pages)))


def cases(entries: int) -> list[Write]:
    """Lists all writes for an empty trail. For a filled one, only those that its size could slow down."""
    if entries:
        return [Write(entries, *each) for each in product(STATEMENTS, [1], [NONE, OURS])]
    return [Write(entries, statement, rows, each) for rows, statement, each in product(TURN, STATEMENTS, TRIGGERS)]


def set_up(admin: Admin, caller: Admin) -> Tenant:
    """Creates the tenant and the triggers, all disabled."""
    admin.execute(SETUP.read_bytes())
    for _ in bulk.fill(admin, bulk.Size(organizations=1, members=3, projects=MANY_ROWS)):
        pass
    [[organization, clerk_organization, clerk_user, projects]] = admin.execute(
        """
        select o.id, o.clerk_org_id, p.clerk_user_id, array(select id from public.projects where organization_id = o.id)
        from public.organizations as o
        join public.organization_memberships as m on m.organization_id = o.id and m.role = 'owner'
        join public.profiles as p on p.id = m.user_id
        where starts_with(o.clerk_org_id, 'org_bulk_')
        """
    ).fetchall()
    return Tenant(admin, caller, organization, projects, rls.claims(clerk_user, clerk_organization))


def fill(tenant: Tenant, entries: int, console: Console) -> None:
    """Adds entries of TENANTS tenants, spread over the last MONTHS months."""
    months = tenant.admin.execute(
        "select app.month_start(now()) - i * interval '1 month' from generate_series(%s, 0, -1) as i", [MONTHS - 1]
    ).fetchall()
    for (month,) in track(months, f"{entries:,} entries", console=console, disable=not entries):
        tenant.admin.execute("select app.make_audit_partition(%s)", [month])
        values = {"organization": tenant.organization, "user_agent": HEADERS["user-agent"], "tenants": TENANTS}
        if entries:
            tenant.admin.execute(FILL, values | {"month": month, "entries": entries // MONTHS})
    tenant.admin.execute("vacuum (analyze)")
    tenant.admin.execute("checkpoint")


def time_writes(tenant: Tenant, writes: list[Write], turns: int, console: Console) -> Timings:
    """Times each kind of write. The variants of a statement take turns, so that noise affects all of them."""
    timings: Timings = defaultdict(list)
    for name in dict.fromkeys(write.name for write in writes):
        variants = [write for write in writes if write.name == name]
        rounds = turns if variants[0].rows == 1 else max(1, turns // MANY_ROWS_SHARE)
        for _ in track(range(rounds), name, console=console):
            for write in random.sample(variants, len(variants)):
                timings[write] += time_turn(tenant, write)
    return timings


def time_turn(tenant: Tenant, write: Write) -> list[float]:
    """Times one turn. Raises EntriesWrong unless each row is recorded exactly once, in the expected table."""
    statements = 1 + TURN[write.rows]
    with triggers_on(tenant.admin, write.variant):
        [[start]] = tenant.admin.execute("select clock_timestamp()").fetchall()
        seconds = [time_write(tenant, write) for _ in range(statements)]
    for variant, log in LOGS.items():
        query = sql.SQL("select count(*) from {} where organization_id = %s and created_at >= %s").format(sql.SQL(log))
        [[recorded]] = tenant.admin.execute(query, [tenant.organization, start]).fetchall()
        expected = statements * write.rows if variant == write.variant else 0
        if recorded != expected:
            raise EntriesWrong(f"{write.name}: {write.variant}: {recorded} entries in {log} instead of {expected}.")
    return seconds[1:]


@contextmanager
def triggers_on(admin: Admin, variant: str) -> Iterator[None]:
    """Enables only the triggers of the variant."""
    switch(admin, "enable", TRIGGERS[variant])
    try:
        yield
    finally:
        switch(admin, "disable", TRIGGERS[variant])


def switch(admin: Admin, state: str, triggers: list[str]) -> None:
    """`state` is enable or disable."""
    for trigger in triggers:
        statement = sql.SQL("alter table public.projects {} trigger {}")
        admin.execute(statement.format(sql.SQL(state), sql.Identifier(trigger)))


def time_write(tenant: Tenant, write: Write) -> float:
    """Times one statement with its commit, in a transaction like those of the Data API."""
    values = {
        "organization": tenant.organization,
        "projects": random.sample(tenant.projects, write.rows),
        "title": f"Project {secrets.token_hex(8)}",
    }
    with tenant.caller.transaction():
        act(tenant)
        start = time.perf_counter()
        tenant.caller.execute(STATEMENTS[write.statement].encode(), values)
    return time.perf_counter() - start


def time_pages(tenant: Tenant, number: int) -> list[float]:
    """Times the tenant's first page under its policy. Raises EntriesWrong unless the page is full."""
    timings = []
    with keep_cores_busy():
        for _ in range(number):
            with tenant.caller.transaction():
                act(tenant)
                start = time.perf_counter()
                rows = tenant.caller.execute(FIRST_PAGE.encode(), [tenant.organization]).fetchall()
                timings.append(time.perf_counter() - start)
            if len(rows) != PAGE:
                raise EntriesWrong(f"The first page has {len(rows)} entries instead of {PAGE}.")
    return timings


def act(tenant: Tenant) -> None:
    """Runs the rest of the transaction as the owner."""
    tenant.caller.execute(
        """
        select set_config('role', 'authenticated', true), set_config('request.jwt.claims', %s, true),
            set_config('request.headers', %s, true)
        """,
        [tenant.claims, json.dumps(HEADERS)],
    )


def _write_rows(writes: Timings) -> Iterator[report.Case]:
    for write in sorted(
        writes, key=lambda each: (each.entries, each.rows, each.statement, list(TRIGGERS).index(each.variant))
    ):
        yield report.case(f"{write.name}: {write.variant}", writes[write], writes[write._replace(variant=NONE)])


def _page_rows(pages: dict[int, list[float]]) -> Iterator[report.Case]:
    """Compares each page with that of the new trail."""
    for entries, seconds in pages.items():
        yield report.case(f"{entries:,} entries: first page", seconds, pages[0])


def _aims(writes: Timings, pages: dict[int, list[float]]) -> Iterator[report.Aim]:
    for write, seconds in writes.items():
        if write.variant == OURS and write.rows == 1:
            yield _ratio_at_most(write, seconds, writes[write._replace(variant=NONE)], NONE, MAX_RATIO)
    for write, seconds in writes.items():
        if write.variant == OURS and write._replace(variant=GENERIC) in writes:
            yield _ratio_at_most(write, seconds, writes[write._replace(variant=GENERIC)], GENERIC, 1)
    for entries, seconds in pages.items():
        median = report.case("", seconds, None).median_ms
        yield report.at_most(f"{entries:,} entries: first page: median ms at most", median, MAX_PAGE_MS)


def _ratio_at_most(write: Write, seconds: list[float], others: list[float], other: str, limit: float) -> report.Aim:
    ratio = round(statistics.median(seconds) / statistics.median(others), 2)
    return report.at_most(f"{write.name}: ratio to {other} at most", ratio, limit)
