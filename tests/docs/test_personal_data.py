"""The commands of docs/personal-data.md, run unchanged and in order, in one shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT, Stack


def test_the_commands_of_the_page_work(stack: Stack, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/personal-data.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path, env=os.environ | stack.environment | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    with zipfile.ZipFile(tmp_path / "my-data.zip") as archive:
        assert json.loads(archive.read("profile.json"))[0]["clerk_user_id"] == "user_cleo"
    exports = json.loads((tmp_path / "cleo.json").read_text())["exports"]
    assert [each["outcome"] for each in exports if each["requested_by"] == "person"] == ["finished"]
    assert json.loads((tmp_path / "receipt.json").read_text())["state"] == "running"
