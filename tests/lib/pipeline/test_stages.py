"""The table of stages, and fingerprints: a change re-runs exactly the stages that it affects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from flows.cli.options import packaged_configs
from rudalle_lib.config.base import Section
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.pipeline.stages import (
    IMAGE_ENCODER,
    STAGE_NAMES,
    STAGES,
    active_stages,
    fingerprint,
    fingerprints,
    last_image_stage,
    skipped_stages,
    stage_models,
    weight_digests,
)
from rudalle_lib.registry import Kind
from rudalle_lib.schema.records import ShardSpec

WEIGHTS = {stage: f"digest of {stage}" for stage in STAGE_NAMES[:-1]}
SHARD = ShardSpec(3, "plan/00003.parquet", 2, "digest of the prompts")
ALL = set(STAGES)
CONFIGS = Path(__file__).resolve().parents[3] / "configs"

PUBLISHED_BEFORE = {
    "demo.yaml": ("8f11181cb3624cc62081c459ec11c5ee", "60989e221702943fc12b5c64669193ac"),
    "emojich.yaml": ("c76378ceef59550b716b3ab8d5d0e3d3", "814f43e23e80cdb2bc5b1c44cf112f23"),
    "kandinsky.yaml": ("0aed1f53655a2c7d864e924ea80c87a0", "5a252bca1529eebddddaa76818f5c3fc"),
    "malevich.yaml": ("bb6a13fd1c8bb056455c39927817f1cb", "9f25af8a0a3af7e8b40911371fc552df"),
    "malevich_dwt.yaml": ("ae7a7b15854d4bdeda98121660344d43", "9fda65557aca9b330e7b13cdeb111362"),
    "surrealist.yaml": ("736125f4b303211622b031aa5528d107", "c6e64ae8aea23698e3e72a71c1b23e75"),
}
"""Fingerprints of "publish", without and with image prompts, of the version before stages were one
table. They are derived from the fingerprints of all other stages."""


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
        ({"decode": {"model": "vqgan-f8"}}, ALL - {"translate", "generate"}),
        ({"generate": {"top_p": 0.5}}, ALL - {"translate"}),
        ({"seed": 8}, ALL - {"translate"}),
        ({"runtime": {"dtype": "bfloat16"}}, ALL - {"translate"}),
        ({"translate": {"model": "opus-mt-en-ru"}}, ALL),
        ({"translate": {"min_confidence": -0.5}}, ALL - {"translate"}),
        # Settings that change only the speed, the device, or the report:
        ({"generate": {"batch_size": 1}, "decode": {"batch_size": 1}}, set()),
        ({"runtime": {"threads": 1, "shards_in_flight": 1, "devices": "cpu"}}, set()),
        ({"name": "x", "output": "elsewhere", "prompts": {"shard_size": 9}}, set()),
        ({"publish": {"contact_sheet": 0, "gallery": False}}, set()),
    ],
)
def test_a_setting_affects_its_own_stage_and_those_after_it(
    settings: dict[str, object], stages: set[str]
) -> None:
    assert changed(settings) == stages


def test_weights_affect_their_stage_and_prompts_affect_all_stages() -> None:
    assert changed(weights={"upscale": "new"}) == {"upscale", "cutout", "publish"}
    assert changed(weights={"cutout": "new"}) == {"cutout", "publish"}
    assert changed(weights={"score": "new"}) == {"score", "publish"}
    assert changed(shard=ShardSpec(3, SHARD.plan_uri, 2, "digest of other prompts")) == ALL
    assert changed(shard=ShardSpec(9, "plan/00009.parquet", 2, SHARD.fingerprint)) == set()


def test_each_input_changes_the_fingerprint() -> None:
    settings = {"top_k": 1, "seed": 0}
    prints = {
        fingerprint("generate", 1, settings, "u", "w"),
        fingerprint("decode", 1, settings, "u", "w"),
        fingerprint("generate", 2, settings, "u", "w"),
        fingerprint("generate", 1, {"top_k": 2, "seed": 0}, "u", "w"),
        fingerprint("generate", 1, settings, "v", "w"),
        fingerprint("generate", 1, settings, ["u", "v"], "w"),
        fingerprint("generate", 1, settings, ["v", "u"], "w"),
        fingerprint("generate", 1, settings, "u", "x"),
        fingerprint("generate", 1, settings, "u"),
    }
    assert len(prints) == 9


def test_the_order_of_settings_does_not_change_the_fingerprint() -> None:
    one = fingerprint("score", 1, {"a": 1, "b": 2}, "u")
    assert one == fingerprint("score", 1, {"b": 2, "a": 1}, ["u"])
    assert len(one) == 32


def test_a_model_of_the_wrong_kind_is_an_error() -> None:
    config = RunConfig.model_validate({"score": {"model": "demo-vqgan"}})
    with pytest.raises(ConfigError, match="'demo-vqgan' is a vqgan, expected a scorer"):
        stage_models(config)


def test_a_stage_that_is_off_has_no_model() -> None:
    networks = ["translate", "generate", "decode", "score"]
    config = RunConfig.model_validate({"upscale": {"model": None}, "cutout": {"model": "x"}})
    assert list(stage_models(config)) == networks
    assert skipped_stages(config) == {"upscale", "cutout"}
    on = RunConfig.model_validate({"cutout": {"transparent": True, "model": "emojich-unet"}})
    assert list(stage_models(on)) == [*networks, "upscale", "cutout"]
    assert skipped_stages(on) == set()


# --- the table ---------------------------------------------------------------------------------


def test_each_stage_has_a_section_of_its_name() -> None:
    config = RunConfig()
    for name, stage in STAGES.items():
        section = stage.section(config)
        assert isinstance(section, Section) and section is getattr(config, name)
        for setting in stage.not_identity:
            assert setting in type(section).model_fields, (name, setting)
        assert (stage.model_kind is not None) == ("model" in type(section).model_fields)


def test_stages_come_after_their_inputs() -> None:
    names = list(STAGES)
    for place, stage in enumerate(STAGES.values()):
        assert set(stage.upstream) <= set(names[:place]), stage.name
        assert stage.model_kind is None or stage.model_kind in get_args(Kind)


def test_versions_are_those_of_existing_datasets() -> None:
    """A raised version makes users run the stage and all stages after it again.

    That of publish rose with `same_image`: finished shards are published again, without networks.
    """
    raised = {name: stage.version for name, stage in STAGES.items() if stage.version != 1}
    assert raised == {"translate": 2, "generate": 2, "score": 2, "publish": 2}


def test_but_for_its_version_the_configs_have_the_fingerprints_of_existing_datasets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    former = {**STAGES, "publish": replace(STAGES["publish"], version=1)}
    monkeypatch.setattr("rudalle_lib.pipeline.stages.STAGES", former)
    weights = dict.fromkeys(STAGE_NAMES[:-1], "w")
    found = {}
    for path in [CONFIGS / f"{name}.yaml" for name in packaged_configs()]:
        shards = (ShardSpec(0, "x", 3, "f", image_prompts=given) for given in (False, True))
        config = RunConfig.load(str(path))
        found[path.name] = tuple(
            fingerprints(config, weights, shard)["publish"] for shard in shards
        )
    assert found == PUBLISHED_BEFORE


def test_stages_that_are_off_are_not_active() -> None:
    config = RunConfig.model_validate({"upscale": {"model": None}})
    names = ["translate", "generate", "decode", "score", "publish"]
    assert [stage.name for stage in active_stages(config)] == names
    assert last_image_stage(names) == "decode"
    assert last_image_stage([*names, "upscale"]) == "upscale"
    assert last_image_stage([*names, "cutout", "upscale"]) == "cutout"


def test_the_encoder_of_image_prompts_has_a_digest_if_it_is_another_vqgan(
    tiny_stack: Path,
) -> None:
    settings = {"weights": {"folder": str(tiny_stack), "offline": True}}
    digests = weight_digests(RunConfig.model_validate(settings))
    assert list(digests) == ["translate", "generate", "decode", "score", "upscale"]
    assert len(set(digests.values())) == len(digests)
    same = RunConfig.model_validate({**settings, "generate": {"image_encoder": "demo-vqgan"}})
    assert weight_digests(same) == digests
    other = RunConfig.model_validate(
        {**settings, "decode": {"model": "x"}, "generate": {"image_encoder": "demo-vqgan"}}
    )
    with pytest.raises(ConfigError, match="x"):
        weight_digests(other)


def test_image_prompts_add_their_encoder_to_the_fingerprint() -> None:
    shard = ShardSpec(3, SHARD.plan_uri, 2, SHARD.fingerprint, image_prompts=True)
    drawn = [
        fingerprints(RunConfig(), {**WEIGHTS, **weights}, shard)["generate"]
        for weights in ({}, {"decode": "new"}, {IMAGE_ENCODER: "new"}, {IMAGE_ENCODER: "newer"})
    ]
    assert drawn[1] == drawn[2], "without a digest of its own it is the VQ-GAN of decode"
    assert len(set(drawn)) == 3
