"""docs/local-stack.md: its `.env` files are accepted."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.local.stack import Secrets, Stack
from tests.conftest import ROOT


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
