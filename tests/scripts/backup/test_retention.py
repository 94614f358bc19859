"""`ballast backup list` and `prune`: the list is correct, and `prune` keeps the right backups and nothing else changes."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4
from xml.sax.saxutils import escape

import boto3
import httpx
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.backup import retention
from scripts.backup.checksum import add_checksum
from scripts.backup.manifest import MANIFEST, File, Manifest
from scripts.backup.retention import DAY, ListedBackup, Policy, select_kept
from scripts.backup.store import BackupStore, UnfinishedBackup
from scripts.cli import ballast
from service.backup_names import new_name
from service.erasure_ledger import LedgerStore
from tests.scripts.conftest import StoredBackup, Vault

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
USUAL = Policy(7, 4, 12)


def manifest(created_at: datetime, **changes: Any) -> Manifest:
    backup_id = uuid4()
    values = {
        "id": str(backup_id), "name": new_name(backup_id, created_at), "backup_type": "automated", "created_at": created_at,
        "duration_seconds": 1.0, "server_version": 180006, "dump_version": 18, "migration": None, "roles": [],
        "rows": {"public.specimens": 1200}, "structure": {}, "audit_seal": None, "dump_bytes": 5_000,
        "files": {
            "dump.pgc.zst.age": File(size_bytes=2_000, sha256="0" * 64),
            **{name: File(size_bytes=0, sha256="0" * 64) for name in ("before.sql", "after.sql", "structure.json.age")},
        },
    }  # fmt: skip
    return Manifest.model_validate(values | changes)


def make_backup(created_at: datetime, *, is_proven: bool = False, ahead: timedelta = timedelta(0)) -> ListedBackup:
    found = manifest(created_at)
    return ListedBackup(found.name, found, None, created_at if is_proven else None, ahead=ahead)


# --- which backups are kept ---

moments = (st.timedeltas(timedelta(0), 2 * DAY) | st.timedeltas(timedelta(0), 700 * DAY)).map(lambda age: NOW - age)
shelves = st.lists(
    st.tuples(moments, st.booleans()).map(lambda pair: make_backup(pair[0], is_proven=pair[1])), max_size=60
)
policies = st.builds(Policy, *[st.integers(0, 15)] * 3)


@given(shelves, policies)
def test_the_newest_proven_backup_is_never_pruned(shelf: list[ListedBackup], policy: Policy) -> None:
    proven = [each for each in shelf if each.is_proven]
    if proven:
        assert max(proven, key=lambda each: (each.manifest.created_at, each.name)).name in select_kept(shelf, policy)  # type: ignore[union-attr]


@given(shelves, policies)
def test_the_newest_backup_is_never_pruned(shelf: list[ListedBackup], policy: Policy) -> None:
    assert bool(select_kept(shelf, policy)) == bool(shelf)
    if shelf:
        newest = max(shelf, key=lambda each: (each.manifest.created_at, each.name))  # type: ignore[union-attr]
        assert newest.name in select_kept(shelf, policy)


@given(shelves, policies)
def test_backups_of_the_last_day_are_never_pruned(shelf: list[ListedBackup], policy: Policy) -> None:
    moments = [each.created_at for each in shelf if each.created_at]
    young = {each.name for each in shelf if each.created_at and max(moments) - each.created_at < DAY}
    assert young <= select_kept(shelf, policy).keys()


@given(shelves, policies)
def test_no_more_are_kept_than_the_policy_allows(shelf: list[ListedBackup], policy: Policy) -> None:
    reasons = select_kept(shelf, policy).values()
    for kind, number in (("day", policy.daily), ("week", policy.weekly), ("month", policy.monthly)):
        assert sum(f"{kind} 20" in reason for reason in reasons) <= number
    besides = [reason for reason in reasons if not re.search("(day|week|month) 20", reason)]
    assert all(reason.startswith(("the newest", "made less than a day")) for reason in besides)


@given(shelves, policies)
def test_each_of_the_last_days_weeks_and_months_with_backups_keeps_its_newest(
    shelf: list[ListedBackup], policy: Policy
) -> None:
    staying = select_kept(shelf, policy)
    for written, number in (("%Y-%m-%d", policy.daily), ("%G-W%V", policy.weekly), ("%Y-%m", policy.monthly)):
        newest: dict[str, ListedBackup] = {}
        for each in sorted(shelf, key=lambda each: (each.created_at, each.name)):
            newest[f"{each.created_at:{written}}"] = each
        for period in sorted(newest, reverse=True)[:number]:
            assert newest[period].name in staying


@given(shelves, policies)
def test_pruning_again_changes_nothing(shelf: list[ListedBackup], policy: Policy) -> None:
    staying = select_kept(shelf, policy)
    assert select_kept([each for each in shelf if each.name in staying], policy) == staying


EXAMPLE = re.compile(r"^ {4}(\S+) 02:00  (keep|delete): (.*)$", re.MULTILINE)


def test_the_example_in_the_module_is_true() -> None:
    lines = EXAMPLE.findall(retention.__doc__ or "")
    backups = [
        make_backup(datetime.fromisoformat(f"{date}T02:00Z"), is_proven=line == 5)
        for line, (date, *_) in enumerate(lines)
    ]
    kept = select_kept(backups, Policy(daily=1, weekly=2, monthly=2))
    assert len(lines) == 6
    for backup, (_, decision, reason) in zip(backups, lines, strict=True):
        assert kept.get(backup.name) == (reason if decision == "keep" else None)


def test_an_unreadable_backup_is_kept() -> None:
    shelf = [ListedBackup("20200101T000000Z-00000000", None, "damaged"), make_backup(NOW)]
    assert "damaged" in select_kept(shelf, Policy(0, 0, 0))["20200101T000000Z-00000000"]


def test_a_backup_whose_later_drill_failed_is_not_proven() -> None:
    older, refuted = make_backup(NOW - 60 * DAY, is_proven=True), make_backup(NOW - 50 * DAY)
    refuted = ListedBackup(refuted.name, refuted.manifest, None, NOW - 50 * DAY, is_refuted=True)
    assert select_kept([older, refuted, make_backup(NOW)], Policy(1, 0, 0)).keys() >= {older.name}


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_about_twenty_of_a_year_of_daily_backups_are_kept(first: int, a_day: int) -> None:
    shelf: list[ListedBackup] = []
    for number in range(400 * a_day):
        now = NOW - first * DAY + number * DAY / a_day
        shelf.append(make_backup(now, is_proven=number % (7 * a_day) == 0))
        staying = select_kept(shelf, USUAL)
        shelf = [each for each in shelf if each.name in staying]
    # At least 7 days, 2 weeks before them, and 11 months before, of which two may end with those weeks. At most one for
    # each day, week and month, the proven one, and those of the last 24 hours.
    assert 7 + 2 + 11 - 2 <= len(shelf) <= 7 + 4 + 12 + 1 + a_day
    months = {f"{each.created_at:%Y-%m}" for each in shelf}
    assert len(months) >= 12


# --- in a store ---


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "the backups").mkdir()
    return (tmp_path / "the backups").as_uri()


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store."""
    if request.param == "folder":
        return str(request.getfixturevalue("folder"))
    return f"s3://{request.getfixturevalue('bucket')}/a%20prefix"


def run(url: str, *words: str, **environment: str | None) -> Result:
    """Runs `ballast backup` without a database."""
    nothing = {"DATABASE_URL": None, "BACKUP_URL": url}
    return CliRunner().invoke(ballast, ["backup", *words], env=nothing | environment)


def run_as_json(url: str, *words: str) -> Any:
    result = run(url, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def put(url: str, age: timedelta, **changes: Any) -> str:
    """Stores a backup of that age with a placeholder for the dump."""
    made = manifest(datetime.now(UTC) - age, **changes)
    store = BackupStore(url)
    store.put(made.name, "dump.pgc.zst.age", b"a dump")
    store.put_manifest(made)
    return made.name


def store_report(url: str, name: str, day: int, *, passed: bool) -> None:
    report = {"passed": passed, "started_at": f"2026-10-{day:02}T00:00:00+00:00", "checks": []}
    BackupStore(url).put_report(name, json.dumps(report).encode())


def test_a_list_is_newest_first_with_size_and_proof(url: str) -> None:
    old, new = put(url, 40 * DAY), put(url, timedelta(hours=3))
    store_report(url, old, 1, passed=True)
    listed = run_as_json(url, "list")
    assert [each["id"] for each in listed] == [new, old]
    assert [each["proven_at"] for each in listed] == [None, "2026-10-01T00:00:00+00:00"]
    assert listed[0] | {"created_at": 0, "age_seconds": 0} == {
        "id": new, "created_at": 0, "ahead_seconds": 0, "age_seconds": 0, "size_bytes": 2_000, "rows": 1200, "encrypted": True,
        "proven_at": None, "last_drill_failed": False, "damage": None,
    }  # fmt: skip
    table = run(url, "list").stdout
    assert re.search(rf"{new} .* 3 hours .* 2.0 kB .* 1,200 .* yes .* never", table)
    assert re.search(rf"{old} .* 40 days ", table)


def test_a_failed_last_drill_is_red_and_the_older_proof_is_still_shown(url: str) -> None:
    name = put(url, timedelta(hours=1))
    store_report(url, name, 1, passed=True)
    store_report(url, name, 2, passed=False)
    [listed] = run_as_json(url, "list")
    assert (listed["proven_at"], listed["last_drill_failed"]) == ("2026-10-01T00:00:00+00:00", True)
    assert "FAILED" in red(url)
    store_report(url, name, 3, passed=True)
    [listed] = run_as_json(url, "list")
    assert (listed["proven_at"], listed["last_drill_failed"]) == ("2026-10-03T00:00:00+00:00", False)


PASSED = b'{"passed": true, "started_at": "2026-10-01T00:00:00Z"}'


@pytest.mark.parametrize("report", [
    b"", b"{}", b"[]", b"\xff", PASSED, add_checksum(PASSED.replace(b"true", b'"yes"')),
    add_checksum(PASSED).replace(b"2026", b"2027"),
])  # fmt: skip
def test_a_damaged_report_proves_nothing(folder: str, report: bytes) -> None:
    BackupStore(folder).put(put(folder, DAY), "drills/20261001T000000000000Z.json", report)
    [listed] = run_as_json(folder, "list")
    assert (listed["proven_at"], listed["last_drill_failed"]) == (None, True)


def test_a_latest_backup_older_than_a_day_is_red(folder: str) -> None:
    put(folder, timedelta(hours=23))
    assert red(folder) == ""
    late = BackupStore(folder)
    late.discard(late.find("latest"))
    put(folder, timedelta(hours=25))
    put(folder, timedelta(days=3))
    assert red(folder).split() == ["1", "day"]
    late.put("20991231T000000Z-00000000", MANIFEST, b"damaged")
    assert "1 day" in red(folder)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\xfe", b'{"format": 2}', b"null"])
def test_a_damaged_manifest_is_one_row_in_red(url: str, body: bytes) -> None:
    good = put(url, timedelta(hours=1))
    BackupStore(url).put("20200101T000000Z-00000000", MANIFEST, body)
    foreign = manifest(NOW)
    BackupStore(url).put("20200102T000000Z-00000000", MANIFEST, add_checksum(foreign.model_dump_json().encode()))
    listed = run_as_json(url, "list")
    found = {each["id"]: each["damage"] for each in listed}
    assert found.keys() == {good, "20200102T000000Z-00000000", "20200101T000000Z-00000000"}
    assert foreign.name in found["20200102T000000Z-00000000"]
    assert "damaged" in found["20200101T000000Z-00000000"]
    assert found[good] is None
    assert "20200101T000000Z-00000000" in red(url)


@pytest.mark.usefixtures("scratch_at_hand")
def test_a_backup_is_proven_by_a_drill(shelf: Vault, backup: StoredBackup, other_backup: StoredBackup) -> None:
    first, second = shelf.keep(backup), shelf.keep(other_backup)
    shelf.run_to_end("drill", first)
    listed = {each["id"]: each["proven_at"] is not None for each in run_as_json(shelf.backup_url, "list")}
    assert listed == {first: True, second: False}


def test_an_empty_store_is_not_an_error(url: str) -> None:
    assert run_as_json(url, "list") == []
    assert "There is no backup in" in run(url, "list").stdout
    assert "0 deleted, 0 kept." in run(url, "prune").stdout


def test_each_manifest_is_read_once(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    url = f"s3://{bucket}"
    names = {put(url, number * DAY) for number in range(5)}
    caplog.clear()
    run_as_json(url, "list")
    read = [match[1] for line in caplog.messages if (match := re.search(r'"GET \S+/(\S+)/manifest.json', line))]
    assert sorted(read) == sorted(names)


def red(url: str) -> str:
    """Returns the red text of the table."""
    shown = run(url, "list", FORCE_COLOR="1", TERM="xterm", NO_COLOR=None).stdout
    return " ".join(re.findall(r"\x1b\[31m(.*?)\x1b\[0m", shown))


# --- pruning a store ---


def test_prune_deletes_only_backups_that_no_rule_keeps(url: str) -> None:
    ages = [timedelta(hours=2), timedelta(hours=5), *(number * DAY for number in range(2, 60))]
    names = [put(url, age) for age in ages]
    proven = names[-1]
    store_report(url, proven, 1, passed=True)
    before = run_as_json(url, "prune", "--dry-run", "--daily", "3", "--weekly", "2", "--monthly", "1")
    assert len(BackupStore(url).names()) == 60
    report = run_as_json(url, "prune", "--daily", "3", "--weekly", "2", "--monthly", "1")
    assert report == before | {"dry_run": False}
    assert BackupStore(url).names() == sorted(report["kept"])
    assert {names[0], names[1], proven} <= report["kept"].keys()
    days = len(
        {name[:8] for name in names[:2]}
    )  # one, or two after midnight; the second day is then one of the kept days
    assert 6 - days <= len(report["kept"]) <= 9
    assert "the newest proven" in report["kept"][proven]
    assert run_as_json(url, "prune", "--daily", "3", "--weekly", "2", "--monthly", "1")["going"] == []


def test_a_dry_run_lists_deletions_and_changes_nothing(url: str) -> None:
    new, old = put(url, timedelta(hours=2)), put(url, 50 * DAY)
    result = run(url, "prune", "--dry-run", "--daily", "1", "--weekly", "0", "--monthly", "0")
    assert re.search(rf"{new} .* keep .* the newest, day 20", result.stdout)
    assert re.search(rf"{old} .* delete .* made 20\d\d-\d\d-\d\d \d\d:\d\d; no rule keeps it", result.stdout)
    assert "deleted" not in result.stdout
    assert BackupStore(url).names() == [old, new]


def test_the_ledger_of_erasures_is_never_touched(url: str) -> None:
    ledger = LedgerStore(url)
    entries = [{"receipt": f"receipt-{number}"} for number in range(3)]
    for entry in entries:
        ledger.put(entry["receipt"], entry)
    put(url, timedelta(hours=2))
    put(url, 50 * DAY)
    leave_unfinished(url)
    report = run_as_json(url, "prune", "--daily", "0", "--weekly", "0", "--monthly", "0")
    assert len(report["going"]) == 1
    for leftover in BackupStore(url).leftovers(timedelta(0)):
        BackupStore(url).remove(leftover)
    assert list(ledger.entries()) == entries


def test_a_damaged_backup_is_kept_and_reported(url: str) -> None:
    put(url, timedelta(hours=2))
    BackupStore(url).put("20200101T000000Z-00000000", MANIFEST, b"{}")
    result = run(url, "prune", "--daily", "0", "--weekly", "0", "--monthly", "0")
    assert re.search(r"20200101T000000Z-00000000 .* keep .* not readable", result.stdout)
    assert "20200101T000000Z-00000000" in BackupStore(url).names()


def test_a_locked_backup_is_reported_and_the_others_are_deleted(bucket: str) -> None:
    url = f"s3://{bucket}/a%20prefix"
    put(url, timedelta(hours=2))
    free, locked, later = put(url, 50 * DAY), put(url, 40 * DAY), put(url, 30 * DAY)
    rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{bucket}/a prefix/database/{locked}/*"}  # fmt: skip
    boto3.client("s3").put_bucket_policy(
        Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]})
    )
    result = run(url, "prune", "--daily", "0", "--weekly", "0", "--monthly", "0")
    assert result.exit_code == 1
    assert f"{locked} could not be deleted: " in result.stderr
    assert "2 deleted, 1 kept." in result.stdout
    names = BackupStore(url).names()
    assert locked in names
    assert not {free, later} & set(names)


# --- leftovers ---


def leave_unfinished(url: str) -> str:
    """Leaves the files of a run that was killed before it wrote the manifest."""
    name = new_name(uuid4(), datetime.now(UTC))
    BackupStore(url).put(name, "before.sql", b"select 1;")
    return name


def upload(bucket: str, key: str) -> str:
    """Starts a multipart upload and does not finish it."""
    client = boto3.client("s3")
    upload_id = str(client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"])
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=b"a part")
    return upload_id


def uploads(bucket: str) -> set[str]:
    return {each["UploadId"] for each in boto3.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", [])}


def remove_all(url: str, older_than: timedelta = timedelta(0)) -> list[UnfinishedBackup]:
    found = BackupStore(url).leftovers(older_than)
    for leftover in found:
        BackupStore(url).remove(leftover)
    return found


def test_an_old_folder_without_a_manifest_is_deleted_and_backups_are_kept(url: str) -> None:
    name, kept = leave_unfinished(url), put(url, 50 * DAY)
    assert remove_all(url, DAY) == []
    assert [(each.path, each.size_bytes) for each in remove_all(url)] == [(f"database/{name}", 9)]
    assert BackupStore(url).names() == [kept]
    assert BackupStore(url).leftovers(timedelta(0)) == []


def test_staging_files_of_obstore_are_deleted_too(folder: str) -> None:
    store = BackupStore(folder)
    put(folder, timedelta(hours=1))
    name = new_name(uuid4(), datetime.now(UTC))
    staging = store.path(name, "dump.pgc.zst.age#1")
    assert staging is not None
    staging.parent.mkdir(parents=True)
    staging.write_bytes(b"half")
    for place in (staging, staging.parent):
        os.utime(place, ((datetime.now(UTC) - 2 * DAY).timestamp(),) * 2)
    assert run_as_json(folder, "prune")["leftovers"] == [f"database/{name}"]
    assert not staging.parent.exists()


def test_files_of_a_running_backup_are_kept(folder: str) -> None:
    store = BackupStore(folder)
    name = new_name(uuid4(), datetime.now(UTC))
    with store.writer(name, "dump.pgc.zst") as writer:
        writer.write(b"x" * (20 << 20))
        path = store.path(name, "")
        assert path is not None
        os.utime(path, (0, 0))  # the folder is old, but its file is not
        assert run_as_json(folder, "prune")["leftovers"] == []
        writer.write(b"more")
    assert store.read(name, "dump.pgc.zst").endswith(b"more")


def test_unfinished_uploads_are_aborted_after_a_day_except_those_of_others(bucket: str) -> None:
    url = f"s3://{bucket}/a%20prefix"
    name = put(url, timedelta(hours=1))
    ours = upload(bucket, f"a prefix/database/{new_name(uuid4(), NOW)}/dump.pgc.zst.age")
    others = {
        upload(bucket, "a prefix/erasures/x.json"),
        upload(bucket, "else/database/dump"),
        upload(bucket, "a prefixed/database/dump"),
    }
    assert BackupStore(url).leftovers(timedelta(days=36_500)) == []  # moto dates every upload to 2010
    report = run_as_json(url, "prune", "--dry-run")
    assert len(report["leftovers"]) == 1
    assert uploads(bucket) == {ours} | others
    assert "an unfinished upload" in run(url, "prune").stdout
    assert uploads(bucket) == others
    assert BackupStore(url).names() == [name]


def test_uploads_at_the_root_of_a_bucket_are_found(bucket: str) -> None:
    upload(bucket, "database/20260101T000000Z-00000000/dump.pgc.zst")
    assert [each.path for each in remove_all(f"s3://{bucket}")] == ["database/20260101T000000Z-00000000/dump.pgc.zst"]
    assert uploads(bucket) == set()


def test_all_pages_of_uploads_are_read(s3: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = {upload(bucket, f"x/database/20260101T000000Z-0000000{number}/dump") for number in (1, 1, 2, 3, 3)}
    with pages_of_two(s3) as (endpoint, pages):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        found = BackupStore(f"s3://{bucket}/x").leftovers(timedelta(0))
    assert {each.upload_id for each in found} == begun
    assert len(found) == 5
    assert len(pages) == 3


def test_all_pages_of_objects_are_read(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    url = f"s3://{bucket}"
    kept, unfinished = [put(url, number * DAY) for number in range(3)], [leave_unfinished(url) for _ in range(3)]
    caplog.clear()
    assert sorted(each.path for each in remove_all(url)) == sorted(f"database/{name}" for name in unfinished)
    assert any("continuation-token" in line for line in caplog.messages)
    assert BackupStore(url).names() == sorted(kept)


@contextmanager
def pages_of_two(s3: str) -> Iterator[tuple[str, list[str]]]:
    """An S3 that lists two unfinished uploads per page. The real one lists a thousand; moto does not page."""

    class Paging(BaseHTTPRequestHandler):
        pages: ClassVar[list[str]] = []

        def do_GET(self) -> None:
            query = {
                name: values[0] for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()
            }
            answer = httpx.get(s3 + self.path).text
            if "uploads" in query:
                answer = self.page(answer, query)
            body = answer.encode()
            self.send_response(200)
            self.send_header("content-type", "application/xml")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def page(self, answer: str, query: dict[str, str]) -> str:
            self.pages.append(self.path)
            after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
            found = [(re.search("<Key>(.*?)<", each)[1], re.search("<UploadId>(.*?)<", each)[1], each)  # type: ignore[index]
                for each in re.findall("<Upload>.*?</Upload>", answer, re.DOTALL)]  # fmt: skip
            rest = [each for each in sorted(found) if each[:2] > after]
            marks = "".join(
                f"<{name}>{escape(value)}</{name}>"
                for name, value in zip(
                    ("NextKeyMarker", "NextUploadIdMarker"), rest[1][:2] if len(rest) > 2 else (), strict=False
                )
            )
            inside = "".join(each[2] for each in rest[:2])
            return f"<ListMultipartUploadsResult><IsTruncated>{str(len(rest) > 2).lower()}</IsTruncated>{marks}{inside}</ListMultipartUploadsResult>"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Paging)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", Paging.pages
    finally:
        server.shutdown()
        server.server_close()
