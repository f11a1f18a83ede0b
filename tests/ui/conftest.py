"""A real browser for the tests of web pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Names under which packages install Chromium."""

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Chromium must not need a sandbox or a GPU, nor contact its vendor's servers."""

DESKTOP: ViewportSize = {"width": 1280, "height": 800}
"""Size of a desktop window in CSS pixels."""


def find_chromium() -> str:
    """Return the path of an installed Chromium; the test fails if there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(f"none of {', '.join(NAMES)} is on the PATH; install one with: make chromium")
    return found


# Not session-scoped: Playwright keeps an event loop running in this thread, and Prefect flows of
# other test modules would detect it.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium for the tests of one module. Flows must run in separate processes."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of desktop size; a script error or a blocked script fails the test."""
    opened = browser.new_page(viewport=DESKTOP)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda entry: errors.append(entry.text) if entry.type == "error" else None)
    yield opened
    opened.close()
    assert errors == []
