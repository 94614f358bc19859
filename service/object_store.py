"""The store for backups and the ledger of erasures: a bucket or a folder, given by its URL."""

from __future__ import annotations

import os
import re
from datetime import timedelta

from obstore.store import ObjectStore, from_url

# The parts of obstore's messages that are safe to repeat: the HTTP status, the store's error code ("AccessDenied"), or
# the transport error ("Connect", "Timeout").
ERROR_REASON = re.compile(r"status code: ([1-5][0-9]{2})|\(code: ([A-Z][A-Za-z]{1,30})\)|kind: ([A-Z][A-Za-z]{1,30})")


def open_object_store(url: str, *, attempt_seconds: float, retries: int) -> ObjectStore:
    """Opens the store at `url`: s3://bucket/prefix or file:///folder. The bucket or folder must exist.

    AWS's own variables, such as AWS_ACCESS_KEY_ID, hold a bucket's keys, region and endpoint. A request may take
    `attempt_seconds` and is retried `retries` times. Raises obstore's errors and ValueError.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        del os.environ[name]  # an empty value counts as missing: obstore would use it as a URL and panic
    if url.startswith("file:"):
        # The folder is never created here: a new, empty folder would look like a ledger without erasures.
        return from_url(url)
    return from_url(
        url,
        # With any option given, obstore ignores AWS_ALLOW_HTTP from the environment.
        client_options={
            "allow_http": is_http_allowed(),
            "connect_timeout": "2s",
            "timeout": f"{attempt_seconds}s",
        },
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=attempt_seconds * (retries + 1))},
    )


def is_http_allowed() -> bool:
    """Whether AWS_ALLOW_HTTP permits a bucket without https."""
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"


def describe_error(error: Exception) -> str:
    """A one-word reason: the store's own message may quote its keys."""
    found = ERROR_REASON.search(str(error))
    return str(found[found.lastindex or 0]) if found else type(error).__name__
