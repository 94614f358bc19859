"""Roles are rows: Postgres keeps them sound, and a change of a role applies to its members."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import Connection, errors

from tests.conftest import Database, wait_until_blocked
from tests.people import ADA, CLEO

ADD = "insert into public.roles (key, name, rank, needs_second_factor, fallback) values "


@pytest.mark.parametrize(
    ("unsound", "refusal"),
    [
        (f"{ADD} ('boss', 'Boss', 100, false, null)", errors.CheckViolation),
        (f"{ADD} ('boss', 'Boss', 101, false, null)", errors.CheckViolation),
        (f"{ADD} ('boss', 'Boss', 30, false, null)", errors.UniqueViolation),
        (f"{ADD} ('Boss', 'Boss', 40, false, null)", errors.CheckViolation),
        (f"{ADD} ('boss', 'Boss', 40, true, null)", errors.CheckViolation),
        (f"{ADD} ('boss', 'Boss', 40, false, 'viewer')", errors.CheckViolation),
        (f"{ADD} ('boss', 'Boss', 40, true, 'missing')", errors.ForeignKeyViolation),
        (f"{ADD} ('boss', 'Boss', 40, true, 'boss')", errors.ForeignKeyViolation),
        (f"{ADD} ('boss', 'Boss', 40, true, 'admin')", errors.ForeignKeyViolation),
        (f"{ADD} ('a', 'A', 41, true, 'b'), ('b', 'B', 40, true, 'a')", errors.ForeignKeyViolation),
        (f"{ADD} ('clerk', 'Clerk', 15, true, 'member')", errors.CheckViolation),
        ("update public.roles set rank = 31 where key = 'viewer'", errors.CheckViolation),
        ("update public.roles set rank = 40 where key = 'owner'", errors.CheckViolation),
        ("update public.roles set may_own = false where key = 'owner'", errors.CheckViolation),
        ("update public.roles set needs_second_factor = true, fallback = 'member' where key = 'viewer'", errors.RestrictViolation),
        ("update public.roles set key = 'guest' where key = 'viewer'", errors.RestrictViolation),
        ("delete from public.roles where key = 'member'", errors.RestrictViolation),
        ("update app.clerk_roles set role = 'boss' where key = 'org:admin'", errors.ForeignKeyViolation),
        ("update public.organization_memberships set role = 'boss'", errors.ForeignKeyViolation),
        ("insert into public.role_permissions values ('boss', 'members:read')", errors.ForeignKeyViolation),
    ],
)  # fmt: skip
def test_unsound_roles_are_refused(world: Database, unsound: str, refusal: type[Exception]) -> None:
    # PostgreSQL 18 has an SQLSTATE of its own for a foreign key that restricts.
    accepted = (refusal, errors.ForeignKeyViolation) if refusal is errors.RestrictViolation else refusal
    with pytest.raises(accepted):
        world.execute(unsound)


def test_two_writers_together_make_no_fallback_of_a_higher_rank(connect: Callable[[], Connection[Any]]) -> None:
    with connect() as first, connect() as second, connect() as observer:
        observer.execute(f"{ADD} ('race_low', 'Low', 50, false, null), ('race_high', 'High', 60, false, null)")
        try:
            with ThreadPoolExecutor(1) as threads:
                with first.transaction():
                    first.execute("update public.roles set rank = 70 where key = 'race_low'")
                    change = "update public.roles set needs_second_factor = true, fallback = 'race_low' where key = 'race_high'"
                    changed = threads.submit(second.execute, change)
                    wait_until_blocked(observer, second)
                with pytest.raises(errors.CheckViolation, match="lower rank"):
                    changed.result()
        finally:
            observer.execute("delete from public.roles where key like 'race\\_%'")


def role_of(world: Database, user_id: str, organization: str = "Acme") -> str:
    role = (
        "select m.role from public.organization_memberships as m join public.profiles as p on p.id = m.user_id"
        " join public.organizations as o on o.id = m.organization_id where p.clerk_user_id = %s and o.name = %s"
    )
    return str(world.value(role, user_id, organization))


def test_the_role_of_an_unmapped_clerk_role_is_the_lowest(world: Database) -> None:
    world.execute("delete from app.clerk_roles where key = 'org:member'")
    assert role_of(world, CLEO) == "viewer"
    world.execute(f"{ADD} ('guest', 'Guest', 5, false, null)")
    assert role_of(world, CLEO) == "guest"
    world.execute("update public.roles set rank = 15 where key = 'guest'")
    assert role_of(world, CLEO) == "viewer"


def test_may_own_decides_in_which_roles_the_creator_is_the_owner(world: Database) -> None:
    assert role_of(world, ADA) == "owner"
    world.execute("update public.roles set may_own = false where key = 'admin'")
    assert role_of(world, ADA) == "admin"
