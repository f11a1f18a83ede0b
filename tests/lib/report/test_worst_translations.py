"""The card shows the least certain translations, a row per prompt, with all text escaped."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rudalle_lib.pipeline.image_columns import COLUMNS
from rudalle_lib.report import worst_translations
from rudalle_lib.report.worst_translations import render_translations, with_more


def metadata(*rows: tuple[str, float | None], described: bool = True) -> pa.Table:
    """Metadata of images of some prompts."""
    about = {"description": COLUMNS["translation_confidence"].about} if described else None
    kind = pa.float32()
    columns = {
        "prompt_id": pa.array([name for name, _ in rows], pa.string()),
        "text": pa.array([f"a | <b> {name}" for name, _ in rows], pa.string()),
        "text_ru": pa.array(["текст"] * len(rows), pa.string()),
    }
    table = pa.table(columns)
    field = pa.field("translation_confidence", kind, metadata=about)
    return table.append_column(field, pa.array([value for _, value in rows], kind))


def test_the_least_certain_come_first_and_a_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_translations, "SHOWN", 3)
    worst = with_more([], metadata(("a", -0.5), ("a", -0.5), ("b", None), ("c", -2.0)))
    worst = with_more(worst, metadata(("d", -1.0), ("e", -0.25)))
    assert [row["prompt_id"] for row in worst] == ["c", "d", "a"]


def test_shards_without_the_column_or_with_one_of_the_table_add_nothing() -> None:
    without = metadata(("a", -0.5)).drop_columns(["translation_confidence"])
    assert with_more([], without) == []
    assert with_more([], metadata(("a", -0.5), described=False)) == []


def test_the_section_is_a_table_that_can_be_unfolded() -> None:
    assert render_translations([]) == ""
    text = render_translations(with_more([], metadata(("a", -0.5), ("b", -1.5))))
    assert "<details><summary>2 translations</summary>" in text
    assert "| Prompt | Translation | Confidence | Hardly known words |" in text
    first, second = [line for line in text.splitlines() if line.startswith("| a ")]
    assert "-1.500" in first and "-0.500" in second
    assert "&lt;b" in first and "&#124;" in first and "<b>" not in first
