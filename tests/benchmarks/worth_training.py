"""Is a drawn dataset worth training on, and does it help to choose images?

    python -m tests.benchmarks.worth_training [--docs] [--seeds 5]

The demo models draw single figures through the pipeline, at a temperature at which a quarter of
the images is wrong. A small classifier learns shape and colour from them, with labels from the
prompts alone, and is tested on true images, which `rudalle_lib.demo` draws. No set costs more drawn
images than another; what differs is which of them are trained on. Everything is done once per
seed: other images are drawn, and other classifiers trained. The seeds run in parallel, one per
core. This prints a table and writes `results/worth_training.json`; `--docs` puts the table into
docs/performance.md and a plot beside it. It takes about 20 minutes of one core.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.checker import check
from rudalle_lib.demo.drawing import draw_scene
from rudalle_lib.demo.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    Figure,
    Scene,
    all_combinations,
    is_held_out,
)
from rudalle_lib.images.codecs import decode_image, to_pil
from rudalle_lib.storage.storage import Storage
from tests.benchmarks.documentation import PERFORMANCE, write_block
from tests.benchmarks.engine import RESULTS, ROOT, machine
from tests.support.finished_run import finish

PATH = RESULTS / "worth_training.json"
PLOT = ROOT / "docs" / "worth_training.svg"
MARK = "worth"
"""Name of the block in the documentation."""

PROMPTS, CANDIDATES = 300, 3
"""Prompts, and images drawn for each, but in rounds."""

TEMPERATURE = 1.5
"""How images are drawn: without top-p, so that a quarter of them is wrong."""

MIN_SCORE = 0.75
"""The least score, where scores are used; about a quarter of the images is below it."""

ENOUGH, MOST = 2, 8
"""Accepted images per prompt at which rounds end, and the most that are drawn."""

NEAR = 8
"""Bits of the perceptual hash in which two images of a prompt differ unless they are alike."""

SEEDS = 5
"""Repetitions: each with images and classifiers of its own."""

T95 = {3: 4.303, 4: 3.182, 5: 2.776, 8: 2.365, 10: 2.262}
"""Student's t for intervals of 95%, by number of seeds."""

TESTS = 2000
"""True images that the classifier is tested on, of all combinations."""

STEPS, BATCH, RATE, WIDTH = 400, 32, 4e-3, 16
"""How the classifier is trained, and how wide it is."""

ALL, TRUE = "all images", "true images"
"""The set that others are compared with, and that which cannot be exceeded."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image: of which prompt, with which pixels (uint8 [3, 128, 128]), and score."""

    prompt: int
    scene: Scene
    pixels: Tensor
    score: float = 1.0


# --- drawing -----------------------------------------------------------------------------------


def scenes() -> list[Scene]:
    """Scenes with a single figure, of combinations that the decoder has learned."""
    known = [one for one in all_combinations() if not is_held_out(one)]
    every = [
        Scene(background, (Figure(shape, colour, size),))
        for shape, colour, background in known
        for size in SIZES
    ]
    return random.Random(0).sample(every, PROMPTS)


def configure(folder: Path, output: str, seed: int, **sections: dict[str, Any]) -> RunConfig:
    """The configuration of a run; its table is in `folder`."""
    table = folder / "prompts.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = [[f"p{number}", russian_caption(scene)] for number, scene in enumerate(scenes())]
        csv.writer(file).writerows([["prompt_id", "prompt"], *rows])
    generate = {"batch_size": 256, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
    return RunConfig.model_validate({
        "seed": seed,
        "output": str(folder / output),
        "prompts": {"uri": str(table), "shard_size": 100},
        "runtime": {"devices": "cpu", "threads": 1},
        "generate": generate | sections.get("generate", {}),
        "score": {"keep_best": None} | sections.get("score", {}),
        "upscale": {"model": None},
        "publish": {"gallery": False, "contact_sheet": 0},
    })  # fmt: skip


def published(config: RunConfig) -> tuple[list[Image], int]:
    """The images that a run publishes, and how many it draws from the start."""
    finish(config)
    storage, shown, images = Storage(config.output), scenes(), []
    for row in read_images(config.output).itertuples():
        number = int(str(row.prompt_id)[1:])
        pixels = decode_image(storage.read_bytes(str(row.path)))
        images.append(Image(number, shown[number], pixels, float(str(row.score))))
    return images, sum(manifest.images for manifest in read_shard_manifests(storage))


def unlike(images: Sequence[Image]) -> list[Image]:
    """Images without near-duplicates: of those of a prompt that are alike, the best."""
    from imagehash import phash

    kept: dict[int, list[Any]] = {}
    chosen = []
    for image in sorted(images, key=lambda image: -image.score):
        hashed, others = phash(to_pil(image.pixels)), kept.setdefault(image.prompt, [])
        if all(hashed - other >= NEAR for other in others):
            others.append(hashed)
            chosen.append(image)
    return chosen


def true_images(seed: int, count: int) -> list[Image]:
    """True images of the same prompts."""
    rng, shown = random.Random(seed), scenes()
    return [
        Image(number % PROMPTS, scene, _chw(draw_scene(scene, rng)))
        for number in range(count)
        for scene in (shown[number % PROMPTS],)
    ]


def make_sets(folder: Path, seed: int) -> dict[str, tuple[list[Image], int]]:
    """The images of each set, and how many were drawn for it."""
    images, drawn = published(configure(folder, "all", seed, generate={"images": CANDIDATES}))
    shutil.copytree(folder / "all", folder / "rounds")  # what is drawn already isn't drawn again
    rounds = {"images": 1, "until_accepted": ENOUGH, "max_images": MOST}
    least = {"min_score": MIN_SCORE}
    accepted, tried = published(configure(folder, "rounds", seed, generate=rounds, score=least))
    good = [image for image in images if image.score >= MIN_SCORE]
    return {
        ALL: (images, drawn),
        "without near-duplicates": (unlike(images), drawn),
        "filtered by score": (good, drawn),
        "drawn in rounds": (accepted, tried),
        TRUE: (true_images(seed, len(images)), 0),
    }


# --- learning ----------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Three convolutions, and a head each for shape and colour; about 25,000 parameters."""

    def __init__(self) -> None:
        """Initialise the weights from torch's generator."""
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(3, WIDTH, 5), *_convolution(WIDTH, 2 * WIDTH, 3),
            *_convolution(2 * WIDTH, 4 * WIDTH, 3),
        )  # fmt: skip
        self.heads = nn.Linear(8 * WIDTH, len(SHAPES) + len(COLOURS))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of shape and colour. Takes float [B, 3, 64, 64] in [0, 1]."""
        seen = self.layers(images)
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)
        logits: tuple[Tensor, ...] = self.heads(pooled).split([len(SHAPES), len(COLOURS)], 1)
        return logits


def _convolution(channels: int, out: int, side: int) -> list[nn.Module]:
    """A convolution that halves the sides. Without norms, accuracies differ a lot by seed."""
    convolution = nn.Conv2d(channels, out, side, 2, side // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out), nn.ReLU()]


def inputs(images: Sequence[Image]) -> tuple[Tensor, Tensor]:
    """Pixels, float [N, 3, 64, 64], and labels from the prompts, int [N, 2]."""
    pixels = torch.stack([image.pixels for image in images]).float() / 255
    figures = [image.scene.figures[0] for image in images]
    labels = [[SHAPES.index(one.shape), COLOURS.index(one.colour)] for one in figures]
    return F.avg_pool2d(pixels, 2), torch.tensor(labels)


def train(images: Sequence[Image], seed: int) -> Classifier:
    """Train a classifier."""
    torch.manual_seed(seed)
    pixels, labels = inputs(images)
    network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,))
        losses = [
            F.cross_entropy(logits, truth)
            for logits, truth in zip(network(pixels[rows]), labels[rows].T, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: Classifier, pixels: Tensor, labels: Tensor) -> float:
    """The share of images of which shape and colour are both right."""
    found = torch.stack([logits.argmax(1) for logits in network(pixels)], 1)
    return float((found == labels).all(1).float().mean())


def unseen_images() -> tuple[Tensor, Tensor]:
    """True images that no training has seen."""
    rng, made = random.Random(1), []
    for number in range(TESTS):
        shape, colour, background = rng.choice(all_combinations())
        scene = Scene(background, (Figure(shape, colour, rng.choice(SIZES)),))
        made.append(Image(number, scene, _chw(draw_scene(scene, rng))))
    return inputs(made)


def agreed(images: Sequence[Image]) -> float:
    """The share of images that show their prompt, by the demo's checker."""
    return mean(check(image.pixels.numpy().transpose(1, 2, 0), image.scene).ok for image in images)


def _chw(image: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def repeat(seed: int) -> list[dict[str, Any]]:
    """Draw, choose, train and test once: a row per set."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = make_sets(Path(folder), 1915 + seed)
    tests, rng, rows = unseen_images(), random.Random(seed), []
    fewest = min(len(images) for images, _ in sets.values())
    for name, (images, drawn) in sets.items():
        print(f"  seed {seed}, {name} ...", file=sys.stderr, flush=True)
        some = rng.sample(images, fewest)
        rows.append({
            "set": name,
            "drawn": drawn,
            "images": len(images),
            "prompts": len({image.prompt for image in images}),
            "agree": round(agreed(images), 4),
            "accuracy": round(accuracy(train(images, seed), *tests), 4),
            "some": fewest,
            "accuracy of some": round(accuracy(train(some, seed), *tests), 4),
        })  # fmt: skip
    return rows


# --- the table ---------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> float:
    """Half of the 95% confidence interval of a mean."""
    return T95[len(values)] * stdev(values) / sqrt(len(values))


def by_set(repetitions: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[Any]]:
    """The rows of each set, one per seed."""
    return {rows[0]["set"]: list(rows) for rows in zip(*repetitions, strict=True)}


def table(head: str, repetitions: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The results as Markdown: means over seeds, with intervals of 95%."""
    sets = by_set(repetitions)
    some = mean(row["some"] for row in sets[ALL])
    lines = [
        f"{head}:",
        "",
        "| trained on | drawn | images | of prompts | show their prompt | accuracy | against all "
        f"| accuracy of {some:.0f} images each | against all |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in sets.items():
        drawn, images, prompts = (
            mean(row[key] for row in rows) for key in ("drawn", "images", "prompts")
        )
        cells = [name, f"{drawn:,.0f}" if drawn else "-", f"{images:,.0f}", f"{prompts:.0f}"]
        cells.append(f"{mean(row['agree'] for row in rows):.1%}")
        for key in ("accuracy", "accuracy of some"):
            found = [row[key] for row in rows]
            gains = [row[key] - all_[key] for row, all_ in zip(rows, sets[ALL], strict=True)]
            cells.append(f"{mean(found):.1%} ± {100 * interval(found):.1f}")
            cells.append("-" if name == ALL else _points(gains))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _points(gains: Sequence[float]) -> str:
    middle, half = 100 * mean(gains), 100 * interval(gains)
    text = f"{middle:+.1f} ± {half:.1f}"
    return f"**{text}**" if abs(middle) > half else text


def plot(repetitions: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Plot the accuracy of each set: a point per seed, the mean and its interval."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "worth_training"
    from matplotlib import pyplot

    sets = by_set(repetitions)
    some = mean(row["some"] for row in sets[ALL])
    kinds = {"accuracy": "all of the set", "accuracy of some": f"{some:.0f} images of it"}
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for key, colour, lift in zip(kinds, ("#161616", "#d42a1e"), (0.14, -0.14), strict=True):
        for place, rows in enumerate(reversed(sets.values())):
            found = [100 * row[key] for row in rows]
            axes.plot(found, [place + lift] * len(found), "o", ms=3.5, alpha=0.4, color=colour)
            axes.errorbar(
                [mean(found)], [place + lift], xerr=[interval(found)], fmt="|", ms=12, mew=2,
                capsize=4, color=colour, label=kinds[key] if place == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(sets)), list(reversed(sets)))
    axes.set_xlabel("accuracy on true images, %; mean and 95% interval")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    """Run the command line: measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="update docs/performance.md")
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=sorted(T95))
    options = parser.parse_args()
    cores = min(len(os.sched_getaffinity(0)), options.seeds)
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        repetitions = list(pool.map(repeat, range(options.seeds)))
    today = datetime.datetime.now(datetime.UTC)
    head = (
        f"`python -m tests.benchmarks.worth_training`, {options.seeds} seeds, {machine(1)}, "
        f"{today:%Y-%m-%d}"
    )
    results = {"measured": head, "repetitions": repetitions}
    PATH.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    text = table(head, repetitions)
    print(text)
    if options.docs:
        write_block(PERFORMANCE, MARK, text)
        plot(repetitions)


if __name__ == "__main__":
    main()
