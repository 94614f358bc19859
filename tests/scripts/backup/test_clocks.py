"""Backups are ordered and kept by the clock of their database. A wrong clock of another machine is reported."""

from __future__ import annotations

import importlib.util
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from scripts.backup.manifest import MANIFEST
from scripts.backup.retention import DAY, Policy, select_kept
from scripts.backup.store import BackupStore
from service.backup_names import new_name
from tests.scripts.backup.test_retention import leave_unfinished, make_backup, manifest, red, run, run_as_json
from tests.scripts.conftest import StoredBackup, Vault


def put(url: str, created_at: datetime, backup_id: str = "00000000", machine: timedelta = timedelta(0)) -> str:
    """Stores a backup. The clock of the machine that named it differs by `machine`."""
    name = new_name(UUID(backup_id * 4), created_at + machine)
    BackupStore(url).put_manifest(manifest(created_at, name=name))
    return name


@pytest.fixture
def url(tmp_path: Path) -> str:
    return tmp_path.as_uri()


@pytest.mark.parametrize("backup_ids", [("aaaaaaaa", "bbbbbbbb"), ("bbbbbbbb", "aaaaaaaa")])
def test_latest_is_the_later_of_two_backups_in_one_second(url: str, backup_ids: tuple[str, str]) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) - DAY
    put(url, moment + timedelta(microseconds=1), backup_ids[0])
    later = put(url, moment + timedelta(microseconds=2), backup_ids[1])
    assert BackupStore(url).find("latest") == later
    assert run_as_json(url, "list")[0]["id"] == later


@pytest.mark.parametrize("machine", [-2 * DAY, 2 * DAY])
def test_latest_does_not_depend_on_names(url: str, machine: timedelta) -> None:
    now = datetime.now(UTC)
    before, latest, after = sorted(now - number * timedelta(hours=1) for number in (1, 2, 3))
    put(url, before, machine=-machine)
    put(url, latest, "11111111", machine=machine)
    newest = put(url, after, "22222222", machine=-machine)
    assert BackupStore(url).find("latest") == newest


def test_latest_is_refused_if_it_may_be_a_backup_that_cannot_be_read(url: str) -> None:
    good = put(url, datetime.now(UTC) - DAY)
    BackupStore(url).put("20200101T000000Z-00000000", MANIFEST, b"damaged")  # written after the other snapshot
    refused = run(url, "verify", "latest")
    assert refused.exit_code == 1
    assert "20200101T000000Z-00000000 is damaged" in refused.stderr
    assert "It may be the latest backup: choose another one by its ID." in refused.stderr
    assert BackupStore(url).find(good) == good


def test_a_backup_that_is_dated_in_the_future_is_not_latest_without_a_warning(url: str) -> None:
    put(url, datetime.now(UTC) - DAY)
    future = put(url, datetime.now(UTC) + 2 * DAY, "ffffffff")
    result = run(url, "verify")
    assert re.search(rf"{future} counts as the latest backup, but is dated (2 days, 0:00:00|1 day, 23:59:\d\d) ahead",
        result.stderr)  # fmt: skip
    assert "a clock is wrong" in red(url)
    assert [each["ahead_seconds"] // 3600 for each in run_as_json(url, "list")] in ([48, 0], [47, 0])


def test_a_backup_that_is_dated_in_the_future_protects_and_displaces_none() -> None:
    now = datetime.now(UTC)
    future = make_backup(now + 2 * DAY, ahead=2 * DAY)
    newest, other, old = make_backup(now), make_backup(now - DAY / 2), make_backup(now - 40 * DAY)
    kept = select_kept([old, other, newest, future], Policy(1, 0, 0))
    assert kept[future.name] == "dated 2 days, 0:00:00 ahead: a clock is wrong"
    assert kept[newest.name].startswith("the newest, day ")
    assert kept[other.name].startswith("made less than a day before the newest")
    assert old.name not in kept


def test_the_last_drill_is_the_one_that_was_stored_last(url: str) -> None:
    name = put(url, datetime.now(UTC) - DAY)
    store = BackupStore(url)
    for day, passed in ((9, True), (1, False)):  # the machine of the first drill is eight days ahead
        report = {"passed": passed, "started_at": f"2026-11-0{day}T00:00:00+00:00"}
        store.put_report(name, json.dumps(report).encode())
    [listed] = run_as_json(url, "list")
    assert (listed["proven_at"], listed["last_drill_failed"]) == ("2026-11-09T00:00:00+00:00", True)


# --- with libfaketime ---


def fake_clock(ahead: str) -> dict[str, str | None]:
    """The variables of a process whose clock is wrong. The store's clock, that of its files, is right."""
    package = importlib.util.find_spec("libfaketime")
    if package is None or package.origin is None:
        pytest.skip("libfaketime is not installed")
    library = Path(package.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return {"LD_PRELOAD": str(library), "FAKETIME": ahead, "NO_FAKE_STAT": "1", "DONT_FAKE_MONOTONIC": "1"}


def run_to_end_with_clock(vault: Vault, ahead: str, *words: str, code: int = 0) -> tuple[str, str]:
    process = vault.start(*words, **fake_clock(ahead))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    return output, errors


@pytest.mark.parametrize("ahead", ["-2d", "+2d"])
def test_a_machine_with_a_wrong_clock_makes_a_backup_with_the_time_of_the_database(
    folder_vault: Vault, ahead: str
) -> None:
    before = datetime.now(UTC)
    made = json.loads(run_to_end_with_clock(folder_vault, ahead, "run", "--json")[0])
    created_at = datetime.fromisoformat(made["created_at"])
    assert before < created_at < datetime.now(UTC)
    assert made["name"] == new_name(UUID(made["id"]), created_at)
    assert folder_vault.store.find("latest") == made["name"]
    assert folder_vault.back_up() == folder_vault.store.find("latest")


def test_a_drill_on_a_machine_whose_clock_is_behind_fails_and_names_the_clock(
    folder_shelf: Vault, backup: StoredBackup
) -> None:
    folder_shelf.keep(backup)
    output, errors = run_to_end_with_clock(folder_shelf, "-2d", "drill", "--json", code=1)
    report = json.loads(output)
    assert [each["name"] for each in report["checks"] if not each["passed"]] == ["clocks"]
    assert re.search(r"(2 days, 0:00|1 day, 23:5\d):\d\d ahead: the clock of the database, of the store or of this machine is wrong",
        report["checks"][-1]["detail"])  # fmt: skip
    assert report["rpo_seconds"] is None
    assert "is not proven" in errors


def test_a_list_on_a_machine_whose_clock_is_behind_names_the_clock(folder_shelf: Vault, backup: StoredBackup) -> None:
    folder_shelf.keep(backup)
    output, _ = run_to_end_with_clock(folder_shelf, "-2d", "list")
    assert "ahead: a clock is wrong" in " ".join(output.split())


@pytest.mark.parametrize(("ahead", "deleted"), [("-2d", 0), ("+2d", 1)])  # behind, every recent backup may be wrong
def test_prune_with_a_wrong_clock_deletes_neither_recent_backups_nor_a_running_one(
    folder_shelf: Vault, ahead: str, deleted: int
) -> None:
    now, url = datetime.now(UTC), folder_shelf.backup_url
    recent = {put(url, now - timedelta(hours=hours), f"{hours:08}") for hours in (1, 7, 13, 20)}
    old = put(url, now - 60 * DAY)
    running = leave_unfinished(url)
    output, _ = run_to_end_with_clock(
        folder_shelf, ahead, "prune", "--json", "--daily", "0", "--weekly", "0", "--monthly", "0"
    )
    report = json.loads(output)
    assert report["going"] == [old][:deleted]
    assert report["leftovers"] == []
    assert set(BackupStore(url).names()) - {old} == recent
    assert BackupStore(url).folder is not None
    assert (BackupStore(url).folder / "database" / running).exists()  # type: ignore[operator]
