"""A sample of a table, and what it says of the whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rudalle_lib.config import PromptsConfig
from rudalle_lib.errors import PromptError
from rudalle_lib.preview import Sample, choose_prompts, forecast
from rudalle_lib.records import DataFile, ShardManifest, StageArtifact


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three thousand prompts, one asking for 5 candidates, an empty row and a double."""
    path = tmp_path / "table.csv"
    rows = [f"{number} кругов," for number in range(3_000)]
    rows[7] = "7 кругов,5"
    path.write_text("\n".join(["prompt,images", *rows, ",", "8 кругов,"]), encoding="utf-8")
    return path


def texts(sample: Sample) -> list[str]:
    found: list[str] = sample.chosen.column("text").to_pylist()
    return found


def test_a_sample_is_spread_over_the_table_and_always_the_same(table: Path) -> None:
    source = PromptsConfig(uri=str(table))
    sample = choose_prompts(source, 2, 100)
    assert (sample.prompts, sample.images) == (3_000, 2 * 2_999 + 5)
    places = [int(text.split()[0]) for text in texts(sample)]
    assert places == sorted(places) and len(set(places)) == 100
    assert 1_200 < sum(places) / 100 < 1_800
    assert texts(choose_prompts(source, 2, 100)) == texts(sample)
    assert set(texts(choose_prompts(source, 2, 10))) < set(texts(sample))


def test_a_small_table_is_drawn_whole_and_one_without_prompts_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("prompt\nкруг\n\n", encoding="utf-8")
    assert texts(choose_prompts(PromptsConfig(uri=str(table)), 2, 8)) == ["круг"]
    table.write_text("prompt\n \n", encoding="utf-8")
    with pytest.raises(PromptError, match="no usable row.*rudalle-flows plan"):
        choose_prompts(PromptsConfig(uri=str(table)), 2, 8)


def test_the_whole_table_takes_its_share_of_what_was_drawn() -> None:
    stages = {
        "translate": StageArtifact("u", "f", 4, 1.0, devices=1),
        "generate": StageArtifact("u", "f", 16, 8.0, devices=1),
        "publish": StageArtifact("u", "f", 4, 1.0),
    }
    metadata = DataFile("data/metadata/00000.parquet", 1, "")
    drawn = ShardManifest(0, "f", "c", 4, 16, 4, {}, 1_000, metadata, None, stages, "")
    sample = Sample(pa.table({}), prompts=400, images=3_200)
    expected = forecast(sample, drawn, stage_bytes=2_000, lanes=2, price=3.6)
    assert (expected.images, expected.published) == (3_200, 800)
    assert expected.seconds == (100 + 1_600 + 200) / 2
    assert expected.device_hours == pytest.approx(1_700 / 3600)
    assert expected.bytes == 600_000
    assert expected.cost == pytest.approx(1.7)
    assert expected.cost_per_published == pytest.approx(1.7 / 800)
    assert forecast(sample, drawn, 0, 1, None).cost is None
