"""`./scripts/bench`: runs benchmarks on temporary servers, and reports which aims are met."""

from __future__ import annotations

import click

from scripts.cli import CommandGroup
from tests.bench.audit import bench_audit
from tests.bench.backup import bench_backup
from tests.bench.export import bench_export
from tests.bench.migrate import bench_migrate
from tests.bench.realtime import bench_realtime
from tests.bench.rls import bench_rls
from tests.bench.webhooks import bench_webhooks


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure policies, webhooks, Realtime, the audit trail, exports, backups and migrations on temporary servers.

    \b
    Example: ./scripts/bench rls --quick
    """


bench.add_command(bench_rls)
bench.add_command(bench_webhooks)
bench.add_command(bench_realtime)
bench.add_command(bench_audit)
bench.add_command(bench_export)
bench.add_command(bench_backup)
bench.add_command(bench_migrate)
