"""The page of a comparison: self-contained, and safe for any name."""

from __future__ import annotations

import re

import pytest

from rudalle_lib.comparison.drift import compare_figures, parse_limits
from rudalle_lib.comparison.page import BINS, render_comparison
from tests.support.figures import made_up, slice_of

BEFORE = made_up("before", {"x": slice_of([0.0, 0.25, 1.0, 1.0], 8), "y": slice_of([0.5], 2)})
AFTER = made_up("after", {"x": slice_of([0.5], 4)})


def test_the_page_loads_nothing() -> None:
    page = render_comparison(compare_figures(BEFORE, AFTER))
    assert "{{" not in page and "<script" not in page and "default-src 'none'" in page
    assert not re.search(r"(src|href)=[\"']?(?!data:)[a-z/]", page)
    assert re.findall(r"url\((?!data:)", page) == []


def test_histograms_have_a_step_per_bin_and_share_their_scale() -> None:
    page = render_comparison(compare_figures(BEFORE, AFTER))
    before, after = re.findall(r"<path class='(?:before|after)' d='([^']*)'", page)
    heights = [
        [float(step) for step in re.findall(r"V([\d.]+)H", path)] for path in (before, after)
    ]
    assert [len(one) for one in heights] == [BINS, BINS]
    assert heights[0][0] == heights[0][10] == 80.0  # a fifth of the images each
    assert heights[0][-1] == 60.0 and heights[1][20] == 0.0
    assert page.count("<line class='before'") == page.count("<line class='after'") == 1


def test_groups_have_bars_of_their_shares() -> None:
    page = render_comparison(compare_figures(BEFORE, AFTER))
    rows = re.findall(r"<tr><th scope=row>([xy])<.*?</tr>", page)
    assert rows == ["x", "y"]  # the one with more candidates first
    assert "--share:0.500'></i><b>50.0%" in page and "--share:0.250'></i><b>25.0%" in page


@pytest.mark.parametrize("limit", ["acceptance=0.01", "acceptance=1"])
def test_limits_are_judged(limit: str) -> None:
    page = render_comparison(compare_figures(BEFORE, AFTER, parse_limits([limit])))
    assert ("Beyond the limit: acceptance." in page) == (limit == "acceptance=0.01")
    assert ("Within all limits." in page) == (limit == "acceptance=1")


def test_names_are_text_and_empty_datasets_have_a_page() -> None:
    evil = made_up("<img src=x>", {"<b>": slice_of([], 0)})
    page = render_comparison(compare_figures(evil, evil))
    assert "<img" not in page and "<b>&lt;b&gt;" not in page and "&lt;b&gt;" in page
    assert "Neither has published images." in page
