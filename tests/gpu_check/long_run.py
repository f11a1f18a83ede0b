"""A run of 2,000 images with networks of the published sizes, and how long the device was idle.

Weights are random, which does not change the time. The run is the command that users run, with a
table of prompts in Russian, so that nothing is translated. If so many images would take longer than
there is time for, fewer are drawn, and the result says so.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from rudalle_lib import registry
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.runtime.devices import DTYPES, best_dtype
from rudalle_lib.runtime.memory import free_unused_memory
from tests.benchmarks.measure_engine import malevich
from tests.benchmarks.timing import random_weights
from tests.gpu_check.decoding import tokens_per_second
from tests.gpu_check.demo_run import LARGEST_IDLE_SHARE, run_flow
from tests.gpu_check.results import Check, judged, measured, not_run
from tests.gpu_check.scale import Scale
from tests.support.tiny_stack import PIECES, letters_as_bpe, write_tiny_stack

BATCH = 256
"""Images per batch and shard: the run has enough shards to draw one while others are decoded."""

SHARE_OF_TIME = 0.5
"""Share of the time left that the run may take, so that other checks have some."""

AROUND = 60.0
"""Seconds for writing and reading weights, starting Prefect, and the last shard's images."""

SLOWER = 1.15
"""How much longer an image takes in a run than alone: decoding and scoring share the device."""


def checks(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Estimate how many images there is time for, draw them, and read the report."""
    what = "run of 2,000 images, idle share of the device"
    per_image = seconds_per_image(device, scale)
    free_unused_memory()  # the run is another process
    wanted, whole = scale.run_images, scale.run_images * per_image * SLOWER + AROUND
    images = images_that_fit(wanted, per_image, scale)
    if not images:
        yield not_run(what, f"{wanted:,} images would take {whole:.0f} s, and no batch fits")
        return
    with tempfile.TemporaryDirectory() as folder:
        config = write_run(Path(folder), device, scale, images)
        found, run = run_flow(str(config), Path(folder) / "output")
    if run is None:
        yield judged(what, False, found, "exit code 0")
        return
    usage = run["usage"]
    idle, drawn = usage["idle_share"], run["totals"]["images"]
    words = "unknown" if idle is None else f"{idle:.1%} over {drawn:,} images"
    figures = {"idle_share": idle, "images": drawn, "seconds": usage["seconds"]}
    if images < wanted:
        words += f"; {wanted:,} would take {whole:.0f} s"
    if device.type != "cuda" or images < wanted or idle is None:
        yield measured(what, words, **figures)
    else:
        bar = f"{LARGEST_IDLE_SHARE:.0%}"
        yield judged(what, idle <= LARGEST_IDLE_SHARE, words, bar, **figures)
    speed = usage["images_per_second"]
    yield measured("run of 2,000 images, images per second", f"{speed}", images_per_second=speed)


def seconds_per_image(device: torch.device, scale: Scale) -> float:
    """Seconds in which the decoder alone draws an image, in batches like those of the run."""
    model = malevich(scale.layers, DTYPES[best_dtype([device])], device, scale.hidden)
    rate, _ = tokens_per_second(model, batch_of(scale), scale)
    return model.config.image_length / rate


def batch_of(scale: Scale) -> int:
    """Images per batch of the run."""
    return min(BATCH, scale.run_images)


def images_that_fit(wanted: int, per_image: float, scale: Scale) -> int:
    """The images to draw: all, or as many whole batches as there is time for.

    Args:
        wanted: images of the whole run.
        per_image: seconds in which the decoder draws one.
        scale: has the time left and the size of batches.
    """
    room = max(scale.left * SHARE_OF_TIME - AROUND, 0.0)
    fitting = int(room / (per_image * SLOWER))
    batch = batch_of(scale)
    return wanted if fitting >= wanted else fitting - fitting % batch


def write_run(folder: Path, device: torch.device, scale: Scale, images: int) -> Path:
    """Write weights, prompts and the configuration of a run; returns the path of the last one."""
    if scale.published_sizes:
        write_published_sizes(folder / "weights", scale)
    else:
        write_tiny_stack(folder / "weights")
    table = folder / "prompts.csv"
    prompts = -(-images // scale.replicas)
    rows = [f"{number} кругов на белом фоне" for number in range(prompts)]
    table.write_text("\n".join(["prompt", *rows, ""]), "utf-8")
    batch = batch_of(scale)
    config: dict[str, Any] = {
        "name": "long run",
        "prompts": {"uri": str(table), "shard_size": max(batch // scale.replicas, 1)},
        "weights": {"folder": str(folder / "weights"), "offline": True},
        "runtime": {"devices": str(device), "dtype": "auto"},
        "generate": {"images": scale.replicas, "batch_size": batch},
        "decode": {"dtype": "auto"},
        "score": {"dtype": "auto", "keep_best": 2},
        "upscale": {"dtype": "auto"},
        "publish": {"gallery": False, "contact_sheet": 0},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(config), "utf-8")  # JSON is YAML
    return path


def write_published_sizes(folder: Path, scale: Scale) -> None:
    """Write networks of the published sizes in the layout of the demo models, in bfloat16."""
    decoder = dict(registry.get("malevich-v3").architecture)
    text = {"text_vocab_size": PIECES + decoder["text_length"]}  # that of a small tokenizer
    sizes = {"num_layers": scale.layers, "hidden_size": scale.hidden}
    ruclip = registry.get("ruclip-vit-base-patch32-384").architecture
    _write(folder / "demo-dalle", Dalle, DalleConfig(**{**decoder, **text, **sizes}))
    _write(folder / "demo-vqgan", VqGan, VqGanConfig(**registry.get("vqgan-f8").architecture))
    _write(folder / "demo-ruclip", RuClip, RuClipConfig(**{**ruclip, "vocab_size": PIECES}))
    _write(folder / "demo-realesrgan-x2", RrdbNet, RrdbNetConfig(scale=2))
    for name in ("demo-dalle", "demo-ruclip"):
        (folder / name / "bpe.model").write_text(letters_as_bpe(), encoding="utf-8")


def _write(folder: Path, network: type[nn.Module], config: Any) -> None:
    folder.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in network(config).state_dict().items()}
    state = {name: one.to(torch.bfloat16) for name, one in random_weights(shapes).items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
