"""Fixtures for `ballast status` and `ballast doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Stack, start_stack
from tests.servers import TestRun


@pytest.fixture(scope="session")
def fresh_stack(test_run: TestRun) -> Stack:
    """A seeded stack on which no other test changes anything. Tests of the service break the shared one for a while."""
    home = test_run.folder / "fresh-stack"
    return Stack(home, test_run.once("fresh-stack", lambda home: _start_with_every_role(home).environment))


def _start_with_every_role(home: Path) -> Stack:
    """A product has created its own roles in Clerk, as docs/deploy.md says."""
    stack = start_stack(home)
    for key in list_role_keys_of_the_product(stack):
        sent = stack.ballast("clerk", "send", "role.created", "--data", json.dumps({"key": key}))
        assert sent.returncode == 0, sent.stdout
    return stack


def list_role_keys_of_the_product(stack: Stack) -> list[str]:
    """One Clerk key for each role that a product has added and that may be invited."""
    with psycopg.connect(stack.environment["DATABASE_URL"]) as connection:
        keys = connection.execute(
            "select min(c.key) from app.clerk_roles as c join public.roles as r on r.key = c.role "
            "where r.may_be_invited and r.key <> all('{admin,member,viewer}') group by r.key"
        ).fetchall()
    return [key for (key,) in keys]
