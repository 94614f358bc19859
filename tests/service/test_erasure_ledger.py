"""The ledger of erasures next to the backups: no entry is lost, and a failure never looks like an empty ledger."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from service.components import components
from service.erasure_ledger import ATTEMPT_SECONDS, RETRIES, LedgerStore, LedgerUnavailable
from tests.conftest import Stack
from tests.service.conftest import MakeApp
from tests.service.outside import Outside

ADA = {"person": "hash of ada", "erased_at": "2026-11-24T10:00:00Z"}
EVE = {"person": "hash of eve", "erased_at": "2026-11-24T11:00:00Z", "reason": "zażądała"}


@pytest.fixture(params=["folder", "bucket", "whole bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        folder = tmp_path / "the backups ü"
        folder.mkdir()
        return folder.as_uri()
    name = request.getfixturevalue("bucket")
    return f"s3://{name}" if request.param == "whole bucket" else f"s3://{name}/some/prefix"


# --- entries ---


def test_every_entry_is_read_back_unchanged(url: str) -> None:
    ledger = LedgerStore(url)
    ledger.put("receipt-2", EVE)
    ledger.put("receipt-1", ADA)
    assert list(LedgerStore(url).entries()) == [ADA, EVE]


def test_writing_the_same_receipt_again_replaces_the_entry(url: str) -> None:
    ledger = LedgerStore(url)
    for _ in range(2):
        ledger.put("receipt-1", ADA)
    assert list(ledger.entries()) == [ADA]


def test_an_entry_that_is_written_once_is_never_replaced(url: str) -> None:
    ledger = LedgerStore(url)
    ledger.put_once("receipt-1", ADA)
    ledger.put_once("receipt-1", EVE)
    assert list(LedgerStore(url).entries()) == [ADA]


def test_a_new_ledger_has_no_entries(url: str) -> None:
    assert list(LedgerStore(url).entries()) == []


def test_entries_on_several_listing_pages_are_all_read(bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # S3 itself lists 1,000
    with httpx.Client(base_url=f"{s3}/{bucket}/erasures/") as client:
        for number in range(25):
            client.put(f"{number:04}.json", content=json.dumps({"number": number}))
    entries = LedgerStore(f"s3://{bucket}").entries()
    assert [entry["number"] for entry in entries] == list(range(25))


def test_entries_are_readable_json_files(tmp_path: Path) -> None:
    LedgerStore(tmp_path.as_uri()).put("receipt-1", ADA)
    assert json.loads((tmp_path / "erasures/receipt-1.json").read_text()) == ADA


def test_other_files_next_to_the_ledger_are_ignored(tmp_path: Path) -> None:
    ledger = LedgerStore(tmp_path.as_uri())
    ledger.put("receipt-1", ADA)
    for name in ("backup.json", "erasures.json", "erasures/README.md", "erasures-old/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert list(ledger.entries()) == [ADA]


@pytest.mark.parametrize("receipt", ["", "..", "../up", "a/b", "a b", "a.json", "x" * 129, "ü"])
def test_a_receipt_cannot_name_another_file(tmp_path: Path, receipt: str) -> None:
    with pytest.raises(ValueError, match="A receipt is used as a file name"):
        LedgerStore(tmp_path.as_uri()).put(receipt, ADA)
    assert list(tmp_path.iterdir()) == []


def test_the_services_ledger_is_next_to_the_stacks_backups(make_app: MakeApp, stack: Stack) -> None:
    with make_app(**stack.environment).app_context():
        ledger = components().eraser.ledger
    assert ledger is not None
    receipt = secrets.token_hex(8)
    ledger.put(receipt, ADA)
    file = stack.home / "backups/erasures" / f"{receipt}.json"
    assert json.loads(file.read_text()) == ADA
    file.unlink()


def test_without_backup_url_the_service_has_no_ledger(make_app: MakeApp) -> None:
    with make_app().app_context():
        assert components().eraser.ledger is None


# --- failures ---


def collect_failures(ledger: LedgerStore) -> list[LedgerUnavailable]:
    """The failures of reading and of writing."""
    with pytest.raises(LedgerUnavailable) as reading:
        list(ledger.entries())
    with pytest.raises(LedgerUnavailable) as writing:
        ledger.put("receipt-1", ADA)
    return [reading.value, writing.value]


def test_a_missing_folder_is_an_error_not_an_empty_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "not-mounted"
    for failed in collect_failures(LedgerStore(folder.as_uri())):
        assert f" in {folder.as_uri()}: NotFound. The folder {folder} does not exist: create it" in str(failed)
    assert not folder.exists()


def test_a_missing_bucket_is_an_error_not_an_empty_ledger(bucket: str) -> None:
    assert [failed.code for failed in collect_failures(LedgerStore(f"s3://not-{bucket}/prefix"))] == ["404", "404"]


def test_a_url_of_an_unknown_kind_is_a_failure() -> None:
    collect_failures(LedgerStore("ftp://server/folder"))


@pytest.mark.parametrize(
    ("content", "code"), [(b"{", "JSONDecodeError"), (b"\xff", "UnicodeDecodeError"), (b"[]", "EntryMalformed")]
)
def test_an_unreadable_entry_is_not_skipped(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "erasures").mkdir()
    (tmp_path / "erasures/broken.json").write_bytes(content)
    with pytest.raises(LedgerUnavailable, match=r"read erasures/broken\.json") as failed:
        list(LedgerStore(tmp_path.as_uri()).entries())
    assert failed.value.code == code


def test_a_failure_does_not_repeat_the_stores_message(aws: pytest.MonkeyPatch, outside: Outside) -> None:
    aws.setenv("AWS_ENDPOINT_URL", outside.url)
    outside.answer = lambda *_: (403, {}, b"<Error><AWSAccessKeyId>the-key-id</AWSAccessKeyId>5ecret</Error>")
    for failed in collect_failures(LedgerStore("s3://bucket/prefix")):
        assert failed.code == "403"
        assert not [word for word in ("the-key-id", "5ecret", outside.url) if word in str(failed) + repr(failed)]
        assert failed.__cause__ is failed.__context__ is None


def test_a_brief_failure_is_retried(aws: pytest.MonkeyPatch, outside: Outside) -> None:
    aws.setenv("AWS_ENDPOINT_URL", outside.url)
    outside.answer = lambda *_: (503 if len(outside.requests) == 1 else 200, {"ETag": '"e"'}, b"")
    LedgerStore("s3://bucket").put("receipt-1", ADA)
    assert len(outside.requests) == 2


@pytest.mark.thorough
def test_a_hanging_store_does_not_block_for_long(aws: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable) as failed:
            LedgerStore("s3://bucket").put("receipt-1", ADA)
    assert failed.value.code == "Timeout"
    assert time.monotonic() - began < ATTEMPT_SECONDS * (RETRIES + 1) + 3


def test_http_is_refused_unless_it_is_allowed(bucket: str, aws: pytest.MonkeyPatch) -> None:
    aws.delenv("AWS_ALLOW_HTTP")
    collect_failures(LedgerStore(f"s3://{bucket}"))


def test_the_store_does_not_slow_the_start_of_the_service() -> None:
    measured = "import time, httpx, json, re; began = time.perf_counter(); import service.erasure_ledger; print(time.perf_counter() - began)"
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", measured], cwd=Path(__file__).parents[2]))
        for _ in range(3)
    ]
    assert min(seconds) < 0.1
