"""Compares a sample of what Clerk has with the database: `ballast clerk reconcile --sample` in a process of its own."""

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
    """Clerk or the database does not answer, or refuses. Our log has the process's words."""

    def __init__(self) -> None:
        super().__init__("Nothing was changed: run the job again.")


@dataclass(frozen=True)
class ClerkSample:
    """`variables` are what the process needs besides our own environment; `missing` names those that are not set."""

    variables: dict[str, str] = field(repr=False)
    missing: tuple[str, ...] = ()
    command: tuple[str, ...] = COMMAND

    def compare(self) -> dict[str, Any]:
        """How many of each kind were looked at, and how many differ in which way: {compared, differing}.

        Nothing is changed. Raises SampleUnavailable.
        """
        try:
            ended = subprocess.run(
                self.command,
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=MAX_SECONDS,
                check=False,
            )
            report = json.loads(ended.stdout)
        except (OSError, subprocess.TimeoutExpired, ValueError):
            raise SampleUnavailable from None
        return {
            "compared": report["compared"],
            "differing": dict(Counter(each["difference"] for each in report["differences"])),
        }
