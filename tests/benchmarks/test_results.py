"""The committed results are the tables that the documentation shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import (
    expert_iteration,
    fine_tune_star,
    fine_tuning,
    processors,
    train_malevich,
    worth_training,
)
from tests.benchmarks.engine import PARTS, RESULTS, ROOT, Row, documented_tables

DOCUMENT = ROOT / "docs" / "performance.md"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("full-*.json")), ids=lambda path: path.stem)
def test_documentation_shows_the_results(path: Path) -> None:
    results = json.loads(path.read_text("utf-8"))
    rows = [Row(**row) for part in PARTS for row in results["rows"].get(part, [])]
    mark = path.stem.removeprefix("full-")
    text = DOCUMENT.read_text("utf-8")
    block = text.partition(f"<!-- bench {mark}:begin -->")[2].partition("<!-- bench")[0]
    assert block.strip() == documented_tables(results["measured"], rows)


def test_documentation_shows_the_precisions_of_processors() -> None:
    results = json.loads(processors.PATH.read_text("utf-8"))
    text = DOCUMENT.read_text("utf-8")
    block = text.partition(processors.BEGIN)[2].partition(processors.END)[0]
    assert block.strip() == processors.table(results["measured"], results["rows"])


def test_documentation_shows_what_images_are_worth() -> None:
    results = json.loads(worth_training.PATH.read_text("utf-8"))
    text = DOCUMENT.read_text("utf-8")
    block = text.partition(worth_training.BEGIN)[2].partition(worth_training.END)[0]
    assert block.strip() == worth_training.table(results["measured"], results["repetitions"])
    assert worth_training.PLOT.is_file()


@pytest.mark.parametrize(
    ("mark", "benchmark"), [("star", fine_tune_star), ("expert", expert_iteration)]
)
def test_documentation_shows_what_fine_tuning_reached(mark: str, benchmark: ModuleType) -> None:
    figures = json.loads(benchmark.PATH.read_text("utf-8"))
    block, _ = fine_tuning.documented(mark, fine_tuning.DOCUMENT.read_text("utf-8"))
    assert block == benchmark.table(figures)


def test_documentation_shows_what_fits_into_the_memory_of_devices() -> None:
    results = json.loads(train_malevich.PATH.read_text("utf-8"))
    block, _ = fine_tuning.documented("train_malevich", train_malevich.DOCUMENT.read_text("utf-8"))
    assert block == train_malevich.table(results)


def test_the_memory_of_training_malevich_is_within_a_tenth_of_the_formula() -> None:
    results = json.loads(train_malevich.PATH.read_text("utf-8"))
    formula, measured = results["formula"]["lora"]["bytes"], results["measured"]["bytes"]
    assert measured == pytest.approx(formula, rel=0.1)
    text = train_malevich.DOCUMENT.read_text("utf-8")
    assert f"took {measured / 1e9:.2f} GB, where the formula says {formula / 1e9:.2f}" in text


def test_the_choice_of_a_precision_follows_from_the_figures() -> None:
    """`dtype: auto` is bfloat16, which is at least as fast as float32 on every processor."""
    rows = json.loads(processors.PATH.read_text("utf-8"))["rows"]
    steps = {(row["limit"], row["batch"], row["dtype"]): row["step"] for row in rows}
    for limit, batch in {(limit, batch) for limit, batch, _ in steps}:
        assert steps[limit, batch, "bfloat16"] <= steps[limit, batch, "float32"]
        assert steps[limit, batch, "int8_dynamic"] <= steps[limit, batch, "float32"]
