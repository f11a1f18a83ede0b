"""Is the demo's dataset worth training on, and does it help to choose images?

    python -m tests.benchmarks.worth_training [--docs]

The demo models draw images of single figures through the pipeline. A small classifier learns shape,
colour and size from them, with labels from the prompts alone, and is tested on true images, which
`rudalle_lib.demo` draws. Sets of equally many training images are compared, each chosen in another
way from what was drawn, with several seeds. This prints a table and writes
`results/worth_training.json`; `--docs` puts the table into docs/performance.md and a plot beside
it. It takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.frames import read_images
from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.checker import check
from rudalle_lib.demo.drawing import draw_scene
from rudalle_lib.demo.scenes import COLOURS, SHAPES, SIZES, Figure, Scene, all_combinations
from rudalle_lib.images.codecs import decode_image, to_pil
from rudalle_lib.storage.storage import Storage
from tests.benchmarks.engine import RESULTS, ROOT, machine
from tests.support.finished_run import finish

PATH = RESULTS / "worth_training.json"
PLOT = ROOT / "docs" / "worth_training.svg"
BEGIN, END = "<!-- worth:begin -->", "<!-- worth:end -->"

TEMPERATURES = {"as the demo draws": 1.0, "at temperature 1.5": 1.5}
"""How images are drawn. At the second temperature many of them are wrong."""

PROMPTS, CANDIDATES, PER_PROMPT = 75, 8, 2
"""Prompts, images drawn for each, and how many of them a set has per prompt, on average."""

SEEDS = 5
"""Trainings per set: each with other initial weights and order, and another choice if by chance."""

TESTS = 1000
"""True images that the classifier is tested on."""

STEPS, BATCH, RATE = 300, 32, 2e-3
"""How the classifier is trained."""

NEAR = 8
"""Bits of the perceptual hash in which two images of a prompt differ unless they are alike."""


@dataclass(frozen=True, eq=False)
class Image:
    """A drawn image: of which prompt, with which pixels (uint8 [3, 128, 128]), score and hash."""

    prompt: int
    scene: Scene
    pixels: Tensor
    score: float
    hash: Any


Choice = Callable[[Sequence[Image], random.Random], list[Image]]
"""Chooses `PER_PROMPT` images per prompt, on average, from those drawn."""


# --- drawing -----------------------------------------------------------------------------------


def scenes(seed: int) -> list[Scene]:
    """Scenes with a single figure of random size, each of another combination."""
    rng = random.Random(seed)
    return [
        Scene(background, (Figure(shape, colour, rng.choice(SIZES)),))
        for shape, colour, background in rng.sample(all_combinations(), PROMPTS)
    ]


def draw(folder: Path, temperature: float) -> list[Image]:
    """Draw all candidates by a run of the pipeline, which publishes all that differ."""
    from imagehash import phash

    shown = scenes(0)
    table = folder / "prompts.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = [[f"p{number}", russian_caption(scene)] for number, scene in enumerate(shown)]
        csv.writer(file).writerows([["prompt_id", "prompt"], *rows])
    config = RunConfig.model_validate({
        "seed": 1915,
        "output": str(folder / "out"),
        "prompts": {"uri": str(table), "shard_size": 32},
        "generate": {"images": CANDIDATES, "temperature": temperature, "top_k": 0, "top_p": 0.98},
        "score": {"keep_best": None},
        "upscale": {"model": None},
        "publish": {"gallery": False, "contact_sheet": 0},
    })  # fmt: skip
    finish(config)
    storage, images = Storage(config.output), []
    for row in read_images(config.output).itertuples():
        number = int(str(row.prompt_id)[1:])
        pixels = decode_image(storage.read_bytes(str(row.path)))
        hashed = phash(to_pil(pixels))
        images.append(Image(number, shown[number], pixels, float(str(row.score)), hashed))
    return images


# --- choosing ----------------------------------------------------------------------------------


def by_prompt(images: Sequence[Image]) -> list[list[Image]]:
    """The images of each prompt, best score first."""
    groups: dict[int, list[Image]] = {}
    for image in sorted(images, key=lambda image: -image.score):
        groups.setdefault(image.prompt, []).append(image)
    return list(groups.values())


def any_of_prompt(images: Sequence[Image], rng: random.Random) -> list[Image]:
    """Images of each prompt by chance."""
    return [
        image for own in by_prompt(images) for image in rng.sample(own, min(len(own), PER_PROMPT))
    ]


def best_of_prompt(images: Sequence[Image], rng: random.Random) -> list[Image]:
    """The best images of each prompt (`score.keep_best`)."""
    return [image for own in by_prompt(images) for image in own[:PER_PROMPT]]


def worst_of_prompt(images: Sequence[Image], rng: random.Random) -> list[Image]:
    """The worst images of each prompt, to see what scores are worth."""
    return [image for own in by_prompt(images) for image in own[-PER_PROMPT:]]


def above_threshold(images: Sequence[Image], rng: random.Random) -> list[Image]:
    """The best images of all prompts together (`score.min_score`)."""
    count = PER_PROMPT * len(by_prompt(images))
    return sorted(images, key=lambda image: -image.score)[:count]


def best_unlike(images: Sequence[Image], rng: random.Random) -> list[Image]:
    """The best images of each prompt that are not alike; the best of the others if too few are."""
    chosen = []
    for own in by_prompt(images):
        kept: list[Image] = []
        for image in own:
            if all(image.hash - other.hash >= NEAR for other in kept):
                kept.append(image)
        others = [image for image in own if image not in kept]
        chosen += [*kept, *others][:PER_PROMPT]
    return chosen


CHOICES: Mapping[str, Choice] = {
    "any, by chance": any_of_prompt,
    "best 2 of each prompt": best_of_prompt,
    "best 2, not alike": best_unlike,
    "highest scores of all": above_threshold,
    "worst 2 of each prompt": worst_of_prompt,
}
"""Ways to choose, by what the table calls them."""

TRUE = "true images"
"""The set that the demo's world drew itself: what cannot be exceeded."""


def true_images(seed: int) -> list[Image]:
    """True images of the scenes that prompts describe, as many as a set has."""
    rng, shown = random.Random(seed), scenes(0)
    return [
        Image(number, scene, _chw(draw_scene(scene, rng)), 1.0, None)
        for number, scene in enumerate(shown)
        for _ in range(PER_PROMPT)
    ]


def _chw(image: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


# --- learning ----------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Three convolutions, and a head each for shape, colour and size; about 60,000 parameters."""

    def __init__(self) -> None:
        """Initialise the weights from torch's generator."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(48, 96, 3, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.Linear(192, len(SHAPES) + len(COLOURS) + len(SIZES))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of shape, colour and size. Takes float [B, 3, 64, 64] in [0, 1]."""
        seen = self.layers(images)
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)
        logits: tuple[Tensor, ...] = self.heads(pooled).split(
            [len(SHAPES), len(COLOURS), len(SIZES)], 1
        )
        return logits


def inputs(images: Sequence[Image]) -> tuple[Tensor, Tensor]:
    """Pixels, float [N, 3, 64, 64], and labels from the prompts, int [N, 3]."""
    pixels = torch.stack([image.pixels for image in images]).float() / 255
    figures = [image.scene.figures[0] for image in images]
    labels = [
        [SHAPES.index(one.shape), COLOURS.index(one.colour), SIZES.index(one.size)]
        for one in figures
    ]
    return F.avg_pool2d(pixels, 2), torch.tensor(labels)


def train(images: Sequence[Image], seed: int) -> Classifier:
    """Train a classifier."""
    torch.manual_seed(seed)
    pixels, labels = inputs(images)
    network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
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
    """The share of images of which shape, colour and size are all right."""
    found = torch.stack([logits.argmax(1) for logits in network(pixels)], 1)
    return float((found == labels).all(1).float().mean())


def unseen_images() -> tuple[Tensor, Tensor]:
    """True images that no training has seen."""
    rng = random.Random(1)
    made = []
    for number in range(TESTS):
        shape, colour, background = rng.choice(all_combinations())
        scene = Scene(background, (Figure(shape, colour, rng.choice(SIZES)),))
        made.append(Image(number, scene, _chw(draw_scene(scene, rng)), 1.0, None))
    return inputs(made)


def agreed(images: Sequence[Image]) -> float:
    """The share of images that show their prompt, by the demo's checker."""
    return mean(check(image.pixels.numpy().transpose(1, 2, 0), image.scene).ok for image in images)


# --- the table ---------------------------------------------------------------------------------


def measure(how: str, name: str, sets: Sequence[Sequence[Image]], tests: Any) -> dict[str, Any]:
    """Train on each of some sets, one per seed, and test."""
    print(f"  {how}, {name} ...", file=sys.stderr, flush=True)
    found = [accuracy(train(one, seed), *tests) for seed, one in enumerate(sets)]
    return {
        "drawn": how,
        "set": name,
        "images": len(sets[0]),
        "agree": round(mean(agreed(one) for one in sets), 4),
        "accuracy": [round(value, 4) for value in found],
    }


def measure_all() -> list[dict[str, Any]]:
    """Draw, choose, train and test."""
    tests, rows = unseen_images(), []
    for how, temperature in TEMPERATURES.items():
        with tempfile.TemporaryDirectory() as folder:
            images = draw(Path(folder), temperature)
        for name, choose in CHOICES.items():
            sets = [choose(images, random.Random(seed)) for seed in range(SEEDS)]
            rows.append(measure(how, name, sets, tests))
        rows.append(measure(how, "all candidates", [images] * SEEDS, tests))
    rows.append(measure("-", TRUE, [true_images(seed) for seed in range(SEEDS)], tests))
    return rows


def table(head: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        f"{head}:",
        "",
        "| drawn | training images | number | show their prompt | accuracy on true images |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = f"{mean(row['accuracy']):.1%} ± {stdev(row['accuracy']):.1%}"
        lines.append(
            f"| {row['drawn']} | {row['set']} | {row['images']:,} | {row['agree']:.1%} | {spread} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]]) -> None:
    """Plot the accuracy of each set with its seeds as points."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "worth_training"
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["set"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    colours = dict(zip([*TEMPERATURES, "-"], ("#161616", "#d42a1e", "#6a6a66"), strict=True))
    for row in rows:
        place = float(len(names) - names.index(row["set"]))
        place += 0.12 if row["drawn"] == next(iter(TEMPERATURES)) else -0.12
        values = [100 * value for value in row["accuracy"]]
        axes.plot(values, [place] * len(values), "o", ms=4, alpha=0.5, color=colours[row["drawn"]])
        axes.plot([mean(values)], [place], "|", ms=16, mew=2, color=colours[row["drawn"]])
    axes.set_yticks(range(len(names), 0, -1), names)
    axes.set_xlabel("accuracy on true images, %")
    axes.grid(axis="x", alpha=0.3)
    for how, height in zip(TEMPERATURES, (0.96, 0.88), strict=True):
        axes.text(0.01, height, how, color=colours[how], transform=axes.transAxes, va="top")
    figure.savefig(PLOT, metadata={"Date": None})


def put_into_docs(text: str) -> None:
    """Replace the table in docs/performance.md."""
    path = ROOT / "docs" / "performance.md"
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Run the command line: measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="update docs/performance.md")
    options = parser.parse_args()
    rows = measure_all()
    today = datetime.datetime.now(datetime.UTC)
    head = f"`python -m tests.benchmarks.worth_training`, {machine(1)}, {today:%Y-%m-%d}"
    PATH.write_text(json.dumps({"measured": head, "rows": rows}, indent=1) + "\n", "utf-8")
    text = table(head, rows)
    print(text)
    if options.docs:
        put_into_docs(text)
        plot(rows)


if __name__ == "__main__":
    main()
