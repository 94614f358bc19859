"""Whether backups can be made, stored and opened."""

from __future__ import annotations

import secrets

import obstore
import pyrage

from scripts.backup import programs
from scripts.backup.store import BackupStore, StoreUnavailable
from scripts.health.patient import CheckFailed, CheckSkipped, Patient, environment_of
from scripts.schema import database
from service import object_store


def a_pg_dump_fits(patient: Patient) -> str:
    """Programs here can dump this server."""
    with database.connected(patient.database_url) as connection:
        try:
            fit = programs.fitting(connection)
        except programs.ProgramsMissing as failure:
            found, _, remedy = str(failure).partition("). ")
            raise CheckFailed(f"{found}).", remedy) from None
    return f"Version {fit.version}, in {fit.folder}."


def the_store_is_reachable(patient: Patient) -> str:
    """The place of the backups can be listed and, with --write, written."""
    store_url = patient["BACKUP_URL"]
    with environment_of(patient.environment):
        try:
            names = BackupStore(store_url).names()
            if patient.may_write:
                _write_probe(store_url)
        except StoreUnavailable as failure:
            found, _, remedy = str(failure).partition(". ")
            raise CheckFailed(f"{found}.", f"{remedy} The bucket or folder must exist.") from None
    count = f"{len(names)} backup{'' if len(names) == 1 else 's'}"
    return f"{count}; {'it can be written' if patient.may_write else 'writing was not tried (--write)'}."


def _write_probe(store_url: str) -> None:
    path = f"doctor-{secrets.token_hex(8)}"
    try:
        store = object_store.opened(store_url, attempt_seconds=10, retries=1)
        obstore.put(store, path, b"ballast doctor")
        obstore.delete(store, path)
    except Exception as failure:  # obstore's errors have no common base with what its stores raise
        raise StoreUnavailable("write", store_url, object_store.reason(failure)) from None


def backups_are_encrypted(patient: Patient) -> str:
    """Backups have recipients whose keys are age's."""
    patient["BACKUP_URL"]
    try:
        recipients = patient.items("BACKUP_RECIPIENTS")
    except CheckSkipped:
        if not patient.is_guarded:
            raise
        raise CheckFailed(
            "BACKUP_RECIPIENTS is not set: no backup is made.",
            "age-keygen makes a key pair; set the public one, age1….",
        ) from None
    for number, recipient in enumerate(recipients, 1):
        try:
            pyrage.x25519.Recipient.from_str(recipient)
        except pyrage.RecipientError:
            raise CheckFailed(
                f"Recipient {number} of BACKUP_RECIPIENTS is no public key of age's.",
                "It begins with age1; copy all of it.",
            ) from None
    if len(recipients) == 1 and patient.is_guarded:
        return (
            "One recipient. Add a second, whose secret key is kept offline: without the first, nothing could be read."
        )
    return f"{len(recipients)} recipient{'' if len(recipients) == 1 else 's'}."
