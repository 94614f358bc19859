"""Limits the threads that one person's requests, or all downloads, may hold: some stay free for others."""

from __future__ import annotations

import threading
from collections import Counter

# gunicorn.conf.py sets the number of its threads. Other servers limit requests themselves.
DEFAULT_THREADS = 8
# The threads that one person's requests leave to others.
RESERVED = 2


class Threads:
    """One per process. `total` is the number of its threads."""

    def __init__(self) -> None:
        self.total = DEFAULT_THREADS
        self.requests = Places()
        self.downloads = Places()

    @property
    def most_requests_per_person(self) -> int:
        """How many requests of one person are processed at once."""
        return max(1, self.total - RESERVED)

    @property
    def most_downloads(self) -> int:
        """How many downloads run at once."""
        return max(1, self.total // 2)


class Places:
    """Counts the requests, or the downloads, that each person has running. Shared by all threads."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close a download, which releases its place, at any moment.
        self._lock = threading.RLock()
        self._held: Counter[str] = Counter()

    def take(self, person: str, per_person: int, in_all: float) -> str | None:
        """Takes a place for a person. If that would exceed a limit, takes none and returns its name: person or all."""
        with self._lock:
            if self._held[person] >= per_person:
                return "person"
            if self._held.total() >= in_all:
                return "all"
            self._held[person] += 1
        return None

    def release(self, person: str) -> None:
        """Gives a place back."""
        with self._lock:
            self._held[person] -= 1
            if not self._held[person]:
                del self._held[person]
