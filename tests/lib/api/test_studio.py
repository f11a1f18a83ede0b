"""The studio: the images and scores of a run, ranked, and errors for prompts it rejects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rudalle_lib.api.studio import IMAGES_AT_ONCE, Studio
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.config.selection import SelectConfig
from rudalle_lib.errors import PromptError, SettingsError
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.images.rows import unpack_image
from rudalle_lib.pipeline.in_memory import InMemoryPipeline
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.storage.storage import Storage
from tasks.without_prefect import process_shard
from tests.support.tiny_run import configure
from tests.support.tiny_stack import SIDE, write_tiny_stack

PROMPT = "чёрный  квадрат на белом фоне"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Six candidates of one prompt; all are published as they are decoded."""
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


def test_images_ids_and_scores_are_those_of_a_run(config: RunConfig, studio: Studio) -> None:
    (shard,) = plan_run(config, Storage(config.output)).shards
    published = process_shard(config, weight_digests(config), shard)
    rows = Storage(config.output).read_table(published.metadata.path).to_pylist()
    drawn = list(studio.draw(studio.read(PROMPT), 6, seed=5))
    assert [len(found) for found in drawn] == [IMAGES_AT_ONCE, 6]
    ranked = sorted(rows, key=lambda row: row["rank"])
    assert [found.image_id for found in drawn[-1]] == [row["image_id"] for row in ranked]
    for found, row in zip(drawn[-1], ranked, strict=True):
        assert found.score == pytest.approx(row["score"], abs=1e-4)
        expected = decode_image(Path(config.output, row["path"]).read_bytes())
        assert torch.equal(found.image, expected)


def test_without_an_upscaler_an_image_stays_as_decoded(studio: Studio) -> None:
    (found,) = studio.draw(studio.read(PROMPT), 1, seed=5)
    assert torch.equal(studio.enlarge(found[0]), found[0].image)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(" \n ", "no prompt"), ("а" * 10_001, "at most 10,000"), ("a red circle", "no good transl")],
)
def test_a_prompt_that_cannot_be_drawn_is_an_error(
    studio: Studio, text: str, sentence: str
) -> None:
    with pytest.raises(PromptError, match=sentence):
        studio.read(text)


def test_what_a_run_rejects_as_unsafe_is_marked(studio: Studio) -> None:
    config = studio.config.model_copy(
        update={
            "publish": studio.config.publish.model_copy(update={"blocked_words": ("круг*",)}),
            "score": ScoreConfig(unsafe_texts=("красный круг",), max_unsafe=-1.0, keep_best=1),
        }
    )
    strict = Studio(InMemoryPipeline(config))
    with pytest.raises(PromptError, match=r"blocked_words keeps out 'круг\*'"):
        strict.read("три круга")
    (found,) = strict.draw(strict.read(PROMPT), 2, seed=5)
    assert [one.rejected for one in found] == ["unsafe", "unsafe"]


def test_rules_say_what_a_run_would_keep_and_why(config: RunConfig, tmp_path: Path) -> None:
    table = tmp_path / "least.csv"
    table.write_text("theme,min_score\nstill life,0.99\n,-0.99\n", encoding="utf-8")
    rules = [{"min_scores": str(table)}, {"keep_share": 0.5, "per": "dataset"}, {"keep_best": 2}]
    select = SelectConfig.model_validate({"rules": rules})
    studio = Studio(InMemoryPipeline(config.model_copy(update={"select": select})))
    *_, found = studio.draw(studio.read(PROMPT), 4, seed=5)
    assert [one.rejected for one in found] == ["", "", "not_in_best_k", "not_in_best_k"]
    assert found[2].why.startswith("select.rules.2, keep_best 2 per prompt: place 3 of 4")
    assert studio.undecided == ("keep_share 0.5 per dataset",)
    table.write_text("theme,min_score\n,0.99\n", encoding="utf-8")
    *_, found = studio.draw(studio.read(PROMPT), 2, seed=5)
    assert {one.rejected for one in found} == {"below_threshold"}
    assert "is below min_score 0.990 of all prompts" in found[0].why


def test_the_second_scorer_rejects_as_in_a_run(config: RunConfig) -> None:
    score = ScoreConfig(second_model="demo-ruclip", minimum={"second": 0.999})
    studio = Studio(InMemoryPipeline(config.model_copy(update={"score": score})))
    ((found,),) = studio.draw(studio.read(PROMPT), 1, seed=5)
    assert found.second_score == pytest.approx(found.score, abs=1e-5)
    assert found.rejected == "outside_limits" and found.why.startswith("second ")


def test_an_image_is_enlarged_and_cut_out_like_a_published_one(config: RunConfig) -> None:
    changes = {
        "upscale": config.upscale.model_copy(update={"model": "demo-realesrgan-x2"}),
        "cutout": config.cutout.model_copy(update={"transparent": True}),
    }
    pipeline = InMemoryPipeline(config.model_copy(update=changes))
    studio = Studio(pipeline)
    ((trial,),) = studio.draw(studio.read(PROMPT), 1, seed=5)
    (row,) = pipeline.cut_out(pipeline.upscale([trial.row]))
    large = studio.enlarge(trial)
    assert large.equal(unpack_image(row, keep_alpha=True))
    assert large.shape[1:] == (2 * SIDE, 2 * SIDE)


def test_a_canvas_of_another_size_is_an_error(config: RunConfig) -> None:
    wide = config.model_copy(
        update={"generate": config.generate.model_copy(update={"width": 64, "height": 32})}
    )
    with pytest.raises(SettingsError, match="generate.width"):
        Studio.load(wide)
