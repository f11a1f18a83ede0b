"""What benchmarks of fine-tuning share: a dataset that a run draws, a fine-tuning, core-minutes.

A fine-tuning is done in this process, by the parts that the flow is made of.
"""

from __future__ import annotations

import csv
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.scenes import Scene
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.encode import encode_data
from rudalle_lib.training.data.examples import open_examples
from rudalle_lib.training.decoder import DecoderTask
from rudalle_lib.training.demo.quality import draw
from rudalle_lib.training.demo.vqgan import stored_tensors
from rudalle_lib.training.run import export
from rudalle_lib.training.task import Task
from rudalle_lib.training.trainer import train
from rudalle_lib.training.vqgan import VqganTask
from rudalle_lib.weights.loading import load_decoder, load_vqgan
from tests.benchmarks.engine import ROOT
from tests.support.finished_run import finish


class Clock:
    """Minutes since it was made: of the clock, and of all cores together."""

    def __init__(self) -> None:
        """Start."""
        self._start = time.monotonic(), _core_seconds()

    def figures(self) -> dict[str, float]:
        """The minutes so far, rounded."""
        wall, cores = time.monotonic() - self._start[0], _core_seconds() - self._start[1]
        return {"minutes": round(wall / 60, 1), "core_minutes": round(cores / 60, 1)}


def _core_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def draw_dataset(folder: Path, scenes: Sequence[Scene], **settings: dict[str, Any]) -> str:
    """Draw a dataset by a run of the demo, or go on with it; return its path.

    Args:
        folder: for the prompt table and the output.
        scenes: a prompt each; equal ones count once.
        settings: sections of the configuration that differ from those here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "prompts.csv"
    captions = dict.fromkeys(russian_caption(scene) for scene in scenes)
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([caption] for caption in captions)])
    sections: dict[str, Any] = {
        "generate": {"images": 1, "top_k": 0, "top_p": 0.98},
        "score": {"keep_best": None},
        "upscale": {"model": None},
        "publish": {"gallery": False, "contact_sheet": 0},
        **settings,
    }
    output = folder / "output"
    finish(RunConfig.model_validate({
        "seed": 7, "output": str(output),
        "prompts": {"uri": str(table), "shard_size": 128}, **sections,
    }))  # fmt: skip
    return str(output)


def fine_tune(config: FineTuneConfig) -> Path:
    """Encode, train and export, or go on; return the folder of the new weights."""
    folder = Path(config.output) / "weights" / config.name
    if (folder / "MODEL_CARD.md").exists():
        return folder
    torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
    storage = Storage(config.output)
    split = open_examples(storage, encode_data(config, storage), config.encoding.held_out)
    card = [f"# {config.name}", "", f"Fine-tuned from {config.base_model} by a benchmark."]
    task: Task
    if config.trains == "vqgan":
        vqgan = load_vqgan(config.base_model, config.weights).model
        vqgan = vqgan.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        task = VqganTask(vqgan, split.train, config.training, seed=config.seed)
        _train(task, config)
        export(folder, stored_tensors(vqgan), asdict(vqgan.config), card)
    else:
        loaded = load_decoder(config.base_model, config.weights, packed=False)
        task = DecoderTask(loaded.model, split.train, config.training, seed=config.seed)
        _train(task, config)
        tensors = {name: value.half() for name, value in task.model.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = ROOT / "rudalle_lib/demo/weights/demo-dalle/bpe.model"
        (folder / "bpe.model").write_bytes(tokenizer.read_bytes())
        export(folder, tensors, asdict(loaded.model.config), card)
    return folder


def _train(task: Task, config: FineTuneConfig) -> None:
    def log(step: int, figures: dict[str, float]) -> None:
        if step % 20 == 0:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            print(f"  {config.name}, step {step}: {shown}", flush=True)

    work = Path(config.output) / "checkpoints"
    train(task, config.training, work=work, seed=config.seed, device="cpu", on_figures=log)


def draw_one_each(
    scenes: Sequence[Scene], weights: WeightsConfig, decoder: str, vqgan: str
) -> NDArray[Any]:
    """Draw one image per scene from its caption; uint8 [N, 128, 128, 3]."""
    return draw(load_vqgan(vqgan, weights).model, scenes, 1, weights, decoder)[:, 0]
