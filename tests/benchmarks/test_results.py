"""The committed results are the tables that the documentation shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import (
    expert_iteration,
    fine_tune_star,
    processors,
    train_malevich,
    worth_training,
)
from tests.benchmarks.documentation import PERFORMANCE, TRAINING, read_block, write_block
from tests.benchmarks.engine import PARTS, RESULTS, Row, documented_tables


@pytest.mark.parametrize("path", sorted(RESULTS.glob("full-*.json")), ids=lambda path: path.stem)
def test_documentation_shows_the_results(path: Path) -> None:
    results = json.loads(path.read_text("utf-8"))
    rows = [Row(**row) for part in PARTS for row in results["rows"].get(part, [])]
    mark = path.stem.removeprefix("full-")
    assert read_block(PERFORMANCE, f"bench {mark}") == documented_tables(results["measured"], rows)


def test_documentation_shows_the_precisions_of_processors() -> None:
    results = json.loads(processors.PATH.read_text("utf-8"))
    block = read_block(PERFORMANCE, processors.MARK)
    assert block == processors.table(results["measured"], results["rows"])


def test_documentation_shows_what_images_are_worth() -> None:
    results = json.loads(worth_training.PATH.read_text("utf-8"))
    block = read_block(PERFORMANCE, worth_training.MARK)
    assert block == worth_training.table(results["measured"], results["repetitions"])
    assert worth_training.PLOT.is_file()


@pytest.mark.parametrize("benchmark", [fine_tune_star, expert_iteration, train_malevich])
def test_documentation_shows_what_fine_tuning_reached_and_takes(benchmark: ModuleType) -> None:
    figures = json.loads(benchmark.PATH.read_text("utf-8"))
    assert read_block(TRAINING, benchmark.MARK) == benchmark.table(figures)


def test_the_memory_of_training_malevich_is_within_a_tenth_of_the_formula() -> None:
    results = json.loads(train_malevich.PATH.read_text("utf-8"))
    formula, measured = results["formula"]["lora"]["bytes"], results["measured"]["bytes"]
    assert measured == pytest.approx(formula, rel=0.1)
    text = TRAINING.read_text("utf-8")
    assert f"took {measured / 1e9:.2f} GB, where the formula says {formula / 1e9:.2f}" in text


def test_the_choice_of_a_precision_follows_from_the_figures() -> None:
    """`dtype: auto` is bfloat16, which is at least as fast as float32 on every processor."""
    rows = json.loads(processors.PATH.read_text("utf-8"))["rows"]
    steps = {(row["limit"], row["batch"], row["dtype"]): row["step"] for row in rows}
    for limit, batch in {(limit, batch) for limit, batch, _ in steps}:
        assert steps[limit, batch, "bfloat16"] <= steps[limit, batch, "float32"]
        assert steps[limit, batch, "int8_dynamic"] <= steps[limit, batch, "float32"]


def test_a_block_is_replaced_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("before <!-- one:begin -->\nold\n<!-- one:end --> after", "utf-8")
    write_block(path, "one", "new")
    assert read_block(path, "one") == "new"
    assert path.read_text("utf-8") == "before <!-- one:begin -->\nnew\n<!-- one:end --> after"
    for mark, text in (("two", ""), ("half", "<!-- half:begin -->")):
        path.write_text(text, "utf-8")
        with pytest.raises(SystemExit, match=f"has no block {mark}"):
            write_block(path, mark, "new")
        assert path.read_text("utf-8") == text
