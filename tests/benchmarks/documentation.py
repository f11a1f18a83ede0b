"""Blocks of figures in the documentation, between two marks: `<!-- NAME:begin -->` and `:end`."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
OPERATIONS, PERFORMANCE, TRAINING = (
    DOCS / name for name in ("operations.md", "performance.md", "training.md")
)


def read_block(path: Path, mark: str) -> str:
    """What a document says between the marks of a name, without space around it."""
    return _parts(path, mark)[1].strip()


def write_block(path: Path, mark: str, text: str) -> None:
    """Put a text between the marks of a name.

    Raises:
        SystemExit: the document has no such marks.
    """
    before, _, after = _parts(path, mark)
    begin, end = _marks(mark)
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _parts(path: Path, mark: str) -> tuple[str, str, str]:
    begin, end = _marks(mark)
    before, found, rest = path.read_text("utf-8").partition(begin)
    block, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path} has no block {mark}: expected {begin} and {end}")
    return before, block, after


def _marks(mark: str) -> tuple[str, str]:
    return f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
