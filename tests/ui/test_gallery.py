"""The gallery in a real browser, opened from disk and from object storage."""

from __future__ import annotations

import io
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.curation import parse_curation, render_curation
from rudalle_lib.derived.thumbnails import make_thumbnail
from rudalle_lib.report.gallery_page import Entry, Gallery, render_gallery
from rudalle_lib.report.report import render_shared_gallery, write_report
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import NAMES, plan_by_hand, publish_by_hand
from tests.ui.drawn_gallery import write_drawn_gallery

COUNT = 10_000
STARTED = "2021-11-02T00:00:00+00:00"
PHONE: ViewportSize = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A gallery of 10,000 candidates, a quarter of them rejected, and one empty prompt."""
    return write_drawn_gallery(tmp_path_factory.mktemp("drawn"), COUNT).as_uri()


@pytest.fixture
def gallery(page: Page, address: str) -> Iterator[Page]:
    """The open gallery with all entries loaded; fails if it requests anything but local files."""
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    open_gallery(page, address)
    yield page
    assert requested and all(url.startswith(("file://", "data:")) for url in requested)


def open_gallery(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("#count")).to_have_text(re.compile(r"^7,500 of 10,001$"))


def count_of(page: Page) -> int:
    """Number of entries that match the filters, as shown on the page."""
    return int(page.locator("#count").inner_text().split()[0].replace(",", ""))


def scores_of(page: Page) -> list[float]:
    """Scores of the rendered tiles, in order."""
    return [float(text) for text in page.locator("#grid .figures b").all_inner_texts()]


def test_tiles_show_caption_score_model_and_seed(gallery: Page) -> None:
    first = gallery.locator("#grid li").first
    expect(first.locator(".caption")).to_have_text(re.compile(r"[а-яё ]{10,}"))
    assert re.fullmatch(r"0\.\d{3} demo-dalle", first.locator(".figures").first.inner_text())
    expect(first).to_contain_text(f"seed {2**62}")
    assert first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)")


def test_search_status_score_and_sorting_combine(gallery: Page) -> None:
    gallery.fill("#search", "prompt17-")
    assert count_of(gallery) == 3
    gallery.select_option("#status", "all")
    assert count_of(gallery) == 4
    gallery.select_option("#sort", "worst")
    scores = scores_of(gallery)
    assert len(scores) == 4 and scores == sorted(scores)
    gallery.select_option("#sort", "best")
    assert scores_of(gallery) == scores[::-1]
    set_score(gallery, 500)
    least = float(gallery.locator("#score-value").inner_text())
    assert scores_of(gallery) == [score for score in scores[::-1] if score >= least]
    assert 0 < count_of(gallery) < 4
    gallery.fill("#search", "no such words")
    expect(gallery.locator("#no-matches")).to_be_visible()
    gallery.click("#reset")
    assert count_of(gallery) == 7_500


def set_score(page: Page, step: int) -> None:
    """Move the slider to one of its 1,000 steps between the lowest and the highest score."""
    page.locator("#score").fill(str(step))


def test_the_slider_at_its_start_hides_nothing_and_at_its_end_shows_the_best(gallery: Page) -> None:
    """Scores have full precision, and the slider's own numbers are rounded."""
    gallery.select_option("#status", "all")
    set_score(gallery, 1000)
    best = gallery.evaluate("Math.max(...all.filter(hasScore).map((item) => item.score))")
    assert count_of(gallery) == 1 and scores_of(gallery) == [round(best, 3)]
    set_score(gallery, 1)
    assert count_of(gallery) < 10_000
    set_score(gallery, 0)
    assert count_of(gallery) == 10_001


def test_search_knows_own_columns_and_treats_two_letters_as_one(gallery: Page) -> None:
    gallery.select_option("#status", "all")
    themed = {"ёлка": 2_502 + 834, "Елка": 2_502 + 834, "площадь": 6_664}
    for words, count in themed.items():
        gallery.fill("#search", words)
        assert count_of(gallery) == count, words
    gallery.fill("#search", "зеленая")
    assert count_of(gallery) > 0


def test_the_controls_are_on_the_first_quarter_of_a_screen(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    open_gallery(page, address)
    bottom = "byId('controls').getBoundingClientRect().bottom"
    assert page.evaluate(bottom) < 768 / 4
    page.set_viewport_size(PHONE)
    assert page.evaluate(bottom) < 844 / 4
    expect(page.locator("#status")).to_be_hidden()
    page.click("#more")
    page.select_option("#status", "rejected")
    expect(page.locator("#more")).to_have_text("Filters: 1")
    assert count_of(page) == 2_501
    page.click("#more")
    expect(page.locator("#status")).to_be_hidden()
    page.close()


def test_images_are_grouped_by_a_column_in_the_order_of_its_values(gallery: Page) -> None:
    gallery.select_option("#group", "column:theme")
    assert gallery.evaluate("headings.map((heading) => heading.text)") == [
        "ёлка",
        "площадь 9",
        "площадь 10",
    ]
    assert gallery.evaluate("headings.map((heading) => heading.count)") == [2_502, 2_499, 2_499]
    expect(gallery.locator("#headings h2").first).to_have_text("ёлка 2,502")
    assert gallery.locator("#group option").count() == 3  # `row` has too many values
    gallery.select_option("#group", "prompt")
    gallery.select_option("#status", "all")
    assert gallery.evaluate("headings.length") == 2_501
    gallery.locator("#grid a").nth(1).focus()
    gallery.keyboard.press("ArrowDown")
    assert gallery.evaluate("shown[current].prompt") == "prompt1"  # the same column, a row below


def test_similar_images_are_offered_beside_an_image(gallery: Page) -> None:
    gallery.locator("#grid a").first.click()
    expect(gallery.locator("#similar-part")).to_be_visible()
    similar = gallery.locator("#similar li")
    expect(similar).to_have_count(8)
    titles = [similar.nth(index).locator("button").get_attribute("title") for index in range(2)]
    assert titles == ["prompt2-000", "prompt1-000"]
    similar.first.locator("button").click()
    assert gallery.evaluate("location.hash") == "#prompt2-000"
    rejected = gallery.locator("#siblings li.rejected button")
    rejected.click()
    expect(gallery.locator("#similar-part")).to_be_hidden()


def test_candidates_are_compared_side_by_side(gallery: Page, address: str) -> None:
    gallery.locator("#grid a").nth(4).focus()
    gallery.keyboard.press("c")
    figures = gallery.locator(".side-by-side figure")
    expect(figures).to_have_count(4)
    shown = figures.locator("b").all_inner_texts()
    assert shown == sorted(shown, reverse=True)
    expect(figures.last).to_contain_text("Below the minimum score")
    assert gallery.evaluate("location.hash") == "#compare=prompt1-001"
    boxes = [figures.nth(number).bounding_box() for number in range(2)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"]
    figures.first.locator("button").first.click()
    expect(gallery.locator(".side-by-side")).to_have_count(0)
    gallery.goto("about:blank")
    gallery.goto(f"{address}#compare=prompt1-001")
    expect(figures).to_have_count(4)


def test_images_are_kept_and_rejected_by_hand_and_listed(gallery: Page, address: str) -> None:
    gallery.locator("#grid a").nth(0).focus()
    gallery.keyboard.press("k")
    gallery.keyboard.press("ArrowRight")
    gallery.keyboard.press("x")
    gallery.keyboard.press("ArrowRight")
    gallery.keyboard.press("x")
    gallery.keyboard.press("x")  # once more takes it back
    expect(gallery.locator("#marked")).to_have_text("By hand: 1 kept, 1 rejected")
    gallery.locator("#grid li").nth(3).locator(".mark-button").click()
    gallery.locator("#grid a").nth(5).click()
    gallery.click("#reject")
    expect(gallery.locator("#reject")).to_have_attribute("aria-pressed", "true")
    gallery.click("#close")
    with gallery.expect_download() as started:
        gallery.click("#download")
    assert started.value.suggested_filename == "curation.csv"
    assert Path(started.value.path()).read_text("utf-8").splitlines() == [
        "image_id,decision,note",
        "prompt0-000,keep,",
        "prompt0-001,reject,",
        "prompt1-000,keep,",
        "prompt1-002,reject,",
    ]
    read = parse_curation(Path(started.value.path()).read_bytes(), "curation.csv").decisions
    assert [decision for decision, _ in read.values()] == ["keep", "reject", "keep", "reject"]
    gallery.reload()
    open_gallery(gallery, address)
    gallery.select_option("#status", "marked")
    assert count_of(gallery) == 4
    gallery.click("#clear")
    expect(gallery.locator("#curation")).to_be_hidden()


def test_a_note_on_a_decision_is_kept_and_exported(gallery: Page, address: str) -> None:
    note = gallery.locator("#note")
    gallery.locator("#grid a").nth(0).click()
    expect(note).to_be_hidden()
    gallery.click("#reject")
    note.fill('=kxc, "two" круга')
    note.press("k")
    note.press("ArrowLeft")  # keys of the page are text here
    expect(gallery.locator("#reject")).to_have_attribute("aria-pressed", "true")
    gallery.click("#keep")  # another decision with the same note
    gallery.click("#next")
    expect(note).to_be_hidden()
    gallery.keyboard.press("k")
    expect(note).to_have_value("")
    gallery.reload()
    open_gallery(gallery, address)
    with gallery.expect_download() as started:
        gallery.click("#download")
    content = Path(started.value.path()).read_bytes()
    decisions = parse_curation(content, "curation.csv").decisions
    assert [*decisions.values()] == [("keep", '=kxc, "two" кругаk'), ("keep", "")]
    assert render_curation(decisions) == content, "it stays so when it is added to an output"
    gallery.locator("#grid a").nth(0).click()
    expect(note).to_have_value('=kxc, "two" кругаk')
    gallery.click("#keep")  # takes the decision back, and its note with it
    gallery.click("#keep")
    expect(note).to_have_value("")


def test_a_view_can_be_shared_by_its_address(gallery: Page, address: str) -> None:
    gallery.select_option("#status", "all")
    gallery.select_option("#group", "column:theme")
    gallery.fill("#search", "красн")
    set_score(gallery, 700)
    count, shared = count_of(gallery), gallery.evaluate("location.hash")
    gallery.goto("about:blank")
    gallery.goto(address + shared)
    expect(gallery.locator("#search")).to_have_value("красн")
    expect(gallery.locator("#count")).to_have_text(f"{count:,} of 10,001")
    assert gallery.evaluate("headings.length") == 3


def test_rejected_entries_are_shown_with_their_reason(gallery: Page) -> None:
    gallery.select_option("#status", "reason:empty_prompt")
    assert count_of(gallery) == 1
    expect(gallery.locator("#grid li")).to_contain_text("No text")
    gallery.select_option("#status", "rejected")
    assert count_of(gallery) == 2_501
    gallery.locator("#grid a").nth(1).click()
    reason = gallery.locator("#viewer-reason")
    expect(reason).to_contain_text("Rejected: Below the minimum score (expected a score of")


def test_the_viewer_shows_metadata_siblings_and_the_replay_command(
    gallery: Page,
) -> None:
    gallery.locator("#grid a").nth(4).click()
    expect(gallery.locator("#viewer")).to_be_visible()
    expect(gallery.locator("#replay")).to_have_text("rudalle-flows replay output/demo prompt1-001")
    expect(gallery.locator("#details")).to_contain_text("top p")
    expect(gallery.locator("#siblings button")).to_have_count(4)
    assert gallery.locator("#siblings li.rejected").count() == 1
    gallery.locator("#siblings button").last.click()
    expect(gallery.locator("#replay")).to_have_text(re.compile("prompt1-003$"))
    assert gallery.evaluate("location.hash") == "#prompt1-003"


def test_a_url_fragment_opens_its_image(gallery: Page, address: str) -> None:
    gallery.goto("about:blank")
    gallery.goto(f"{address}#prompt1999-002")
    expect(gallery.locator("#replay")).to_have_text(re.compile("prompt1999-002$"))


def test_everything_can_be_done_with_the_keyboard(gallery: Page) -> None:
    keyboard = gallery.keyboard
    keyboard.press("/")
    keyboard.type("demo-dalle")
    for _ in range(5):  # status, order, groups, score, the grid
        keyboard.press("Tab")
    keyboard.press("ArrowDown")
    keyboard.press("ArrowRight")
    columns = gallery.evaluate("columns")
    focused = "Number(document.activeElement.dataset.index)"
    assert gallery.evaluate(focused) == columns + 1
    keyboard.press("Enter")
    expect(gallery.locator("#position")).to_have_text(f"{columns + 2} of 7,500")
    keyboard.press("ArrowRight")
    expect(gallery.locator("#position")).to_have_text(f"{columns + 3} of 7,500")
    keyboard.press("Escape")
    # The close event comes a moment later.
    expect(gallery.locator(f'#grid a[data-index="{columns + 2}"]')).to_be_focused()
    expect(gallery.locator("#viewer")).to_be_hidden()
    assert gallery.evaluate(focused) == columns + 2
    keyboard.press("End")
    assert gallery.evaluate(focused) == 7_499
    assert gallery.evaluate("document.activeElement.getBoundingClientRect().top < innerHeight")


def test_ten_thousand_images_scroll_and_filter_quickly(gallery: Page) -> None:
    """The number of rendered tiles is bounded; the time limits allow for a busy machine."""
    tiles, milliseconds = gallery.evaluate(SCROLL)
    assert tiles < 150
    assert milliseconds < 100
    gallery.select_option("#status", "all")
    for group in ("", "column:theme", "prompt"):
        gallery.select_option("#group", group)
        assert gallery.evaluate(FILTER) < 1000
        assert gallery.locator("#grid li").count() < 150
    tiles, milliseconds = gallery.evaluate(SCROLL)
    assert tiles < 150 and milliseconds < 100


@pytest.mark.slow
def test_a_hundred_thousand_images_can_be_used(page: Page, tmp_path: Path) -> None:
    page.goto(write_drawn_gallery(tmp_path, 100_000).as_uri())
    expect(page.locator("#count")).to_have_text("75,000 of 100,001", timeout=60_000)
    page.select_option("#status", "all")
    for group in ("", "column:theme", "prompt"):
        page.select_option("#group", group)
        assert page.evaluate(FILTER) < 2000
        assert page.locator("#grid li").count() < 150
    tiles, milliseconds = page.evaluate(SCROLL)
    assert tiles < 150 and milliseconds < 100
    page.select_option("#group", "")
    page.select_option("#sort", "best")
    scores = scores_of(page)
    assert scores == sorted(scores, reverse=True)
    page.fill("#search", "prompt24999-")
    expect(page.locator("#count")).to_contain_text("of 100,001")
    expect(page.locator("#grid li")).to_have_count(4)


SCROLL = """() => {
  const times = []; let tiles = 0;
  for (let screen = 0; screen < 90; screen++) {
    const before = performance.now();
    scrollBy(0, 900); renderTiles(); grid.getBoundingClientRect();
    times.push(performance.now() - before);
    tiles = Math.max(tiles, grid.children.length);
  }
  return [tiles, times.sort((a, b) => a - b)[45]];
}"""
"""Scroll ninety screens; return the most tiles and the median time per screen in milliseconds."""

FILTER = """() => {
  const times = ["красный", "круг", "prompt9", ""].map((words) => {
    const before = performance.now();
    byId("search").value = words; applyFilters(); grid.getBoundingClientRect();
    return performance.now() - before;
  });
  return Math.max(...times);
}"""
"""Return the time of the slowest of four searches in milliseconds, layout included."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(browser: Browser, address: str, scheme: str) -> None:
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    open_gallery(page, address)
    for selector in ("body", ".figures", "label > span"):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector
    page.close()


CONTRAST = """(selector) => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map((n) => n / 255)
      .map((n) => (n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = (node) => getComputedStyle(node);
  const text = luminance(style(document.querySelector(selector)).color);
  const background = luminance(style(document.body).backgroundColor);
  return (Math.max(text, background) + 0.05) / (Math.min(text, background) + 0.05);
}"""
"""Return the WCAG contrast ratio between a text and the background of the page."""


def test_a_phone_needs_no_horizontal_scrolling(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport=PHONE, has_touch=True)
    open_gallery(page, address)
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate("columns") == 2
    assert page.evaluate(overflow) <= 0
    page.locator("#grid a").first.tap()
    image = page.locator("#viewer-image img").bounding_box()
    assert image and image["width"] > 300
    assert page.evaluate("viewer.scrollWidth - innerWidth") <= 0
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
    expect(page.locator("#viewer-caption")).to_have_text(HOSTILE)
    assert page.evaluate("window.harmed") is None
    assert page.locator("script").count() == 2


def test_the_content_security_policy_blocks_other_inline_scripts(
    browser: Browser, address: str
) -> None:
    """A second line of defence: even if markup got through, its scripts would not run."""
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))

    def add_script(route: Route) -> None:
        body = Path(address.removeprefix("file://")).read_text("utf-8")
        body = body.replace("</body>", "<script>window.harmed=1</script></body>")
        route.fulfill(body=body, content_type="text/html; charset=utf-8")

    page.route(address, add_script)
    page.goto(address)
    expect(page.locator("#count")).to_have_text(re.compile("of"))
    assert page.evaluate("window.harmed") is None
    assert any("Content Security Policy" in text for text in messages)
    page.close()


@pytest.fixture
def published(s3_url: str, tmp_path: Path) -> Storage:
    """A finished output in object storage."""
    config = RunConfig.model_validate({"name": "on S3", "output": s3_url})
    storage = Storage(s3_url)
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    write_report(storage, config, dict.fromkeys(NAMES, "digest"), 1, STARTED)
    return storage


def images_shown(page: Page) -> list[int]:
    """Widths of the images on the page, once they are loaded."""
    expect(page.locator("#grid img")).to_have_count(6)
    script = "images => Promise.all(images.map((i) => i.decode().then(() => i.naturalWidth)))"
    widths: list[int] = page.locator("#grid img").evaluate_all(script)
    return widths


def test_the_shared_page_loads_images_by_signed_urls(
    page: Page, published: Storage, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(render_shared_gallery(published, 600), encoding="utf-8")
    page.goto((tmp_path / "page.html").as_uri())
    assert images_shown(page) == [16] * 6


def test_the_page_works_when_a_bucket_serves_it(page: Page, published: Storage) -> None:
    """Every request is answered from the object store, with the stored content type."""

    def from_store(route: Route) -> None:
        path = route.request.url.removeprefix("http://bucket.test/")
        with urllib.request.urlopen(published.link(path, 60), timeout=10) as answer:
            route.fulfill(body=answer.read(), content_type=answer.headers["Content-Type"])

    page.route("http://bucket.test/**", from_store)
    page.goto("http://bucket.test/gallery/index.html")
    assert images_shown(page) == [16] * 6


def test_large_images_have_sharp_thumbnails_and_open_whole(page: Page, tmp_path: Path) -> None:
    """On a screen with two pixels per CSS pixel a tile has at least as many as it shows."""
    large = encoded_square(2048)
    (tmp_path / "gallery").mkdir()
    (tmp_path / "large.png").write_bytes(large)
    (tmp_path / "gallery/small.webp").write_bytes(make_thumbnail(large))
    entry = Entry("a-000", "a", "чёрный квадрат", source="../large.png", thumbnail="small.webp")
    gallery = Gallery("Large", [], [], {}, "replay {id}", rows=[entry])
    path = tmp_path / "gallery/index.html"
    path.write_text(render_gallery(gallery), encoding="utf-8")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(path.as_uri())
    tile = page.locator("#grid img")
    assert tile.evaluate("image => image.decode().then(() => image.naturalWidth)") == 512
    assert 2 * tile.evaluate("image => image.clientWidth") <= 512 + 2
    assert not any(url.endswith("large.png") for url in requested)
    tile.click()
    shown = page.locator("#viewer-image img")
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") == 2048


def encoded_square(side: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), "#D42A1E").save(stream, "PNG")
    return stream.getvalue()
