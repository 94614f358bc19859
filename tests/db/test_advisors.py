"""Supabase's lints (`supabase db advisors`) report only findings that accepted_advice.toml explains."""

from __future__ import annotations

import json
import subprocess
import tomllib
from fnmatch import fnmatchcase
from typing import Any

import pytest

from scripts.health import checks_database
from scripts.scratch.postgres import Postgres
from tests.conftest import ROOT

ACCEPTED_ADVICE = [
    entry
    for file in sorted(ROOT.glob(checks_database.ACCEPTED_ADVICE))
    for entry in tomllib.loads(file.read_text())["accepted"]
]


@pytest.fixture(scope="module")
def advice(server: Postgres) -> list[dict[str, Any]]:
    """The advisors' findings about the migrated database, down to level info."""
    command = [ROOT / "node_modules/.bin/supabase", "db", "advisors", f"--remote={server.url()}?sslmode=disable"]
    output = subprocess.run(
        [*command, "--level", "info", "--output-format", "json"], capture_output=True, text=True, check=True
    ).stdout
    results: list[dict[str, Any]] = json.loads(output)["results"]
    return results


def is_accepted(entry: dict[str, str], finding: dict[str, Any]) -> bool:
    place = f"{finding['metadata']['schema']}.{finding['metadata']['name']}"
    return entry["advice"] == finding["name"] and fnmatchcase(place, entry["on"])


def test_the_advisors_report_no_unexplained_finding(advice: list[dict[str, Any]]) -> None:
    assert [
        found["detail"] for found in advice if not any(is_accepted(entry, found) for entry in ACCEPTED_ADVICE)
    ] == []


@pytest.mark.parametrize("entry", ACCEPTED_ADVICE, ids=lambda entry: f"{entry['advice']} {entry['on']}")
def test_every_accepted_finding_is_still_reported(advice: list[dict[str, Any]], entry: dict[str, str]) -> None:
    assert any(is_accepted(entry, found) for found in advice)
