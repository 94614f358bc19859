"""`ballast bench`: measures on scratch servers of its own, and says which aims are met."""

from __future__ import annotations

import click

from scripts.bench.audit import bench_audit
from scripts.bench.backup import bench_backup
from scripts.bench.export import bench_export
from scripts.bench.realtime import bench_realtime
from scripts.bench.rls import bench_rls
from scripts.bench.webhooks import bench_webhooks


@click.group()
def bench() -> None:
    """Measure policies, webhooks, Realtime, the audit trail, exports and backups, on scratch servers, by their aims.

    \b
    Example: ballast bench rls --quick
    """


bench.add_command(bench_rls)
bench.add_command(bench_webhooks)
bench.add_command(bench_realtime)
bench.add_command(bench_audit)
bench.add_command(bench_export)
bench.add_command(bench_backup)
