"""Any order and any repetition of the same Clerk events, over any number of connections, ends in the same rows.

Hypothesis invents the life of a small Clerk: people, organizations, who joins, leaves, rejoins, is banned, pays, who is
invited at an address of theirs before and after they are deleted. Each history is delivered in order, permuted, permuted
with repetitions, and so over four connections at once. Every end must be what the simulated Clerk says. More histories:
`pytest tests/properties --histories 20000`.
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

from tests.events import SECOND
from tests.simulated_clerk import PREFIX, Clerk, Message, Row, Rows, Session, in_order

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
RARELY: tuple[Operation, ...] = (Clerk.delete_user, Clerk.delete_organization)
ADDRESSES: tuple[Operation, ...] = (Clerk.invite_person,) * 6 + (Clerk.change_address, Clerk.delete_user) * 3
# Without a pause two changes of an object have the same updated_at.
PAUSES = (0, 1, SECOND, 90 * SECOND)


@dataclass(frozen=True)
class History:
    """Deliveries of the same events by name. What is expected is None where even the messages' times tie: then nobody
    can say which is the newest, and the deliveries need only agree."""

    deliveries: dict[str, Delivery]
    everyone: list[str]
    everywhere: list[str]
    expected: Rows | None

    def _repr_pretty_(self, printer: RepresentationPrinter, _cycle: bool) -> None:
        """What Hypothesis prints of a history that fails."""
        for name, delivery in self.deliveries.items():
            printer.text(f"\n{name}:\n  " + "\n  ".join(map(str, delivery)))


@st.composite
def histories(draw: st.DrawFn, *, sessions: bool) -> History:
    """An organization of two to begin with, then 4 to 14 operations: about 8 to 25 events."""
    clerk = Clerk(coarse=not sessions and draw(st.sampled_from((False,) * 5 + (True,))), sketchy=draw(st.booleans()))
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
    return History(deliveries, clerk.everyone, clerk.everywhere, None if clerk.coarse else clerk.visible())


def send(connection: Connection, item: Message | Session, prefix: str) -> None:
    """Delivers as the Data API would. To be turned away, banned or deleted, is a fine answer to a session."""
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
    """The connection acts as service_role, in autocommit or in a transaction of the caller's."""
    for item in delivery:
        send(connection, item, prefix)


def finish_erasures(connection: Connection) -> None:
    """As the job does. Most are done by the event, but a slow machine does less in the half second that it has."""
    begun = """
        select l.receipt from app.erasure_log as l where l.state = 'running' and (
          exists (select from public.profiles as p where p.id = (l.person).id)
          or exists (select from app.clerk_records as r where r.fields ->> 'created_by' = (l.person).clerk_user_id))"""
    while receipts := connection.execute(begun).fetchall():
        for receipt in receipts:
            connection.execute("select public.continue_erasure(%s)", receipt)


# What the events made, without our own ids and times; and what failed.
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


def visible(connection: Connection, history: History, prefix: str) -> Rows:
    """The rows of a history, as the simulated Clerk writes them. None of its messages may have failed."""
    ids = {
        "everyone": [each.replace(PREFIX, prefix) for each in history.everyone],
        "everywhere": [each.replace(PREFIX, prefix) for each in history.everywhere],
        "messages": [f"msg_{prefix}_{number}" for number in range(len(history.deliveries["in order"]))],
    }
    rows = {
        name: in_order(without(prefix, row) for row in connection.execute(query, ids))
        for name, query in QUERIES.items()
    }
    assert not rows.pop("failures")
    return rows


def without(prefix: str, row: Row) -> Row:
    return tuple(value.replace(prefix, PREFIX) if isinstance(value, str) else value for value in row)


@dataclass(frozen=True)
class Replay:
    """The connections, kept for all histories: one that delivers alone and looks, four that deliver at once."""

    alone: Connection
    together: list[Connection]
    threads: ThreadPoolExecutor
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def check(self, history: History) -> None:
        prefix = f"h{next(self.numbers)}x"
        expected = history.expected
        known: list[Row] | None = None
        for name, delivery in history.deliveries.items():
            end = self.end(name, delivery, history, prefix)
            records = end.pop(
                "records"
            )  # of those who were deleted there is none, in whatever order Clerk told of them
            known = records if known is None else known
            assert records == known, name
            expected = end if expected is None else expected
            note(f"{name}: {end}")
            assert end == expected, name

    def end(self, name: str, delivery: Delivery, history: History, prefix: str) -> Rows:
        """The rows after a delivery. One delivered alone is rolled back, so that the same ids serve again."""
        if name != TOGETHER:
            with self.alone.transaction(force_rollback=True):
                self.alone.execute("set local role service_role")
                deliver(self.alone, delivery, prefix)
                self.alone.execute("reset role")
                finish_erasures(self.alone)
                return visible(self.alone, history, prefix)
        parts = [delivery[number::CONNECTIONS] for number in range(CONNECTIONS)]
        running = [self.threads.submit(deliver, *each, prefix) for each in zip(self.together, parts, strict=True)]
        for each in running:
            each.result()
        finish_erasures(self.alone)
        return visible(self.alone, history, prefix)


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
            "truncate app.webhook_events, app.clerk_records, app.clerk_tombstones, app.known_addresses, app.erasure_log"
        )
    for connection in together:
        connection.close()


@pytest.fixture(scope="module")
def thoroughly(request: pytest.FixtureRequest) -> settings:
    """As many histories as asked for; a history of 25 events is no small input, and takes what it takes."""
    return settings(
        max_examples=request.config.getoption("--histories"),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def test_any_order_and_repetition_ends_in_the_same_rows(replay: Replay, thoroughly: settings) -> None:
    thoroughly(given(histories(sessions=False))(replay.check))()


def test_sessions_started_at_any_moment_leave_no_trace_after_the_events(replay: Replay, thoroughly: settings) -> None:
    thoroughly(given(histories(sessions=True))(replay.check))()
