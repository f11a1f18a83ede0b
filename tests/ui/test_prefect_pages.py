"""Prefect's pages in a real browser, showing a run on the tiny stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageStat
from playwright.sync_api import Browser

from flows.ui.demo_server import run_with, serving
from tests.support.servers import free_ports
from tests.support.tiny_stack import write_tiny_stack
from tests.ui.screenshots import (
    form_address,
    open_page,
    query_api,
    take_artifact,
    take_gallery,
    take_run,
)

pytestmark = [pytest.mark.ui, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of a server."""
    (port,) = free_ports(1)
    with serving(folder / "prefect", port) as url:
        yield url


@pytest.fixture(scope="module")
def address(server: str, folder: Path) -> str:
    """The address of a server that shows a run of three prompts."""
    table = folder / "prompts.csv"
    table.write_text("prompt\nчёрный квадрат\nкрасный круг\nсиний крест\n", encoding="utf-8")
    settings = {
        "name": "tiny",
        "output": str(folder / "out"),
        "prompts": {"uri": str(table), "shard_size": 2},
        "weights": {"folder": str(write_tiny_stack(folder / "weights")), "offline": True},
        "runtime": {"devices": "cpu", "threads": 1, "price_per_device_hour": 2.0},
        "generate": {"images": 4},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    run_with(server, str(folder / "tiny.yaml"))
    return server


def is_drawn(path: Path) -> bool:
    """Whether an image is of the expected size and shows something."""
    image = Image.open(path)
    return image.size == (1280, 860) and max(ImageStat.Stat(image).stddev) > 5


def test_screenshots_show_run_artifact_and_gallery(
    browser: Browser, address: str, folder: Path
) -> None:
    """Each function waits until its page shows the run; the artifact embeds images."""
    take_run(browser, address, folder / "run.webp")
    take_artifact(browser, address, "tiny", folder / "artifact.webp")
    take_gallery(browser, folder / "out/gallery/index.html", folder / "gallery.webp")
    assert all(is_drawn(folder / f"{name}.webp") for name in ("run", "artifact", "gallery"))


def test_the_form_is_short_grouped_and_keeps_what_it_does_not_show(
    browser: Browser, server: str
) -> None:
    """It had 13 sections and was 10,900 pixels tall."""
    settings = {"name": "form", "generate": {"images": 3, "top_p": 0.7}, "runtime": {"threads": 1}}
    page = open_page(browser, form_address(server, "form", config=settings))
    page.set_default_timeout(120_000)
    images = page.locator(".schema-form-property", has_text="Candidates per prompt").last
    images.wait_for()
    labels = page.locator(".schema-form-property__label").all_inner_texts()
    assert [label.removesuffix(" (Optional)") for label in labels] == [
        "config", "Name", "Output", "Prompts", "Prompt table", "First rows only", "Generate",
        "Decoder", "Candidates per prompt", "Score", "Keep the best", "Minimum score", "Upscale",
        "Upscaler", "Publish", "Format", "Seed",
    ]  # fmt: skip
    height = page.evaluate("document.querySelector('form').scrollHeight")
    assert height < 3_000
    images.locator("input").fill("5")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/deployments/deployment/*")  # left the form, so the server has accepted it
    page.get_by_text("Scheduled", exact=True).first.wait_for()
    (run,) = query_api(server, "flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
    config = run["parameters"]["config"]
    assert config["generate"]["images"] == 5 and config["generate"]["top_p"] == 0.7
    assert config["runtime"] == {"threads": 1}
    page.close()
