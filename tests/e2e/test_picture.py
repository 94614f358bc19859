"""The README's picture: two windows on one organization. Renew it: `./scripts/test tests/e2e --renew-readme-picture`."""

from __future__ import annotations

import base64
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import ROOT, needs_own_readme
from tests.e2e.conftest import SCREENSHOTS, OpenWindow

PICTURE = ROOT / "docs/demo.png"
MAX_BYTES = 200_000
WINDOW = {"width": 760, "height": 640}


@needs_own_readme
def test_the_readme_has_a_small_picture() -> None:
    assert "](docs/demo.png)" in (ROOT / "README.md").read_text()
    assert PICTURE.stat().st_size < MAX_BYTES


def test_the_picture_can_be_taken_again(
    window: OpenWindow,
    chromium: Browser,
    database: psycopg.Connection[Any],
    pytestconfig: pytest.Config,
) -> None:
    cleo = window(viewport=WINDOW).open().sign_in("Cleo Santos")
    ada = window(viewport=WINDOW, color_scheme="dark").open().sign_in("Ada Winter")
    for each in (cleo, ada):
        expect(each.page.locator("#present-count")).to_have_text("2 online")
    cleo.create("Hovercraft")
    for each in (cleo, ada):
        expect(each.project("Hovercraft")).to_be_visible()
        each.page.mouse.move(0, 0)  # so that no button looks hovered
    picture = place_side_by_side(chromium, cleo.page.screenshot(), ada.page.screenshot())

    (SCREENSHOTS / "demo.png").write_bytes(picture)
    if pytestconfig.getoption("--renew-readme-picture"):
        PICTURE.write_bytes(picture)
    assert len(picture) < MAX_BYTES


def place_side_by_side(chromium: Browser, *pictures: bytes) -> bytes:
    """The pictures as one, each with rounded corners on a plain background."""
    images = "".join(f'<img src="data:image/png;base64,{base64.b64encode(each).decode()}">' for each in pictures)
    style = """
      body { margin: 0; padding: 24px; display: flex; gap: 24px; background: #cfd8d7; }
      img { border-radius: 12px; box-shadow: 0 4px 18px rgb(0 0 0 / 25%); }
    """
    size = {"width": 2 * WINDOW["width"] + 3 * 24, "height": WINDOW["height"] + 2 * 24}
    page = chromium.new_page(viewport=size)
    page.set_content(f"<style>{style}</style>{images}")
    picture = page.screenshot()
    page.close()
    return picture
