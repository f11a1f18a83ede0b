"""The page of a comparison in a real browser: on a desktop, on a phone, and in the dark."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, ViewportSize

from rudalle_lib.comparison.drift import compare_figures, parse_limits
from rudalle_lib.comparison.figures import Slice
from rudalle_lib.comparison.page import render_comparison
from tests.support.figures import made_up, slice_of

pytestmark = [pytest.mark.ui]

PHONE: ViewportSize = {"width": 360, "height": 740}
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
WIDE: ViewportSize = {"width": 1280, "height": 800}


def write_page(folder: Path) -> str:
    """Two datasets of four groups, one with a long name."""
    draw = random.Random(0)

    def part(mean: float, drawn: int, kept: int) -> Slice:
        return slice_of([draw.gauss(mean, 0.05) for _ in range(kept)], drawn, drawn // 8)

    names = ("figures", "still life", "portraits_of_people_without_a_blank_anywhere", "colour")
    before = made_up(
        "monday",
        {name: part(0.3 + 0.02 * place, 160, 60) for place, name in enumerate(names)},
        rejected={"below_threshold": 240, "not_in_best_k": 160},
    )
    after = made_up(
        "tuesday",
        {name: part(0.32 + 0.01 * place, 160, 48) for place, name in enumerate(names)},
        rejected={"below_threshold": 300, "not_in_best_k": 148},
        diversity=0.36,
        seconds=2.4,
    )
    page = folder / "comparison.html"
    found = compare_figures(before, after, parse_limits(["score=0.05", "acceptance=0.2"]))
    page.write_text(render_comparison(found), encoding="utf-8")
    return page.as_uri()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_everything_is_visible_and_fits(
    browser: Browser, tmp_path: Path, size: ViewportSize, scheme: Scheme
) -> None:
    page = browser.new_page(viewport=size, color_scheme=scheme)
    errors: list[str] = []
    page.on("console", lambda entry: errors.append(entry.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(write_page(tmp_path))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for text in ("Acceptance", "Beyond the limit: score.", "Groups", "still life"):
        assert page.get_by_text(text, exact=text != "still life").first.is_visible()
    box = page.locator(".histogram").bounding_box()
    assert box is not None and box["width"] > 280 and box["height"] >= 180
    bars = page.locator(".bar.after i")
    widths = [bars.nth(place).evaluate("node => node.offsetWidth") for place in range(8)]
    assert min(widths) > 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(244, 244, 242)" if scheme == "light" else "rgb(19, 19, 20)")
    assert errors == []
    page.close()
