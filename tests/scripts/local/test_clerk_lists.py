"""The lists of the Clerk stand-in behave as Clerk's: pages, orders, the users' cursor, and no stable order of ties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests import events
from tests.clerk_server import SECRET_KEY, ClerkServer, running_clerk
from tests.events import START, Json

ADA = events.user("user_ada")
ACME = events.organization("org_acme")
ADA_IN_ACME = events.membership("orgmem_ada", ACME, ADA, "org:admin")


def people(count: int, *, at_once: bool = False) -> list[Json]:
    return [events.user(f"user_{n:03}", created_at=START + (0 if at_once else n)) for n in range(count)]


def organizations(count: int) -> list[Json]:
    """All of them were created in the same millisecond."""
    return [events.organization(f"org_{n:03}") for n in range(count)]


@pytest.fixture
def clerk() -> Iterator[ClerkServer]:
    with running_clerk() as server:
        yield server


def get(clerk: ClerkServer, path: str, version: str = "2025-11-10") -> httpx.Response:
    headers = {"Authorization": f"Bearer {SECRET_KEY}", "Clerk-API-Version": version}
    return httpx.get(f"{clerk.url}/v1{path}", headers=headers)


def ids(clerk: ClerkServer, path: str, version: str = "2025-11-10") -> list[str]:
    listed: Any = get(clerk, path, version).json()
    return [each["id"] for each in (listed["data"] if isinstance(listed, dict) else listed)]


@pytest.mark.parametrize(
    ("query", "code", "name"),
    [
        ("limit=501", "form_param_format_invalid", "limit"),
        ("limit=0", "form_param_format_invalid", "limit"),
        ("limit=x", "form_param_format_invalid", "limit"),
        ("offset=-1", "form_param_format_invalid", "offset"),
        ("order_by=shoe_size", "form_param_value_invalid", "order_by"),
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "users",
        "organizations",
        "organization_memberships",
        "organization_invitations",
        "organization_roles",
        "organization_permissions",
        "organizations/org_acme/memberships",
        "organizations/org_acme/invitations",
    ],
)
def test_invalid_pages_are_refused_as_at_clerk(clerk: ClerkServer, path: str, query: str, code: str, name: str) -> None:
    clerk.put(ACME)
    answer = get(clerk, f"/{path}?{query}")
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["code"], error["meta"]) == (422, code, {"param_name": name})


def test_an_unknown_status_of_invitations_is_refused(clerk: ClerkServer) -> None:
    assert get(clerk, "/organization_invitations?status=lost").status_code == 422
    assert get(clerk, "/organization_invitations?status=pending&status=expired").status_code == 200


def test_lists_have_the_ten_newest_objects_by_default(clerk: ClerkServer) -> None:
    clerk.put(*people(30), ACME, ADA_IN_ACME)
    assert ids(clerk, "/users") == [f"user_{n:03}" for n in range(29, 19, -1)]
    assert ids(clerk, "/users?order_by=created_at&limit=2&offset=3") == ["user_003", "user_004"]
    assert get(clerk, "/users/count").json() == {"object": "total_count", "total_count": 30}
    assert get(clerk, "/organizations").json() == {"data": [ACME], "total_count": 1}
    assert get(clerk, "/organization_memberships").json() == {"data": [ADA_IN_ACME], "total_count": 1}
    assert get(clerk, "/organizations/org_acme/memberships?user_id=user_ben").json() == {"data": [], "total_count": 0}


def test_the_count_of_users_may_be_limited_to_older_ones(clerk: ClerkServer) -> None:
    clerk.put(*people(3))
    assert get(clerk, f"/users/count?created_at_before={START + 2}").json()["total_count"] == 2


def test_lists_have_the_other_orders_of_clerk(clerk: ClerkServer) -> None:
    clerk.put(ACME, events.organization("org_zoo", name="Zoo", created_at=START - 1))
    clerk.put(*(events.invitation(f"orginv_{n}", "org_acme", email_address=f"{9 - n}@example.com") for n in range(3)))
    assert ids(clerk, "/organizations?order_by=%2Bname") == ["org_acme", "org_zoo"]
    assert ids(clerk, "/organizations?order_by=-name") == ["org_zoo", "org_acme"]
    assert ids(clerk, "/organization_invitations?order_by=email_address") == ["orginv_2", "orginv_1", "orginv_0"]
    assert ids(clerk, "/organization_roles?order_by=key") == ["role_admin", "role_member", "role_viewer"]
    assert get(clerk, "/organizations?order_by=key").status_code == 422


def test_roles_and_permissions_are_listed_and_found(clerk: ClerkServer) -> None:
    assert get(clerk, "/organization_permissions").json()["total_count"] == 10
    assert get(clerk, "/organization_permissions/perm_projects_read").json()["key"] == "org:projects:read"
    assert get(clerk, "/organization_roles/role_admin").json()["key"] == "org:admin"
    for path in ("/organization_roles/role_x", "/organization_permissions/perm_x"):
        assert (get(clerk, path).status_code, get(clerk, path).json()["errors"][0]["code"]) == (
            404,
            "resource_not_found",
        )


def test_invitations_of_one_organization_are_listed_by_status(clerk: ClerkServer) -> None:
    clerk.put(ACME, events.organization("org_zoo"))
    clerk.put(
        *(
            events.invitation(f"orginv_{each}", each, status)
            for each, status in (("org_acme", "pending"), ("org_zoo", "revoked"))
        )
    )
    assert ids(clerk, "/organizations/org_zoo/invitations") == ["orginv_org_zoo"]
    assert ids(clerk, "/organizations/org_zoo/invitations?status=pending") == []
    assert get(clerk, "/organizations/org_gone/invitations").status_code == 404


def test_an_organization_is_found_by_its_slug(clerk: ClerkServer) -> None:
    clerk.put(ACME | {"slug": "acme-inc"})
    assert get(clerk, "/organizations/acme-inc").json()["id"] == "org_acme"


# Ties ----------------------------------------------------------------------------------------------------------------


def test_objects_of_the_same_millisecond_change_their_order_between_requests(clerk: ClerkServer) -> None:
    clerk.put(*organizations(20), *people(20, at_once=True))
    for path in ("/organizations?limit=20", "/users?limit=20&offset=1"):
        orders = {tuple(ids(clerk, path)) for _ in range(3)}
        assert len(orders) == 3


def test_ties_do_not_affect_the_order_by_creation(clerk: ClerkServer) -> None:
    clerk.put(*organizations(5), events.organization("org_new", created_at=START + 1))
    assert {ids(clerk, "/organizations?order_by=%2Bcreated_at")[-1] for _ in range(5)} == {"org_new"}
    assert {ids(clerk, "/organizations")[0] for _ in range(5)} == {"org_new"}


# The cursor ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["", "&order_by=created_at", "&order_by=%2Bcreated_at", "&order_by=-created_at"])
def test_the_cursor_lists_every_user_once(clerk: ClerkServer, order: str) -> None:
    clerk.put(*people(10), *(each | {"id": f"{each['id']}_too"} for each in people(10, at_once=True)))
    found = ids(clerk, f"/users?limit=3{order}")
    while page := ids(clerk, f"/users?limit=3&starting_after={found[-1]}{order}"):
        found += page
    assert len(found) == 20
    assert set(found) == clerk.directory.users.keys()


def test_the_order_of_the_cursor_is_not_by_id(clerk: ClerkServer) -> None:
    clerk.put(*people(20, at_once=True))
    assert ids(clerk, "/users?limit=20") not in (sorted(clerk.directory.users), sorted(clerk.directory.users)[::-1])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("starting_after=user_000&offset=1", "form_conditional_param_disallowed"),
        ("starting_after=user_000&order_by=updated_at", "form_param_value_invalid"),
        ("starting_after=user_gone", "form_resource_not_found"),
        ("starting_after=user_000&limit=501", "form_param_format_invalid"),
    ],
)
def test_an_invalid_cursor_is_refused_as_at_clerk(clerk: ClerkServer, query: str, code: str) -> None:
    clerk.put(*people(3))
    answer = get(clerk, f"/users?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, code)
    assert get(clerk, "/users?starting_after=user_000&offset=0").status_code == 200


def test_older_versions_and_other_lists_have_no_cursor(clerk: ClerkServer) -> None:
    clerk.put(*people(3), *organizations(3))
    assert len(ids(clerk, "/users?starting_after=user_002")) == 2
    assert len(ids(clerk, "/users?starting_after=user_002", "2025-04-10")) == 3
    assert len(ids(clerk, "/organizations?starting_after=org_002")) == 3


# Billing -------------------------------------------------------------------------------------------------------------


def test_a_subscription_has_the_form_of_the_backend_api(clerk: ClerkServer) -> None:
    item = events.subscription_item("csub_item_1", "pro")
    clerk.put(ACME, events.organization("org_free"), events.subscription("csub_1", events.payer("org_acme"), (item,)))
    found = get(clerk, "/organizations/org_acme/billing/subscription").json()
    assert (found["id"], [each["id"] for each in found["subscription_items"]]) == ("csub_1", ["csub_item_1"])
    assert not {"payer", "items", "organization_id"} & found.keys()
    assert get(clerk, "/organizations/org_free/billing/subscription").status_code == 404
    assert get(clerk, "/billing/plans?payer_type=org").json()["total_count"] == 1
    assert get(clerk, "/billing/plans?payer_type=user").json()["total_count"] == 0
    assert get(clerk, "/billing/plans?payer_type=dog").status_code == 422
