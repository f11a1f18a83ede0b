"""What benchmarks of fine-tuning share: a drawn dataset, a fine-tuning, minutes."""

from __future__ import annotations

import csv
import json
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from flows.training.run import fine_tune_here
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.scenes import Scene
from rudalle_lib.training.demo.quality import draw
from rudalle_lib.weights.loading import load_vqgan
from tests.support.finished_run import finish

Models = dict[str, dict[str, str]]
"""Weights by name, as in `weights.models`."""


class Clock:
    """Minutes of the parts of a benchmark: of the clock, and of all cores together.

    They are kept in a file and added up, so that a benchmark that goes on knows those of before.
    """

    def __init__(self, path: Path) -> None:
        """Go on with the minutes in a file, if it exists."""
        self._path = path
        self.parts: dict[str, dict[str, float]] = {}
        if path.exists():
            self.parts = json.loads(path.read_text("utf-8"))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside to a part."""
        start = time.monotonic(), _core_seconds()
        try:
            yield
        finally:
            wall, cores = time.monotonic() - start[0], _core_seconds() - start[1]
            known = self.parts.get(name, {"minutes": 0.0, "core_minutes": 0.0})
            added = {"minutes": wall / 60, "core_minutes": cores / 60}
            self.parts[name] = {key: round(known[key] + added[key], 2) for key in added}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.parts, indent=1) + "\n", "utf-8")

    def total(self, key: str = "minutes", until: str | None = None) -> float:
        """The `minutes` or `core_minutes` of all parts, or of those up to one of them."""
        names = list(self.parts)
        counted = names if until is None else names[: names.index(until) + 1]
        return round(sum(self.parts[name][key] for name in counted), 1)


def _core_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def draw_dataset(
    folder: Path,
    scenes: Sequence[Scene],
    candidates: int,
    decoder: str = "demo-dalle",
    models: Models | None = None,
) -> str:
    """Draw a dataset by a run, or go on with it; return its path.

    Args:
        folder: for the prompt table and the output.
        scenes: a prompt each; equal ones count once.
        candidates: images that are drawn per prompt; ruCLIP chooses one.
        decoder: the decoder that draws.
        models: weights that it needs, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "prompts.csv"
    captions = dict.fromkeys(russian_caption(scene) for scene in scenes)
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([caption] for caption in captions)])
    sections: dict[str, Any] = {
        "generate": {"model": decoder, "images": candidates, "top_k": 0, "top_p": 0.98},
        "score": {"keep_best": 1},
        "weights": {"models": models or {}},
        "upscale": {"model": None},
        "publish": {"gallery": False, "contact_sheet": 0},
    }
    output = folder / "output"
    finish(RunConfig.model_validate({
        "seed": 7, "output": str(output),
        "prompts": {"uri": str(table), "shard_size": 128}, **sections,
    }))  # fmt: skip
    return str(output)


def fine_tune(config: FineTuneConfig) -> Path:
    """Fine-tune as `rudalle-flows fine-tune` does, or go on; return the folder of the weights."""
    fine_tune_here(config)
    return Path(config.output) / "weights" / config.name


def draw_one_each(
    scenes: Sequence[Scene], weights: WeightsConfig, decoder: str, vqgan: str
) -> NDArray[Any]:
    """Draw one image per scene from its caption; uint8 [N, 128, 128, 3]."""
    return draw(load_vqgan(vqgan, weights).model, scenes, 1, weights, decoder)[:, 0]
