"""Checks that backups can be created, stored and decrypted."""

from __future__ import annotations

import secrets

import obstore
import pyrage

from scripts.backup import programs
from scripts.backup.store import BackupStore, StoreUnavailable
from scripts.health.context import CheckFailed, CheckSkipped, Context, use_environment
from scripts.schema import database
from service import object_store


def check_pg_dump(context: Context) -> str:
    """Checks that this machine has a pg_dump that can dump the server."""
    with database.connect(context.database_url) as connection:
        try:
            fit = programs.choose_programs(connection)
        except programs.ProgramsMissing as failure:
            found, _, remedy = str(failure).partition("). ")
            raise CheckFailed(f"{found}).", remedy) from None
    return f"Version {fit.version}, in {fit.folder}."


def check_store(context: Context) -> str:
    """Checks that the backup store can be listed and, with --write, written."""
    store_url = context["BACKUP_URL"]
    with use_environment(context.environment):
        try:
            names = BackupStore(store_url).names()
            if context.may_write:
                _write_probe(store_url)
        except StoreUnavailable as failure:
            found, _, remedy = str(failure).partition(". ")
            raise CheckFailed(f"{found}.", remedy) from None
    count = f"{len(names)} backup{'' if len(names) == 1 else 's'}"
    return f"{count}; {'writable' if context.may_write else 'writing was not tested (--write)'}."


def _write_probe(store_url: str) -> None:
    path = f"doctor-{secrets.token_hex(8)}"
    try:
        store = object_store.open_object_store(store_url, attempt_seconds=10, retries=1)
        obstore.put(store, path, b"ballast doctor")
        obstore.delete(store, path)
    except Exception as failure:  # obstore's errors have no common base with what its stores raise
        raise StoreUnavailable("write", store_url, object_store.describe_error(failure)) from None


def check_encryption(context: Context) -> str:
    """Checks that BACKUP_RECIPIENTS has valid public age keys."""
    context["BACKUP_URL"]
    try:
        recipients = context.list_items("BACKUP_RECIPIENTS")
    except CheckSkipped:
        if not context.is_guarded:
            raise
        raise CheckFailed(
            "BACKUP_RECIPIENTS is not set: no backup is created.",
            "Create a key pair with age-keygen, and set the public key, age1….",
        ) from None
    for number, recipient in enumerate(recipients, 1):
        try:
            pyrage.x25519.Recipient.from_str(recipient)
        except pyrage.RecipientError:
            raise CheckFailed(
                f"Recipient {number} of BACKUP_RECIPIENTS is not a public age key.",
                "Copy the whole key, which begins with age1.",
            ) from None
    if len(recipients) == 1 and context.is_guarded:
        return (
            "One recipient. Add a second one and keep its secret key offline: it decrypts new backups if you lose "
            "the first key."
        )
    return f"{len(recipients)} recipient{'' if len(recipients) == 1 else 's'}."
