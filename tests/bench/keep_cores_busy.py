"""Keeps the cores from sleeping during a measurement.

A virtual machine halts an idle core, and waking it takes as long as a short query. Whether a wait is long enough for
that is random: the same query took 0.33 ms on one connection and 0.46 ms on the next. On a busy server, the cores are
awake. Do not use this for work that waits for a disk: each wait then took a tick of the scheduler, 4 ms.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Runs with idle priority, and exits when its parent process ends.
IDLE_WORK = """
import os, sys
if hasattr(os, "SCHED_IDLE"):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
else:
    os.nice(19)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def keep_cores_busy() -> Iterator[None]:
    """Runs idle work on every core."""
    command = [sys.executable, "-c", IDLE_WORK, str(os.getpid())]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
