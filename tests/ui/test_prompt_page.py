"""The page to try prompts, in a real browser: draw, rank, enlarge, keep, and export for a run."""

from __future__ import annotations

import csv
import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from rudalle_lib.config.run import RunConfig
from rudalle_lib.prompts.rows import content_digest
from tests.support.servers import free_ports, wait_until_answering
from tests.support.tiny_stack import write_tiny_stack

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 120_000
"""Time limit of drawing in milliseconds; an idle machine needs seconds."""

PHONE: ViewportSize = {"width": 390, "height": 844}
PROMPT = "чёрный квадрат на белом фоне"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with the tiny stack, served by its own process."""
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
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=output
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
    """The open page; fails if it requests anything from another host."""
    requested: list[str] = []

    def record(route: Route) -> None:
        requested.append(route.request.url)
        route.continue_()

    page.route(re.compile(".*"), record)
    page.set_default_timeout(TIMEOUT)
    page.goto(address)
    yield page
    assert requested
    assert all(url.startswith((address, "data:", "blob:")) for url in requested)


def draw(page: Page, prompt: str = PROMPT) -> None:
    page.fill("#prompt textarea", prompt)
    page.click("#draw")
    expect(page.locator("#message")).to_contain_text("6 of 6 candidates", timeout=TIMEOUT)


def test_candidates_are_ranked_and_one_is_enlarged_with_its_details(app: Page) -> None:
    draw(app)
    captions = app.locator("#tiles .caption-label")
    expect(captions).to_have_count(6)
    texts = captions.all_inner_texts()
    scores = [float(text.split()[0]) for text in texts]
    assert scores == sorted(scores, reverse=True)
    assert [("not in best k" in text) for text in texts] == [False, False, *[True] * 4]
    app.locator("#tiles .thumbnail-item").first.click()
    facts = app.locator("#facts dl")
    expect(facts).to_contain_text("64 × 64", timeout=TIMEOUT)
    expect(facts).to_contain_text(content_digest(PROMPT, {}))
    expect(facts).to_contain_text("published")
    expect(app.locator("#enlarged img")).to_be_visible()
    app.fill("#prompt textarea", "чёрный квадрат")
    app.click("#draw")  # the enlarged image would be another prompt's
    expect(app.locator("#enlarged img")).to_have_count(0, timeout=TIMEOUT)
    expect(app.locator("#facts")).to_contain_text("Select a candidate")
    expect(app.locator("#message")).to_contain_text("6 of 6 candidates", timeout=TIMEOUT)


def test_kept_prompts_are_exported_as_table_and_configuration(app: Page, tmp_path: Path) -> None:
    app.fill("#prompt textarea", PROMPT)
    app.click("#keep")
    expect(app.locator("#instructions")).to_contain_text("1 prompt, 6 candidates", timeout=TIMEOUT)
    for button, name in (("#table", "prompts.csv"), ("#settings", "run.yaml")):
        with app.expect_download() as found:
            app.click(button)
        found.value.save_as(tmp_path / name)
    assert (tmp_path / "prompts.csv").read_text("utf-8") == f"prompt\n{PROMPT}\n"
    config = RunConfig.load(str(tmp_path / "run.yaml"))
    assert (config.seed, config.generate.images, config.prompts.uri) == (3, 6, "prompts.csv")
    assert config.score.keep_best == 2
    assert (config.name, config.output) == ("my-prompts", "output/my-prompts")


def test_a_failed_translation_is_reported_and_markup_is_text(app: Page) -> None:
    app.fill("#prompt textarea", "a red circle <img src=x onerror='window.harmed=1'>")
    app.click("#draw")
    expect(app.locator("#message [role=alert]")).to_contain_text(
        "no good translation", timeout=TIMEOUT
    )
    assert app.evaluate("window.harmed") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme_of_the_system(
    browser: Browser, address: str, scheme: str
) -> None:
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    page.set_default_timeout(TIMEOUT)
    page.goto(address)
    page.locator("#draw").wait_for()
    channels = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in re.findall(r"\d+", channels)[:3]) < 384
    assert dark == (scheme == "dark")
    page.close()


def test_a_phone_needs_no_horizontal_scrolling(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport=PHONE)
    page.set_default_timeout(TIMEOUT)
    page.goto(address)
    page.locator("#draw").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.close()


def test_it_listens_on_the_loopback_address_only(address: str) -> None:
    port = int(address.rpartition(":")[2])
    listening = {
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    }
    assert listening == {f"0100007F:{port:04X}"}


@pytest.mark.parametrize(
    ("headers", "path", "expected"),
    [
        ({"Host": "attacker.example"}, "/config", 403),
        ({"Origin": "http://attacker.example"}, "/config", 403),
        ({"Origin": "null"}, "/gradio_api/info", 403),
        ({}, "/config", 200),
        ({}, "/gradio_api/upload", 403),
        ({}, "/gradio_api/file=/etc/passwd", 403),
        ({}, "/gradio_api/file=../../../../../../../../etc/passwd", 403),
        ({}, "/gradio_api/file=..%2f..%2f..%2f..%2fetc%2fpasswd", 403),
        ({}, "/static/../../../../../../etc/passwd", 404),
        ({}, "/assets/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", 404),
    ],
)
def test_it_answers_only_its_own_page_and_serves_no_other_file(
    address: str, headers: dict[str, str], path: str, expected: int
) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == expected or (expected == 404 and response.status in (400, 403))
    assert b"root:" not in body


def test_a_prompt_that_is_a_formula_is_escaped_and_markup_in_the_list_is_text(
    app: Page, tmp_path: Path
) -> None:
    prompts = ["=cmd|' /C calc'!A0", "<img src=x onerror='window.harmed=1'>"]
    for count, prompt in enumerate(prompts, start=1):
        app.fill("#prompt textarea", prompt)
        app.click("#keep")
        kept = app.locator("#kept-prompts textarea")
        expect(kept).to_have_value("\n".join(prompts[:count]), timeout=TIMEOUT)
    expect(app.locator("#instructions")).to_contain_text("2 prompts", timeout=TIMEOUT)
    with app.expect_download() as found:
        app.click("#table")
    found.value.save_as(tmp_path / "prompts.csv")
    rows = list(csv.reader((tmp_path / "prompts.csv").read_text("utf-8").splitlines()))
    assert rows[1] == ["'=cmd|' /C calc'!A0"] and len(rows) == 3
    assert app.evaluate("window.harmed") is None
