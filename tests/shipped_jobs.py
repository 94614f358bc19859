"""Ballast's own scheduled jobs: the tests about them allow a product to have more."""

from __future__ import annotations

import re
from pathlib import Path

FILE = Path(__file__).parents[1] / "functions/7_service/job_schedules.sql"
SHIPPED_JOBS = re.findall(r"^  \('([a-z-]+)', interval ", FILE.read_text(), re.MULTILINE)
