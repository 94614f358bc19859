"""Benchmarks print the promised JSON, reject wrong results, and leave no process or file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import pytest

from scripts.schema import sql_files
from tests.bench import audit, migrate, realtime, report, rls, webhooks
from tests.bench.subscribers import CHANGES, Event, EventsLost

pytestmark = pytest.mark.thorough

RLS = ("rls", "--projects", "5000", "--quick", "--json")
WEBHOOKS = ("webhooks", "--organizations", "10", "--json")
AUDIT = ("audit", "--entries", "2000", "--json")
EXPORT = ("export", "--rows", "300", "--json")
BACKUP = ("backup", "--megabytes", "1", "--json")
MIGRATE = ("migrate", "--rounds", "1", "--json")
REALTIME = ("realtime", "--events", "2", "--json")


def bench(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Starts a benchmark in a separate process group, with `folder` for temporary files."""
    folder.chmod(0o755)
    environment = os.environ | {"TMPDIR": str(folder)}
    # With coverage, a benchmark of a whole stack takes twice as long.
    environment.pop("COVERAGE_PROCESS_CONFIG", None)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench", *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=accept_interrupts,  # noqa: PLW1509 - it only sets a signal handler
    )  # fmt: skip


def accept_interrupts() -> None:
    """A shell starts background jobs with SIGINT ignored, and processes inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def find_leftovers(folder: Path) -> list[str]:
    """Lists the commands of processes that work in `folder`, and the files in it."""
    commands = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(folder) in command] + [path.name for path in folder.iterdir()]


@pytest.fixture
def folder() -> Any:
    """A folder outside those of pytest, which the system user of PostgreSQL cannot enter when tests run as root."""
    with tempfile.TemporaryDirectory(prefix="ballast-test-bench-") as place:
        yield Path(place)


@pytest.mark.parametrize("words", [RLS, WEBHOOKS, REALTIME, AUDIT, EXPORT, BACKUP, MIGRATE], ids=lambda words: words[0])
def test_json_has_the_promised_shape_and_nothing_is_left_behind(folder: Path, words: tuple[str, ...]) -> None:
    printed = json.loads(wait_for_output(bench(folder, *words)))

    assert list(printed) == ["benchmark", "machine", "cases", "aims"]
    assert printed["benchmark"] == words[0]
    assert "PostgreSQL" in printed["machine"]
    for case in printed["cases"]:
        assert list(case) == ["name", "median_ms", "p95_ms", "p99_ms", "n", "ratio"]
        assert case["median_ms"] <= case["p95_ms"] <= case["p99_ms"]
        assert case["n"] > 0
        # A subscriber may receive a row before the commit returns to the writer.
        assert words is REALTIME or min(case["median_ms"], case["ratio"]) > 0
    for aim in printed["aims"]:
        assert list(aim) == ["name", "value", "limit", "met"]
        assert aim["met"] == (
            aim["value"] >= aim["limit"] if "at least" in aim["name"] else aim["value"] <= aim["limit"]
        )
    if words is RLS:
        assert {case["name"] for case in printed["cases"]} == {
            f"{query.name}: {variant.name}" for query in rls.QUERIES for variant in (rls.BY_HAND, rls.OURS, rls.EXISTS)
        }
    assert find_leftovers(folder) == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_benchmark_leaves_nothing_behind(folder: Path, signal_number: int) -> None:
    process = bench(folder, "rls", "--projects", "200000", "--json")
    deadline = time.monotonic() + 30
    while not list(folder.glob("*/server*/data/postmaster.pid")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal_number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out == ""
    assert find_leftovers(folder) == []


def test_the_default_output_is_tables(capsys: pytest.CaptureFixture[str]) -> None:
    cases, aims = [report.case("by id", [0.002], [0.001])], [report.at_most("by id: ratio at most", 2.0, 1.3)]
    report.Report("rls", "a machine", cases, aims).show(as_json=False)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("by id", "2.000", "2.00", "1.3", "no", "a machine"))


def test_variants_with_different_rows_are_not_compared() -> None:
    with pytest.raises(rls.ResultsDiffer, match="count visible"):
        rls.require_equal(rls.QUERIES[2], {rls.BY_HAND: [(3,)], rls.OURS: [(4,)]})


def test_a_query_without_rows_is_not_measured() -> None:
    with pytest.raises(rls.ResultsDiffer):
        rls.require_equal(rls.QUERIES[0], {rls.BY_HAND: [], rls.OURS: []})


@pytest.mark.parametrize("outcome", ["failed", "ignored"])
def test_events_that_are_not_applied_are_not_measured(outcome: str) -> None:
    case = webhooks.Case()
    webhooks.run([lambda _: outcome], [webhooks.Delivery("msg_1", {})], case)
    with pytest.raises(webhooks.EventsLost, match=outcome):
        webhooks.require_applied("SQL function", 1, case)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [([1, 3], "missed 1"), ([1, 2, 2, 3], "received 1 twice"), ([1, 3, 2], "not in order"), ([], "missed 3")],
    ids=["lost", "duplicated", "out of order", "nothing received"],
)
def test_latencies_of_lost_events_are_not_measured(numbers: list[int], message: str) -> None:
    case = realtime.Case(CHANGES, subscribers=2, rows=1)
    events = [Event(0, number, 0.0) for number in (1, 2, 3)]
    realtime.require_all(case, events + [Event(1, number, 0.0) for number in (1, 2, 3)], writes=3)
    with pytest.raises(EventsLost, match=message):
        realtime.require_all(case, events + [Event(1, number, 0.0) for number in numbers], writes=3)


def test_a_write_that_sends_too_few_messages_is_not_measured(database: Any) -> None:
    database.execute(realtime.SETUP.read_text())
    organization = database.value(
        "insert into public.organizations (clerk_org_id, name) values ('x', 'X') returning id"
    )
    write = realtime.Write(1, "statement trigger, realtime.send() per row")
    assert realtime.time_write(database.connection, organization, write) > 0

    database.execute(
        "create or replace function bench.send_each() returns trigger language plpgsql as 'begin return null; end'"
    )
    with pytest.raises(EventsLost, match="two inserts of 1 row sent 0 messages"):
        realtime.time_write(database.connection, organization, write)


@pytest.fixture(scope="module")
def audited_tenant(lasting_database: Callable[..., str], migrated_database: str) -> Iterator[audit.Tenant]:
    url = lasting_database(migrated_database)
    with (
        psycopg.connect(url.replace("//postgres:", "//supabase_admin:"), autocommit=True) as admin,
        psycopg.connect(url.replace("//postgres:", "//authenticator:"), autocommit=True) as caller,
    ):
        yield audit.set_up(admin, caller)


@pytest.mark.parametrize("variant", [audit.OURS, audit.GENERIC])
def test_a_write_that_is_not_recorded_once_is_not_measured(audited_tenant: audit.Tenant, variant: str) -> None:
    write = audit.Write(0, "update", 1, variant)
    assert len(audit.time_turn(audited_tenant, write)) == audit.TURN[1]

    with (
        audit.triggers_on(audited_tenant.admin, {audit.OURS: audit.GENERIC, audit.GENERIC: audit.OURS}[variant]),
        pytest.raises(audit.EntriesWrong, match="11 entries"),
    ):
        audit.time_turn(audited_tenant, write)


def test_a_page_that_is_not_full_is_not_measured(audited_tenant: audit.Tenant) -> None:
    anonymous = replace(audited_tenant, claims="{}")
    with pytest.raises(audit.EntriesWrong, match="has 0 entries instead of 50"):
        audit.time_pages(anonymous, 1)


def test_a_lost_project_is_not_measured(database: Any) -> None:
    organization = database.value(
        "insert into public.organizations (clerk_org_id, name) values ('x', 'X') returning id"
    )
    project = database.value(
        "insert into public.projects (organization_id, title) values (%s, 'Kept') returning id", organization
    )
    migrate.require_writes(database.connection, [project])
    with pytest.raises(migrate.WritesLost, match="Of 2 committed projects 1"):
        migrate.require_writes(database.connection, [project, uuid4()])


def test_each_round_changes_every_file_and_a_trigger(tmp_path: Path) -> None:
    root = migrate.copy_checkout(tmp_path / "checkout")
    seen = [sql_files.read_files(root)]
    for number in (1, 2):
        migrate.change(root, number)
        seen.append(sql_files.read_files(root))
    for before, after in pairwise(seen):
        assert len(after.migrations) == len(before.migrations) + len(migrate.MIGRATIONS)
        assert not {source.checksum for source in before.sources} & {source.checksum for source in after.sources}
        triggers = [
            [source.text for source in files.sources if source.path == migrate.TRIGGER_FILE]
            for files in (before, after)
        ]
        assert {condition for condition in migrate.TRIGGER_CONDITIONS for [text] in triggers if condition in text} == {
            *migrate.TRIGGER_CONDITIONS
        }


def test_an_organization_has_twenty_messages_of_which_two_are_repeated() -> None:
    (messages,) = webhooks.deliveries(1, "test")
    assert len(messages) == 20
    assert len({message.message_id for message in messages}) == 18


def test_a_case_summarises_the_timings() -> None:
    summed = report.case("x", [0.002, 0.004, 0.006], [0.002])
    assert (summed.median_ms, summed.n, summed.ratio) == (4.0, 3, 2.0)


def test_the_machine_is_described_in_one_line(database: Any) -> None:
    connection: psycopg.Connection[Any] = database.connection
    described = report.machine(connection)
    assert f"{os.cpu_count()} cores" in described
    assert "\n" not in described
