"""Fixtures for `ballast status` and `ballast doctor`."""

from __future__ import annotations

import pytest

from tests.conftest import Stack, start_stack
from tests.servers import TestRun


@pytest.fixture(scope="session")
def fresh_stack(test_run: TestRun) -> Stack:
    """A seeded stack on which no other test changes anything. Tests of the service break the shared one for a while."""
    home = test_run.folder / "fresh-stack"
    return Stack(home, test_run.once("fresh-stack", lambda home: start_stack(home).environment))
