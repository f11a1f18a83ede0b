"""Can the demo learn a new figure and a new background from 2,000 images?

    nice -n 5 python -m tests.benchmarks.fine_tune_star --work runs/star

The user's images show stars, in all colours, and a yellow background (`star_world`). The images
that remind the networks of what they can do are drawn by a run of the demo. First the VQ-GAN learns
to draw both kinds from its codes, which stay, and its encoder to choose among them. Then the
decoder learns. One image per prompt is checked, before and after, of old and of new prompts. What
is done already is not repeated. The results are `results/fine_tune_star.json`,
`docs/fine_tune_star.webp`, and a table in `docs/training.md`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.checker import Verdict
from rudalle_lib.demo.checker import check as check_old
from rudalle_lib.demo.scenes import Scene, random_scene
from rudalle_lib.images.codecs import to_floats
from rudalle_lib.training.demo.quality import SEED, chw, scenes_of
from rudalle_lib.weights.loading import load_vqgan
from tests.benchmarks import star_world
from tests.benchmarks.documentation import TRAINING, write_block
from tests.benchmarks.engine import RESULTS, ROOT, machine
from tests.benchmarks.fine_tuning import Clock, draw_dataset, draw_one_each, fine_tune

PATH = RESULTS / "fine_tune_star.json"
MARK = "star"
"""Name of the block in the documentation."""

SHEET = ROOT / "docs" / "fine_tune_star.webp"

HELD_OUT = 0.2
"""Share of new combinations that are held out from training."""

Figures = dict[str, Any]

Tests = dict[str, list[Scene]]
"""Prompts by kind."""


def write_user_images(folder: Path, count: int) -> str:
    """Write the user's images with their captions; return the path of the folder."""
    if not (folder / "metadata.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = random.Random(20)
        rows = [["file_name", "text"]]
        for number in range(count):
            scene = star_world.random_scene(rng)
            name = f"{number:05d}.png"
            Image.fromarray(star_world.draw(scene, rng)).save(folder / name)
            rows.append([name, russian_caption(scene)])
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return str(folder)


def new_scenes(count: int, seed: int, unseen: bool | None = None) -> list[Scene]:
    """Prompts with something new.

    Args:
        count: how many.
        seed: of the prompts.
        unseen: whether all or none of them have a new combination that is held out from training;
            None chooses among all new combinations, a fifth of which are held out.
    """
    rng, scenes = random.Random(seed), []
    for _ in range(count):
        held_out = rng.random() < HELD_OUT if unseen is None else unseen
        scenes.append(star_world.random_scene(rng, unseen=held_out))
    return scenes


def agreement(
    images: NDArray[np.uint8],
    scenes: Sequence[Scene],
    check: Callable[[NDArray[np.uint8], Scene], Verdict],
) -> Figures:
    """How many images show their scene, and the problems of the others."""
    verdicts = [check(image, scene) for image, scene in zip(images, scenes, strict=True)]
    problems = Counter(name for verdict in verdicts for name in verdict.problems)
    right = sum(verdict.ok for verdict in verdicts)
    return {"right": right, "of": len(scenes), "problems": dict(problems.most_common())}


def measure(tests: Tests, weights: WeightsConfig, decoder: str, vqgan: str) -> tuple[Figures, Any]:
    """Draw one image per prompt; return the agreement by kind of prompt, and the images."""
    drawn = {kind: draw_one_each(scenes, weights, decoder, vqgan) for kind, scenes in tests.items()}
    checks = {kind: check_old if kind == "old" else star_world.check for kind in tests}
    return {kind: agreement(drawn[kind], tests[kind], checks[kind]) for kind in tests}, drawn


def regularity(weights: WeightsConfig, vqgan: str) -> float:
    """How alike the tokens of equal stars in different colours are, by a VQ-GAN."""
    model = load_vqgan(vqgan, weights).model

    def encode(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        parts = [model.encode(to_floats(part, -1.0, 1.0)) for part in chw(images).split(16)]
        return torch.cat(parts).numpy()

    return round(star_world.regularity(encode), 3)


def configs(work: Path, sources: list[Figures], vqgan_steps: int, decoder_steps: int) -> Any:
    """The two fine-tunings."""
    common: Figures = {"seed": 1, "data": sources, "encoding": {"held_out": 0.0}}
    training: Figures = {"warmup_steps": 10, "dtype": "bfloat16"}
    vqgan = FineTuneConfig.model_validate({
        **common, "name": "star-vqgan", "output": str(work / "vqgan"), "trains": "vqgan",
        "training": {
            **training, "steps": vqgan_steps, "batch_size": 8, "learning_rate": 1.5e-3,
            "vqgan": {"split_every": None, "encoder_rate": 0.2},
        },
    })  # fmt: skip
    models = {
        "star-vqgan": {"base": "demo-vqgan", "folder": str(work / "vqgan/weights/star-vqgan")}
    }
    decoder = FineTuneConfig.model_validate({
        **common, "name": "star-dalle", "output": str(work / "decoder"), "trains": "decoder",
        "vqgan": "star-vqgan", "weights": {"models": models},
        "training": {
            **training, "steps": decoder_steps, "batch_size": 16, "learning_rate": 8e-4,
            "average": 0.995,
        },
    })  # fmt: skip
    return vqgan, decoder


def table(figures: Figures) -> str:
    """The figures as Markdown."""
    names = {
        "old": "old: combinations that the demo has never seen",
        "new": "new: a star or a yellow background, a fifth never seen in this combination",
        "new_held_out": "new, all never seen in this combination",
    }
    minutes = {name: part["minutes"] for name, part in figures["parts"].items()}
    regular = figures["regularity"]
    lines = [
        f"{figures['measured']}:",
        "",
        "| prompts | images that show them, before | after |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {_share(figures['before'][kind])} | {_share(figures['after'][kind])} |"
            for kind, name in names.items()
        ),
        "",
        f"{figures['minutes']:.1f} minutes, {figures['core_minutes']:.1f} core-minutes: "
        f"{minutes['rehearsal']:.1f} minutes for drawing {figures['rehearsal']:,} images, "
        f"{minutes['vqgan']:.1f} for {figures['vqgan_steps']:,} steps of the VQ-GAN, "
        f"{minutes['decoder']:.1f} for {figures['decoder_steps']:,} of the decoder. "
        f"{regular[0]:.0%} of the cells of stars had the token of most stars of that size before, "
        f"{regular[1]:.0%} after it.",
    ]
    return "\n".join(lines)


def _share(found: Figures) -> str:
    return f"{found['right'] / found['of']:.1%}"


def main() -> None:
    """Run the command line: make the data, fine-tune, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/star"))
    parser.add_argument("--images", type=int, default=2000, help="the user's images")
    parser.add_argument("--rehearsal", type=int, default=1200, help="images that the demo draws")
    parser.add_argument("--vqgan-steps", type=int, default=1500)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--prompts", type=int, default=200, help="new, and as many old ones")
    options = parser.parse_args()
    tests: Tests = {
        "old": scenes_of(SEED + 2, options.prompts),
        "new": new_scenes(options.prompts, SEED + 7),
        "new_held_out": new_scenes(options.prompts, SEED + 8, unseen=True),
    }
    user = write_user_images(options.work / "user", options.images)
    before, _ = measure(tests, WeightsConfig(), "demo-dalle", "demo-vqgan")
    clock = Clock(options.work / "minutes.json")
    rng = random.Random(21)
    known = [random_scene(rng) for _ in range(options.rehearsal)]
    with clock.part("rehearsal"):
        rehearsal = draw_dataset(options.work / "rehearsal", known, candidates=2)
    sources: list[Figures] = [{"uri": user}, {"uri": rehearsal, "repeats": 2}]
    vqgan, decoder = configs(options.work, sources, options.vqgan_steps, options.decoder_steps)
    with clock.part("vqgan"):
        fine_tune(vqgan)
    with clock.part("decoder"):
        folder = fine_tune(decoder)
    models = {
        **{name: model.model_dump() for name, model in decoder.weights.models.items()},
        "star-dalle": {"base": "demo-dalle", "folder": str(folder)},
    }
    weights = WeightsConfig.model_validate({"models": models})
    after, drawn = measure(tests, weights, "star-dalle", "star-vqgan")
    figures = {
        "measured": f"`python -m tests.benchmarks.fine_tune_star`, {machine(2)}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "images": options.images,
        "rehearsal": options.rehearsal,
        "parts": clock.parts,
        "minutes": clock.total(),
        "core_minutes": clock.total("core_minutes"),
        "vqgan_steps": options.vqgan_steps,
        "decoder_steps": options.decoder_steps,
        "before": before,
        "after": after,
        "regularity": [
            regularity(WeightsConfig(), "demo-vqgan"),
            regularity(weights, "star-vqgan"),
        ],
    }
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    (options.work / "result.json").write_text(text, "utf-8")
    print(text)
    if (options.images, options.prompts) == (2000, 200):
        PATH.write_text(text, "utf-8")
        write_block(TRAINING, MARK, table(figures))
        images = drawn["new"]
        sheet = np.concatenate([np.concatenate(list(images[row : row + 8]), 1)
                                for row in range(0, 32, 8)])  # fmt: skip
        Image.fromarray(sheet).save(SHEET, quality=80)


if __name__ == "__main__":
    main()
