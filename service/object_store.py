"""The store for backups and the ledger of erasures: a bucket or a folder, given by its URL."""

from __future__ import annotations

import errno
import os
import re
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from obstore.store import ObjectStore, from_url

# The parts of obstore's messages that are safe to repeat: the HTTP status, the store's error code ("AccessDenied"), or
# the transport error ("Connect", "Timeout").
ERROR_REASON = re.compile(r"status code: ([1-5][0-9]{2})|\(code: ([A-Z][A-Za-z]{1,30})\)|kind: ([A-Z][A-Za-z]{1,30})")
# The same reasons in errors of the operating system, as obstore names them.
OS_REASONS = {
    errno.EACCES: "PermissionDenied",
    errno.EDQUOT: "QuotaExceeded",
    errno.ENOENT: "NotFound",
    errno.ENOSPC: "StorageFull",
    errno.ENOTDIR: "NotADirectory",
    errno.EPERM: "PermissionDenied",
    errno.EROFS: "ReadOnlyFilesystem",
}
VARIABLES = {"s3": "AWS_…", "gs": "GOOGLE_…", "az": "AZURE_…"}
FOLDER_ADVICE = {
    "AlreadyExists": "Another process wrote the same file.",
    "NotADirectory": "{folder} is not a folder, or is below a file: correct BACKUP_URL.",
    "NotFound": "The folder {folder} does not exist: create it, or correct BACKUP_URL.",
    "PermissionDenied": "The user of this process lacks permission for {folder}: change its owner or its mode.",
    "QuotaExceeded": "The quota for {folder} is used up: free some space, or raise it.",
    "ReadOnlyFilesystem": "{folder} is mounted read-only: mount it writable.",
    "StorageFull": "The disk of {folder} is full: free some space, or choose another folder in BACKUP_URL.",
}
DAMAGED = {"EntryMalformed", "JSONDecodeError", "UnicodeDecodeError"}


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
    if isinstance(error, OSError) and error.errno in OS_REASONS:
        return OS_REASONS[error.errno]
    found = ERROR_REASON.search(str(error))
    return str(found[found.lastindex or 0]) if found else type(error).__name__


def advise(url: str, code: str) -> str:
    """What to do about an error of the store at `url`, by the reason that describe_error() returns."""
    if code in DAMAGED:
        return "This file is damaged: restore an older version of it."
    parts = urlsplit(url)
    if parts.scheme != "file":
        return f"Check BACKUP_URL and the variables {VARIABLES.get(parts.scheme, 'of its provider')}."
    folder = Path(unquote(parts.path))
    if code == "NotFound" and folder.is_dir():
        return f"A file is missing from the folder {folder}."
    return FOLDER_ADVICE.get(code, "Check the folder {folder}, which BACKUP_URL names.").format(folder=folder)
