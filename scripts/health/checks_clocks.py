"""Checks that the clocks of this machine, the database, the service and Clerk agree."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime

import httpx

from scripts.errors import Failure
from scripts.health.context import TIMEOUT, CheckFailed, CheckSkipped, Context
from scripts.schema import database

# A Clerk session token is valid for a minute. A Date header has whole seconds.
MAX_SKEW_SECONDS = 20.0
THIS_MACHINE = "this machine"
REMEDY = (
    "Clock skew makes tokens look expired or not yet valid, and webhooks too old. Correct the clock of that host (NTP)."
)


def check_clocks(context: Context) -> str:
    """Compares all clocks with Clerk's, or with this machine's if Clerk does not answer."""
    ahead = {THIS_MACHINE: 0.0} | dict(_measure(context))
    if len(ahead) == 1:
        raise CheckSkipped("No other clock can be read: check DATABASE_URL, SERVICE_URL and CLERK_ISSUER.")
    reference = "Clerk" if "Clerk" in ahead else THIS_MACHINE
    wrong = [
        f"the clock of {name} is {abs(skew):.0f} seconds {'ahead of' if skew > 0 else 'behind'} that of {reference}"
        for name, seconds in ahead.items()
        if abs(skew := seconds - ahead[reference]) > MAX_SKEW_SECONDS
    ]
    if wrong:
        raise CheckFailed(f"Clock skew: {'; '.join(wrong)}.", REMEDY)
    return f"These clocks agree: {', '.join(ahead)}."


def _measure(context: Context) -> list[tuple[str, float]]:
    """How many seconds each clock that can be read is ahead of this machine's. Other checks report the rest."""
    sources: dict[str, Callable[[], float]] = {
        "the database": lambda: _read_database(context.database_url),
        "the service": lambda: _read_date(f"{context['SERVICE_URL'].rstrip('/')}/healthz"),
        "Clerk": lambda: _read_date(f"{context['CLERK_ISSUER'].rstrip('/')}/.well-known/jwks.json"),
    }
    found = []
    for name, read in sources.items():
        with suppress(CheckSkipped, Failure, httpx.HTTPError, KeyError, ValueError):
            before = time.time()
            seconds = read()
            found.append((name, seconds - (before + time.time()) / 2))
    return found


def _read_database(url: str) -> float:
    with database.connect(url) as connection:
        [[seconds]] = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchall()
    return float(seconds)


def _read_date(url: str) -> float:
    """The Date header of any answer, with half a second for its fraction."""
    return parsedate_to_datetime(httpx.get(url, timeout=TIMEOUT).headers["Date"]).timestamp() + 0.5
