"""The documentation builds without a warning, and its pages load nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("material", reason="needs the extra docs")

ROOT = Path(__file__).resolve().parents[2]
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Attributes by which a page loads something, by element."""


class Loaded(HTMLParser):
    """Collects what a page loads from other hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        url = values.get(LOADS.get(tag, "")) or ""
        if url.startswith(("http:", "https:", "//")) and values.get("rel") != "canonical":
            self.urls.append(url)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    loaded = {}
    for page in pages:
        parser = Loaded()
        parser.feed(page.read_text("utf-8"))
        if parser.urls:
            loaded[page.name] = parser.urls
    assert loaded == {}


def test_styles_load_nothing_from_other_hosts(site: Path) -> None:
    styles = sorted(site.rglob("*.css"))
    urls = [url for style in styles for url in re.findall(r"url\(([^)]*)\)", style.read_text())]
    assert [url for url in urls if "://" in url.partition("data:")[0]] == []


def test_the_one_script_from_elsewhere_is_documented(site: Path) -> None:
    (bundle,) = (site / "assets" / "javascripts").glob("bundle.*.min.js")
    hosts = set(re.findall(r"https://([\w.-]+)/(\w+)@", bundle.read_text("utf-8")))
    assert hosts <= {("unpkg.com", "mermaid")}
    assert "unpkg.com" in (ROOT / "docs" / "security.md").read_text("utf-8")


def test_tables_and_docstrings_are_rendered(site: Path) -> None:
    performance = (site / "performance.html").read_text("utf-8")
    assert performance.count("<table>") >= 6
    assert "| --- |" not in performance
    assert "repository/tests/benchmarks/results/growth.png" in performance
    api = (site / "api" / "rudalle_lib.html").read_text("utf-8")
    assert "draw_images" in api and "Parameters" in api
