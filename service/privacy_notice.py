"""What the privacy page shows: the registry of personal data, as the database returns it, and who processes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import cast

from service.data_api import Call, CallFailed
from service.logs import log

LIFE_SECONDS = 300
RETRY_SECONDS = 5  # what DatabaseUnavailable tells a visitor to wait

Line = dict[str, str]


@dataclass(frozen=True)
class Processor:
    """Who processes personal data for us; where, as its own documentation says."""

    name: str
    purpose: str
    data: str
    where: str
    policy: str


PROCESSORS = (
    Processor(
        name="Clerk",
        purpose="Sign-in and organizations",
        data="Accounts, organizations, invitations",
        where="United States",
        policy="https://clerk.com/legal/privacy",
    ),
    Processor(
        name="Supabase",
        purpose="Database and live updates",
        data="All that is listed above",
        where="The region of the project",
        policy="https://supabase.com/privacy",
    ),
    Processor(
        name="Upstash",
        purpose="Counters and short-lived answers",
        data="Identifiers of people and requests",
        where="The region of the database",
        policy="https://upstash.com/trust/privacy.pdf",
    ),
    Processor(
        name="Resend",
        purpose="E-mail",
        data="The address, and what the e-mail says",
        where="United States",
        policy="https://resend.com/legal/privacy-policy",
    ),
    Processor(
        name="Sentry",
        purpose="Reports of errors",
        data="Where it failed; no names, no content",
        where="Germany or the United States, as chosen for the account",
        policy="https://sentry.io/privacy/",
    ),
    Processor(
        name="Amazon Web Services (S3)",
        purpose="Backups",
        data="All that is listed above",
        where="The region of the bucket",
        policy="https://aws.amazon.com/privacy/",
    ),
)


class PrivacyNotice:
    """What public.privacy_notice() says, kept for five minutes; an old one is better than none. Threads may share it.

    `call(function, arguments)` is DataApi.call, or does what it does; `now()` is a time in seconds.
    """

    def __init__(self, call: Call, now: Callable[[], float] = monotonic) -> None:
        self._call = call
        self._now = now
        self._asking = threading.Lock()
        self._lines: list[Line] = []
        self._failure = ""
        self._ask_again_at = -float("inf")

    def categories(self) -> list[tuple[str, list[Line]]]:
        """The lines by category, in the order in which each first comes. Raises CallFailed when there is none yet."""
        # Who finds a kept answer does not wait for whoever asks: a slow database would hold up every thread.
        if self._asking.acquire(blocking=not self._lines):
            try:
                if self._now() >= self._ask_again_at:
                    self._fetch()
            finally:
                self._asking.release()
        if not self._lines:
            raise CallFailed("privacy_notice", self._failure)
        found: dict[str, list[Line]] = {}
        for line in self._lines:
            found.setdefault(line["category"], []).append(line)
        return list(found.items())

    def _fetch(self) -> None:
        try:
            self._lines = cast("list[Line]", self._call("privacy_notice", {}))
            self._ask_again_at = self._now() + LIFE_SECONDS
        except CallFailed as failure:
            self._failure = failure.code
            self._ask_again_at = self._now() + RETRY_SECONDS
            log.warning("privacy notice not read", extra={"code": failure.code, "is_kept": bool(self._lines)})
