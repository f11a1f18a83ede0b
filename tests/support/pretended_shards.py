"""Whole shards of every kind on pretended CUDA devices, in a process of its own.

`python -m tests.support.pretended_shards FOLDER` makes them below a folder, and prints what the
devices were asked to do, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.support.pretended_cuda import Counts, install

UNET = "emojich-unet"

RUSSIAN = ("чёрный квадрат", "красный круг")

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "translated": {"prompts": ["a red circle", "синий круг"]},
    "guided": {"generate": {"guidance": 3.0}},
    "wide": {"generate": {"width": 64}},
    "continued": {"image_prompt": True},
    "bfloat16": {
        "runtime": {"dtype": "bfloat16"},
        "decode": {"dtype": "bfloat16"},
        "score": {"dtype": "bfloat16"},
        "upscale": {"dtype": "bfloat16"},
    },
    "int8": {"runtime": {"dtype": "int8"}},
    "split": {"runtime": {"split_decoder": True}},
    "cut out": {"cutout": {"transparent": True, "model": UNET}},
    "as webp": {"publish": {"image_format": "webp"}},
}
"""Changes of the settings by kind of shard."""


def main(folder: Path) -> dict[str, Any]:
    """Make one shard of each kind on two devices; returns what each kind asked of them."""
    os.environ["RUDALLE_GPU_ENGINE"] = "0"  # kernels of Triton run on real devices only
    counts = install(devices=2)
    from tests.support.tiny_stack import write_tiny_stack  # imports of ours follow `install`

    weights = write_tiny_stack(folder / "weights")
    _write_segmenter(weights)
    return {kind: _make(folder, weights, kind, changes, counts) for kind, changes in KINDS.items()}


def _make(
    folder: Path, weights: Path, kind: str, changes: dict[str, Any], counts: Counts
) -> dict[str, Any]:
    from tasks.runtime.events import Event, Step, listener
    from tests.support.finished_run import finish

    config = _configuration(folder / kind, weights, dict(changes))
    before, steps = counts.totals(), [counts.totals()]
    waits = dict(counts.waits)

    def listen(event: Event) -> None:
        if isinstance(event, Step) and event.stage == "generate":
            steps.append(counts.totals())

    counts.devices.clear()
    listener.set(listen)
    manifest = finish(config)
    return {
        "kept": manifest.totals.kept,
        "devices": sorted(counts.devices),
        "all": _difference(before, counts.totals()),
        "step": _difference(steps[2], steps[3]),
        "waits": {
            f"{what} at {line}": number - waits.get((what, line), 0)
            for (what, line), number in counts.waits.items()
            if number > waits.get((what, line), 0)
        },
    }


def _configuration(folder: Path, weights: Path, changes: dict[str, Any]) -> Any:
    from rudalle_lib.config.run import RunConfig

    folder.mkdir(parents=True)
    rows = [{"prompt": text} for text in changes.pop("prompts", RUSSIAN)]
    if changes.pop("image_prompt", False):
        image = _write_image(folder / "image.png")
        rows = [{**row, "image_prompt": image, "image_prompt_borders": "up=2"} for row in rows]
    table = folder / "prompts.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    settings: dict[str, Any] = {
        "seed": 3,
        "output": str(folder / "out"),
        "prompts": {"uri": str(table)},
        "weights": {"folder": str(weights), "offline": True},
        "generate": {"images": 2, "batch_size": 8},
        "score": {"negative_texts": ["пустая картинка"], "unsafe_texts": ["кровь"]},
        "publish": {"gallery": False, "contact_sheet": 0},
    }
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values}
    return RunConfig.model_validate(settings)


def _write_image(path: Path) -> str:
    from PIL import Image

    Image.linear_gradient("L").resize((32, 32)).save(path)
    return str(path)


def _write_segmenter(weights: Path) -> None:
    """A tiny network in place of the published one, found by its name."""
    import torch

    from rudalle_lib import registry
    from tests.support.tiny_segmenter import SIZES, tiny_segmenter

    entry = registry.get(UNET)
    small = dataclasses.replace(entry, architecture=MappingProxyType(dataclasses.asdict(SIZES)))
    registry._ENTRIES = MappingProxyType({**registry._ENTRIES, UNET: small})
    path = weights / "rudalle-Emojich" / entry.files["weights"]
    path.parent.mkdir(parents=True)
    torch.save(tiny_segmenter(0.0, 9.0).state_dict(), path)


def _difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
