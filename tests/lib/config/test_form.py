"""The short form: a few settings, and everything that is sent is still validated."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import TypeAdapter

from rudalle_lib.config.form import BASIC, ShortForm
from rudalle_lib.config.run import RunConfig

SCHEMA: dict[str, Any] = TypeAdapter(Annotated[RunConfig, ShortForm()]).json_schema()


def shown(schema: dict[str, Any], path: str = "") -> list[str]:
    """The settings in a form, in the order in which it has them."""
    found: list[str] = []
    fields = sorted(schema["properties"].items(), key=lambda field: field[1]["position"])
    for name, field in fields:
        found += shown(field, f"{path}{name}.") if "properties" in field else [path + name]
    return found


def errors(values: dict[str, Any]) -> list[str]:
    validator = Draft202012Validator(SCHEMA)
    return [error.json_path for error in validator.iter_errors(values)]


def test_it_shows_the_basic_settings_in_order_with_help() -> None:
    assert shown(SCHEMA) == list(BASIC)
    images = SCHEMA["properties"]["generate"]["properties"]["images"]
    assert (images["title"], images["default"], images["minimum"]) == (
        "Candidates per prompt",
        8,
        1,
    )
    decoders, own = SCHEMA["properties"]["generate"]["properties"]["model"]["anyOf"]
    assert "malevich-v3" in decoders["enum"]
    assert own["title"] == "of your own"
    upscalers = SCHEMA["properties"]["upscale"]["properties"]["model"]["anyOf"]
    assert [one["title"] for one in upscalers] == ["registered", "of your own", "none"]
    sections = [field for field in SCHEMA["properties"].values() if "properties" in field]
    fields = [field for section in sections for field in section["properties"].values()]
    assert all(field["description"] for field in (*sections, *fields))


def test_hidden_settings_are_accepted_and_validated() -> None:
    assert errors(RunConfig().model_dump(mode="json")) == []
    assert errors({"generate": {"top_p": 0.9}, "runtime": {"devices": "cpu"}}) == []
    own = {"models": {"mine": {"base": "demo-dalle", "folder": "weights/mine"}}}
    assert errors({"generate": {"model": "mine"}, "weights": own}) == []


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"generate": {"top_p": 7}}, "$.generate.top_p"),
        ({"generate": {"images": "many"}}, "$.generate.images"),
        ({"runtime": {"threads": 0}}, "$.runtime.threads"),
        ({"no_such_section": 1}, "$"),
    ],
)
def test_wrong_values_are_errors(values: dict[str, Any], path: str) -> None:
    assert path in errors(values)
