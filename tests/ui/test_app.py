"""The page to try prompts, in a real browser: draw, rank, enlarge, keep, and hand over to a run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, Route, expect

from rudalle_lib.config import RunConfig
from rudalle_lib.prompts import content_digest
from tests.servers import free_ports, wait_until_answering
from tests.tiny_stack import write_tiny_stack

ROOT = Path(__file__).resolve().parents[2]
SLOW = 120_000
"""Milliseconds that drawing may take on a busy machine; seconds on an idle one."""

PHONE = {"width": 390, "height": 844}
PROMPT = "чёрный квадрат на белом фоне"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page on the tiny stack, in a process of its own."""
    folder = tmp_path_factory.mktemp("app")
    settings = {
        "name": "tiny",
        "seed": 3,
        "weights": {"folder": str(write_tiny_stack(folder / "weights")), "offline": True},
        "runtime": {"devices": "cpu", "threads": 1},
        "generate": {"images": 6},
        "score": {"keep_best": 2},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (port,) = free_ports(1)
    command = ["-m", "flows.cli", "app", str(folder / "tiny.yaml"), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = folder / "said.txt"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=said, stderr=said
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_answering(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def app(page: Page, address: str) -> Iterator[Page]:
    """The page, open; it asks nobody but itself for anything."""
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_()

    page.route(re.compile(".*"), refuse)
    page.set_default_timeout(SLOW)
    page.goto(address)
    yield page
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked)


def draw(page: Page, prompt: str = PROMPT) -> None:
    page.fill("#prompt textarea", prompt)
    page.click("#draw")
    expect(page.locator("#said")).to_contain_text("6 of 6 candidates", timeout=SLOW)


def test_candidates_come_ranked_and_one_is_enlarged_with_what_is_known_of_it(app: Page) -> None:
    draw(app)
    captions = app.locator("#tiles .caption-label")
    expect(captions).to_have_count(6)
    texts = captions.all_inner_texts()
    scores = [float(text.split()[0]) for text in texts]
    assert scores == sorted(scores, reverse=True)
    assert [("not in best k" in text) for text in texts] == [False, False, *[True] * 4]
    app.locator("#tiles .thumbnail-item").first.click()
    facts = app.locator("#facts dl")
    expect(facts).to_contain_text("64 × 64", timeout=SLOW)
    expect(facts).to_contain_text(content_digest(PROMPT, {}))
    expect(facts).to_contain_text("published")
    expect(app.locator("#large img")).to_be_visible()


def test_a_kept_prompt_leaves_as_table_and_configuration(app: Page, tmp_path: Path) -> None:
    app.fill("#prompt textarea", PROMPT)
    app.click("#keep")
    expect(app.locator("#how")).to_contain_text("1 prompt, 6 candidates", timeout=SLOW)
    for button, name in (("#table", "prompts.csv"), ("#settings", "run.yaml")):
        with app.expect_download() as found:
            app.click(button)
        found.value.save_as(tmp_path / name)
    assert (tmp_path / "prompts.csv").read_text("utf-8") == f"prompt\n{PROMPT}\n"
    config = RunConfig.load(str(tmp_path / "run.yaml"))
    assert (config.seed, config.generate.images, config.prompts.uri) == (3, 6, "prompts.csv")
    assert config.score.keep_best == 2


def test_what_cannot_be_translated_is_a_sentence_and_markup_is_text(app: Page) -> None:
    app.fill("#prompt textarea", "a red circle <img src=x onerror='window.harmed=1'>")
    app.click("#draw")
    expect(app.locator("#said [role=alert]")).to_contain_text("no sound translation", timeout=SLOW)
    assert app.evaluate("window.harmed") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme_of_the_system(browser: Browser, address: str, scheme: str) -> None:
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    page.set_default_timeout(SLOW)
    page.goto(address)
    page.locator("#draw").wait_for()
    channels = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in re.findall(r"\d+", channels)[:3]) < 384
    assert dark == (scheme == "dark")
    page.close()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport=PHONE)  # type: ignore[arg-type]
    page.set_default_timeout(SLOW)
    page.goto(address)
    page.locator("#draw").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.close()


def test_no_other_machine_reaches_it(address: str) -> None:
    """It listens on the loopback address alone."""
    port = int(address.rpartition(":")[2])
    listening = {
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    }
    assert listening == {f"0100007F:{port:04X}"}
