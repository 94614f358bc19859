"""Where backups and the ledger of erasures are kept: a bucket or a folder, by its URL."""

from __future__ import annotations

import os
import re
from datetime import timedelta

from obstore.store import ObjectStore, from_url

# What obstore's texts say in a known form: the store's answer, its code ("AccessDenied"), or what went wrong on the way
# ("Connect", "Timeout").
ERROR_REASON = re.compile(r"status code: ([1-5][0-9]{2})|\(code: ([A-Z][A-Za-z]{1,30})\)|kind: ([A-Z][A-Za-z]{1,30})")


def open_object_store(url: str, *, attempt_seconds: float, retries: int) -> ObjectStore:
    """The store below `url`: s3://bucket/prefix or file:///folder, of which bucket and folder must exist.

    Keys, region and endpoint of a bucket are AWS_ACCESS_KEY_ID and the other variables that AWS gave names to.
    `attempt_seconds` are for one request, of which `retries` more are made. Raises obstore's errors and ValueError.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        del os.environ[name]  # counts as missing: obstore takes an empty address for one, and panics
    if url.startswith("file:"):
        # Never made here: an empty folder where the backups should be would be a ledger without erasures.
        return from_url(url)
    return from_url(
        url,
        # Naming any option makes obstore forget that the environment may allow http.
        client_options={
            "allow_http": is_http_allowed(),
            "connect_timeout": "2s",
            "timeout": f"{attempt_seconds}s",
        },
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=attempt_seconds * (retries + 1))},
    )


def is_http_allowed() -> bool:
    """Whether a bucket without https is good enough."""
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"


def describe_error(error: Exception) -> str:
    """Why it failed, in one word: the store's own words may quote its keys."""
    found = ERROR_REASON.search(str(error))
    return str(found[found.lastindex or 0]) if found else type(error).__name__
