"""The report of a benchmark: cases with medians and aims with results, as tables or as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Case:
    """An operation measured `n` times. `ratio` is its median divided by that of the baseline, if there is one."""

    name: str
    median_ms: float
    p95_ms: float
    p99_ms: float
    n: int
    ratio: float | None


@dataclass(frozen=True)
class Aim:
    """A limit for a value. The name states whether the value must be at most or at least `limit`."""

    name: str
    value: float
    limit: float
    met: bool


@dataclass(frozen=True)
class Report:
    """The result of one benchmark; `machine` describes the computer in one line."""

    benchmark: str
    machine: str
    cases: list[Case]
    aims: list[Aim]

    def show(self, *, as_json: bool) -> None:
        """Prints to stdout: JSON alone, or tables for people."""
        if as_json:
            print(json.dumps(asdict(self), indent=2))
            return
        console = Console()
        console.print(
            _table("Case", "median ms", "p95 ms", "p99 ms", "n", "ratio", rows=[_case_row(case) for case in self.cases])
        )
        console.print(_table("Aim", "value", "limit", "met", rows=[_aim_row(aim) for aim in self.aims]))
        console.print(self.machine, highlight=False)


def case(name: str, seconds: Sequence[float], baseline: Sequence[float] | None) -> Case:
    """Summarises timings in seconds. The ratio compares the medians."""
    percentiles = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    median, p95, p99 = (round(percentiles[percent - 1] * 1000, 3) for percent in (50, 95, 99))
    ratio = round(statistics.median(seconds) / statistics.median(baseline), 2) if baseline else None
    return Case(name, median, p95, p99, len(seconds), ratio)


def at_most(name: str, value: float, limit: float) -> Aim:
    return Aim(name, value, limit, value <= limit)


def at_least(name: str, value: float, limit: float) -> Aim:
    return Aim(name, value, limit, value >= limit)


def machine(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    """Describes cores, processor, memory, system and PostgreSQL version in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    major, minor = divmod(connection.info.server_version, 10_000)
    return (
        f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB memory, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, PostgreSQL {major}.{minor}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _table(first: str, *others: str, rows: list[list[str]]) -> Table:
    table = Table(first)
    for heading in others:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _case_row(case: Case) -> list[str]:
    ratio = "" if case.ratio is None else f"{case.ratio:.2f}"
    times = (f"{each:.3f}" for each in (case.median_ms, case.p95_ms, case.p99_ms))
    return [case.name, *times, str(case.n), ratio]


def _aim_row(aim: Aim) -> list[str]:
    return [aim.name, f"{aim.value:g}", f"{aim.limit:g}", "[green]yes" if aim.met else "[red]no"]
