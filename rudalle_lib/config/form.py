"""The form of a flow in an orchestrator's UI: the settings that most runs change, by section.

The whole schema makes a form of 13 sections that is ten screens tall. The short one shows some
settings; a form keeps the values of all others as they were filled in, and a JSON editor changes
them. A server still validates everything: the whole schema applies as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

BASIC = {
    "name": "Name",
    "output": "Output",
    "prompts.uri": "Prompt table",
    "prompts.limit": "First rows only",
    "generate.model": "Decoder",
    "generate.images": "Candidates per prompt",
    "score.keep_best": "Keep the best",
    "score.min_score": "Minimum score",
    "upscale.model": "Upscaler",
    "publish.format": "Format",
    "seed": "Seed",
}
"""The settings in the form of a run, in order, with their labels."""

FINE_TUNE = {
    "name": "Name of the new weights",
    "output": "Output",
    "data": "Datasets to learn from",
    "trains": "What learns",
    "base": "Weights to start from",
    "vqgan": "VQ-GAN of a decoder",
    "encoding.held_out": "Share held out",
    "training.method": "Method",
    "training.steps": "Steps",
    "training.batch_size": "Images per step",
    "training.learning_rate": "Learning rate",
    "evaluation.every": "Steps between measurements",
    "seed": "Seed",
}
"""The same for a fine-tuning."""

HELP = (
    "The settings that runs change most often. All others stay as they are filled in; to change "
    "them, too, choose **Use JSON input** in the menu of this field."
)


class ShortForm:
    """Marks a parameter whose type is a whole configuration: its form shows only some settings."""

    def __init__(self, settings: Mapping[str, str] = BASIC) -> None:
        """Choose the settings, by path, in order; their labels are the values."""
        self._settings = settings

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema of the form."""
        whole = handler(core_schema)
        form: dict[str, Any] = {"type": "object", "description": HELP, "properties": {}}
        for position, (path, title) in enumerate(self._settings.items()):
            place, schema = form["properties"], handler.resolve_ref_schema(whole)
            *sections, key = path.split(".")
            for name in sections:
                section = schema["properties"][name]
                schema = handler.resolve_ref_schema(section)
                place = place.setdefault(name, {
                    "type": "object",
                    "title": name.capitalize(),
                    "description": section.get("description") or schema.get("description", ""),
                    "position": position,
                    "properties": {},
                })["properties"]  # fmt: skip
            place[key] = {
                **_labelled(schema["properties"][key]), "title": title, "position": position
            }  # fmt: skip
        # A condition that always holds: forms ignore it, validators apply the whole schema.
        return {**form, "if": {}, "then": whole}


def _labelled(setting: dict[str, Any]) -> dict[str, Any]:
    """A setting that may be null has two buttons, which Prefect would label `int` and `None`."""
    if "anyOf" not in setting:
        return setting
    options = [one for option in setting["anyOf"] for one in option.get("anyOf", [option])]
    return {**setting, "anyOf": [{"title": _label(option), **option} for option in options]}


def _label(option: dict[str, Any]) -> str:
    return "none" if option.get("type") == "null" else "value"
