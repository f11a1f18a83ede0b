"""The gallery page: complete, self-contained, and safe for any prompt."""

from __future__ import annotations

import datetime as dt
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from uuid import UUID

import pytest

from rudalle_lib.report.gallery_page import (
    Entry,
    Gallery,
    render_chunk,
    render_gallery,
    script_safe_json,
)
from tests.support.gallery_pages import chunk_rows, page_data

HOSTILE = "</script><script>alert(1)</script><!--{{title}} \u2028 & \ud800"

IMAGE = Entry(
    image_id="a-000",
    prompt_id="a",
    caption="чёрный квадрат",
    score=0.4,
    seed=2**63 - 1,
    source="../data/a.png",
    details={"top_p": 0.995, "width": 8},
)

GALLERY = Gallery(
    title="demo",
    facts=[("2", "prompts")],
    models=["demo-dalle"],
    rejected_totals={"new_reason": 1, "empty_prompt": 5, "too_long": 0},
    replay="rudalle-flows replay output {id}",
    rows=[IMAGE, Entry(None, None, "", reason="empty_prompt", detail="row 3")],
)


class Page(HTMLParser):
    """Collects what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.links: list[str] = []
        self._kind: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._kind = (values.get("type") or "script") if tag == "script" else None
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._kind:
            self.scripts.append(data)
            self._kind = None


def test_the_page_holds_every_figure_and_every_reason_that_occurs() -> None:
    data = page_data(render_gallery(GALLERY))
    assert data["facts"] == [["2", "prompts"]]
    assert list(data["totals"].items()) == [("empty_prompt", 5), ("new_reason", 1)]
    assert [row.get("reason") for row in data["rows"]] == [None, "empty_prompt"]


def test_a_chunk_adds_its_rows_to_the_page() -> None:
    (row,) = chunk_rows(render_chunk([IMAGE]))
    assert (row["id"], row["score"], row["source"]) == ("a-000", 0.4, "../data/a.png")
    assert row["details"] == {"top_p": "0.995", "width": "8"}


def test_seeds_keep_all_their_digits() -> None:
    assert chunk_rows(render_chunk([IMAGE]))[0]["seed"] == str(2**63 - 1)


def test_the_page_loads_nothing_from_other_hosts() -> None:
    page = render_gallery(GALLERY)
    assert Page(page).links == ["data:,"]  # no icon
    assert "http://" not in page.replace("http: https:", "").replace("http://www.w3.org/2000", "")


def test_a_hostile_prompt_or_title_is_only_text() -> None:
    title = HOSTILE.replace("\ud800", "")
    hostile = replace(IMAGE, caption=HOSTILE, details={HOSTILE: HOSTILE})
    page = render_gallery(replace(GALLERY, title=title, rows=[hostile]))
    assert len(Page(page).scripts) == 2  # the data and the page's own script
    assert page_data(page)["rows"][0]["caption"] == HOSTILE.replace("\ud800", "?")
    page.encode()


def test_json_for_scripts_has_no_markup_and_reads_back() -> None:
    text = script_safe_json({"a": "<&>\u2028"})
    assert not set("<&>\u2028") & set(text)
    assert json.loads(text) == {"a": "<&>\u2028"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\xff\x00", "/wA="),
        ([b"\xff", None], '["/w==", null]'),
        ({"a": math.nan, "b": [dt.date(2026, 1, 2)]}, '{"a": null, "b": ["2026-01-02"]}'),
        ([("k", b"\xff")], '[["k", "/w=="]]'),
        (0.123456789, "0.123457"),
        ("ё", "ё"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_own_columns_of_any_type_are_text(value: Any, shown: str) -> None:
    page = render_gallery(replace(GALLERY, rows=[replace(IMAGE, columns={"x": value})]))
    (row,) = page_data(page)["rows"]
    assert row["columns"] == {"x": shown}
