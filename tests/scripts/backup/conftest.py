"""Runs the thorough tests of backups in another time zone than the everyday ones."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def other_time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not request.config.getoption("--thorough"):
        yield
        return
    with monkeypatch.context() as patch:
        for variable in ("TZ", "PGTZ"):
            patch.setenv(variable, "America/St_Johns")
        time.tzset()
        yield
    time.tzset()
