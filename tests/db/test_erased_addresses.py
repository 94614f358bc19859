"""Invitations to an erased person's address have the same outcome, in whatever order the events and requests arrive."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests import events
from tests.conftest import Database
from tests.events import MINUTE, SECOND, START, Json
from tests.people import FAR_FUTURE, call, finish_erasures, scan

Connection = psycopg.Connection[Any]
Step = Callable[[Database], object]
Order = tuple[Step, ...]

X, Y = "x@example.com", "y@example.com"
DELETED_AT = START + 60 * MINUTE
BEFORE, AFTER = DELETED_AT - MINUTE, DELETED_AT + MINUTE
# Supabase deletes these itself after some days.
DELETED_BY_SUPABASE = {"realtime.messages"}


def send(kind: str, data: Json, timestamp: int | None = None) -> Step:
    """Sends a Clerk event. Its id is a hash of its content, so that it is the same event in every order."""
    event = json.dumps(events.event(kind, data, timestamp))

    def step(database: Database) -> None:
        answer = database.value("select public.receive_clerk_event(%s, %s)", f"msg_{hash(event)}", event)
        assert answer["outcome"] in {"processed", "stale"}, answer

    return step


def update_user(clerk_id: str, email: str, updated_at: int = START, **changes: Any) -> Step:
    return send("user.updated", events.user(clerk_id, updated_at, email, **changes))


def delete_user(clerk_id: str, at: int = DELETED_AT) -> Step:
    return send("user.deleted", {"object": "user", "id": clerk_id, "deleted": True}, at)


def make_invitation(clerk_id: str, email: str, at: int, status: str = "pending") -> Json:
    return events.invitation(clerk_id, "org_acme", status, at, email_address=email, created_at=at)


def invite(clerk_id: str, email: str, at: int) -> Step:
    return send("organizationInvitation.created", make_invitation(clerk_id, email, at))


def answer_invitation(clerk_id: str, email: str, at: int, answer: str) -> Step:
    return send(f"organizationInvitation.{answer}", make_invitation(clerk_id, email, at, answer), at + SECOND)


def merge_listed(kind: str, *objects: Json, at: int = START) -> Step:
    """Merges a page of a Clerk list, as `ballast clerk backfill` does."""
    merge = "select app.merge_clerk_page(%s, %s, to_timestamp(%s / 1000.0), 'backfill')"
    return lambda database: database.value(merge, kind, json.dumps(objects), at)


def request_erasure(clerk_id: str) -> Step:
    """Requests an erasure as the person, and completes it as the service does."""

    def step(database: Database) -> None:
        receipt = call(database, "request_erasure", clerk_user_id=clerk_id, requested_by="person")["receipt"]
        for _ in range(10):
            if call(database, "continue_erasure", receipt=receipt)["state"] != "running":
                break
        else:
            raise AssertionError("the erasure does not end")
        call(database, "end_erasure", receipt=receipt, is_stored=True)

    return step


def find_outcomes(database: Database, orders: Iterable[Order]) -> set[str]:
    """The invitations that are visible after each order and its erasures, as one text per outcome."""
    shown = "select coalesce(string_agg(clerk_invitation_id, ' ' order by clerk_invitation_id), '') from public.organization_invitations"
    found = set()
    for order in orders:
        with database.connection.transaction(force_rollback=True):
            for step in order:
                step(database)
            finish_erasures(database)
            found.add(database.value(shown))
    return found


def any_order(*steps: Step) -> Iterator[Order]:
    return itertools.permutations(steps)


def known_first(known: Step, then: Step, *others: Step) -> Iterator[Order]:
    """Every order in which `known` comes before `then`: an unknown person cannot request anything."""
    every = itertools.permutations((known, then, *others))
    return (order for order in every if order.index(known) < order.index(then))


ADA, ADA_DELETED = update_user("user_ada", X), delete_user("user_ada")
OLD, NEW = invite("old", X, BEFORE), invite("new", X, AFTER)


def test_an_invitation_from_before_the_deletion_is_removed(database: Database) -> None:
    assert find_outcomes(database, any_order(ADA, OLD, ADA_DELETED)) == {""}


def test_an_invitation_from_after_the_deletion_is_shown(database: Database) -> None:
    assert find_outcomes(database, any_order(ADA, OLD, ADA_DELETED, NEW)) == {"new"}


def test_an_invitation_from_the_moment_of_the_deletion_is_removed(database: Database) -> None:
    assert find_outcomes(database, any_order(ADA, invite("then", X, DELETED_AT), ADA_DELETED)) == {""}


def test_an_invitation_to_a_person_who_is_not_erased_is_shown(database: Database) -> None:
    assert find_outcomes(database, any_order(ADA, OLD, update_user("user_ben", Y), delete_user("user_ben"))) == {"old"}


def test_upper_and_lower_case_are_the_same_address(database: Database) -> None:
    assert find_outcomes(database, any_order(update_user("user_ada", "X@example.com"), ADA_DELETED, invite("old", "x@Example.com", BEFORE))) == {""}  # fmt: skip


@pytest.mark.parametrize("answer", ["accepted", "revoked"])
def test_an_answered_invitation_is_never_shown(database: Database, answer: str) -> None:
    old, new = answer_invitation("old", X, BEFORE, answer), answer_invitation("new", X, AFTER, answer)
    assert find_outcomes(database, any_order(ADA, OLD, ADA_DELETED, old)) == {""}
    assert find_outcomes(database, any_order(ADA, NEW, ADA_DELETED, new)) == {""}


@pytest.mark.thorough
def test_every_address_that_an_event_gave_the_person_counts(database: Database) -> None:
    moved = update_user("user_ada", Y, START + MINUTE)
    assert find_outcomes(database, any_order(ADA, moved, OLD, ADA_DELETED)) == {""}
    assert find_outcomes(database, any_order(ADA, moved, invite("old", Y, BEFORE), ADA_DELETED)) == {""}


def test_only_verified_addresses_count(database: Database) -> None:
    verified = events.email_address("idn_2", Y)
    unverified = events.email_address("idn_3", "typed@example.com", "unverified")
    ada = update_user("user_ada", X, email_addresses=[verified, unverified])
    old = [invite("old", Y, BEFORE), invite("unverified", "typed@example.com", BEFORE)]
    assert find_outcomes(database, any_order(ada, *old, ADA_DELETED)) == {"unverified"}


@pytest.mark.thorough
def test_the_next_owner_of_the_address_does_not_change_the_outcome(database: Database) -> None:
    ben = update_user("user_ben", X, AFTER)
    assert find_outcomes(database, any_order(ADA, OLD, ADA_DELETED, ben)) == {""}
    assert find_outcomes(database, any_order(ADA, NEW, ADA_DELETED, ben)) == {"new"}
    assert find_outcomes(database, any_order(ADA_DELETED, ben, NEW, delete_user("user_ben", AFTER + MINUTE))) == {""}


def test_a_former_address_counts_even_if_its_next_owner_was_erased_first(database: Database) -> None:
    """Ben's erasure removes the address from the events. Ada's erasure must still find the invitation to it."""
    moved, ben = update_user("user_ada", Y, START + MINUTE), update_user("user_ben", X)
    ben_deleted = delete_user("user_ben", BEFORE)
    between = invite("between", X, BEFORE + SECOND)
    orders = ((ADA, moved, *order) for order in any_order(ben, ben_deleted, between, ADA_DELETED))
    assert find_outcomes(database, orders) == {""}


def test_the_latest_of_several_deletions_counts(database: Database) -> None:
    assert find_outcomes(database, any_order(ADA, ADA_DELETED, NEW, delete_user("user_ada", AFTER))) == {""}


def test_a_request_removes_invitations_from_before_the_request(database: Database) -> None:
    ask, later = request_erasure("user_ada"), invite("later", X, FAR_FUTURE + MINUTE)
    assert find_outcomes(database, known_first(ADA, ask, OLD, later)) == {"later"}
    # A later deletion at Clerk counts too. A deletion from before the request does not move the time back.
    between, deleted_later = invite("between", X, FAR_FUTURE - MINUTE), delete_user("user_ada", FAR_FUTURE)
    assert find_outcomes(database, known_first(ADA, ask, between, deleted_later)) == {""}
    assert find_outcomes(database, known_first(ADA, ask, NEW, ADA_DELETED)) == {""}


def test_a_page_of_a_clerk_list_has_the_same_outcome_as_an_event(database: Database) -> None:
    users = merge_listed("user", events.user("user_ada", email=X))
    invitations = merge_listed(
        "invitation", make_invitation("old", X, BEFORE), make_invitation("new", X, AFTER), at=AFTER
    )
    assert find_outcomes(database, any_order(users, invitations, ADA_DELETED)) == {"new"}
    assert find_outcomes(database, any_order(ADA, invitations, ADA_DELETED, OLD)) == {"new"}
    assert find_outcomes(database, known_first(users, request_erasure("user_ada"), OLD, invitations)) == {""}


def test_every_verified_address_in_a_page_counts(database: Database) -> None:
    user = events.user("user_ada", email=X)
    user["email_addresses"].append(events.email_address("idn_2", Y))
    users, old = merge_listed("user", user), invite("old", Y, BEFORE)
    assert find_outcomes(database, any_order(users, old, ADA_DELETED)) == {""}


def test_no_table_keeps_the_address(database: Database) -> None:
    revoked = answer_invitation("revoked", X, BEFORE, "revoked")
    messages = (ADA, OLD, ADA_DELETED, revoked)
    for order in (*any_order(*messages), *known_first(ADA, request_erasure("user_ada"), OLD, revoked)):
        with database.connection.transaction(force_rollback=True):
            for step in order:
                step(database)
            for (receipt,) in database.rows("select receipt from app.erasure_log where state <> 'complete'"):
                while call(database, "continue_erasure", receipt=receipt)["state"] == "running":
                    pass
            assert scan(database, X).keys() <= DELETED_BY_SUPABASE


def test_reconciliation_does_not_report_a_removed_invitation_as_missing(database: Database) -> None:
    ADA(database)
    ADA_DELETED(database)
    differences = "select count(*) from app.clerk_differences('invitation', %s, to_timestamp(%s / 1000.0))"
    assert database.value(differences, json.dumps([make_invitation("old", X, BEFORE)]), FAR_FUTURE) == 0
    assert database.value(differences, json.dumps([make_invitation("new", X, AFTER)]), FAR_FUTURE) == 1


@pytest.fixture
def connections(connect: Callable[[], Connection]) -> Iterator[list[Connection]]:
    """Two connections that commit. The tables are emptied afterwards."""
    with connect() as one, connect() as two:
        yield [one, two]
        one.execute("truncate public.profiles, public.organizations cascade")
        one.execute(
            "truncate app.webhook_events, app.clerk_records, app.clerk_tombstones, app.known_addresses, app.erasure_log, app.erasure_failures"
        )


@pytest.mark.parametrize("steps", [(OLD, ADA_DELETED), (ADA_DELETED, OLD)])
def test_a_concurrent_invitation_and_deletion_see_each_other(connections: list[Connection], steps: Order) -> None:
    one, two = map(Database, connections)
    ADA(one)
    with ThreadPoolExecutor(1) as thread:
        with one.connection.transaction():
            steps[0](one)
            running = thread.submit(steps[1], two)
            waiting = "select exists (select from pg_locks where not granted and pid = %s)"
            for _ in range(1000):
                if one.value(waiting, two.connection.info.backend_pid):
                    break
            else:
                pytest.fail("the second transaction did not wait for the first")
        running.result()
    finish_erasures(one)
    assert one.rows("select clerk_invitation_id from public.organization_invitations") == []
    assert one.rows("select clerk_id from app.clerk_records where kind = 'invitation'") == []
