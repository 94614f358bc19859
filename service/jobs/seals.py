"""Seals the audit trail and stores the new seals with the backups, where database administrators cannot write."""

from __future__ import annotations

from typing import Any

from service.audit_store import ChainDiverged
from service.components import Components
from service.erasure_ledger import LedgerUnavailable
from service.jobs import Report, StoreUnavailable, require_list
from service.problems import Problem

NO_SEALS_AFTER = 2**62


class SealsDiverged(Problem, status=409, slug="seals-diverged", title="The audit trail does not continue its seals"):
    """The database does not contain the newest seal in the backup store."""


def run(components: Components) -> Report:
    if components.audit_store is None:
        components.data_api.call("seals_after", {"newest": NO_SEALS_AFTER})
        return {"stored": 0, "unconfigured": ["BACKUP_URL"]}

    def seals_after(newest: int, seal: str | None) -> list[dict[str, Any]] | None:
        found = components.data_api.call("seals_after", {"newest": newest, "seal": seal})
        return None if found is None else require_list(found)

    try:
        return {"stored": components.audit_store.anchor(seals_after)}
    except LedgerUnavailable as failure:
        raise StoreUnavailable(
            "The seals are in the database but not in the backup store: run the job again."
        ) from failure
    except ChainDiverged as failure:
        raise SealsDiverged(
            f"{failure} Run `ballast audit verify`: someone changed seals, or a backup was restored. After a restore,"
            " run `ballast audit accept`."
        ) from failure
