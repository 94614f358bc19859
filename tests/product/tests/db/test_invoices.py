"""Tests of the example product: who may settle an invoice, and who reads the totals."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from tests.conftest import Claims, Database


def claims(role: str) -> Claims:
    return {"sub": f"user_{role}", "role": "authenticated", "fva": [0, 0]}


@pytest.fixture
def acme(database: Database) -> str:
    """The id of an organization with people of three roles and an unsettled invoice. user_stranger owns another one."""
    database.execute(
        "insert into public.organizations (clerk_org_id, name) values ('org_acme', 'Acme'), ('org_globex', 'Globex')"
    )
    for role, organization in (("member", "Acme"), ("bookkeeper", "Acme"), ("viewer", "Acme"), ("owner", "Globex")):
        user = f"user_{'stranger' if organization == 'Globex' else role}"
        database.execute("insert into public.profiles (clerk_user_id) values (%s)", user)
        database.execute(
            "insert into public.organization_memberships (organization_id, user_id, role) "
            "select o.id, p.id, %s from public.organizations as o, public.profiles as p "
            "where o.name = %s and p.clerk_user_id = %s",
            role, organization, user,
        )  # fmt: skip
    with database.acting("authenticated", claims("member")):
        database.execute(
            "insert into public.invoices (organization_id, number, amount) "
            "select id, '2026-1', 119 from public.organizations"
        )
    return str(database.value("select id from public.organizations where name = 'Acme'"))


def settle(database: Database, role: str, organization: str) -> bool:
    invoice = database.value("select id from public.invoices where organization_id = %s", organization)
    with database.acting("authenticated", claims(role)):
        return bool(database.value("select public.settle_invoice(%s)", invoice))


@pytest.mark.parametrize(("role", "may"), [("member", True), ("viewer", False), ("stranger", False)])
def test_members_settle_invoices(database: Database, acme: str, role: str, may: bool) -> None:
    assert settle(database, role, acme) is may
    assert database.value("select is_settled from public.invoices where organization_id = %s", acme) is may


@pytest.mark.parametrize(("factors", "may"), [([0, 0], True), ([0, -1], False)])
def test_bookkeepers_write_off_invoices_with_a_second_factor(
    database: Database, acme: str, factors: list[int], may: bool
) -> None:
    invoice = database.value("select id from public.invoices where organization_id = %s", acme)
    bookkeeper = claims("bookkeeper") | {"fva": factors}
    with database.acting("authenticated", bookkeeper):
        assert database.value("select count(*) from public.invoices") == 1
    refusal = pytest.raises(psycopg.DatabaseError, match="you may not write it off")
    with contextlib.nullcontext() if may else refusal, database.acting("authenticated", bookkeeper):
        database.execute("select public.write_off_invoice(%s)", invoice)
    assert database.value("select amount = 0 from public.invoices where id = %s", invoice) is may


@pytest.mark.parametrize(("role", "found"), [("viewer", [(1, 119, 119)]), ("stranger", [])])
def test_the_totals_are_those_of_the_callers_organizations(
    database: Database, acme: str, role: str, found: list[tuple[int, int, int]]
) -> None:
    settle(database, "member", acme)
    with database.acting("authenticated", claims(role)):
        assert database.rows("select invoices, amount, settled from public.invoice_totals") == found
