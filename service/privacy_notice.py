"""The registry's part of the privacy page, as the database tells it."""

from __future__ import annotations

import threading
from itertools import groupby
from time import monotonic
from typing import cast

from service.data_api import CallFailed, DataApi
from service.logs import log

LIVES_SECONDS = 300

Line = dict[str, str]


class PrivacyNotice:
    """What public.privacy_notice() says, kept for five minutes; an old one is better than none. For all threads."""

    def __init__(self, data_api: DataApi) -> None:
        self._data_api = data_api
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        self._asked_at = -float("inf")

    def categories(self) -> list[tuple[str, list[Line]]]:
        """The lines by category, in the registry's order. Raises CallFailed when there is none yet."""
        with self._lock:
            if monotonic() - self._asked_at > LIVES_SECONDS:
                self._ask()
            lines = self._lines
        return [(category, list(of_it)) for category, of_it in groupby(lines, lambda line: line["category"])]

    def _ask(self) -> None:
        try:
            lines = cast("list[Line]", self._data_api.call("privacy_notice", {}))
        except CallFailed as failure:
            if not self._lines:
                raise
            log.warning("privacy notice is old", extra={"code": failure.code})
        else:
            self._lines = lines
        self._asked_at = monotonic()
