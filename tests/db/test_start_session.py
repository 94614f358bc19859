"""public.start_session returns the profile, organizations and permissions, even before Clerk's webhooks arrive."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import events
from tests.conftest import Claims, Database
from tests.events import MINUTE, SECOND, START, Json

SESSION_AT = START + MINUTE
ADA = events.user("user_ada")
ACME = events.organization("org_acme")
numbers = itertools.count()


@pytest.fixture
def clerk(database: Database) -> Clerk:
    return Clerk(database)


class Clerk:
    """Sends events like the service and starts sessions like a browser."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def send(self, kind: str, data: Json, timestamp: int | None = None) -> None:
        event = json.dumps(events.event(kind, data, timestamp))
        with self.database.acting("service_role"):
            self.database.execute("select public.receive_clerk_event(%s, %s)", f"msg_{next(numbers)}", event)

    def join(self, role: str = "org:admin", at: int = START, clerk_id: str = "orgmem_1", **changes: Any) -> None:
        membership = events.membership(clerk_id, ACME | changes, ADA, role, at)
        self.send("organizationMembership.created", membership)

    def leave(self, at: int, clerk_id: str = "orgmem_1") -> None:
        self.send("organizationMembership.deleted", events.membership(clerk_id, ACME, ADA), at)

    def start(self, claims: Claims | str) -> Any:
        with self.database.acting("authenticated", claims):
            return self.database.value("select public.start_session()")

    def refused_code(self, claims: Claims | str) -> str:
        """The SQLSTATE with which a session is refused."""
        with pytest.raises(psycopg.DatabaseError) as refused:
            self.start(claims)
        assert refused.value.diag.message_hint
        return refused.value.sqlstate or ""

    def members(self) -> list[tuple[Any, ...]]:
        return self.database.rows(
            "select p.clerk_user_id, o.clerk_org_id, m.role, m.clerk_role, m.clerk_membership_id"
            " from public.organization_memberships as m join public.profiles as p on p.id = m.user_id"
            " join public.organizations as o on o.id = m.organization_id"
        )


def token(organization: str | None = None, role: str = "admin", at: int = SESSION_AT, **changes: Any) -> Claims:
    """The claims of a version 2 session token with a second factor, issued at a time in milliseconds."""
    claims = {"v": 2, "sub": "user_ada", "role": "authenticated", "iat": at // SECOND, "fva": [0, 0], "sts": "active"}
    if organization:
        claims["o"] = {"id": organization, "rol": role, "slg": "acme", "per": "read", "fpm": "1"}
    return claims | changes


def version_1(organization: str, role: str) -> Claims:
    return token() | {"v": 1, "org_id": organization, "org_role": role, "org_slug": "acme", "org_permissions": []}


# Known people --------------------------------------------------------------------------------------------------------


def test_a_known_person_gets_their_profile_roles_and_permissions(clerk: Clerk) -> None:
    clerk.send("user.created", ADA)
    clerk.join()
    session = clerk.start(token("org_acme"))
    assert set(session) == {"profile", "second_factor", "organizations"}
    assert session["second_factor"] is True
    profile = session["profile"]
    assert {key: profile[key] for key in profile if key != "id"} == {
        "clerk_user_id": "user_ada", "email": "ada@example.com", "full_name": "Ada Winter",
        "avatar_url": "https://img.clerk.com/ada", "current_organization_id": None, "preferences": {},
    }  # fmt: skip
    [organization] = session["organizations"]
    owner = clerk.database.value(
        "select jsonb_agg(permission order by permission) from public.role_permissions where role = 'owner'"
    )
    assert {key: organization[key] for key in organization if key != "id"} == {
        "clerk_org_id": "org_acme", "name": "Acme", "slug": "acme", "role": "owner", "permissions": owner,
        "mfa_required": True, "limited_by": None,
    }  # fmt: skip


def test_a_token_without_an_active_organization_still_lists_all_organizations(clerk: Clerk) -> None:
    clerk.join()
    assert [each["clerk_org_id"] for each in clerk.start(token())["organizations"]] == ["org_acme"]


def test_an_existing_membership_is_not_changed_by_a_token(clerk: Clerk) -> None:
    clerk.join("org:member")
    assert clerk.start(token("org_acme", "admin"))["organizations"][0]["role"] == "member"


def test_last_seen_at_is_written_at_most_once_a_minute(clerk: Clerk) -> None:
    clerk.database.execute(
        "insert into public.profiles (clerk_user_id, last_seen_at) values ('user_ada', now() - interval '50 seconds')"
    )
    clerk.start(token())
    ago = "select extract(epoch from now() - last_seen_at)::integer from public.profiles"
    assert clerk.database.value(ago) == 50
    clerk.database.execute("update public.profiles set last_seen_at = now() - interval '70 seconds'")
    clerk.start(token())
    assert clerk.database.value(ago) == 0


def test_last_seen_at_does_not_change_updated_at(clerk: Clerk) -> None:
    clerk.database.execute("insert into public.profiles (clerk_user_id, updated_at) values ('user_ada', '2025-01-01Z')")
    clerk.start(token())
    assert clerk.database.value("select last_seen_at is not null and updated_at = '2025-01-01Z' from public.profiles")


# Before the webhooks -------------------------------------------------------------------------------------------------


def test_a_person_without_a_webhook_gets_a_profile(clerk: Clerk) -> None:
    session = clerk.start(token())
    assert session["profile"]["clerk_user_id"] == "user_ada"
    assert session["organizations"] == []


@pytest.mark.parametrize("claims", [token("org_acme", "member"), version_1("org_acme", "org:member")], ids=["v2", "v1"])
def test_an_organization_without_a_webhook_is_created_from_the_claims(clerk: Clerk, claims: Claims) -> None:
    [organization] = clerk.start(claims)["organizations"]
    assert (organization["clerk_org_id"], organization["name"], organization["role"]) == ("org_acme", "acme", "member")
    assert "specimens:create" in organization["permissions"]
    assert clerk.members() == [("user_ada", "org_acme", "member", "org:member", None)]


def test_a_custom_clerk_role_maps_to_viewer(clerk: Clerk) -> None:
    assert clerk.start(token("org_acme", "captain"))["organizations"][0]["role"] == "viewer"


def test_provisioned_rows_can_be_used_at_once(clerk: Clerk) -> None:
    claims = token("org_acme", "member")
    organization = clerk.start(claims)["organizations"][0]["id"]
    with clerk.database.acting("authenticated", claims):
        insert = "insert into public.specimens (organization_id, title) values (%s, 'Apollo')"
        clerk.database.execute(insert, organization)
        assert clerk.database.value("select count(*) from public.specimens") == 1


def test_a_newer_token_updates_the_role(clerk: Clerk) -> None:
    clerk.start(token("org_acme", "member"))
    assert clerk.start(token("org_acme", "admin", SESSION_AT + MINUTE))["organizations"][0]["role"] == "admin"
    assert clerk.start(token("org_acme", "member"))["organizations"][0]["role"] == "admin"


def test_a_second_session_creates_no_further_rows(clerk: Clerk) -> None:
    first = clerk.start(token("org_acme"))
    assert clerk.start(token("org_acme", at=SESSION_AT + MINUTE)) == first


@pytest.mark.parametrize("session_first", [True, False])
def test_webhooks_replace_the_data_of_a_token(clerk: Clerk, session_first: bool) -> None:
    """Even if they are older than the token."""
    if session_first:
        clerk.start(token("org_acme", "admin"))
    clerk.join("org:member")
    clerk.send("user.created", ADA)
    clerk.send("organization.created", ACME)
    session = clerk.start(token("org_acme", "admin"))
    assert session["profile"]["email"] == "ada@example.com"
    assert session["organizations"][0]["name"] == "Acme"
    assert clerk.members() == [("user_ada", "org_acme", "member", "org:member", "orgmem_1")]


@pytest.mark.parametrize("arrives_late", [True, False])
def test_a_token_issued_before_leaving_does_not_restore_the_membership(clerk: Clerk, arrives_late: bool) -> None:
    if arrives_late:
        assert len(clerk.start(token("org_acme"))["organizations"]) == 1
    clerk.leave(SESSION_AT + SECOND)
    assert clerk.start(token("org_acme"))["organizations"] == []
    assert clerk.members() == []


def test_a_token_issued_in_the_second_of_the_deletion_does_not_restore_the_membership(clerk: Clerk) -> None:
    """Tokens have whole seconds, so this one may be older than the deletion."""
    clerk.leave(SESSION_AT + 1)
    assert clerk.start(token("org_acme"))["organizations"] == []


def test_a_token_issued_after_leaving_restores_the_membership(clerk: Clerk) -> None:
    clerk.join()
    clerk.leave(SESSION_AT - SECOND)
    assert clerk.start(token("org_acme", "member"))["organizations"][0]["role"] == "member"


def test_a_token_does_not_restore_a_deleted_organization(clerk: Clerk) -> None:
    clerk.send("organization.deleted", {"id": "org_acme", "deleted": True}, START)
    assert clerk.start(token("org_acme"))["organizations"] == []
    clerk.start(token("org_acme", at=SESSION_AT + MINUTE))
    assert clerk.database.value("select count(*) from public.organizations where deleted_at is null") == 0


# Refused callers -----------------------------------------------------------------------------------------------------


def test_a_deleted_person_is_refused_even_with_a_new_token(clerk: Clerk) -> None:
    clerk.send("user.deleted", {"id": "user_ada", "deleted": True}, START)
    assert clerk.refused_code(token("org_acme", at=SESSION_AT + 60 * MINUTE)) == "PT403"
    assert clerk.database.value("select count(*) from public.profiles") == 0


def test_a_banned_person_is_refused(clerk: Clerk) -> None:
    clerk.send("user.created", ADA | {"banned": True})
    assert clerk.refused_code(token()) == "PT403"


def test_an_unfinished_sign_in_is_refused_and_creates_no_rows(clerk: Clerk) -> None:
    assert clerk.refused_code(token("org_acme", sts="pending")) == "PT403"
    assert clerk.database.value("select count(*) from public.profiles") == 0


@pytest.mark.parametrize(
    "claims", ["", "{}", "[]", "not json", '{"role": "authenticated"}', '{"sub": null}', '{"sub": ""}']
)
def test_a_request_without_a_subject_is_refused(clerk: Clerk, claims: str) -> None:
    assert clerk.refused_code(claims) == "PT401"


@pytest.mark.parametrize(
    "custom", ["x" * 8192, "ü" * 4096, functools.reduce(lambda inner, _: [inner], range(64), [])], ids=len
)
def test_a_token_with_too_many_claims_is_refused_with_the_reason(clerk: Clerk, custom: object) -> None:
    claims = json.dumps(token("org_acme", custom=custom), ensure_ascii=False)
    with pytest.raises(psycopg.DatabaseError, match="exceed 8 kB or 64 levels") as refused:
        clerk.start(claims)
    assert refused.value.sqlstate == "PT401"
    assert "fewer custom claims" in (refused.value.diag.message_hint or "")


def test_a_token_of_almost_8_kb_is_read(clerk: Clerk) -> None:
    space = 8192 - len(json.dumps(token(custom="")))
    assert clerk.start(json.dumps(token(custom="x" * space)))["profile"]["clerk_user_id"] == "user_ada"


def test_anon_cannot_start_a_session(clerk: Clerk) -> None:
    for function in ("public.start_session()", "app.start_session()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), clerk.database.acting("anon", token()):
            clerk.database.execute(f"select {function}")


# The second factor ---------------------------------------------------------------------------------------------------

WITHOUT_SECOND_FACTOR: list[Any] = [[5, -1], [], None, "x", [0], [0, None], {"1": 5}]


def permissions(clerk: Clerk, role: str) -> Any:
    return clerk.database.value(
        "select jsonb_agg(permission order by permission) from public.role_permissions where role = %s", role
    )


@pytest.mark.parametrize("fva", WITHOUT_SECOND_FACTOR, ids=str)
def test_an_owner_without_a_second_factor_gets_the_permissions_of_a_viewer(clerk: Clerk, fva: Any) -> None:
    clerk.join()
    session = clerk.start(token("org_acme", fva=fva))
    [organization] = session["organizations"]
    assert session["second_factor"] is False
    assert (organization["role"], organization["limited_by"]) == ("owner", "second_factor")
    assert organization["permissions"] == permissions(clerk, "viewer")


def test_a_member_needs_no_second_factor(clerk: Clerk) -> None:
    clerk.join("org:member")
    [organization] = clerk.start(token("org_acme", fva=[0, -1]))["organizations"]
    assert (organization["limited_by"], organization["permissions"]) == (None, permissions(clerk, "member"))


def test_an_organization_may_turn_the_second_factor_off(clerk: Clerk) -> None:
    clerk.join()
    clerk.database.execute("update public.organizations set mfa_required = false")
    [organization] = clerk.start(token("org_acme", fva=[0, -1]))["organizations"]
    assert (organization["mfa_required"], organization["limited_by"]) == (False, None)
    assert organization["permissions"] == permissions(clerk, "owner")


def test_a_provisioned_organization_gets_the_mfa_setting_of_the_installation(clerk: Clerk) -> None:
    clerk.database.execute("update app.settings set mfa_required = false")
    assert clerk.start(token("org_acme"))["organizations"][0]["mfa_required"] is False


# Arbitrary claims ----------------------------------------------------------------------------------------------------

LONG = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(10_000))  # does not compress
ODD_VALUES: list[Any] = [
    None, True, 0, -1, 7.5, 1e300, "", " ", "x", LONG, [], [1], {}, {"id": 1}, {"id": []}, {"id": "x", "rol": {}},
]  # fmt: skip


@pytest.mark.parametrize("name", ["sub", "iat", "o", "org_id", "org_role", "org_slug", "fva", "sts", "v", "role"])
def test_an_odd_claim_starts_a_session_or_is_refused(clerk: Clerk, name: str) -> None:
    for value in ODD_VALUES:
        for claims in (token("org_acme"), version_1("org_acme", "org:admin")):
            assert_session_or_refusal(clerk, json.dumps(claims | {name: value}))


@pytest.mark.parametrize("name", ["id", "rol", "slg"])
def test_an_odd_value_in_the_organization_claim_starts_a_session_or_is_refused(clerk: Clerk, name: str) -> None:
    for value in ODD_VALUES:
        claims = token("org_acme")
        assert_session_or_refusal(clerk, json.dumps(claims | {"o": claims["o"] | {name: value}}))


@pytest.mark.parametrize(
    "sub",
    [7, True, ["user_ada"], {"id": "user_ada"}, "b6b9a5d0-3b0e-4f0e-9a57", "user_" + LONG, "user_" + "a" * 252],
    ids=["number", "true", "list", "object", "of another issuer", "long", "too long by one"],
)
def test_a_subject_that_is_not_a_clerk_user_id_is_refused(clerk: Clerk, sub: Any) -> None:
    assert clerk.refused_code(token(sub=sub)) in {"PT401", "PT403"}
    assert clerk.database.value("select count(*) from public.profiles") == 0


@pytest.mark.parametrize("iat", [None, "1760000060", -1, 1e300, [1760000060]], ids=str)
def test_a_token_without_a_time_of_issue_creates_no_rows(clerk: Clerk, iat: Any) -> None:
    assert clerk.refused_code(token("org_acme", iat=iat)) == "PT403"
    assert clerk.database.value("select count(*) from public.profiles") == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "rol", "slg"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(["sub", "iat", "o", "org_id", "org_role", "fva", "sts"]), json_values))
def test_any_claims_start_a_session_or_are_refused(clerk: Clerk, changes: Json) -> None:
    assert_session_or_refusal(clerk, json.dumps(token("org_acme") | changes))


def assert_session_or_refusal(clerk: Clerk, claims: str) -> None:
    try:
        with clerk.database.connection.transaction(force_rollback=True):
            assert "profile" in clerk.start(claims)
    except psycopg.DatabaseError as error:
        if error.sqlstate not in {"PT401", "PT403"}:
            raise AssertionError(claims[:200]) from error
