"""The ledger of erasures, kept beside the backups: whoever restores one reads here whom to erase again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, TypeVar

from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from service import object_store

FOLDER = "erasures"
RECEIPT = re.compile(r"[A-Za-z0-9_-]{1,128}")
# Together eight seconds, and a little more for what is slow to begin: a store that hangs must not hold a thread.
ATTEMPT_SECONDS = 4
RETRIES = 1

Result = TypeVar("Result")


class LedgerUnavailable(Exception):
    """The ledger cannot be written or read. `code` says why in one word: the store's own may quote its keys."""

    def __init__(self, action: str, url: str, code: str) -> None:
        super().__init__(f"Cannot {action} in {url}: {code}.")
        self.code = code


class EntryMalformed(ValueError):
    """A file of the ledger holds JSON, but no object."""


class LedgerStore:
    """The ledger in `folder` below `url`, as open_object_store() takes it. Nothing is opened before it is needed.

    Threads may share one.
    """

    def __init__(self, url: str, folder: str = FOLDER) -> None:
        self._url = url
        self._folder = folder

    def put(self, receipt: str, entry: Mapping[str, object]) -> None:
        """Writes one entry; with the same receipt again, over the first. Raises LedgerUnavailable."""
        if RECEIPT.fullmatch(receipt) is None:
            raise ValueError("A receipt names a file: letters, digits, _ and - only.")
        body = json.dumps(entry, sort_keys=True).encode()
        path = f"{self._folder}/{receipt}.json"
        self._attempt(f"write {path}", lambda store: store.put(path, body))

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, by receipt. Raises LedgerUnavailable, also for one that is unreadable: it may not be skipped."""
        for path in self._list_paths():
            yield self._attempt(f"read {path}", partial(_entry, path=path))

    def receipts(self) -> list[str]:
        """Of all entries. Raises LedgerUnavailable."""
        return [path.rpartition("/")[2].removesuffix(".json") for path in self._list_paths()]

    def _list_paths(self) -> list[str]:
        return self._attempt(f"list {self._folder}", partial(_paths, folder=self._folder))

    def _attempt(self, action: str, act: Callable[[ObjectStore], Result]) -> Result:
        try:
            return act(self._store)
        except (BaseError, OSError, ValueError) as error:
            failed = LedgerUnavailable(action, self._url, object_store.describe_error(error))
        # Outside the except block, as in data_api: a chained traceback would print what the store said.
        raise failed

    @cached_property
    def _store(self) -> ObjectStore:
        return object_store.open_object_store(self._url, attempt_seconds=ATTEMPT_SECONDS, retries=RETRIES)


def _paths(store: ObjectStore, folder: str) -> list[str]:
    found = (each["path"] for batch in store.list(folder) for each in batch)
    return sorted(path for path in found if path.endswith(".json"))


def _entry(store: ObjectStore, path: str) -> dict[str, Any]:
    entry = json.loads(bytes(store.get(path).bytes()))
    if not isinstance(entry, dict):
        raise EntryMalformed
    return entry
