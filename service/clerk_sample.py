"""Compares a sample of Clerk's data with the database: `ballast clerk reconcile --sample` in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from service.problems import Problem

SAMPLE = 100
COMMAND = (sys.executable, "-m", "scripts.cli", "clerk", "reconcile", "--json", "--sample", str(SAMPLE))
MAX_SECONDS = 25.0


class SampleUnavailable(
    Problem,
    status=503,
    slug="sample-unavailable",
    title="Clerk and the database cannot be compared right now",
    retry_after=300,
):
    """Clerk or the database does not answer, or refuses. The service's log has the process's messages."""

    def __init__(self) -> None:
        super().__init__("Nothing was changed: run the job again.")


@dataclass(frozen=True)
class ClerkSample:
    """`variables` are added to our own environment for the process; `missing` names those that are not set."""

    variables: dict[str, str] = field(repr=False)
    missing: tuple[str, ...] = ()
    command: tuple[str, ...] = COMMAND

    def compare(self) -> dict[str, Any]:
        """Returns {compared: {kind: number}, differing: {difference: number}}. Changes nothing.

        Raises SampleUnavailable.
        """
        try:
            process = subprocess.run(
                self.command,
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=MAX_SECONDS,
                check=False,
            )
            report = json.loads(process.stdout)
        except (OSError, subprocess.TimeoutExpired, ValueError):
            raise SampleUnavailable from None
        return {
            "compared": report["compared"],
            "differing": dict(Counter(each["difference"] for each in report["differences"])),
        }
