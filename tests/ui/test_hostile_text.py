"""No script of a prompt, a name or a column runs in a browser, in no page that a run leaves."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Page, Route, expect

from rudalle_lib.report.dataset_card import CardModel, render_dataset_card
from rudalle_lib.report.gallery_page import Entry, Gallery, render_chunk, render_gallery
from rudalle_lib.schema.records import RunManifest, RunTotals, RunUsage

ATTACKS = (
    "<img src=x onerror='window.harmed=1'>",
    "<script>window.harmed=1</script>",
    "</script><script>window.harmed=1</script>",
    "</title></dt></p></table><svg onload='window.harmed=1'>",
    "\"><iframe srcdoc='<script>parent.harmed=1</script>'></iframe>",
    "[x](javascript:window.harmed=1) | <a href='javascript:window.harmed=1'>x</a>",
    "`</code><img src=x onerror=window.harmed=1>`",
    "__proto__",
    "constructor",
    "'; window.harmed=1; '",
    "{{title}}${window.harmed=1}",
)
"""Texts that would run a script if some page took them for markup or code."""


def gallery_of(text: str, chunks: tuple[str, ...] = ()) -> Gallery:
    entry = Entry(text, text, text, text, text, text, 0.5, 1, text, text, {text: text})
    rows = [entry, Entry(text, text, text, score=0.25)]
    return Gallery(text, [(text, text)], [text], {text: 1}, "replay out {id}", chunks, rows)


@pytest.mark.parametrize("text", ATTACKS)
def test_a_gallery_shows_every_text_as_text(page: Page, tmp_path: Path, text: str) -> None:
    page.route("**/*", lambda route: _only_files(route, tmp_path))
    (tmp_path / "chunk.js").write_text(render_chunk([Entry("a", "b", text, details={text: 1})]))
    path = tmp_path / "index.html"
    path.write_text(render_gallery(gallery_of(text, ("chunk.js",))), encoding="utf-8")
    page.goto(path.as_uri())
    expect(page.locator("h1")).to_have_text(text)
    page.select_option("#status", "all")
    expect(page.locator("#count")).to_have_text("3 of 3")
    page.locator("#grid a").first.click()
    expect(page.locator("#viewer-caption")).to_have_text(text)
    expect(page.locator("#details dd").first).to_have_text(text)
    command = page.locator("#replay").inner_text()
    assert command in (f"replay out {text}", f"replay out {shell_word(text)}")
    assert page.evaluate("window.harmed") is None
    assert page.locator("iframe, svg[onload], img[onerror], [href^=javascript]").count() == 0


def shell_word(text: str) -> str:
    quote = "'\\''"
    return f"'{text.replace(chr(39), quote)}'"


def _only_files(route: Route, folder: Path) -> None:
    """Answer requests for images that do not exist, so that they are no errors of the page."""
    url = route.request.url
    if url.startswith("file:") and url.rsplit("/", 1)[-1] in ("index.html", "chunk.js"):
        route.continue_()
    else:
        route.fulfill(status=200, content_type="image/svg+xml", body="")


@pytest.mark.parametrize("text", ATTACKS)
def test_a_dataset_card_shows_every_text_as_text(page: Page, text: str) -> None:
    """Rendered by a Markdown parser that lets HTML through, as the hub's and GitHub's do."""
    totals, usage = RunTotals(1, 2, 3, 4, {text: 1}), RunUsage(60.0, 8.5, 2, 0.25)
    run = RunManifest(text, {"seed": 7}, "d", {}, {text: text}, 3, totals, "s", "e", {}, usage)
    models = [CardModel(text, text, text, text)]
    columns = pa.schema([pa.field(text, pa.struct([pa.field(text, pa.int8())]))])
    card = render_dataset_card(run, models, [text], columns)
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    page.set_content(f"<!doctype html><main>{body}</main>")
    expect(page.locator("h1")).to_have_text(text)
    expect(page.locator("td code").last).to_have_text(text)
    assert page.evaluate("window.harmed") is None
    assert page.locator("main img, main script, main iframe, main svg, main a").count() == 0
