"""The demo page is accessible: with the keyboard, on a phone, in light and dark mode, and with a screen reader."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from playwright.sync_api import Locator, expect

from tests.e2e.conftest import OpenWindow, Window

pytestmark = pytest.mark.thorough

Connection = psycopg.Connection[Any]
PHONE = {"width": 375, "height": 812}

FIND_UNLABELLED = """() => [...document.querySelectorAll("input, select, textarea, button")]
  .filter((each) => each.checkVisibility() && !each.labels?.length && !each.ariaLabel && !each.textContent.trim())
  .map((each) => each.outerHTML)"""

# The WCAG contrast of each visible text with the first opaque background behind it.
FIND_ILLEGIBLE = """(within) => {
  const rgba = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (channel) => (channel /= 255) <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const behind = (each) => {
    const color = rgba(getComputedStyle(each).backgroundColor);
    return color.length === 3 || color[3] === 1 ? color : each.parentElement ? behind(each.parentElement) : [255, 255, 255];
  };
  const hasText = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...(within ?? document.body).querySelectorAll("*")]
    .filter((each) => hasText(each) && each.checkVisibility())
    .map((each) => {
      const [a, b] = [luminance(rgba(getComputedStyle(each).color)), luminance(behind(each))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.outerHTML];
    })
    .filter(([contrast]) => contrast < 4.5);
}"""


def test_everything_can_be_done_with_the_keyboard(window: OpenWindow, database: Connection) -> None:
    ben = window().open()
    press = ben.page.keyboard.press
    tab_to(ben, ben.page.get_by_role("switch", name="Second factor verified"))
    tab_to(ben, ben.page.get_by_role("button", name="Ben Okafor"))
    press("Enter")
    ben.expect_live()

    tab_to(ben, ben.page.get_by_label("Title of the new project"))
    ben.page.keyboard.type("By hand")
    press("Enter")
    expect(ben.project("By hand")).to_be_visible()

    tab_to(ben, ben.page.get_by_role("button", name="Rename By hand"))
    press("Enter")
    expect(ben.page.get_by_role("textbox", name="New title")).to_be_focused()
    press("Escape")
    expect(ben.page.get_by_role("button", name="Rename By hand")).to_be_focused()
    press("Enter")
    ben.page.keyboard.type("By keyboard")
    press("Enter")
    expect(ben.page.get_by_role("button", name="Rename By keyboard")).to_be_focused()

    tab_to(ben, ben.page.get_by_role("button", name="Delete By keyboard"))
    press("Enter")
    press("Enter")
    expect(ben.project("By keyboard")).to_have_count(0)
    expect(ben.page.get_by_role("heading", name="Projects")).to_be_focused()


def tab_to(window: Window, control: Locator) -> None:
    """Presses Tab until the control has a visible focus."""
    for _ in range(80):
        window.page.keyboard.press("Tab")
        if control.evaluate("(control) => control === document.activeElement"):
            assert control.evaluate("(control) => getComputedStyle(control).outlineStyle") != "none"
            return
    raise AssertionError(f"the Tab key does not reach {control}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible_labelled_and_fits_a_phone(window: OpenWindow, scheme: str) -> None:
    ada = window(color_scheme=scheme, viewport=PHONE, reduced_motion="reduce").open()
    expect(ada.page.get_by_role("button", name="Ada Winter")).to_be_visible()
    expect_accessible(ada)

    ada.sign_in("Ada Winter", second_factor=False)
    expect(ada.member("Ada Winter")).to_contain_text("online")
    ada.show_all_actions()
    ada.create("Not without a second factor")
    expect(ada.alert).not_to_be_empty()
    rows = ada.page.locator("#projects > li")
    rows.nth(0).get_by_role("button", name="Rename").click()
    rows.nth(1).get_by_role("button", name="Delete").click()
    expect_accessible(ada)


def expect_accessible(window: Window) -> None:
    page = window.page
    assert page.locator("html").get_attribute("lang") == "en"
    expect(page.locator("h1")).to_have_count(1)
    assert page.evaluate(FIND_UNLABELLED) == []
    assert page.evaluate(FIND_ILLEGIBLE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
