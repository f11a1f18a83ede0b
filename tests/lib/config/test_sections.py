"""Sections: the settings that determine a stage, and what they may be."""

from __future__ import annotations

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import OVERRIDE_NAMES, GenerateConfig, ScoreConfig
from rudalle_lib.schema.arrow import schema
from rudalle_lib.schema.ranges import INT32_MAX, RANGES
from rudalle_lib.schema.records import Overrides
from tests.support.configs import config_error


def test_settings_that_change_only_the_speed_are_not_part_of_the_identity() -> None:
    assert GenerateConfig(batch_size=1).identity() == GenerateConfig(batch_size=64).identity()
    assert GenerateConfig(top_k=1).identity() != GenerateConfig(top_k=2).identity()
    scored = {"model", "dtype", "templates", "negative_texts", "unsafe_texts"}
    chosen = ["min_score", "keep_best", "max_unsafe"]
    assert set(ScoreConfig().identity(exclude=chosen)) == scored


def test_the_limits_in_a_form_are_those_of_a_row() -> None:
    properties = GenerateConfig.model_json_schema()["properties"]
    for name in ("images", "temperature", "top_p", "top_k", "guidance", "width", "height"):
        limits = properties[name].get("anyOf", [properties[name]])[0]
        exclusive = RANGES[name].exclusive_minimum
        assert limits["maximum"] == RANGES[name].maximum
        assert limits["exclusiveMinimum" if exclusive else "minimum"] == RANGES[name].minimum
    seed = RunConfig.model_json_schema()["properties"]["seed"]
    assert (seed["minimum"], seed["maximum"]) == (RANGES["seed"].minimum, RANGES["seed"].maximum)


def test_all_overrides_have_a_name_in_the_config() -> None:
    assert schema(Overrides).names == list(OVERRIDE_NAMES)


def test_a_canvas_in_pixels_is_a_whole_number_of_tokens() -> None:
    assert "height in pixels is a multiple of 8, found 300" in config_error(
        "generate: {height: 300}"
    )
    assert RunConfig.parse("generate: {height: 61, size_unit: tokens}").generate.height == 61


@pytest.mark.parametrize(
    ("key", "maximum"),
    [
        ("prompts.shard_size", INT32_MAX),
        ("prompts.limit", INT32_MAX),
        ("translate.batch_size", INT32_MAX),
        ("generate.batch_size", INT32_MAX),
        ("generate.top_k", INT32_MAX),
        ("decode.batch_size", INT32_MAX),
        ("score.batch_size", INT32_MAX),
        ("score.keep_best", INT32_MAX),
        ("upscale.batch_size", INT32_MAX),
        ("upscale.tile", INT32_MAX),
        ("cutout.batch_size", INT32_MAX),
        ("generate.cpus", 4096),
        ("generate.gpus", 1024),
        ("runtime.threads", 4096),
        ("runtime.ray_cpus", 4096),
        ("runtime.shards_in_flight", INT32_MAX),
        ("runtime.lease_seconds", 2_592_000),
        ("runtime.price_per_device_hour", 1_000_000_000),
    ],
)
def test_a_number_that_would_overflow_later_is_rejected_at_once(key: str, maximum: int) -> None:
    RunConfig.parse("", [f"{key}={maximum}"])
    for value in (maximum + 1, 3 * maximum, 10**30):
        message = config_error("", f"{key}={value}")
        assert key in message and f"less than or equal to {maximum}" in message
