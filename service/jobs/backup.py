"""Starts a backup: {started: its id}, {running: true} if one is running, or {unconfigured: [variable]}."""

from __future__ import annotations

from service.backups import BackupRunning
from service.components import Components
from service.jobs import Report


def run(components: Components) -> Report:
    if components.backups.missing:
        return {"unconfigured": list(components.backups.missing)}
    try:
        return {"started": components.backups.start("automated")["id"]}
    except BackupRunning:
        return {"running": True}
