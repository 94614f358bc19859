"""docs/local-stack.md: its `.env` files are accepted, and its variables select a second stack."""

from __future__ import annotations

import json
import re
from pathlib import Path

from scripts.local.stack import Secrets, Stack
from tests.conftest import ROOT
from tests.conftest import Stack as RunningStack


def test_the_page_shows_valid_env_files(tmp_path: Path) -> None:
    blocks = re.findall(r"^```\n(CLERK_.+?)^```", (ROOT / "docs/local-stack.md").read_text(), re.MULTILINE | re.DOTALL)
    selected = []
    for block in blocks:
        text = block.replace("sk_test_…", "sk_test_abc").replace("whsec_…", "whsec_plJ3nmyCDGBKInavdOK15jsl")
        (tmp_path / ".env").write_text(text)
        stack = Stack(tmp_path, 40000, Secrets.of(tmp_path))
        selected.append((stack.clerk, stack.environment()["CLERK_AUTHORIZED_PARTIES"]))
    assert selected == [
        ("https://your-instance.clerk.accounts.dev", "http://127.0.0.1:40003"),
        ("stand-in", "http://127.0.0.1:40003,http://localhost:5173"),
    ]


def test_the_variables_of_the_page_select_a_second_stack(stack: RunningStack, tmp_path: Path) -> None:
    [export] = re.findall(r"^export BALLAST_HOME=.+$", (ROOT / "docs/local-stack.md").read_text(), re.MULTILINE)
    ran = stack.run_lines(f"export HOME={tmp_path}\n{export}\nballast env --json")
    second = json.loads(ran.stdout)
    assert second["BALLAST_HOME"] == f"{tmp_path}/second-stack"
    assert second["SUPABASE_URL"] == "http://127.0.0.1:55321"
