"""Periodic work: each module in this folder is a job that a scheduler runs with `POST /jobs/<name>`.

A module's name is the job's name with _ for -, and its docstring says what it reports. Its `run(components)` is short,
and safe to call at any time. app.schedule_job() declares how often it runs. docs/extension-points.md shows a job.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from service.data_api import DataApi
from service.problems import Problem

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
# A job ends, or stops to be continued, after this time.
WORK_SECONDS = 20.0

Report = dict[str, Any]


class JobInvalid(Exception):
    """A module in service/jobs is not a job."""


class StoreUnavailable(
    Problem, status=503, slug="store-unavailable", title="The backup store does not answer", retry_after=300
):
    """Seals or receipts could not be written to the backup store."""


@cache
def find_jobs() -> Mapping[str, ModuleType]:
    """The modules in this folder, by the names of their jobs. Raises JobInvalid."""
    return {module.name.replace("_", "-"): _import_job(module.name) for module in pkgutil.iter_modules(__path__)}


def compare_with_schedule(data_api: DataApi) -> dict[str, list[str]]:
    """The jobs that a scheduler calls, those that the database does not declare, and those without a module."""
    schedule = {each["name"]: each["schedule"] for each in require_list(data_api.call("job_schedule", {}))}
    scheduled = [name for name in schedule if schedule[name]]
    return {
        "scheduled": [name for name in scheduled if name in find_jobs()],
        "undeclared": [name for name in find_jobs() if name not in schedule],
        "missing": [name for name in scheduled if name not in find_jobs()],
    }


def require_list(answer: object) -> list[dict[str, Any]]:
    """`answer`, if it is a list. Raises TypeError."""
    if not isinstance(answer, list):
        raise TypeError("the database returned no list")
    return answer


def _import_job(name: str) -> ModuleType:
    if NAME.fullmatch(name) is None:
        raise JobInvalid(f"service/jobs/{name}.py is not a job: its name must have only a-z, 0-9 and _.")
    module = import_module(f"{__name__}.{name}")
    if not callable(getattr(module, "run", None)) or not module.__doc__:
        raise JobInvalid(f"service/jobs/{name}.py is not a job: add run(components), and a docstring for its report.")
    return module
