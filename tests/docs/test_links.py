"""Relative links and anchors of the Markdown files lead somewhere; the README is short."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "rudalle_lib" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^(```|~~~).*?^\1$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def prose(page: Path) -> str:
    """The page without fenced code."""
    return FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> Iterator[str]:
    for match in LINK.finditer(prose(page)):
        if not urlsplit(match[1]).scheme:
            yield match[1]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub and MkDocs both make them."""
    found: set[str] = set()
    for title in HEADING.findall(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        found.add(slug)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    dead = []
    for link in links(page):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    tracked = tracked_files()
    outside = []
    for link in links(page):
        path = link.partition("#")[0]
        if path and name_of((page.parent / path).resolve()) not in tracked:
            outside.append(link)
    assert outside == []


@cache
def tracked_files() -> frozenset[str]:
    """What git has or would add; folders too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = out.splitlines()
    folders = {parent.as_posix() for file in files for parent in Path(file).parents}
    return frozenset({*files, *folders})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fences_are_closed(page: Path) -> None:
    assert len(re.findall(r"^```", page.read_text("utf-8"), re.MULTILINE)) % 2 == 0


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_dead_links_are_seen(tmp_path: Path) -> None:
    """The check itself: what it must find, and what it must let be."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c\n\n[x](#a-b-c) [y](gone.md) [z](https://a.b/c)\n\n```\n[q](q)\n```\n"
    )
    assert list(links(page)) == ["#a-b-c", "gone.md"]
    assert anchors(page) == {"a-b-c"}
