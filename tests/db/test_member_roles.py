"""Roles are rows: Postgres keeps them sound, and a change of a role applies to its members."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import Connection, DatabaseError, errors

from tests import events
from tests.conftest import ROOT, Database, wait_until_blocked
from tests.events import MINUTE, SECOND, START
from tests.people import ADA, BEN, CLEO, Sender

SHIPPED = ["owner", "admin", "member", "viewer"]
ADD = "insert into public.roles (key, name, rank, needs_second_factor, fallback) values "


@pytest.fixture
def world(world: Database) -> Database:
    """Without the roles of a product, whose keys and ranks may be those of the tests."""
    world.execute("delete from app.clerk_roles where role <> all(%s)", SHIPPED)
    world.execute("delete from public.roles where key <> all(%s)", SHIPPED)
    return world


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
        observer.execute(f"{ADD} ('race_low', 'Low', 91, false, null), ('race_high', 'High', 92, false, null)")
        try:
            with ThreadPoolExecutor(1) as threads:
                with first.transaction():
                    first.execute("update public.roles set rank = 93 where key = 'race_low'")
                    change = "update public.roles set needs_second_factor = true, fallback = 'race_low' where key = 'race_high'"
                    changed = threads.submit(second.execute, change)
                    wait_until_blocked(observer, second)
                with pytest.raises(errors.CheckViolation, match="lower rank"):
                    changed.result()
        finally:
            observer.execute("delete from public.roles where key like 'race\\_%'")


def test_a_changed_role_waits_for_a_running_event(connect: Callable[[], Connection[Any]]) -> None:
    """The event's foreign key then waits for no row that the writer has locked: neither fails by a deadlock."""
    with connect() as applying, connect() as changing, connect() as observer:
        observer.execute(f"{ADD} ('race_low', 'Low', 91, false, null)")
        observer.execute("insert into app.clerk_roles values ('org:race_low', 'race_low')")
        organization = events.organization("org_race", created_by="user_race", name="Race", slug="race")
        user = events.user("user_race", email="race@example.com")
        try:
            with ThreadPoolExecutor(1) as threads:
                with applying.transaction():
                    applying.execute("select app.lock_clerk_objects(array['org_race', 'user_race'])")
                    changed = threads.submit(
                        changing.execute, "update public.roles set rank = 92 where key = 'race_low'"
                    )
                    wait_until_blocked(observer, changing)
                    joined = events.membership("orgmem_race", organization, user, "org:race_low")
                    Sender(Database(applying), 6000).send("organizationMembership.created", joined)
                changed.result()
            assert observer.execute("select role from public.organization_memberships").fetchall() == [("race_low",)]
        finally:
            observer.execute("truncate public.profiles, public.organizations cascade")
            observer.execute(
                "truncate app.webhook_events, app.clerk_records, app.clerk_tombstones, app.known_addresses cascade"
            )
            observer.execute("delete from app.clerk_roles where role = 'race_low'")
            observer.execute("delete from public.roles where key = 'race_low'")


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


# A fifth role is rows, not code --------------------------------------------------------------------------------------

# The example of the page, with the table of the tests.
PAGE = (ROOT / "docs/extend.md").read_text().replace("projects:", "specimens:")
[TWO_MORE_ROLES] = re.findall(r"```sql\n(insert into public\.roles .*?)```", PAGE, re.DOTALL)
[DECLARED_PERMISSIONS] = re.findall(r"```toml tests/permissions/\S+\n(.*?)```", PAGE, re.DOTALL)
JIM = "user_2JimJimJim"


@pytest.fixture
def staffed(world: Database) -> Database:
    """Acme with two roles more. Clerk's events make Cleo an accountant, and Jim a treasurer."""
    world.execute(TWO_MORE_ROLES)
    sender = Sender(world, 200)
    acme = events.organization("org_acme", created_by=ADA)
    cleo = events.membership("orgmem_2", acme, events.user(CLEO), "org:accountant", START + MINUTE)
    jim = events.membership("orgmem_jim", acme, events.user(JIM, email="jim@example.com"), "org:treasurer")
    sender.send("organizationMembership.updated", cleo)
    sender.send("user.created", events.user(JIM, email="jim@example.com", first_name="Jim", last_name="Ho"))
    sender.send("organizationMembership.created", jim)
    return world


def ask(world: Database, user_id: str, query: str, *values: object, second_factor: bool = True) -> Any:
    with world.acting(
        "authenticated", {"sub": user_id, "role": "authenticated", "fva": [0, 0 if second_factor else -1]}
    ):
        return world.value(query, *values)


def acme_id(world: Database) -> str:
    return str(world.value("select id from public.organizations where name = 'Acme'"))


@pytest.mark.parametrize(
    ("user_id", "second_factor", "role", "permissions"),
    [
        (CLEO, False, "accountant", "members:invite members:read specimens:read"),
        (JIM, True, "treasurer", "members:invite members:read members:remove specimens:create specimens:read"),
        (JIM, False, "accountant", "members:invite members:read specimens:read"),
    ],
)
def test_a_role_that_is_rows_decides_what_its_members_may_do(
    staffed: Database, user_id: str, second_factor: bool, role: str, permissions: str
) -> None:
    mine = "select (role, permissions)::text from public.my_permissions() where organization_id = %s"
    assert (
        ask(staffed, user_id, mine, acme_id(staffed), second_factor=second_factor)
        == f'({role},"{{{permissions.replace(" ", ",")}}}")'
    )
    session = ask(
        staffed, user_id, "select public.start_session() -> 'organizations' -> 0", second_factor=second_factor
    )
    assert session["role"] == ("accountant" if user_id == CLEO else "treasurer")
    assert session["permissions"] == permissions.split()
    assert session["limited_by"] == (None if role == session["role"] else "second_factor")
    seen = ask(staffed, user_id, "select count(*) from public.specimens", second_factor=second_factor)
    assert seen == staffed.value("select count(*) from public.specimens where organization_id = %s", acme_id(staffed))
    create = "insert into public.specimens (organization_id, title) values (%s, 'New') returning title"
    if "specimens:create" in permissions:
        assert ask(staffed, user_id, create, acme_id(staffed), second_factor=second_factor) == "New"
    else:
        with pytest.raises(errors.InsufficientPrivilege):
            ask(staffed, user_id, create, acme_id(staffed), second_factor=second_factor)


def test_the_page_declares_the_permissions_of_its_roles(staffed: Database) -> None:
    held = dict(
        staffed.rows(
            "select permission, array_agg(role order by role) from public.role_permissions "
            "where role in ('accountant', 'treasurer') group by permission"
        )
    )
    assert tomllib.loads(DECLARED_PERMISSIONS) == held


def test_members_invite_people_of_their_own_rank_or_lower(staffed: Database) -> None:
    prepare = "select public.prepare_invitation(%s, %s) ->> 'clerk_role'"
    assert ask(staffed, JIM, prepare, acme_id(staffed), "treasurer") == "org:treasurer"
    assert ask(staffed, ADA, prepare, acme_id(staffed), "accountant") == "org:accountant"
    refused = "one of these: treasurer, member, accountant, viewer"
    for role in ("admin", "owner", "emperor", None):
        with pytest.raises(DatabaseError, match=refused) as refusal, staffed.connection.transaction():
            ask(staffed, JIM, prepare, acme_id(staffed), role)
        assert refusal.value.sqlstate == "PT400"
    with pytest.raises(DatabaseError, match="one of these: accountant, viewer"), staffed.connection.transaction():
        ask(staffed, JIM, prepare, acme_id(staffed), "member", second_factor=False)
    staffed.execute("update public.roles set may_be_invited = false where key = 'treasurer'")
    with pytest.raises(DatabaseError, match="one of these: member, accountant, viewer"):
        ask(staffed, JIM, prepare, acme_id(staffed), "treasurer")


def test_members_remove_people_of_their_own_rank_or_lower(staffed: Database) -> None:
    ids = {user_id: staffed.value("select ops.person_id(%s)", user_id) for user_id in (ADA, CLEO, JIM)}
    prepare = "select public.prepare_removal(%s, %s) ->> 'clerk_user_id'"
    assert ask(staffed, JIM, prepare, acme_id(staffed), ids[CLEO]) == CLEO
    assert ask(staffed, JIM, prepare, acme_id(staffed), ids[JIM]) == JIM
    with pytest.raises(DatabaseError, match="Your role ranks below the role owner of this person") as refusal:
        ask(staffed, JIM, prepare, acme_id(staffed), ids[ADA])
    assert refusal.value.sqlstate == "PT403"


def test_administrators_see_a_role_that_is_rows(staffed: Database) -> None:
    by_role = "select members_by_role from ops.tenants where clerk_org_id = 'org_acme'"
    assert staffed.value(by_role) == "2 owner, 1 treasurer, 2 member, 1 accountant"
    assert staffed.value("select organizations from ops.people where clerk_user_id = %s", JIM) == ["Acme (treasurer)"]
    because = "select because from ops.explain_access(%s, 'org_acme') where permission = %s"
    assert staffed.value(because, JIM, "specimens:create").endswith(
        "Acme requires a second factor of this role: without one it acts as accountant."
    )
    assert "Only owner and admin and treasurer" in staffed.value(because, CLEO, "members:remove")


def test_a_role_that_is_rows_receives_broadcasts_and_mail(staffed: Database) -> None:
    topic = f"org:{acme_id(staffed)}:specimens:read"
    assert topic in ask(staffed, CLEO, "select app.topics()")
    staffed.execute("select set_config('request.jwt.claims', '', true)")
    staffed.execute("update app.settings set mail_enabled = true")
    newcomer = events.user("user_2New", email="new@example.com")
    joined = int(time.time()) * SECOND
    acme = events.organization("org_acme", created_by=ADA)
    member = events.membership("orgmem_new", acme, newcomer, "org:member", joined) | {"created_at": joined}
    Sender(staffed, 300).send("organizationMembership.created", member)
    notified = staffed.rows(
        "select p.clerk_user_id from app.email_outbox as e join public.profiles as p on p.id = e.person_id"
        " where e.template = 'member_joined' and e.about_id = ops.person_id('user_2New')"
    )
    assert {user_id for (user_id,) in notified} == {BEN, CLEO, JIM}  # Ada's address is suppressed
