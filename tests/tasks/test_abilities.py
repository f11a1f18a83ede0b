"""Guidance, canvases, image prompts and negative texts through the stages, on the tiny stack."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from flows.prefect_settings import set_up_prefect
from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.artifacts import read_artifact
from rudalle_lib.pipeline.stages import fingerprints, stage_models
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import PixelsRecord, ScoreRecord, TokensRecord
from rudalle_lib.storage.storage import Storage
from tests.support.tiny_stack import GRID, SIDE, write_tiny_stack

set_up_prefect(os.environ)  # must precede the import of prefect

PLAIN, GUIDED, WIDE, CONTINUED, DAMAGED, TOO_SMALL, MISFIT, LONG = "abcdefgh"


class Made(NamedTuple):
    """The rows of one shard."""

    tokens: dict[str, TokensRecord]
    images: dict[str, PixelsRecord]
    scores: dict[str, ScoreRecord]
    published: dict[str, dict[str, Any]]
    rejects: dict[str, dict[str, Any]]


def write_prompts(folder: Path) -> Path:
    Image.linear_gradient("L").resize((SIDE, SIDE)).save(folder / "image.png")
    (folder / "bad.png").write_bytes(b"no image")
    image = str(folder / "image.png")
    up = {"image_prompt_borders": {"up": GRID // 2}}
    rows: list[dict[str, Any]] = [
        {"prompt_id": PLAIN},
        {"prompt_id": GUIDED, "guidance": 3},
        {"prompt_id": WIDE, "width": 2 * SIDE, "images": 1},
        {"prompt_id": CONTINUED, "image_prompt": image, **up},
        {"prompt_id": DAMAGED, "image_prompt": str(folder / "bad.png"), **up},
        {"prompt_id": TOO_SMALL, "height": SIDE // 2},
        {"prompt_id": MISFIT, "image_prompt": image, "image_prompt_borders": "left=99"},
        {"prompt_id": LONG, "prompt": "круг " * 20, "images": 1},
    ]
    lines = [json.dumps({"prompt": f"красный круг {row['prompt_id']}", **row}) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "prompts.jsonl"


def make(config: RunConfig) -> Made:
    """Run all stages, without Prefect."""
    from tasks.without_prefect import process_shard

    storage = Storage(config.output)
    (shard,) = plan_run(config, storage).shards
    manifest = process_shard(config, dict.fromkeys(stage_models(config), "weights"), shard)
    assert manifest.rejects is not None

    def rows(stage: str, record: type[Any]) -> list[Any]:
        return from_table(read_artifact(storage, manifest.stages[stage]), record)

    published = storage.read_table(manifest.metadata.path).to_pylist()
    rejects = storage.read_table(manifest.rejects.path).to_pylist()
    return Made(
        {row.image_id: row for row in rows("generate", TokensRecord)},
        {row.image_id: row for row in rows("decode", PixelsRecord)},
        {row.image_id: row for row in rows("score", ScoreRecord)},
        {row["image_id"]: row for row in published},
        {row["prompt_id"]: row for row in rejects},
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "prompts": {"uri": str(write_prompts(tmp_path_factory.mktemp("prompts")))},
        "weights": {
            "folder": str(write_tiny_stack(tmp_path_factory.mktemp("weights"))),
            "offline": True,
        },
        "runtime": {"devices": "cpu", "threads": 1},
        "generate": {"images": 2, "batch_size": 8},
        "score": {"negative_texts": ["пустая картинка", "синий крест"]},
    }


@pytest.fixture(scope="module")
def made(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Made:
    output = str(tmp_path_factory.mktemp("out"))
    return make(RunConfig.model_validate({**settings, "output": output}))


def test_each_prompt_is_drawn_with_its_settings_or_rejected(made: Made) -> None:
    drawn = [*(f"{row}-00{i}" for row in (PLAIN, GUIDED) for i in (0, 1)), f"{WIDE}-000"]
    assert list(made.tokens) == [*drawn, f"{CONTINUED}-000", f"{CONTINUED}-001", f"{LONG}-000"]
    assert [i for i, row in made.tokens.items() if row.truncated] == [f"{LONG}-000"]
    assert set(made.published) == set(made.tokens)
    reasons = {prompt_id: row["reason"] for prompt_id, row in made.rejects.items()}
    bad = "bad_image_prompt"
    assert reasons == {DAMAGED: bad, TOO_SMALL: "bad_override", MISFIT: bad}
    assert "bad.png is not a readable PNG" in made.rejects[DAMAGED]["detail"]
    assert "height: expected at least 32 pixels" in made.rejects[TOO_SMALL]["detail"]
    assert "do not fit a canvas" in made.rejects[MISFIT]["detail"]


def test_a_wide_image_is_wide_in_all_stages(made: Made) -> None:
    wide, plain = made.tokens[f"{WIDE}-000"], made.tokens[f"{PLAIN}-000"]
    assert (wide.rows, wide.columns, len(wide.tokens)) == (GRID, 2 * GRID, 2 * GRID * GRID)
    assert (plain.rows, plain.columns) == (GRID, GRID)
    image = made.images[f"{WIDE}-000"]
    assert (image.width, image.height) == (2 * SIDE, SIDE)
    published = made.published[f"{WIDE}-000"]
    assert (published["width"], published["height"]) == (4 * SIDE, 2 * SIDE)


def test_images_begin_with_the_tokens_of_their_image_prompt(made: Made) -> None:
    one, two = made.tokens[f"{CONTINUED}-000"].tokens, made.tokens[f"{CONTINUED}-001"].tokens
    half = GRID // 2 * GRID
    assert one[:half] == two[:half]
    assert one[half:] != two[half:]
    published = made.published[f"{CONTINUED}-000"]
    assert published["image_prompt"].endswith("image.png")
    assert published["image_prompt_borders"] == f"up={GRID // 2}"
    assert made.published[f"{PLAIN}-000"]["image_prompt"] is None


def test_guidance_is_published(made: Made) -> None:
    assert made.published[f"{GUIDED}-000"]["guidance"] == 3.0
    assert made.published[f"{PLAIN}-000"]["guidance"] == 1.0


def test_probabilities_are_published_with_the_scores(made: Made) -> None:
    for image_id, row in made.scores.items():
        assert row.probability is not None and 0 < row.probability < 1
        assert made.published[image_id]["probability"] == pytest.approx(row.probability)
        assert made.published[image_id]["score"] == pytest.approx(row.score)


def test_tokens_are_batch_invariant_and_probabilities_need_negative_texts(
    made: Made, settings: dict[str, Any], tmp_path: Path
) -> None:
    generate = {"images": 2, "batch_size": 1, "allow_truncation": False}
    changes = {"output": str(tmp_path), "generate": generate, "score": {}}
    again = make(RunConfig.model_validate({**settings, **changes}))
    assert {i: row.tokens for i, row in again.tokens.items()} == {
        i: row.tokens for i, row in made.tokens.items() if row.prompt_id != LONG
    }
    assert again.rejects[LONG]["reason"] == "too_long"
    assert {row.probability for row in again.scores.values()} == {None}


def test_the_image_encoder_affects_only_shards_with_image_prompts(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig.model_validate({**settings, "output": str(tmp_path)})
    assert config.generate.image_encoder == "demo-vqgan"
    (shard,) = plan_run(config, Storage(config.output)).shards
    assert shard.image_prompts
    (again,) = plan_run(config, Storage(config.output)).shards
    assert again == shard
    plain = type(shard)(0, shard.plan_uri, shard.rows, shard.fingerprint)
    cropped = config.model_copy(
        update={"generate": config.generate.model_copy(update={"crop_image_prompts": True})}
    )
    one, two = {"decode": "1"}, {"decode": "2"}

    def drawn(config: RunConfig, weights: dict[str, str], image_prompts: bool) -> str:
        return fingerprints(config, weights, shard if image_prompts else plain)["generate"]

    assert drawn(config, one, False) == drawn(config, two, False) == drawn(cropped, one, False)
    assert len({drawn(config, one, True), drawn(config, two, True), drawn(cropped, one, True)}) == 3
