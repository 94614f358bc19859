"""Creates the audit trail's partitions for the coming months: how many are new. Retention drops the old ones."""

from __future__ import annotations

from service.components import Components
from service.jobs import Report


def run(components: Components) -> Report:
    return {"made": components.data_api.call("maintain_partitions", {})}
