"""A real browser for the tests of what people look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

#: The names that packages give to Chromium.
NAMES = ("chromium", "chromium-browser", "google-chrome")

#: Without these it asks for a sandbox, a GPU, and its maker's servers.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

#: A view on a desktop, in CSS pixels.
DESKTOP: ViewportSize = {"width": 1280, "height": 800}


def find_chromium() -> str:
    """The path of a Chromium of this machine; the test fails where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(f"none of {', '.join(NAMES)} is on the path; install one with: make chromium")
    return found


# Not for the whole session: Playwright keeps an event loop running in this thread, in which
# Prefect's flows of other modules would find themselves.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, for the tests of one module. Run flows in processes of their own."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of desktop size; an error in its scripts, or a refused one, fails the test."""
    opened = browser.new_page(viewport=DESKTOP)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    yield opened
    opened.close()
    assert faults == []
