"""A preview: a fair sample of the table, its contact sheet, and the forecast for all of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import PromptsConfig
from rudalle_lib.config.selection import SelectConfig
from rudalle_lib.errors import PromptError
from rudalle_lib.report.contact_sheet import COLUMN, GUTTER, MARGIN
from rudalle_lib.report.preview import Sample, choose_prompts, draw_sheet, for_sample, forecast
from rudalle_lib.schema.records import DataFile, ShardManifest, StageArtifact
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import plan_by_hand, stages_by_hand


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """3,000 prompts, one of them with 5 candidates, an empty row and a duplicate."""
    path = tmp_path / "table.csv"
    rows = [f"{number} кругов," for number in range(3_000)]
    rows[7] = "7 кругов,5"
    path.write_text("\n".join(["prompt,images", *rows, ",", "8 кругов,"]), encoding="utf-8")
    return path


def texts(sample: Sample) -> list[str]:
    found: list[str] = sample.chosen.column("text").to_pylist()
    return found


def test_a_sample_is_spread_over_the_table_and_reproducible(table: Path) -> None:
    source = PromptsConfig(uri=str(table))
    sample = choose_prompts(source, 2, 100)
    assert (sample.prompts, sample.images) == (3_000, 2 * 2_999 + 5)
    positions = [int(text.split()[0]) for text in texts(sample)]
    assert positions == sorted(positions) and len(set(positions)) == 100
    assert 1_200 < sum(positions) / 100 < 1_800
    assert texts(choose_prompts(source, 2, 100)) == texts(sample)
    assert set(texts(choose_prompts(source, 2, 10))) < set(texts(sample))


def test_a_small_table_is_sampled_whole_and_an_empty_one_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("prompt\nкруг\n\n", encoding="utf-8")
    assert texts(choose_prompts(PromptsConfig(uri=str(table)), 2, 8)) == ["круг"]
    table.write_text("prompt\n \n", encoding="utf-8")
    with pytest.raises(PromptError, match="no usable row.*rudalle-flows plan"):
        choose_prompts(PromptsConfig(uri=str(table)), 2, 8)


def test_the_forecast_extrapolates_from_the_sample() -> None:
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


def test_rules_over_all_images_are_made_smaller_for_a_sample() -> None:
    rules = [
        {"keep_best": 100, "per": "dataset"}, {"keep_best": 3, "per": "style"},
        {"keep_share": 0.5, "per": "style"}, {"keep_best": 2},
    ]  # fmt: skip
    select = SelectConfig.model_validate({"rules": rules})
    sample = Sample(pa.table({"prompt_id": ["a", "b"]}), prompts=10, images=80)
    assert [str(rule) for rule in for_sample(select, sample).rules] == [
        "keep_best 20 per dataset", "keep_best 1 per style", "keep_share 0.5 per style",
        "keep_best 2 per prompt",
    ]  # fmt: skip


def test_the_sheet_shows_every_decoded_candidate_of_the_sample(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"output": str(tmp_path / "out"), "score": {"keep_best": 1}})
    storage = Storage(config.output)
    shard = plan_by_hand(config, tmp_path)
    artifacts = stages_by_hand(storage, shard)
    content = draw_sheet(storage, shard.index, artifacts, config)
    sheet = np.asarray(Image.open(io.BytesIO(content)))
    assert sheet.shape[1] == 2 * MARGIN + 4 * COLUMN + 3 * GUTTER
    for grey in (0, 40, 80):  # two prompts with three decoded candidates each
        assert (sheet == grey).all(axis=2).sum() >= 2 * COLUMN**2
