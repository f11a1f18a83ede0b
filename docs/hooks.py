"""A hook of MkDocs: files of the repository that pages link to are copied into the site.

Pages link to images and source files outside `docs/` by relative paths, which work where the
repository is read as files. In the site those files are in `repository/`; other Markdown files are
plain text there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s#]+)")
"""The target of a Markdown link that climbs out of its folder."""


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside `docs/` that a page links to."""
    root = Path(config["docs_dir"]).parent
    for page in list(files.documentation_pages()):
        for _, target in LINK.findall(Path(str(page.abs_src_path)).read_text("utf-8")):
            outside = _outside(str(page.abs_src_path), target, root)
            if outside is not None and files.get_file_from_path(_copy(outside)) is None:
                source = str(root / outside)
                files.append(File.generated(config, _copy(outside), abs_src_path=source))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to those files at their copies."""
    root = Path(config["docs_dir"]).parent
    up = "../" * page.file.src_uri.count("/")

    def moved(match: re.Match[str]) -> str:
        outside = _outside(str(page.file.abs_src_path), match[2], root)
        return match[0] if outside is None else f"{match[1]}{up}{_copy(outside)}"

    return LINK.sub(moved, markdown)


def _outside(page: str, target: str, root: Path) -> str | None:
    """The path, from the repository's root, of a file outside `docs/`; None for all others."""
    path = (Path(page).parent / target).resolve()
    if not path.is_file() or path.is_relative_to(root / "docs"):
        return None
    return path.relative_to(root).as_posix()


def _copy(path: str) -> str:
    """Where the site has a file of the repository."""
    return f"repository/{path}.txt" if path.endswith(".md") else f"repository/{path}"
