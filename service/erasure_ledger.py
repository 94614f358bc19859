"""The ledger of erasures, stored next to the backups. A restore reads it to erase the same people again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from service import object_store

FOLDER = "erasures"
RECEIPT = re.compile(r"[A-Za-z0-9_-]{1,128}")
# Eight seconds in total, plus a little for a slow start: a store that hangs must not block a thread for long.
ATTEMPT_SECONDS = 4
RETRIES = 1

Result = TypeVar("Result")


class LedgerUnavailable(Exception):
    """The ledger cannot be written or read. `code` is a one-word reason: the store's own message may quote its keys."""

    def __init__(self, action: str, url: str, code: str) -> None:
        super().__init__(f"Cannot {action} in {url}: {code}. {object_store.advise(url, code)}")
        self.code = code


class EntryMalformed(ValueError):
    """A file of the ledger holds JSON that is not an object."""


class LedgerStore:
    """The ledger in `folder` below `url` (see open_object_store()). The store is opened on first use.

    Threads may share one.
    """

    def __init__(self, url: str, folder: str = FOLDER) -> None:
        self._url = url
        self._folder = folder

    def put(self, receipt: str, entry: Mapping[str, object]) -> None:
        """Writes one entry; an entry with the same receipt is overwritten. Raises LedgerUnavailable."""
        path, body = self._path(receipt), _encode(entry)
        self._attempt(f"write {path}", lambda store: store.put(path, body))

    def put_once(self, receipt: str, entry: Mapping[str, object]) -> None:
        """Writes one entry, unless there is one with the same receipt. Raises LedgerUnavailable."""
        path, body = self._path(receipt), _encode(entry)

        def write(store: ObjectStore) -> None:
            with suppress(AlreadyExistsError):
                store.put(path, body, mode="create")

        self._attempt(f"write {path}", write)

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, sorted by receipt. Raises LedgerUnavailable, also for an unreadable one: none may be skipped."""
        for path in self._list_paths():
            yield self._attempt(f"read {path}", partial(_read_entry, path=path))

    def receipts(self) -> list[str]:
        """The receipts of all entries. Raises LedgerUnavailable."""
        return [path.rpartition("/")[2].removesuffix(".json") for path in self._list_paths()]

    def _path(self, receipt: str) -> str:
        if RECEIPT.fullmatch(receipt) is None:
            raise ValueError("A receipt is used as a file name: only letters, digits, _ and - are allowed.")
        return f"{self._folder}/{receipt}.json"

    def _list_paths(self) -> list[str]:
        return self._attempt(f"list {self._folder}", partial(_list_entries, folder=self._folder))

    def _attempt(self, action: str, act: Callable[[ObjectStore], Result]) -> Result:
        try:
            return act(self._store)
        except (BaseError, OSError, ValueError) as error:
            failed = LedgerUnavailable(action, self._url, object_store.describe_error(error))
        # Raised outside the except block: a chained traceback would print the store's message.
        raise failed

    @cached_property
    def _store(self) -> ObjectStore:
        return object_store.open_object_store(self._url, attempt_seconds=ATTEMPT_SECONDS, retries=RETRIES)


def _encode(entry: Mapping[str, object]) -> bytes:
    return json.dumps(entry, sort_keys=True).encode()


def _list_entries(store: ObjectStore, folder: str) -> list[str]:
    found = (each["path"] for batch in store.list(folder) for each in batch)
    return sorted(path for path in found if path.endswith(".json"))


def _read_entry(store: ObjectStore, path: str) -> dict[str, Any]:
    entry = json.loads(bytes(store.get(path).bytes()))
    if not isinstance(entry, dict):
        raise EntryMalformed
    return entry
