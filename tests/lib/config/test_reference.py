"""The configuration reference says what the model and the fingerprints say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.config import reference
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.selection import Rule
from rudalle_lib.pipeline.stages import STAGES, fingerprints
from rudalle_lib.schema.records import ShardSpec

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
KEYS = dict(reference.keys())


def test_the_page_in_docs_is_what_the_command_prints() -> None:
    assert PAGE.read_text("utf-8") == reference.render(), "run `make docs`"


def test_the_keys_of_a_fine_tuning_in_docs_are_what_the_command_writes() -> None:
    page = PAGE.with_name("training.md").read_text("utf-8")
    assert page == reference.with_training_keys(page), "run `make docs`"
    for key in ("output", "data", "lora.rank", "evaluation.every", "runtime.devices"):
        assert re.search(rf"^\| `[a-z.]*{re.escape(key)}` \|", page, re.M), key


def test_every_key_of_every_section_is_there_with_a_description() -> None:
    fields = {
        f"{name}.{key}"
        for name, section in reference.sections().items()
        for key in section.model_fields
    }
    top = set(RunConfig.model_fields) - set(reference.sections())
    assert set(KEYS) == fields | top
    assert [key for key, schema in KEYS.items() if not schema.get("description")] == []


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("generate.images", "| `generate.images` | integer, 1 to 1000 | `8` | generate |"),
        ("generate.batch_size", "| integer, 1 to 2^31 - 1, or `auto` | `64` | – |"),
        ("generate.model", "| [decoder](models.md#decoders) | `demo-dalle` | generate |"),
        ("score.min_score", "| number, -1 to 1, or null | `null` | publish |"),
        ("prompts.columns", "| mapping | `{}` | – |"),
    ],
)
def test_rows_say_type_range_default_and_what_runs_again(key: str, row: str) -> None:
    (line,) = [line for line in reference.render().splitlines() if line.startswith(f"| `{key}`")]
    assert row in line


@pytest.mark.parametrize("image_prompts", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_what_runs_again_is_what_the_fingerprints_say(key: str, image_prompts: bool) -> None:
    stage, _, only_with_image_prompts = reference.reruns(key, KEYS[key]).partition(", ")
    expected = reference.NOTHING if only_with_image_prompts and not image_prompts else stage
    assert first_changed(key, image_prompts) == expected


def first_changed(key: str, image_prompts: bool) -> str:
    """The first stage whose fingerprint another value of the key changes."""
    shard = ShardSpec(0, "plan", 1, "plan-digest", image_prompts)
    # Cutout's settings count only where it is on.
    before = RunConfig.model_validate({"cutout": {"transparent": key != "cutout.transparent"}})
    weights = dict.fromkeys(STAGES, "digest")
    old = fingerprints(before, weights, shard)
    new = fingerprints(with_other_value(before, key), weights, shard)
    return next((stage for stage in STAGES if old[stage] != new[stage]), reference.NOTHING)


def with_other_value(config: RunConfig, key: str) -> RunConfig:
    """A copy in which one key has another value; whether it is allowed does not matter here."""
    *section, name = key.split(".")
    if not section:
        return config.model_copy(update={name: other(getattr(config, name), KEYS[key])})
    part = getattr(config, section[0])
    changed = part.model_copy(update={name: other(getattr(part, name), KEYS[key])})
    return config.model_copy(update={section[0]: changed})


OTHER_ITEMS: Mapping[str, Any] = {"number": 0.5, "anyOf": ("a text",)}
"""A value of a mapping, by the type of its values."""


def name_of_items(schema: Mapping[str, Any]) -> str:
    patterns = schema.get("patternProperties") or {}
    items = next(iter(patterns.values()), None) or schema.get("additionalProperties") or {}
    return "anyOf" if "anyOf" in items else str(items.get("type"))


def other(value: Any, schema: Mapping[str, Any]) -> Any:
    """Another value of the same type, or of an optional one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if schema.get("items", {}).get("$ref") is not None:
        return (*value, Rule(keep_best=1))
    if isinstance(value, tuple):
        return (*value, "more {}")
    if isinstance(value, dict):
        return {"prompt": OTHER_ITEMS.get(name_of_items(schema), "caption")}
    if isinstance(value, str):
        return next((choice for choice in schema.get("enum", ()) if choice != value), "other")
    (kind,) = [kind["type"] for kind in schema["anyOf"] if kind["type"] != "null"]
    return {"object": {"whole": 1.0}, "string": "other"}.get(kind, 1)
