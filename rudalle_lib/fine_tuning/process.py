"""What each process of a training does: load the network and the data, and train.

`training.launch` calls `run` in new processes, which share only the folder of the training. The
first of them also writes samples and TensorBoard's files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.errors import DataError
from rudalle_lib.fine_tuning.record import open_data
from rudalle_lib.fine_tuning.samples import (
    draw_samples,
    plain_copy,
    reconstructions,
    render_sheet,
)
from rudalle_lib.fine_tuning.work_folder import SAMPLES, TENSORBOARD
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.runtime.devices import resolve_devices
from rudalle_lib.storage.local_files import whole_file
from rudalle_lib.training.data.examples import Examples
from rudalle_lib.training.decoder import DecoderTask
from rudalle_lib.training.figures import Figures
from rudalle_lib.training.launch import is_stopping
from rudalle_lib.training.scorer import ScorerTask
from rudalle_lib.training.task import Task
from rudalle_lib.training.trainer import train
from rudalle_lib.training.vqgan import VqganTask
from rudalle_lib.weights.loading import load_decoder, load_scorer, load_vqgan


@dataclass(frozen=True)
class Places:
    """Where a training works: `root` is the output on this machine, `work` its checkpoints."""

    root: str
    work: str


def run(config: FineTuneConfig, places: Places) -> None:
    """Train, or go on; the work of one process.

    Args:
        config: the fine-tuning, whose data is encoded.
        places: where it works.

    Raises:
        StoppedError: this process was asked to stop.
        RudalleError: see `training.trainer.train`.
    """
    task = make_task(config, Path(places.root))
    with Board(Path(places.root) / TENSORBOARD) as board:
        train(
            task,
            config.training,
            work=Path(places.work),
            seed=config.seed,
            evaluation=config.evaluation,
            device=config.runtime.devices,
            on_figures=board.note,
            stop=is_stopping,
        )


def make_task(config: FineTuneConfig, root: Path) -> Task:
    """The network of a fine-tuning with its data and its loss.

    Args:
        config: the fine-tuning.
        root: where samples are written.

    Raises:
        DataError: all images are held out.
        RudalleError: weights or data cannot be read.
    """
    data, split = open_data(config)
    if not len(split.train):
        raise DataError(
            f"all {data.rows:,} images are held out, because few captions differ; expected some to "
            "learn from: lower encoding.held_out, 0 holds nothing out"
        )
    held_out = split.held_out if len(split.held_out) else None
    shared: dict[str, Any] = {"seed": config.seed, "held_out": held_out}
    name, weights, training = config.base_model, config.weights, config.training
    if config.trains == "scorer":
        ruclip = load_scorer(name, weights, packed=False).model
        return ScorerTask(ruclip, split.train, training, **shared)
    sheets = SampleSheets(config, held_out or split.train, root / SAMPLES)
    if config.trains == "vqgan":
        # Codes are counted at once, on the device of this process.
        devices, rank = (
            resolve_devices(config.runtime.devices),
            int(os.environ.get("LOCAL_RANK", 0)),
        )
        vqgan = load_vqgan(name, weights, devices[rank % len(devices)]).model
        return SampledVqganTask(vqgan, split.train, training, sheets=sheets, **shared)
    decoder = load_decoder(name, weights, packed=False)
    empty = decoder.tokenizer.encode_text("", decoder.model.config.text_length).ids
    shared["empty_text"] = torch.tensor(empty)
    return SampledDecoderTask(decoder.model, split.train, training, sheets=sheets, **shared)


class SampleSheets:
    """Draws a sheet of samples at each measurement, always of the same captions."""

    def __init__(self, config: FineTuneConfig, examples: Examples, folder: Path) -> None:
        """Choose the captions.

        Args:
            config: the fine-tuning.
            examples: whose captions are drawn, each once.
            folder: where sheets are written.
        """
        self._config, self._folder = config, folder
        most = config.evaluation.samples
        if config.trains == "vqgan":
            captions, rows = [""] * most, list(range(min(most, len(examples))))
        else:
            captions, rows = _different(examples, most)
        self._captions = captions
        self._batch = examples.rows(rows) if rows else {}

    @cached_property
    def _vqgan(self) -> VqGan:
        return load_vqgan(self._config.vqgan, self._config.weights).model

    def draw(self, model: Dalle, step: int) -> None:
        """Draw a sheet with a decoder, which is in evaluation mode; under FSDP, all call it."""
        if not self._batch:
            return
        plain = plain_copy(model, self._config.training)
        if plain is None:
            return
        device = plain.text_embeddings.weight.device
        images = draw_samples(plain, self._vqgan.to(device), self._batch["text"], self._config.seed)
        self._vqgan.cpu()
        self._write(images, self._captions, step)

    def reconstruct(self, model: VqGan, step: int) -> None:
        """Draw a sheet of images, each followed by what a VQ-GAN makes of it."""
        if not self._batch:
            return
        images = self._batch["image"]
        pairs = torch.stack([images, reconstructions(model, images)], 1).flatten(0, 1)
        self._write(pairs, ["original", "reconstructed"] * len(images), step)

    def _write(self, images: Tensor, captions: Sequence[str], step: int) -> None:
        title, facts = self._config.name, [f"after {step:,} steps"]
        content = render_sheet(images, captions, title, facts)
        self._folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self._folder / f"step-{step:08d}.png") as fresh:
            fresh.write_bytes(content)


def _different(examples: Examples, most: int) -> tuple[list[str], list[int]]:
    """Captions that differ, and the rows of the first image of each."""
    found: dict[str, int] = {}
    for row in range(len(examples)):
        if len(found) == most:
            break
        found.setdefault(examples.captions([row])[0], row)
    return list(found), list(found.values())


class SampledDecoderTask(DecoderTask):
    """A decoder that draws samples at each measurement."""

    def __init__(self, *arguments: Any, sheets: SampleSheets, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sheets = sheets

    def evaluate(self, step: int) -> dict[str, float]:
        """Draw a sheet of samples."""
        self._sheets.draw(self.model, step)
        return {}


class SampledVqganTask(VqganTask):
    """A VQ-GAN that draws reconstructions at each measurement."""

    def __init__(self, *arguments: Any, sheets: SampleSheets, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sheets = sheets

    def evaluate(self, step: int) -> dict[str, float]:
        """Draw a sheet of reconstructions."""
        self._sheets.reconstruct(self.model, step)
        return {}


class Board:
    """TensorBoard's files of a training; made with the first figures."""

    def __init__(self, folder: Path) -> None:
        """Keep the folder."""
        self._folder = folder
        self._writer: Any = None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def note(self, step: int, figures: Figures) -> None:
        """Write the figures of a step; those of later steps, by a training that was killed, go."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step + 1)
        if any(name.startswith("held_out") for name in figures):
            self._writer.flush()
