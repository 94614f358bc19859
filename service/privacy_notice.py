"""The content of the privacy page: the registry of personal data, read from the database, and the processors."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import cast

from service.data_api import Call, CallFailed
from service.logs import log

FOLDER = Path(__file__).with_name("processors")
LIFE_SECONDS = 300
RETRY_SECONDS = 5  # as long as the Retry-After of DatabaseUnavailable

Line = dict[str, str]


@dataclass(frozen=True)
class Processor:
    """A company that processes personal data for us. `where` is taken from its own documentation."""

    name: str
    purpose: str
    data: str
    where: str
    policy: str


def read_processors(folder: Path = FOLDER) -> list[Processor]:
    """Reads a processor from each file of the folder. Raises TypeError or ValueError, naming the file."""
    processors = []
    for file in sorted(folder.glob("*.toml")):
        try:
            processors.append(Processor(**tomllib.loads(file.read_text())))
        except (TypeError, ValueError) as error:
            error.add_note(f"The fields of {file} are: {', '.join(each.name for each in fields(Processor))}.")
            raise
    return processors


PROCESSORS = read_processors()


class PrivacyNotice:
    """Caches public.privacy_notice() for five minutes. If the database fails, it keeps serving the old notice.

    `call` is DataApi.call or a function like it; `now()` is a time in seconds. Threads may share one.
    """

    def __init__(self, call: Call, now: Callable[[], float] = monotonic) -> None:
        self._call = call
        self._now = now
        self._fetching = threading.Lock()
        self._lines: list[Line] = []
        self._failure = ""
        self._refresh_at = -float("inf")

    def categories(self) -> list[tuple[str, list[Line]]]:
        """The lines by category, in the order of first appearance. Raises CallFailed if nothing was ever read."""
        # A thread that has a cached notice does not wait for the one that fetches: a slow database would block all.
        if self._fetching.acquire(blocking=not self._lines):
            try:
                if self._now() >= self._refresh_at:
                    self._fetch()
            finally:
                self._fetching.release()
        if not self._lines:
            raise CallFailed("privacy_notice", self._failure)
        found: dict[str, list[Line]] = {}
        for line in self._lines:
            found.setdefault(line["category"], []).append(line)
        return list(found.items())

    def _fetch(self) -> None:
        try:
            self._lines = cast("list[Line]", self._call("privacy_notice", {}))
            self._refresh_at = self._now() + LIFE_SECONDS
        except CallFailed as failure:
            self._failure = failure.code
            self._refresh_at = self._now() + RETRY_SECONDS
            log.warning("privacy notice not read", extra={"code": failure.code, "is_cached": bool(self._lines)})
