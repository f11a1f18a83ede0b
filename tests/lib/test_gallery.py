"""The gallery page: complete, self-contained, and safe whatever a prompt says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

from rudalle_lib.gallery import Gallery, Picture, Rejected, render_gallery, script_safe_json

HOSTILE = "</script><script>alert(1)</script><!--{{title}} \u2028 & \ud800"

GALLERY = Gallery(
    title="demo",
    facts=[("2", "prompts")],
    models=["demo-dalle"],
    published=[Picture("a-000", "чёрный квадрат", None, 0.4, 2**63 - 1, "../data/a.png", 8, 8)],
    published_total=1,
    rejected=[
        Rejected(None, "", "empty_prompt", "row 3"),
        Rejected("a-001", "x", "new_reason", None),
    ],
    rejected_totals={"new_reason": 1, "empty_prompt": 5},
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


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return dict(json.loads(found[1]))


def test_the_page_holds_every_figure_and_every_reason() -> None:
    data = data_of(render_gallery(GALLERY))
    assert data["facts"] == [["2", "prompts"]]
    groups = [(g["reason"], g["total"], len(g["items"])) for g in data["rejected"]]  # type: ignore[attr-defined]
    assert groups == [("empty_prompt", 5, 1), ("new_reason", 1, 1)]


def test_seeds_keep_all_their_digits() -> None:
    data = data_of(render_gallery(GALLERY))
    assert data["published"][0]["seed"] == str(2**63 - 1)  # type: ignore[index]


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = render_gallery(GALLERY)
    assert Page(page).links == []
    assert "http://" not in page.replace("http: https:", "")


def test_a_hostile_prompt_or_title_is_only_text() -> None:
    title = HOSTILE.replace("\ud800", "")
    picture = replace(GALLERY.published[0], caption=HOSTILE)
    page = render_gallery(replace(GALLERY, title=title, published=[picture]))
    assert len(Page(page).scripts) == 2  # the data and the page's own script
    caption = data_of(page)["published"][0]["caption"]  # type: ignore[index]
    assert caption == HOSTILE.replace("\ud800", "?")
    page.encode()


def test_json_for_scripts_has_no_markup_and_reads_back() -> None:
    text = script_safe_json({"a": "<&>\u2028"})
    assert not set("<&>\u2028") & set(text)
    assert json.loads(text) == {"a": "<&>\u2028"}
