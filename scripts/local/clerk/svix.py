"""Sends webhooks as Svix does for Clerk: signed, and retried after each failure with growing pauses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from standardwebhooks import Webhook

# Seconds before each attempt (https://docs.svix.com/retries): at once, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h.
RETRY_PAUSES = (0, 5, 300, 1800, 7200, 18_000, 36_000, 36_000)
ATTEMPT_SECONDS = 15


@dataclass(frozen=True)
class Endpoint:
    """The URL of the receiver, and the `whsec_…` that signs the messages."""

    url: str
    secret: str


def encode_body(event: dict[str, Any]) -> bytes:
    """The bytes of an event that are signed and sent."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def sign_headers(secret: str, message_id: str, body: bytes, at: datetime | None = None) -> dict[str, str]:
    """The headers of one attempt. `secret` is a `whsec_…`; `at` defaults to now."""
    at = at or datetime.now(UTC)
    return {
        "content-type": "application/json",
        "user-agent": "Svix-Webhooks/1.24 (sender-9YMgn; +https://www.svix.com/http-sender/)",
        "svix-id": message_id,
        "svix-timestamp": str(int(at.timestamp())),
        "svix-signature": Webhook(secret).sign(message_id, at, body.decode()),
    }


async def deliver(
    session: aiohttp.ClientSession, endpoint: Endpoint, message_id: str, body: bytes, *, speed: float = 1
) -> AsyncIterator[int | None]:
    """Attempts until one succeeds or the schedule ends; pauses are divided by `speed`.

    Yields the receiver's status after each attempt, None if there was no answer in time. Only 2xx is a success.
    """
    for pause in RETRY_PAUSES:
        await asyncio.sleep(pause / speed)
        status = await _attempt(session, endpoint.url, sign_headers(endpoint.secret, message_id, body), body)
        yield status
        if status is not None and 200 <= status < 300:
            return


class Deliveries:
    """Delivers messages in the background. Messages that are not delivered when `stop` is called are lost."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        # The event loop has only weak references, so a task without another reference could be garbage collected.
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, message_id: str, body: bytes) -> None:
        """Starts the delivery of a message, with the retries of Svix, and returns at once."""
        task = asyncio.create_task(self._deliver(message_id, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancels all deliveries, and returns once they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, message_id: str, body: bytes) -> None:
        async with aiohttp.ClientSession() as session:
            async for _ in deliver(session, self._endpoint, message_id, body):
                pass


async def _attempt(session: aiohttp.ClientSession, url: str, headers: dict[str, str], body: bytes) -> int | None:
    timeout = aiohttp.ClientTimeout(total=ATTEMPT_SECONDS)
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False, timeout=timeout) as answer:
            return answer.status
    except (aiohttp.ClientError, TimeoutError):
        return None
