"""Compares a sample of what Clerk has with the database: `ballast clerk reconcile --sample` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SAMPLE = 100
COMMAND = (sys.executable, "-m", "scripts.cli", "clerk", "reconcile", "--json", "--sample", str(SAMPLE))
LONGEST_SECONDS = 25.0


class SampleFailed(Exception):
    """There was no comparison: Clerk or the database does not answer, or refuses. Our log has the process's words."""


@dataclass(frozen=True)
class ClerkSample:
    """`variables` are what the process needs besides our own environment; `missing` names those that are not set."""

    variables: dict[str, str] = field(repr=False)
    missing: tuple[str, ...] = ()
    command: tuple[str, ...] = COMMAND

    def compare(self) -> dict[str, Any]:
        """How many of each kind were looked at, and how many differ in which way: {compared, differing}.

        Nothing is changed. Raises SampleFailed.
        """
        try:
            ended = subprocess.run(
                self.command,
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=LONGEST_SECONDS,
                check=False,
            )
            report = json.loads(ended.stdout)
        except (OSError, subprocess.TimeoutExpired, ValueError) as failure:
            raise SampleFailed(type(failure).__name__) from None
        return {
            "compared": report["compared"],
            "differing": dict(Counter(each["difference"] for each in report["differences"])),
        }
