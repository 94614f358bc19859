"""`ballast types`: the files are current, and Data API responses and the demo page match the types."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from click.testing import CliRunner, Result

from scripts.cli import ballast
from scripts.schema import api_types
from tests.conftest import ROOT, Stack
from tests.schema import remove

TYPES = ROOT / "supabase/types"


@pytest.fixture(scope="module")
def generated_types(migrated_database: str, lasting_database: Callable[..., str]) -> Mapping[str, str]:
    url = lasting_database(migrated_database)
    remove(url)
    return api_types.generate_types(url)


@pytest.fixture
def run(generated_types: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Result:
    """The result of `ballast types --check` in a separate folder with a stale file."""
    monkeypatch.setattr(api_types, "generate", lambda: generated_types)
    monkeypatch.setattr(api_types, "FOLDER", tmp_path)
    (tmp_path / "database.py").write_text(generated_types["database.py"])
    (tmp_path / "database.ts").write_text("// older")
    return CliRunner().invoke(ballast, ["types", "--check"])


def test_the_files_are_current(generated_types: Mapping[str, str]) -> None:
    assert {name: (TYPES / name).read_text() for name in generated_types} == generated_types


def test_a_stale_file_fails_the_check_and_is_written(run: Result, tmp_path: Path) -> None:
    assert (run.exit_code, run.stdout) == (1, "")
    assert "Stale: database.ts" in run.stderr
    assert CliRunner().invoke(ballast, ["types"]).stdout == "Wrote database.ts.\n"
    assert CliRunner().invoke(ballast, ["types", "--check"]).exit_code == 0
    assert "organization_memberships" in (tmp_path / "database.ts").read_text()


def test_an_error_names_a_missing_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(api_types, "PROGRAMS", tmp_path)
    result = CliRunner().invoke(ballast, ["types", "--check"])
    assert (result.exit_code, "supabase cannot be run" in result.stderr) == (1, True)


@pytest.fixture(scope="module")
def types(generated_types: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of supabase/types with the newly generated files."""
    folder = tmp_path_factory.mktemp("types")
    shutil.copytree(TYPES, folder, dirs_exist_ok=True)
    for name, text in generated_types.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def models(types: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(types)
        return importlib.import_module("database")


@pytest.mark.parametrize(
    "table", ["projects", "organizations", "organization_memberships", "profiles", "audit_logs", "role_permissions"]
)
def test_data_api_responses_match_the_python_types(stack: Stack, models: ModuleType, table: str) -> None:
    model = getattr(models, "Public" + "".join(word.capitalize() for word in table.split("_")))
    headers = {
        "apikey": stack.environment["SUPABASE_PUBLISHABLE_KEY"],
        "Authorization": f"Bearer {stack.token('user_ada', 'org_acme')}",
    }
    # Callers may not read every column of these two.
    columns = {"profiles": "id,full_name,email", "audit_logs": "id,action,metadata"}.get(table, "*")
    url = f"{stack.environment['SUPABASE_URL']}/rest/v1/{table}?limit=20&select={columns}"
    response = httpx.get(url, headers=headers)
    assert response.is_success, response.text
    assert response.json()
    for row in response.json():
        if columns == "*":
            model.model_validate(row)
        assert row.keys() <= model.model_fields.keys()


def test_the_demo_page_matches_the_types(types: Path, tmp_path: Path) -> None:
    """TypeScript reports an error in a deliberately wrong copy of a file, and none in the page itself."""
    shutil.copytree(types, tmp_path / "supabase/types")
    for name in ("service/demo_page", "clients"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    script = (tmp_path / "service/demo_page/projects.js").read_text()
    wrong = script.replace("insert({ title,", "insert({ headline: title,")
    (tmp_path / "service/demo_page/wrong_projects.js").write_text(wrong)
    tsc = ROOT / "node_modules/.bin/tsc"
    ran = subprocess.run([tsc, "-p", "supabase/types"], cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in ran.stdout.splitlines() if not line.startswith(" ")]
    assert [line for line in errors if not line.startswith("service/demo_page/wrong_projects.js(")] == []
    assert "'headline' does not exist" in ran.stdout
