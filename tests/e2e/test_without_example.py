"""The local stack of a product whose example was removed: the same people, and a page without projects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from scripts.cli import clerk as sending
from scripts.remove_example import remove
from tests.conftest import HAS_EXAMPLE, ROOT, Stack, free_port_block
from tests.e2e.conftest import Window, membership
from tests.scripts.test_new import SOURCES, copied

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(not HAS_EXAMPLE, reason="The example was removed.")]


@pytest.fixture(scope="module")
def product(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = copied(tmp_path_factory.mktemp("product"), *SOURCES, "scripts", "service", "supabase", "gunicorn.conf.py")
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    remove(root=folder)
    place = {"BALLAST_HOME": str(home / "product"), "BALLAST_PORT_BASE": str(free_port_block()), "BALLAST_JOBS": "off"}
    environment = os.environ | place | {"PYTHONPATH": str(folder), "BALLAST_EXAMPLE": "off"}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)

    def typed(*words: str) -> str:
        command = [Path(sys.executable).with_name("ballast"), *words]
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    try:
        typed("up", "--detach")
        yield Stack(home / "product", json.loads(typed("env", "--json")))
    finally:
        typed("down")


def test_its_page_shows_the_members_live_and_no_projects(chromium: Browser, product: Stack) -> None:
    ada = Window(chromium.new_context(base_url=product.environment["SERVICE_URL"]).new_page()).open()
    ada.page.get_by_role("button", name="Ada Winter").click()
    expect(ada.live).to_have_text("Live")
    expect(ada.member("Ada Winter")).to_contain_text("here now")
    expect(ada.page.locator("#members > li")).to_have_count(4)
    expect(ada.page.get_by_role("heading", name="Projects")).to_have_count(0)
    expect(ada.page.get_by_role("button", name="Create")).to_have_count(0)

    event = sending.Event("organizationMembership.created", membership("user_eve", "org_acme"))
    assert sending.send(product.environment, event)["outcome"] == "processed"
    expect(ada.member("Eve Moreau")).to_be_visible()
    expect(ada.page.locator("#audit-entries > li").first).to_contain_text("Clerk added Eve Moreau as member")
    assert ada.complaints == []
    ada.page.context.close()
