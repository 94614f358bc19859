"""Any order and any repetition of the same Clerk events, over any number of connections, ends in the same rows.

Hypothesis generates histories of a small simulated Clerk. People join, leave, rejoin, are banned, deprovisioned and
deleted; organizations pay and invite people, also at addresses of deleted people. Times may be textual, missing or
absurd, deletions may have only an id, and events may lack created_at. An administrator of ours may transfer the
ownership of an organization, after the events until then; all events are delivered again afterwards. Each history is delivered in order, permuted,
permuted with repetitions, and permuted with repetitions over four connections at once. After each delivery, the rows
must be those of the simulated Clerk. For more histories: `pytest tests/properties --histories 20000`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter

from tests.conftest import Database
from tests.events import SECOND
from tests.people import finish_erasures
from tests.simulated_clerk import PREFIX, Clerk, Message, Row, Rows, Session, Transfer, in_order

Connection = psycopg.Connection[Any]
Delivery = Sequence[Message | Session]
Operation = Callable[[Clerk, int, int], None]

CONNECTIONS = 4
TOGETHER = "permuted with repetitions, four at once"
OFTEN: tuple[Operation, ...] = (
    Clerk.add_member, Clerk.change_role, Clerk.rejoin, Clerk.change_user, Clerk.change_organization, Clerk.invite,
)  # fmt: skip
SOMETIMES: tuple[Operation, ...] = (
    Clerk.sign_up, Clerk.found_organization, Clerk.remove_member, Clerk.accept_invitation, Clerk.revoke_invitation,
    Clerk.subscribe, Clerk.miss_payment, Clerk.pay, Clerk.unsubscribe,
)  # fmt: skip
RARELY: tuple[Operation, ...] = (Clerk.delete_user, Clerk.delete_organization, Clerk.transfer, Clerk.transfer)
ADDRESSES: tuple[Operation, ...] = (Clerk.invite_person,) * 6 + (Clerk.change_address, Clerk.delete_user) * 3
# Without a pause, two changes of an object have the same updated_at.
PAUSES = (0, 1, SECOND, 90 * SECOND)


@dataclass(frozen=True)
class History:
    """Deliveries of the same events, by name. `expected` is None if several messages have the same time: then none of
    them is the newest, and the deliveries only have to agree."""

    deliveries: dict[str, Delivery]
    transfers: list[Transfer]
    everyone: list[str]
    everywhere: list[str]
    expected: Rows | None

    def _repr_pretty_(self, printer: RepresentationPrinter, _cycle: bool) -> None:
        """Hypothesis prints a failing history with this."""
        printer.text("\n" + "\n".join(map(str, self.transfers)))
        for name, delivery in self.deliveries.items():
            printer.text(f"\n{name}:\n  " + "\n  ".join(map(str, delivery)))


@st.composite
def histories(draw: st.DrawFn, *, sessions: bool) -> History:
    """Generates 4 to 14 operations, after an organization with two members: about 8 to 25 events."""
    clerk = Clerk(
        coarse=not sessions and draw(st.sampled_from((False,) * 5 + (True,))),
        sketchy=draw(st.booleans()),
        forms=draw(
            st.sampled_from(((0,), (1,), (7,))) | st.lists(st.integers(0, 15), min_size=1, max_size=12).map(tuple)
        ),
    )
    clerk.sign_up(0, 1)
    clerk.sign_up(1, 1)
    clerk.found_organization(0, 0)
    clerk.add_member(0, 1)
    operations = OFTEN * 3 + SOMETIMES * 2 + RARELY + ADDRESSES + (Clerk.start_session,) * (8 if sessions else 0)
    steps = st.tuples(st.sampled_from(operations), st.integers(0, 11), st.integers(0, 11), st.sampled_from(PAUSES))
    for operation, a, b, pause in draw(st.lists(steps, min_size=4, max_size=14)):
        clerk.now += pause
        operation(clerk, a, b)

    once: Delivery = [*clerk.messages, *clerk.sessions]
    repeated: Delivery = [*once, *draw(st.lists(st.sampled_from(once), max_size=8))]
    deliveries: dict[str, Delivery] = {
        "in order": clerk.messages,
        "permuted": draw(st.permutations(once)),
        "permuted with repetitions": draw(st.permutations(repeated)),
        TOGETHER: draw(st.permutations(repeated)),
    }
    return History(
        deliveries, clerk.transfers, clerk.everyone, clerk.everywhere, None if clerk.coarse else clerk.visible()
    )


def send(connection: Connection, item: Message | Session, prefix: str) -> None:
    """Delivers like the Data API. A session may be refused with PT403, if the person is banned or deleted."""
    if isinstance(item, Message):
        event = json.dumps(item.event).replace(PREFIX, prefix)
        connection.execute("select public.receive_clerk_event(%s, %s)", (f"msg_{prefix}_{item.number}", event))
        return
    claims = json.dumps(item.claims).replace(PREFIX, prefix)
    try:
        with connection.transaction():
            connection.execute("set local role authenticated")
            connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
            connection.execute("select public.start_session()")
            connection.execute("set local role service_role")
            connection.execute("select set_config('request.jwt.claims', '', true)")
    except psycopg.DatabaseError as error:
        if error.sqlstate != "PT403":
            raise


def deliver(connection: Connection, delivery: Delivery, prefix: str) -> None:
    """The connection acts as service_role, in autocommit mode or in the caller's transaction."""
    for item in delivery:
        send(connection, item, prefix)


def transfer_ownerships(connection: Connection, history: History, prefix: str) -> None:
    """Delivers in order what each transfer must find, and transfers. The connection acts as an administrator."""
    messages = history.deliveries["in order"]
    sent = 0
    for transfer in history.transfers:
        deliver(connection, messages[sent : transfer.after], prefix)
        sent = transfer.after
        ids = [each.replace(PREFIX, prefix) for each in (transfer.organization, transfer.user)]
        connection.execute("select ops.transfer_ownership(%s, %s)", ids)


# The rows that the events created, without our own ids and times, and the failed events.
QUERIES = {
    "profiles": """
        select clerk_user_id, email, full_name, avatar_url, banned, created_at
        from public.profiles where clerk_user_id = any(%(everyone)s)""",
    "organizations": """
        select clerk_org_id, name, slug, max_seats, created_at, subscription_tier, subscription_status
        from public.organizations where deleted_at is null and clerk_org_id = any(%(everywhere)s)""",
    "memberships": """
        select m.clerk_membership_id, o.clerk_org_id, p.clerk_user_id, m.role, m.clerk_role, m.joined_at
        from public.organization_memberships as m
        join public.organizations as o on o.id = m.organization_id
        join public.profiles as p on p.id = m.user_id
        where o.clerk_org_id = any(%(everywhere)s)""",
    "invitations": """
        select i.clerk_invitation_id, o.clerk_org_id, i.email, i.role, i.clerk_role, i.expires_at, i.created_at
        from public.organization_invitations as i join public.organizations as o on o.id = i.organization_id
        where o.clerk_org_id = any(%(everywhere)s)""",
    "records": """
        select kind, clerk_id, organization_id, user_id, fields::text from app.clerk_records
        where clerk_id not like 'session:%%' and (clerk_id = any(%(everyone)s) or clerk_id = any(%(everywhere)s) or organization_id = any(%(everywhere)s))""",
    "failures": """
        select type, error from app.webhook_events
        where outcome <> all('{processed, stale}') and message_id = any(%(messages)s)""",
}


def read_rows(connection: Connection, history: History, prefix: str) -> Rows:
    """Reads the rows of a history in the simulated Clerk's form. None of the messages may have failed."""
    ids = {
        "everyone": [each.replace(PREFIX, prefix) for each in history.everyone],
        "everywhere": [each.replace(PREFIX, prefix) for each in history.everywhere],
        "messages": [f"msg_{prefix}_{number}" for number in range(len(history.deliveries["in order"]))],
    }
    rows = {
        name: in_order(remove_prefix(prefix, row) for row in connection.execute(query, ids))
        for name, query in QUERIES.items()
    }
    assert not rows.pop("failures")
    return rows


def remove_prefix(prefix: str, row: Row) -> Row:
    return tuple(value.replace(prefix, PREFIX) if isinstance(value, str) else value for value in row)


@dataclass(frozen=True)
class Replay:
    """The connections for all histories: one that delivers alone and reads the rows, and four that deliver at once."""

    alone: Connection
    together: list[Connection]
    threads: ThreadPoolExecutor
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def check(self, history: History) -> None:
        prefix = f"h{next(self.numbers)}x"
        expected = history.expected
        known: list[Row] | None = None
        for name, delivery in history.deliveries.items():
            rows = self.deliver_and_read(name, delivery, history, prefix)
            records = rows.pop("records")  # deleted people have none, in any order of the events
            known = records if known is None else known
            assert records == known, name
            expected = rows if expected is None else expected
            note(f"{name}: {rows}")
            assert rows == expected, name

    def deliver_and_read(self, name: str, delivery: Delivery, history: History, prefix: str) -> Rows:
        """The rows after a delivery. A single connection's delivery is rolled back, so that the ids can be reused."""
        if name != TOGETHER:
            with self.alone.transaction(force_rollback=True):
                transfer_ownerships(self.alone, history, prefix)
                self.alone.execute("set local role service_role")
                deliver(self.alone, delivery, prefix)
                self.alone.execute("reset role")
                finish_erasures(Database(self.alone))
                return read_rows(self.alone, history, prefix)
        transfer_ownerships(self.alone, history, prefix)
        parts = [delivery[number::CONNECTIONS] for number in range(CONNECTIONS)]
        running = [self.threads.submit(deliver, *each, prefix) for each in zip(self.together, parts, strict=True)]
        for each in running:
            each.result()
        finish_erasures(Database(self.alone))
        return read_rows(self.alone, history, prefix)


@pytest.fixture(scope="module")
def replay(connect: Callable[[], Connection]) -> Iterator[Replay]:
    together = [connect() for _ in range(CONNECTIONS)]
    for connection in together:
        connection.execute("set role service_role")
    with connect() as alone, ThreadPoolExecutor(CONNECTIONS) as threads:
        yield Replay(alone, together, threads)
    with connect() as last:
        last.execute("truncate public.profiles, public.organizations cascade")
        last.execute(
            "truncate app.webhook_events, app.clerk_records, app.clerk_tombstones, app.known_addresses, app.erasure_log, app.erasure_failures"
        )
    for connection in together:
        connection.close()


@pytest.fixture(scope="module")
def history_settings(request: pytest.FixtureRequest) -> settings:
    """Hypothesis settings for --histories. A history has up to 25 events, so there is no deadline."""
    return settings(
        max_examples=request.config.getoption("--histories"),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def test_any_order_and_repetition_ends_in_the_same_rows(replay: Replay, history_settings: settings) -> None:
    history_settings(given(histories(sessions=False))(replay.check))()


def test_sessions_started_at_any_moment_do_not_change_the_final_rows(
    replay: Replay, history_settings: settings
) -> None:
    history_settings(given(histories(sessions=True))(replay.check))()
