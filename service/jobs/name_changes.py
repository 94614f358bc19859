"""Sends names that people changed here to Clerk: how many were renamed, refused, or failed for now."""

from __future__ import annotations

from collections import Counter

from service.clerk_api import ClerkCallFailed
from service.components import Components
from service.jobs import Report, require_list


def run(components: Components) -> Report:
    report: Counter[str] = Counter(renamed=0, refused=0, failed=0)
    for change in require_list(components.data_api.call("claim_name_changes", {})):
        error, is_final = None, False
        try:
            components.clerk.rename_user(change["clerk_user_id"], change["first_name"], change["last_name"])
            report["renamed"] += 1
        except ClerkCallFailed as failure:
            error, is_final = failure.code, failure.is_refusal
            report["refused" if is_final else "failed"] += 1
        outcome = {"error": error, "is_final": is_final}
        key = {name: change[name] for name in ("clerk_user_id", "changed_at")}
        components.data_api.call("end_name_change", key | outcome)
    return dict(report)
