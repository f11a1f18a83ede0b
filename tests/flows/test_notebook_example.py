"""`examples/notebook.ipynb`, executed by a real kernel: quiet cells, moving bars, images."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from flows.cli.options import PACKAGED

ROOT = PACKAGED.parent
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"

FEWER = {
    "config": {'"limit": 4': '"limit": 2', '"images": 4': '"images": 2'},
    "draw": {"images=4": "images=2"},
}
"""What is changed in cells, so that these tests draw 6 images instead of 20."""


@pytest.fixture(scope="module")
def executed(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The notebook with its outputs; its run reports to the server of these tests."""
    from prefect.settings import PREFECT_API_URL

    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    draw_fewer(notebook)
    folder = tmp_path_factory.mktemp("notebook")
    variables = {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, **variables})
    yield notebook


def draw_fewer(notebook: Any) -> None:
    """Apply `FEWER`."""
    cells = {cell.id: cell for cell in notebook.cells}
    for name, changes in FEWER.items():
        for stored, fewer in changes.items():
            assert stored in cells[name].source
            cells[name].source = cells[name].source.replace(stored, fewer)


def outputs_of(notebook: Any, cell: str) -> list[Any]:
    (found,) = [one for one in notebook.cells if one.id == cell]
    outputs: list[Any] = found.outputs
    return outputs


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_no_cell_shows_logs_or_warnings(executed: Any) -> None:
    printed = [
        output for cell in executed.cells for output in cell.get("outputs", [])
        if output.output_type in ("stream", "error")
    ]  # fmt: skip
    assert printed == []


def test_the_run_shows_its_bars_and_then_its_images(executed: Any) -> None:
    bars, run = outputs_of(executed, "run")
    text = text_of(bars.data["text/html"])
    assert re.search(r"publish +━+ +100% \d+ of \d+ images kept", text)
    assert "data:image/webp;base64," in run.data["text/html"]
    assert "Published images" in run.data["text/html"]


def test_tables_and_images_are_shown(executed: Any) -> None:
    (table,) = outputs_of(executed, "images")
    assert "<table" in table.data["text/html"] and "data/images/" in table.data["text/html"]
    (rejects,) = outputs_of(executed, "rejects")
    assert "not_in_best_k" in rejects.data["text/plain"]
    (image,) = outputs_of(executed, "draw")
    assert image.data["image/png"]


def test_the_stored_notebook_has_no_outputs() -> None:
    """They would be large, and out of date."""
    stored = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(stored)
    assert [cell.id for cell in stored.cells if cell.get("outputs")] == []


def test_the_page_about_python_names_it() -> None:
    assert Path(NOTEBOOK).name in (ROOT / "docs" / "python.md").read_text("utf-8")
