"""`./scripts/bench webhooks`: how fast Clerk events are stored and applied: in SQL, through the Data API and the service."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from secrets import randbits
from typing import Any, NamedTuple

import click
import httpx
import psycopg
from rich.console import Console
from rich.progress import Progress

from scripts.errors import Failure
from scripts.local.clerk.directory import Directory, now
from scripts.local.clerk.svix import encode_body, sign_headers
from scripts.local.stack import Stack
from scripts.scratch.server import scratch_folder
from tests.bench import report
from tests.bench.scratch import scratch_stack

# One client shows the cost of an event; several show the throughput of a machine with few cores.
SQL_CLIENTS = (1, 4)
HTTP_CLIENTS = SERVICE_WORKERS = 4
ORGANIZATIONS, QUICK_ORGANIZATIONS = 500, 100
PEOPLE = 5  # in each organization
REDELIVERIES = 2  # of each organization's messages
# The local PostgREST runs on Node and handles about 150 requests per second, so a tenth of the events is enough.
HTTP_SHARE = 10
# The SQL cases take turns, this many organizations at a time, so that noise affects both.
TURN = 10
MIN_EVENTS_PER_SECOND = 1_000
MAX_RATIO = 2.0

BARE, FUNCTION = "bare durable insert", "SQL function"
DATA_API = f"through the Data API, {HTTP_CLIENTS} clients"
SERVICE = f"through the service with {SERVICE_WORKERS} workers, {HTTP_CLIENTS} clients"

Send = Callable[["Delivery"], str]


class EventsLost(Failure):
    """The rows or outcomes differ from what the sent events require."""


class Delivery(NamedTuple):
    """A message as Svix sends it. A repeated delivery has the same id."""

    message_id: str
    event: dict[str, Any]


@dataclass
class Case:
    """The timings of one way to store events: `seconds` per event at the client, `elapsed` for all of them."""

    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


@click.command("webhooks", short_help="How fast Clerk events are stored and applied.")
@click.option(
    "--quick", is_flag=True, help=f"{QUICK_ORGANIZATIONS} organizations: under a minute, with the same checks."
)
@click.option("--organizations", type=click.IntRange(TURN), help=f"Number of organizations. Default: {ORGANIZATIONS}.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def bench_webhooks(quick: bool, organizations: int | None, as_json: bool) -> None:
    """Measure Clerk events per second: with a bare insert, our function, the Data API and the service.

    \b
    Example: ./scripts/bench webhooks --json > webhooks.json
    """
    measure(organizations or (QUICK_ORGANIZATIONS if quick else ORGANIZATIONS)).show(as_json=as_json)


def measure(organizations: int) -> report.Report:
    """Sends the events of `organizations` organizations to a temporary stack. Raises EventsLost."""
    console = Console(stderr=True)
    with scratch_folder("bench") as folder, ExitStack() as servers:
        with console.status("Starting a stack …"):
            stack = servers.enter_context(scratch_stack(folder, SERVICE_WORKERS))
        with psycopg.connect(stack.postgres.url(), autocommit=True) as admin:
            machine = report.machine(admin)
            admin.execute("create schema bench create table events (message_id text primary key, event jsonb not null)")
            admin.execute("grant usage on schema bench to service_role")
            admin.execute("grant insert on bench.events to service_role")
        cases: dict[str, Case] = {}
        for clients in SQL_CLIENTS:
            cases |= time_sql(stack, clients, organizations, console)
        for name, connect in {DATA_API: data_api_client, SERVICE: service_client}.items():
            cases[name] = time_http(stack, name, connect, max(TURN, organizations // HTTP_SHARE), console)
    return report.Report("webhooks", machine, _rows(cases), list(_aims(cases)))


def deliveries(organizations: int, run: str) -> Iterator[list[Delivery]]:
    """Yields the Clerk messages of each new organization; `run` is part of every id.

    Each has 20 messages. Five people sign up and join, and some sign in again, which changes no stored data. Some data
    changes, and two messages are delivered twice.
    """
    for organization in range(organizations):
        clerk, name = Directory(), f"{run}_{organization}"
        messages: list[Delivery] = []

        def send(event_type: str, data: dict[str, Any], clerk: Directory = clerk, name: str = name) -> None:
            whole = clerk.complete(event_type, data)
            clerk.apply(event_type, whole)
            event = {"object": "event", "type": event_type, "timestamp": now(), "data": whole}
            messages.append(Delivery(f"msg_{name}_{len(messages)}", event))  # noqa: B023 - used before the next turn

        people = [f"user_{name}_{number}" for number in range(PEOPLE)]
        for person in people:
            send("user.created", {"id": person, "last_name": "Example"})
        send("organization.created", {"id": f"org_{name}", "created_by": people[0], "max_allowed_memberships": 50})
        for person in people:
            role = "org:admin" if person == people[0] else "org:member"
            send(
                "organizationMembership.created",
                {"role": role, "public_user_data": {"user_id": person}, "organization": {"id": f"org_{name}"}},
            )
        for person in people[:3]:
            send("user.updated", {"id": person, "last_sign_in_at": now()})
        for person in people[3:]:
            send("user.updated", {"id": person, "last_name": "Married"})
        send("organization.updated", {"id": f"org_{name}", "name": "Renamed"})
        membership = clerk.membership(people[1], f"org_{name}")
        send("organizationMembership.updated", {"id": membership["id"], "role": "org:admin"})
        yield [*messages, messages[0], messages[-1]]


def time_sql(stack: Stack, number: int, organizations: int, console: Console) -> dict[str, Case]:
    """Times the bare insert and the function in turns, on the same events, with `number` clients each."""
    names = {BARE: sql_name(BARE, number), FUNCTION: sql_name(FUNCTION, number)}
    connect = {names[BARE]: bare_client, names[FUNCTION]: function_client}
    cases, ids = {name: Case() for name in connect}, f"sql{number}"
    with ExitStack() as connections, Progress(console=console) as progress:
        clients = {
            name: [connections.enter_context(client(stack)) for _ in range(number)] for name, client in connect.items()
        }
        warm_up = next(_turns(deliveries(TURN, f"warm{ids}")))
        for name in cases:
            run(clients[name], warm_up, Case())
        bar = progress.add_task(sql_name("SQL", number), total=organizations // TURN)
        for turn in _turns(deliveries(organizations, ids)):
            for name, case in cases.items():
                run(clients[name], turn, case)
            progress.advance(bar)
    require_applied(names[FUNCTION], organizations, cases[names[FUNCTION]])
    require_rows(stack, names[FUNCTION], ids, organizations)
    return cases


def sql_name(name: str, clients: int) -> str:
    return f"{name}, {clients} client{'s' if clients > 1 else ''}"


def time_http(
    stack: Stack,
    name: str,
    connect: Callable[[Stack], AbstractContextManager[Send]],
    organizations: int,
    console: Console,
) -> Case:
    """Times one way through HTTP, on separate events."""
    case, ids = Case(), "".join(filter(str.isalpha, name))
    with ExitStack() as connections, Progress(console=console) as progress:
        clients = [connections.enter_context(connect(stack)) for _ in range(HTTP_CLIENTS)]
        run(clients, next(_turns(deliveries(1, f"warm{ids}"))), Case())
        bar = progress.add_task(name, total=organizations // TURN)
        for turn in _turns(deliveries(organizations, ids)):
            run(clients, turn, case)
            progress.advance(bar)
    require_applied(name, organizations, case)
    require_rows(stack, name, ids, organizations)
    return case


def run(clients: list[Send], messages: list[Delivery], case: Case) -> None:
    """Sends the messages. Each client takes the next one after its answer. Adds the timings to `case`."""
    waiting, lock = iter(messages), threading.Lock()

    def work(send: Send) -> tuple[list[float], Counter[str]]:
        seconds: list[float] = []
        outcomes = Counter[str]()
        while True:
            with lock:
                delivery = next(waiting, None)
            if delivery is None:
                return seconds, outcomes
            start = time.perf_counter()
            outcome = send(delivery)
            seconds.append(time.perf_counter() - start)
            outcomes[outcome] += 1

    start = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        for seconds, outcomes in pool.map(work, clients):
            case.seconds += seconds
            case.outcomes += outcomes
    case.elapsed += time.perf_counter() - start


@contextmanager
def sql_client(stack: Stack, statement: str) -> Iterator[Send]:
    """Runs one statement per event like the Data API: logged in as authenticator, with the role service_role."""
    with psycopg.connect(stack.postgres.url("authenticator"), autocommit=True) as connection:
        connection.execute("set role service_role")

        def send(delivery: Delivery) -> str:
            row = connection.execute(statement.encode(), [delivery.message_id, json.dumps(delivery.event)]).fetchone()
            return str(row[0]) if row else "duplicate"

        yield send


def bare_client(stack: Stack) -> AbstractContextManager[Send]:
    return sql_client(stack, "insert into bench.events values (%s, %s) on conflict do nothing returning 'stored'")


def function_client(stack: Stack) -> AbstractContextManager[Send]:
    return sql_client(stack, "select public.receive_clerk_event(%s, %s) ->> 'outcome'")


@contextmanager
def data_api_client(stack: Stack) -> Iterator[Send]:
    """Calls the function through the gateway and the Data API."""
    environment = stack.environment()
    headers = {"apikey": environment["SUPABASE_SECRET_KEY"]}
    with httpx.Client(base_url=environment["SUPABASE_URL"], headers=headers, timeout=30) as http:

        def send(delivery: Delivery) -> str:
            body = {"message_id": delivery.message_id, "event": json.dumps(delivery.event)}
            return _outcome(http.post("/rest/v1/rpc/receive_clerk_event", json=body))

        yield send


@contextmanager
def service_client(stack: Stack) -> Iterator[Send]:
    """Posts signed messages to the service, like Svix."""
    environment = stack.environment()
    with httpx.Client(base_url=environment["SERVICE_URL"], timeout=30) as http:

        def send(delivery: Delivery) -> str:
            body = encode_body(delivery.event)
            headers = sign_headers(environment["CLERK_WEBHOOK_SECRETS"], delivery.message_id, body)
            # Many addresses, because each one is rate limited.
            headers["X-Forwarded-For"] = str(ip_address(randbits(32)))
            return _outcome(http.post("/webhooks/clerk", content=body, headers=headers))

        yield send


def _outcome(answer: httpx.Response) -> str:
    if not answer.is_success:
        raise EventsLost(f"{answer.url} answered {answer.status_code}: {answer.text[:500]}")
    return str(answer.json()["outcome"])


def require_applied(name: str, organizations: int, case: Case) -> None:
    """Raises EventsLost unless every event was applied, and only the repeated ones were duplicates."""
    outcomes = case.outcomes
    if outcomes.keys() - {"processed", "stale", "duplicate"} or outcomes["duplicate"] != organizations * REDELIVERIES:
        raise EventsLost(f"{name}: the outcomes of the events are {json.dumps(outcomes)}.")


def require_rows(stack: Stack, name: str, ids: str, organizations: int) -> None:
    """Raises EventsLost unless the rows match the events."""
    with psycopg.connect(stack.postgres.url()) as admin:
        found = admin.execute(
            """
            select count(distinct o.id), count(m.id), count(*) filter (where m.role = 'owner'),
              count(*) filter (where m.role = 'admin'), count(*) filter (where p.full_name like '%% Married')
            from public.organizations as o
            join public.organization_memberships as m on m.organization_id = o.id
            join public.profiles as p on p.id = m.user_id
            where starts_with(o.clerk_org_id, %s) and o.name = 'Renamed'
            """,
            [f"org_{ids}_"],
        ).fetchone()
    expected = tuple(organizations * each for each in (1, PEOPLE, 1, 1, 2))
    if found != expected:
        raise EventsLost(f"{name}: organizations, members, owners, admins, married are {found}, not {expected}.")


def _turns(organizations: Iterator[list[Delivery]]) -> Iterator[list[Delivery]]:
    """Yields the messages of TURN organizations, interleaved: those of one organization would block each other."""
    while turn := list(itertools.islice(organizations, TURN)):
        yield list(itertools.chain.from_iterable(zip(*turn, strict=True)))


def _rate(case: Case) -> float:
    return round(len(case.seconds) / case.elapsed)


def _rows(cases: dict[str, Case]) -> list[report.Case]:
    """Compares each case with the bare insert with as many clients."""
    return [
        report.case(f"{name} ({_rate(case):,.0f} events/s)", case.seconds, cases[_baseline(name)].seconds)
        for name, case in cases.items()
    ]


def _baseline(name: str) -> str:
    one = sql_name(BARE, 1)
    return one if name in {one, sql_name(FUNCTION, 1)} else sql_name(BARE, HTTP_CLIENTS)


def _aims(cases: dict[str, Case]) -> Iterator[report.Aim]:
    many = sql_name(FUNCTION, SQL_CLIENTS[-1])
    yield report.at_least(f"{many}: events per second at least", _rate(cases[many]), MIN_EVENTS_PER_SECOND)
    for clients in SQL_CLIENTS:
        name = sql_name(FUNCTION, clients)
        ratio = report.case(name, cases[name].seconds, cases[sql_name(BARE, clients)].seconds).ratio
        if ratio is not None:
            yield report.at_most(f"{name}: ratio at most", ratio, MAX_RATIO)
