"""`./scripts/bench rls`: the cost of row level security, compared with queries that filter by organization themselves."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import click
import psycopg
from rich.console import Console
from rich.progress import track

from scripts.errors import Failure
from scripts.scratch.postgres import Postgres
from scripts.scratch.server import scratch_folder
from tests.bench import report
from tests.bench.keep_cores_busy import keep_cores_busy
from tests.bench.scratch import scratch_postgres

PROJECTS, QUICK_PROJECTS = 1_000_000, 100_000
PROJECTS_PER_ORGANIZATION = 1_000
USERS_PER_ORGANIZATION = 10
MEMBERSHIPS_PER_USER = 3
ROUNDS, QUICK_ROUNDS = 1_000, 200
# EXISTS takes hundreds of times as long, so a tenth of the rounds is enough.
SLOW_VARIANT_EVERY = 10
MAX_RATIO = 1.3
TENANTS = Path(__file__).with_name("rls.sql")
VARIANTS = Path(__file__).with_name("rls_variants.sql")

Timings = dict[tuple[str, str], list[float]]


class ResultsDiffer(Failure):
    """Two variants of a query returned different rows. Their timings cannot be compared."""


class Query(NamedTuple):
    """A query as a browser sends it under RLS, and as an application without RLS writes it."""

    name: str
    under_rls: str
    by_hand: str


class Variant(NamedTuple):
    """A way to protect the rows of a table. Each variant is a database role: see rls_variants.sql."""

    name: str
    role: str


@dataclass(frozen=True)
class Request:
    """A caller's claims, and the parameters of the queries."""

    claims: str
    parameters: dict[str, UUID | list[UUID]]


BY_HAND = Variant("hand-written WHERE, no RLS", "bench_by_hand")
OURS = Variant("our policies", "authenticated")
EXISTS = Variant("EXISTS policy of the specification", "bench_exists")

QUERIES = (
    Query(
        "list one organization, 50",
        "select * from public.specimens where organization_id = %(organization)s order by created_at desc limit 50",
        "select * from public.specimens where organization_id = %(organization)s order by created_at desc limit 50",
    ),
    Query(
        "list visible, 50",
        "select * from public.specimens order by created_at desc limit 50",
        "select * from public.specimens where organization_id = any(%(organizations)s)"
        " order by created_at desc limit 50",
    ),
    Query(
        "count visible",
        "select count(*) from public.specimens",
        "select count(*) from public.specimens where organization_id = any(%(organizations)s)",
    ),
    Query(
        "by id",
        "select * from public.specimens where id = %(project)s",
        "select * from public.specimens where id = %(project)s and organization_id = any(%(organizations)s)",
    ),
    Query(
        "insert returning",
        "insert into public.specimens (organization_id, title) values (%(organization)s, 'Benchmark')"
        " returning organization_id, created_by, title",
        # Without policies, the statement itself must check whether the caller may create rows here.
        "insert into public.specimens (organization_id, created_by, title)"
        " select organization_id, user_id, 'Benchmark' from public.organization_memberships"
        " where organization_id = %(organization)s and user_id = %(user)s and role in ('owner', 'admin', 'member')"
        " returning organization_id, created_by, title",
    ),
)


@click.command("rls", short_help="The cost of our policies.")
@click.option("--quick", is_flag=True, help=f"{QUICK_PROJECTS:,} projects: under a minute, with the same checks.")
@click.option("--projects", type=click.IntRange(5_000), help=f"Number of projects. Default: {PROJECTS:,}.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def bench_rls(quick: bool, projects: int | None, as_json: bool) -> None:
    """Measure five queries with our policies, with a hand-written WHERE, and with the policies of the specification.

    \b
    Example: ./scripts/bench rls --json > rls.json
    """
    size = projects or (QUICK_PROJECTS if quick else PROJECTS)
    measure(size, QUICK_ROUNDS if quick else ROUNDS).show(as_json=as_json)


def measure(projects: int, rounds: int) -> report.Report:
    """Fills a scratch server with `projects` rows and times each query `rounds` times. Raises ResultsDiffer."""
    console = Console(stderr=True)
    with scratch_folder("bench") as folder, scratch_postgres(folder, shared_buffers="512MB") as server:
        with console.status(f"Making {projects:,} projects …"), psycopg.connect(server.url("supabase_admin")) as admin:
            fill(admin, projects)
            admin.execute(VARIANTS.read_bytes())
        with psycopg.connect(server.url("supabase_admin"), autocommit=True) as admin:
            admin.execute("vacuum (analyze)")
            machine = report.machine(admin)
            requests = choose_requests(admin, rounds)
        with keep_cores_busy():
            timings = time_queries(server, requests, console)
    return report.Report("rls", machine, list(_cases(timings)), list(_aims(timings)))


def fill(admin: psycopg.Connection[Any], projects: int, portion: int = 1) -> None:
    """Creates the tenants and people for so many projects, and one in `portion` of the projects."""
    organizations = projects // PROJECTS_PER_ORGANIZATION
    sizes = {
        "organizations": organizations,
        "users": organizations * USERS_PER_ORGANIZATION,
        "memberships": MEMBERSHIPS_PER_USER,
        "projects": projects // portion,
    }
    for name, value in sizes.items():
        admin.execute("select set_config(%s, %s, false)", [f"bench.{name}", str(value)])
    admin.execute(TENANTS.read_bytes())


def choose_requests(admin: psycopg.Connection[Any], number: int) -> list[Request]:
    """Chooses `number` random callers, each with one of their organizations and one of its projects."""
    rows = admin.execute(
        """
        select p.clerk_user_id, p.id, m.organizations, o.id, o.clerk_org_id, j.id
        from (select * from public.profiles order by random() limit %s) as p
        cross join lateral (
          select array_agg(organization_id) as organizations
          from public.organization_memberships where user_id = p.id
        ) as m
        join public.organizations as o on o.id = m.organizations[1 + floor(random() * cardinality(m.organizations))]
        cross join lateral (
          select id from public.specimens where organization_id = o.id order by random() limit 1
        ) as j
        """,
        [number],
    ).fetchall()
    requests = [
        Request(
            claims(clerk_user_id, clerk_org_id),
            {"user": user, "organizations": organizations, "organization": organization, "project": project},
        )
        for clerk_user_id, user, organizations, organization, clerk_org_id, project in rows
    ]
    return [requests[i % len(requests)] for i in range(number)]


def claims(user: str, organization: str) -> str:
    """The claims of a Clerk session token (version 2), as PostgREST stores them in request.jwt.claims."""
    now = int(time.time())
    return json.dumps(
        {
            "azp": "https://app.example.com",
            "exp": now + 60,
            "fea": "o:projects,o:members",
            "fva": [5, 5],
            "iat": now,
            "iss": "https://clerk.example.com",
            "jti": "5f0d2c6b1f6b4d7a9c3e",
            "nbf": now - 5,
            "o": {"id": organization, "rol": "admin", "slg": "example", "per": "manage,read", "fpm": "3,1"},
            "pla": "o:pro",
            "role": "authenticated",
            "sid": "sess_2g7np7Hrk0SN6kj5EDMLDaKNL0S",
            "sts": "active",
            "sub": user,
            "v": 2,
        }
    )


def time_queries(server: Postgres, requests: list[Request], console: Console) -> Timings:
    """Times each query with each variant. The variants take turns, so that noise affects all of them."""
    timings: Timings = defaultdict(list)
    with ExitStack() as stack:
        connections = {
            variant: stack.enter_context(psycopg.connect(server.url("authenticator"), prepare_threshold=None))
            for variant in (BY_HAND, OURS, EXISTS)
        }
        for query in QUERIES:
            rounds = track(requests, query.name, console=console)
            for number, request in enumerate(rounds):
                variants = [BY_HAND, OURS, *([EXISTS] if number % SLOW_VARIANT_EVERY == 0 else [])]
                random.shuffle(variants)
                results = {}
                for variant in variants:
                    seconds, results[variant] = time_query(connections[variant], query, variant, request)
                    timings[query.name, variant.name].append(seconds)
                require_equal(query, results)
    return timings


def time_query(
    connection: psycopg.Connection[Any], query: Query, variant: Variant, request: Request
) -> tuple[float, list[tuple[Any, ...]]]:
    """Returns the seconds and rows of one query, in a transaction like those of the Data API, which is rolled back."""
    text = query.by_hand if variant is BY_HAND else query.under_rls
    with connection.transaction(force_rollback=True):
        connection.execute(
            "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true)",
            [variant.role, request.claims],
        )
        start = time.perf_counter()
        rows = connection.execute(text.encode(), request.parameters).fetchall()
        return time.perf_counter() - start, rows


def require_equal(query: Query, results: dict[Variant, list[tuple[Any, ...]]]) -> None:
    """Raises ResultsDiffer unless every variant found the same rows, and at least one."""
    expected = results[BY_HAND]
    for variant, rows in results.items():
        if not rows or rows != expected:
            raise ResultsDiffer(
                f"{query.name}: {variant.name} returned {len(rows)} rows that differ from those of {BY_HAND.name} "
                f"({len(expected)} rows). Check tests/schema/specimens.sql and functions/1_caller/caller.sql."
            )


def _cases(timings: Timings) -> Iterator[report.Case]:
    for (query, variant), seconds in sorted(timings.items(), key=_order):
        yield report.case(f"{query}: {variant}", seconds, timings[query, BY_HAND.name])


def _order(entry: tuple[tuple[str, str], list[float]]) -> tuple[int, int]:
    (query, variant), _ = entry
    return [each.name for each in QUERIES].index(query), [BY_HAND.name, OURS.name, EXISTS.name].index(variant)


def _aims(timings: Timings) -> Iterator[report.Aim]:
    for case in _cases(timings):
        if case.name.endswith(f": {OURS.name}") and case.ratio is not None:
            yield report.at_most(f"{case.name}: ratio at most", case.ratio, MAX_RATIO)
