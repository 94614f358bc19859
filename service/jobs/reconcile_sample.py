"""Compares a sample with Clerk: how many of each kind were compared, and how many differ. Changes nothing."""

from __future__ import annotations

from service.components import Components
from service.jobs import Report


def run(components: Components) -> Report:
    if components.clerk_sample.missing:
        return {"compared": {}, "differing": {}, "unconfigured": list(components.clerk_sample.missing)}
    return components.clerk_sample.compare()
