"""Prompts that are tried one at a time give what a run gives, ranked, and clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rudalle_lib.config import RunConfig, ScoreConfig
from rudalle_lib.errors import PromptError, SettingsError
from rudalle_lib.images import decode_image
from rudalle_lib.planning import plan_run
from rudalle_lib.stages import weight_digests
from rudalle_lib.storage import Storage
from rudalle_lib.studio import AT_ONCE, Studio
from tasks.plain import work_on
from tests.tiny_run import configure
from tests.tiny_stack import write_tiny_stack

PROMPT = "чёрный  квадрат на белом фоне"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Six candidates of one prompt, all published as they are drawn."""
    folder = tmp_path_factory.mktemp("studio")
    table = folder / "prompts.csv"
    table.write_text(f"prompt\n{PROMPT}\n", encoding="utf-8")
    settings: dict[str, object] = {
        "seed": 5,
        "prompts": {"uri": str(table)},
        "weights": {"folder": str(write_tiny_stack(folder / "weights")), "offline": True},
        "runtime": {"devices": "cpu"},
        "generate": {"images": 6},
        "decode": {"dtype": request.param},
        "upscale": {"model": None},
    }
    return configure(settings, folder / "out")


@pytest.fixture(scope="module")
def studio(config: RunConfig) -> Studio:
    return Studio.load(config)


def test_pictures_ids_and_scores_are_those_of_a_run(config: RunConfig, studio: Studio) -> None:
    (shard,) = plan_run(config, Storage(config.output)).shards
    work_on(config, weight_digests(config), shard)
    rows = Storage(config.output).read_table("data/metadata/00000.parquet").to_pylist()
    drawn = list(studio.draw(studio.read(PROMPT), 6, seed=5))
    assert [len(found) for found in drawn] == [AT_ONCE, 6]
    ranked = sorted(rows, key=lambda row: row["rank"])
    assert [found.image_id for found in drawn[-1]] == [row["image_id"] for row in ranked]
    for found, row in zip(drawn[-1], ranked, strict=True):
        assert found.score == pytest.approx(row["score"], abs=1e-4)
        published = decode_image(Path(config.output, row["path"]).read_bytes())
        assert torch.equal(found.picture, published)


def test_without_an_upscaler_a_picture_stays_as_drawn(studio: Studio) -> None:
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert studio.enlarge(picture) is picture


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(" \n ", "no prompt"), ("а" * 10_001, "at most 10,000"), ("a red circle", "no sound transl")],
)
def test_a_prompt_that_cannot_be_drawn_is_refused(studio: Studio, text: str, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        studio.read(text)


def test_what_a_run_keeps_out_as_unsafe_is_told(studio: Studio) -> None:
    config = studio.config.model_copy(
        update={
            "publish": studio.config.publish.model_copy(update={"blocked_words": ("круг*",)}),
            "score": ScoreConfig(unsafe_texts=("красный круг",), max_unsafe=-1.0, keep_best=1),
        }
    )
    strict = replace(studio, config=config)
    with pytest.raises(PromptError, match=r"blocked_words keeps out 'круг\*'"):
        strict.read("три круга")
    (found,) = strict.draw(strict.read(PROMPT), 2, seed=5)
    assert [one.rejected for one in found] == ["unsafe", "unsafe"]


def test_a_canvas_of_another_size_is_refused(config: RunConfig) -> None:
    wide = config.model_copy(
        update={"generate": config.generate.model_copy(update={"width": 64, "height": 32})}
    )
    with pytest.raises(SettingsError, match="generate.width"):
        Studio.load(wide)
