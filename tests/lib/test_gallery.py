"""The gallery page: complete, self-contained, and safe whatever a prompt says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from rudalle_lib.gallery import Entry, Gallery, render_chunk, render_gallery, script_safe_json

HOSTILE = "</script><script>alert(1)</script><!--{{title}} \u2028 & \ud800"

PICTURE = Entry(
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
    rows=[PICTURE, Entry(None, None, "", reason="empty_prompt", detail="row 3")],
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


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return dict(json.loads(found[1]))


def rows_of(chunk: str) -> list[dict[str, Any]]:
    found = re.fullmatch(r"galleryRows\((.*)\);\n", chunk, re.S)
    assert found
    return list(json.loads(found[1]))


def test_the_page_holds_every_figure_and_every_reason_that_occurs() -> None:
    data = data_of(render_gallery(GALLERY))
    assert data["facts"] == [["2", "prompts"]]
    assert list(data["totals"].items()) == [("empty_prompt", 5), ("new_reason", 1)]
    assert [row.get("reason") for row in data["rows"]] == [None, "empty_prompt"]


def test_a_chunk_gives_its_rows_to_the_page() -> None:
    (row,) = rows_of(render_chunk([PICTURE]))
    assert (row["id"], row["score"], row["source"]) == ("a-000", 0.4, "../data/a.png")
    assert row["details"] == {"top_p": "0.995", "width": "8"}


def test_seeds_keep_all_their_digits() -> None:
    assert rows_of(render_chunk([PICTURE]))[0]["seed"] == str(2**63 - 1)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = render_gallery(GALLERY)
    assert Page(page).links == ["data:,"]  # no icon
    assert "http://" not in page.replace("http: https:", "").replace("http://www.w3.org/2000", "")


def test_a_hostile_prompt_or_title_is_only_text() -> None:
    title = HOSTILE.replace("\ud800", "")
    hostile = replace(PICTURE, caption=HOSTILE, details={HOSTILE: HOSTILE})
    page = render_gallery(replace(GALLERY, title=title, rows=[hostile]))
    assert len(Page(page).scripts) == 2  # the data and the page's own script
    assert data_of(page)["rows"][0]["caption"] == HOSTILE.replace("\ud800", "?")
    page.encode()


def test_json_for_scripts_has_no_markup_and_reads_back() -> None:
    text = script_safe_json({"a": "<&>\u2028"})
    assert not set("<&>\u2028") & set(text)
    assert json.loads(text) == {"a": "<&>\u2028"}
