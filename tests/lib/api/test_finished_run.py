"""A finished run as an object of scripts and notebooks."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from rudalle_lib import read_run
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import StorageError
from rudalle_lib.report.report import write_report
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import plan_by_hand, publish_by_hand

STARTED = "2021-11-02T00:00:00+00:00"


def finish(folder: Path, name: str) -> str:
    """Finish a run of one shard with two published images; returns its output."""
    config = RunConfig.model_validate(
        {"name": name, "output": str(folder / "out"), "score": {"keep_best": 1}}
    )
    storage = Storage(config.output)
    publish_by_hand(storage, config, plan_by_hand(config, folder))
    write_report(storage, config, {}, 1, STARTED)
    return config.output


class Reader(HTMLParser):
    """Reads tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_notebook_shows_its_images_and_figures(tmp_path: Path) -> None:
    run = read_run(finish(tmp_path, "by hand"))
    assert run.manifest.totals.kept == len(run.images()) == 2
    assert "too_long" in run.rejects()["reason"].tolist()
    page = Reader(run._repr_html_())
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert str(image["src"]).startswith("data:image/webp;base64,")
    figures = dict(zip(page.text, page.text[1:], strict=False))
    assert figures["Published images"] == "2" and figures["rejected as not_in_best_k"] == "4"
    assert "by hand" in page.text and run.output in page.text


def test_names_are_no_markup(tmp_path: Path) -> None:
    page = Reader(read_run(finish(tmp_path, "<script>alert(1)</script>"))._repr_html_())
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in "".join(page.text)


def test_an_output_without_a_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no finished run in"):
        read_run(str(tmp_path))
