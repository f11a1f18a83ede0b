"""The gallery in a real browser: all that it can do, from disk and from object storage."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from rudalle_lib.config import RunConfig
from rudalle_lib.gallery import Entry, Gallery, render_gallery
from rudalle_lib.report import render_shared_gallery, write_report
from rudalle_lib.storage import Storage
from tests.hand_made import NAMES, plan_by_hand, publish_by_hand
from tests.ui.drawn_gallery import write_drawn_gallery

COUNT = 10_000
STARTED = "2021-11-02T00:00:00+00:00"
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A gallery of 10,000 candidates, a quarter of them set aside, and of one empty prompt."""
    return write_drawn_gallery(tmp_path_factory.mktemp("drawn"), COUNT).as_uri()


@pytest.fixture
def gallery(page: Page, address: str) -> Iterator[Page]:
    """The gallery, open, with all rows there; it asks for nothing but files beside it."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_gallery(page, address)
    yield page
    assert asked and all(url.startswith(("file://", "data:")) for url in asked)


def open_gallery(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("#count")).to_have_text(re.compile(r"^7,500 of 10,001$"))


def count_of(page: Page) -> int:
    """How many entries are chosen, as the page says."""
    return int(page.locator("#count").inner_text().split()[0].replace(",", ""))


def scores_of(page: Page) -> list[float]:
    """The scores of the tiles that are drawn, in their order."""
    return [float(text) for text in page.locator("#grid .figures b").all_inner_texts()]


def test_tiles_show_caption_score_model_and_seed(gallery: Page) -> None:
    first = gallery.locator("#grid li").first
    expect(first.locator(".caption")).to_have_text(re.compile(r"[а-яё ]{10,}"))
    assert re.fullmatch(r"0\.\d{3} demo-dalle", first.locator(".figures").first.inner_text())
    expect(first).to_contain_text(f"seed {2**62}")
    assert first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)")


def test_search_status_score_and_order_work_together(gallery: Page) -> None:
    gallery.fill("#search", "prompt17-")
    assert count_of(gallery) == 3
    gallery.select_option("#status", "all")
    assert count_of(gallery) == 4
    gallery.select_option("#sort", "worst")
    scores = scores_of(gallery)
    assert len(scores) == 4 and scores == sorted(scores)
    gallery.select_option("#sort", "best")
    assert scores_of(gallery) == scores[::-1]
    gallery.locator("#score").fill("0.2")
    assert scores_of(gallery) == [score for score in scores[::-1] if score >= 0.2]
    gallery.fill("#search", "no such words")
    expect(gallery.locator("#none")).to_be_visible()
    gallery.click("#reset")
    assert count_of(gallery) == 7_500


def test_what_was_set_aside_is_shown_with_its_reason(gallery: Page) -> None:
    gallery.select_option("#status", "reason:empty_prompt")
    assert count_of(gallery) == 1
    expect(gallery.locator("#grid li")).to_contain_text("No text")
    gallery.select_option("#status", "aside")
    assert count_of(gallery) == 2_501
    gallery.locator("#grid a").nth(1).click()
    reason = gallery.locator("#large-reason")
    expect(reason).to_contain_text("Set aside: Below the minimum score. expected a score of")


def test_a_large_picture_has_metadata_siblings_and_the_command_to_draw_it_again(
    gallery: Page,
) -> None:
    gallery.locator("#grid a").nth(4).click()
    expect(gallery.locator("#large")).to_be_visible()
    expect(gallery.locator("#replay")).to_have_text("rudalle-flows replay output/demo prompt1-001")
    expect(gallery.locator("#details")).to_contain_text("top p")
    expect(gallery.locator("#siblings button")).to_have_count(4)
    assert gallery.locator("#siblings li.aside").count() == 1
    gallery.locator("#siblings button").last.click()
    expect(gallery.locator("#replay")).to_have_text(re.compile("prompt1-003$"))
    assert gallery.evaluate("location.hash") == "#prompt1-003"


def test_an_address_opens_its_picture(gallery: Page, address: str) -> None:
    gallery.goto("about:blank")
    gallery.goto(f"{address}#prompt1999-002")
    expect(gallery.locator("#replay")).to_have_text(re.compile("prompt1999-002$"))


def test_everything_can_be_done_with_the_keyboard(gallery: Page) -> None:
    keyboard = gallery.keyboard
    keyboard.press("/")
    keyboard.type("demo-dalle")
    for _ in range(4):  # status, order, score, the grid
        keyboard.press("Tab")
    keyboard.press("ArrowDown")
    keyboard.press("ArrowRight")
    columns = gallery.evaluate("columns")
    focused = "Number(document.activeElement.dataset.index)"
    assert gallery.evaluate(focused) == columns + 1
    keyboard.press("Enter")
    expect(gallery.locator("#place")).to_have_text(f"{columns + 2} of 7,500")
    keyboard.press("ArrowRight")
    expect(gallery.locator("#place")).to_have_text(f"{columns + 3} of 7,500")
    keyboard.press("Escape")
    gallery.wait_for_function(f"{focused} === {columns + 2}")  # told of the closing a moment later
    expect(gallery.locator("#large")).to_be_hidden()
    assert gallery.evaluate(focused) == columns + 2
    keyboard.press("End")
    assert gallery.evaluate(focused) == 7_499
    assert gallery.evaluate("document.activeElement.getBoundingClientRect().top < innerHeight")


def test_ten_thousand_pictures_scroll_and_filter_at_once(gallery: Page) -> None:
    """A bounded number of tiles, whatever is chosen; the bounds leave room for a busy machine."""
    tiles, milliseconds = gallery.evaluate(SCROLL)
    assert tiles < 150
    assert milliseconds < 100
    gallery.select_option("#status", "all")
    assert gallery.evaluate(FILTER) < 1000
    assert gallery.locator("#grid li").count() < 150


SCROLL = """() => {
  const times = []; let tiles = 0;
  for (let screen = 0; screen < 90; screen++) {
    const before = performance.now();
    scrollBy(0, 900); draw(); grid.getBoundingClientRect();
    times.push(performance.now() - before);
    tiles = Math.max(tiles, grid.children.length);
  }
  return [tiles, times.sort((a, b) => a - b)[45]];
}"""
"""Ninety screens downwards: the most tiles there were, and the median milliseconds of a screen."""

FILTER = """() => {
  const times = ["красный", "круг", "prompt9", ""].map((words) => {
    const before = performance.now();
    byId("search").value = words; choose(); grid.getBoundingClientRect();
    return performance.now() - before;
  });
  return Math.max(...times);
}"""
"""Milliseconds that the slowest of four searches takes, layout included."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(browser: Browser, address: str, scheme: str) -> None:
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    open_gallery(page, address)
    for selector in ("body", ".figures", "label > span"):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector
    page.close()


CONTRAST = """(selector) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map((n) => n / 255)
      .map((n) => (n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = (node) => getComputedStyle(node);
  const ink = light(style(document.querySelector(selector)).color);
  const paper = light(style(document.body).backgroundColor);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
}"""
"""WCAG's contrast ratio between a text and the paper."""


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport=PHONE, has_touch=True)  # type: ignore[arg-type]
    open_gallery(page, address)
    sideways = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate("columns") == 2
    assert page.evaluate(sideways) <= 0
    page.locator("#grid a").first.tap()
    picture = page.locator("#large-picture img").bounding_box()
    assert picture and picture["width"] > 300
    assert page.evaluate("large.scrollWidth - innerWidth") <= 0
    page.close()


HOSTILE = "</script><script>window.harmed=1</script><img src=x onerror='window.harmed=2'>"


def test_a_script_in_a_prompt_is_harmless(page: Page, tmp_path: Path) -> None:
    entry = Entry(HOSTILE, HOSTILE, HOSTILE, HOSTILE, "too_long", HOSTILE, 0.1, 1, HOSTILE)
    shown = Gallery(HOSTILE, [(HOSTILE, HOSTILE)], [HOSTILE], {HOSTILE: 1}, HOSTILE, (), [entry])
    (tmp_path / "page.html").write_text(render_gallery(shown), encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    page.select_option("#status", "all")
    expect(page.locator("#grid .caption")).to_have_text(HOSTILE)
    page.locator("#grid a").click()
    expect(page.locator("#large-caption")).to_have_text(HOSTILE)
    assert page.evaluate("window.harmed") is None
    assert page.locator("script").count() == 2


def test_inline_scripts_but_its_own_are_refused(browser: Browser, address: str) -> None:
    """The second wall: even markup that came through would not run."""
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))

    def add_script(route: Route) -> None:
        body = Path(address.removeprefix("file://")).read_text("utf-8")
        body = body.replace("</body>", "<script>window.harmed=1</script></body>")
        route.fulfill(body=body, content_type="text/html; charset=utf-8")

    page.route(address, add_script)
    page.goto(address)
    expect(page.locator("#count")).to_have_text(re.compile("of"))
    assert page.evaluate("window.harmed") is None
    assert any("Content Security Policy" in text for text in said)
    page.close()


@pytest.fixture
def published(s3_url: str, tmp_path: Path) -> Storage:
    """A finished output in object storage."""
    config = RunConfig.model_validate({"name": "on S3", "output": s3_url})
    storage = Storage(s3_url)
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    write_report(storage, config, dict.fromkeys(NAMES, "digest"), 1, STARTED)
    return storage


def pictures_shown(page: Page) -> list[int]:
    """The widths of the pictures on the page, once they are there."""
    expect(page.locator("#grid img")).to_have_count(6)
    script = "images => Promise.all(images.map((i) => i.decode().then(() => i.naturalWidth)))"
    widths: list[int] = page.locator("#grid img").evaluate_all(script)
    return widths


def test_the_page_to_pass_on_shows_pictures_by_signed_urls(
    page: Page, published: Storage, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(render_shared_gallery(published, 600), encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    assert pictures_shown(page) == [16] * 6


def test_the_page_works_from_where_a_store_serves_it(page: Page, published: Storage) -> None:
    """As from a public bucket: every request is answered by the store, with the type it keeps."""

    def from_store(route: Route) -> None:
        path = route.request.url.removeprefix("http://bucket.test/")
        with urllib.request.urlopen(published.link(path, 60), timeout=10) as answer:
            route.fulfill(body=answer.read(), content_type=answer.headers["Content-Type"])

    page.route("http://bucket.test/**", from_store)
    page.goto("http://bucket.test/gallery/index.html")
    assert pictures_shown(page) == [16] * 6
