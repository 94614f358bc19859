"""Tests of the example product: its routes and its job, on the running stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient

from tests.conftest import Stack
from tests.service.test_personal_data import as_caller


@pytest.fixture
def invoice(stack: Stack) -> Iterator[tuple[str, str]]:
    """The ids of an unsettled invoice of two years ago, and of its organization, Acme."""
    with psycopg.connect(stack.environment["DATABASE_URL"], autocommit=True) as connection:
        [(invoice, organization)] = connection.execute(
            "insert into public.invoices (organization_id, number, amount, is_settled, created_at) "
            "select o.id, 'old', 119, false, now() - interval '2 years' "
            "from public.organizations as o where o.clerk_org_id = 'org_acme' returning id::text, organization_id::text"
        ).fetchall()
        yield invoice, organization
        connection.execute("delete from public.invoices where number = 'old'")


def read_amount(stack: Stack, invoice: str) -> Any:
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        return connection.execute("select amount from public.invoices where id = %s", [invoice]).fetchall()[0][0]


@pytest.mark.parametrize(("person", "status", "amount"), [("user_ada", 204, 0), ("user_cleo", 404, 119)])
def test_an_owner_writes_off_an_invoice_and_a_member_does_not(
    online: FlaskClient, stack: Stack, invoice: tuple[str, str], person: str, status: int, amount: int
) -> None:
    answer = online.post(f"/api/v1/invoices/{invoice[0]}/write-off", headers=as_caller(stack.token(person)))
    assert (answer.status_code, read_amount(stack, invoice[0])) == (status, amount)


def test_the_rules_are_shown_to_members_only(online: FlaskClient, stack: Stack, invoice: tuple[str, str]) -> None:
    path = f"/api/v1/organizations/{invoice[1]}/invoices/rules"
    assert online.get(path).status_code == 401
    assert online.get(path, headers=as_caller(stack.token("user_cleo"))).json == {"write_off_days": 365}
    assert online.get(path, headers=as_caller(stack.token("user_eve"))).status_code == 403


def test_the_job_writes_off_old_invoices(online: FlaskClient, stack: Stack, invoice: tuple[str, str]) -> None:
    headers = as_caller(stack.environment["JOBS_TOKEN"])
    assert "write-off-old-invoices" in online.get("/jobs", headers=headers).json["scheduled"]
    answer = online.post("/jobs/write-off-old-invoices", headers=headers)
    assert (answer.json, read_amount(stack, invoice[0])) == ({"written_off": 1}, 0)
