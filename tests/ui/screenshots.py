"""Make the README's pictures: the run page, the artifact page, the gallery and the page to try
prompts, in the machine's own Chromium.

    .venv/bin/python -m tests.ui.screenshots --config demo --to tests/ui/screenshots
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from flows.cli import find_config
from flows.demo_server import run_with, serving
from rudalle_lib import layout
from rudalle_lib.config import RunConfig
from tests.ui.conftest import FLAGS, find_chromium

VIEW: ViewportSize = {"width": 1280, "height": 860}
PATIENCE = 600_000
"""Milliseconds that a page may take: seconds on an idle machine."""


def main() -> None:
    """Run a configuration with a server of its own, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("screenshots"))
    parser.add_argument("--port", type=int, default=4271)
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    config = RunConfig.load(find_config(given.config))
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder, "dataset"))
        with serving(Path(folder, "prefect"), given.port) as address:
            run_with(address, given.config, "--output", output)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=find_chromium(), args=list(FLAGS)
                )
                take_run(browser, address, given.to / "run.webp")
                take_artifact(browser, address, config.name, given.to / "artifact.webp")
                take_gallery(browser, Path(output, layout.GALLERY_PAGE), given.to / "gallery.webp")
                browser.close()


def take_run(browser: Browser, address: str, to: Path) -> None:
    """The page of the flow run, with its task runs over time."""
    (run, *_) = ask(address, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    page = open_page(browser, f"{address}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed").first.wait_for(timeout=PATIENCE)
    page.get_by_text("publish 00000").first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(3000)
    save(page, to)


def take_artifact(browser: Browser, address: str, name: str, to: Path) -> None:
    """The page with figures and pictures."""
    found = newest(address, f"{name}-figures")
    page = open_page(browser, f"{address}/artifacts/artifact/{found['id']}")
    page.locator("img[src^='data:image/webp']").first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(2000)
    save(page, to)


def take_gallery(browser: Browser, path: Path, to: Path) -> None:
    """The gallery, from the disk."""
    page = open_page(browser, path.resolve().as_uri())
    page.locator("#grid img").first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(2000)
    save(page, to)


def open_page(browser: Browser, url: str) -> Page:
    """A light page of the README's size."""
    page = browser.new_page(viewport=VIEW, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    return page


def save(page: Page, to: Path) -> None:
    """What is on screen, as a small WebP."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").save(to, "WEBP", quality=80, method=6)
    page.close()
    print(f"{to}, {to.stat().st_size / 1000:.0f} kB")


def newest(address: str, key: str) -> dict[str, Any]:
    """The newest artifact of a key."""
    query = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
    (found,) = ask(address, "artifacts/filter", query)
    return found


def ask(address: str, what: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of Prefect's API."""
    request = urllib.request.Request(
        f"{address}/api/{what}", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)
        return found


if __name__ == "__main__":
    main()
