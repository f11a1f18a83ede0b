"""Fingerprints: a change re-runs exactly the stages whose results it touches, and no others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rudalle_lib.config import RunConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.records import ShardSpec
from rudalle_lib.stages import (
    STAGES,
    find_artifact,
    fingerprints,
    models,
    read_artifact,
    refused_in,
    stages_off,
    with_refused,
    write_artifact,
)
from rudalle_lib.storage import Storage

WEIGHTS = {stage: f"digest of {stage}" for stage in STAGES[:-1]}
SHARD = ShardSpec(3, "plan/00003.parquet", 2, "what the plan holds")
EVERY = set(STAGES)


def changed(
    settings: dict[str, object] | None = None,
    weights: dict[str, str] | None = None,
    shard: ShardSpec = SHARD,
) -> set[str]:
    """The stages whose fingerprint differs from that of the defaults."""
    before = fingerprints(RunConfig(), WEIGHTS, SHARD)
    config = RunConfig.model_validate(settings or {})
    after = fingerprints(config, {**WEIGHTS, **(weights or {})}, shard)
    return {stage for stage in STAGES if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"score": {"min_score": 0.2}}, {"publish"}),
        ({"score": {"keep_best": 1}}, {"publish"}),
        ({"publish": {"image_format": "webp"}}, {"publish"}),
        ({"upscale": {"model": "realesrgan-x4"}}, {"upscale", "cutout", "publish"}),
        ({"cutout": {"transparent": True}}, {"cutout", "publish"}),
        ({"cutout": {"model": "emojich-unet", "min_confidence": 0.5}}, set()),  # it is off
        ({"score": {"templates": ["фото: {}"]}}, {"score", "publish"}),
        ({"decode": {"model": "vqgan-f8"}}, EVERY - {"translate", "generate"}),
        ({"generate": {"top_p": 0.5}}, EVERY - {"translate"}),
        ({"seed": 8}, EVERY - {"translate"}),
        ({"runtime": {"dtype": "bfloat16"}}, EVERY - {"translate"}),
        ({"translate": {"model": "opus-mt-en-ru"}}, EVERY),
        # What decides only how fast something is made, where, or how it is shown:
        ({"generate": {"batch_size": 1}, "decode": {"batch_size": 1}}, set()),
        ({"runtime": {"threads": 1, "shards_in_flight": 1, "devices": "cpu"}}, set()),
        ({"name": "x", "output": "elsewhere", "prompts": {"shard_size": 9}}, set()),
        ({"publish": {"contact_sheet": 0, "gallery": False}}, set()),
    ],
)
def test_a_setting_touches_its_own_stage_and_what_is_made_from_it(
    settings: dict[str, object], stages: set[str]
) -> None:
    assert changed(settings) == stages


def test_other_weights_touch_their_stage_and_other_prompts_touch_all() -> None:
    assert changed(weights={"upscale": "new"}) == {"upscale", "cutout", "publish"}
    assert changed(weights={"cutout": "new"}) == {"cutout", "publish"}
    assert changed(weights={"score": "new"}) == {"score", "publish"}
    assert changed(shard=ShardSpec(3, SHARD.plan_uri, 2, "other prompts")) == EVERY
    assert changed(shard=ShardSpec(9, "plan/00009.parquet", 2, SHARD.fingerprint)) == set()


def test_a_model_of_the_wrong_kind_is_refused() -> None:
    config = RunConfig.model_validate({"score": {"model": "demo-vqgan"}})
    with pytest.raises(ConfigError, match="'demo-vqgan' is a vqgan, expected a scorer"):
        models(config)


def test_a_stage_that_is_off_has_no_model() -> None:
    networks = ["translate", "generate", "decode", "score"]
    config = RunConfig.model_validate({"upscale": {"model": None}, "cutout": {"model": "x"}})
    assert list(models(config)) == networks
    assert stages_off(config) == {"upscale", "cutout"}
    on = RunConfig.model_validate({"cutout": {"transparent": True, "model": "emojich-unet"}})
    assert list(models(on)) == [*networks, "upscale", "cutout"]
    assert stages_off(on) == set()


def test_an_artifact_is_found_by_its_fingerprint_only(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert find_artifact(storage, "decode", SHARD, "f") is None
    table = with_refused(pa.table({"x": [1, 2]}), {"a": ("too_long", "why")})
    written = write_artifact(storage, "decode", SHARD, "f", table, 1.23456)
    assert (written.rows, written.seconds) == (2, 1.235)
    assert find_artifact(storage, "decode", SHARD, "f") == written
    assert find_artifact(storage, "decode", SHARD, "g") is None
    assert find_artifact(storage, "score", SHARD, "f") is None
    read = read_artifact(storage, written)
    assert read.column("x").to_pylist() == [1, 2]
    assert refused_in(read) == {"a": ("too_long", "why")}
