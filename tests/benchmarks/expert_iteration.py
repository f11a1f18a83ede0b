"""Does the demo's decoder get better by learning from its own best images?

    nice -n 5 python -m tests.benchmarks.expert_iteration --work runs/expert

Each round draws several images per prompt, publishes the one that ruCLIP likes best, and fine-tunes
the decoder on what was published. There is no other data, and the checker chooses nothing: it only
measures. Prompts show combinations that the demo was trained on. The test prompts, those of
`rudalle_lib/demo/quality.json`, show combinations that are held out, and none of these is drawn
for training. What is done already is not repeated. The results are `results/expert_iteration.json`
and a table in `docs/training.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
from pathlib import Path
from typing import Any

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.demo.checker import check
from rudalle_lib.demo.scenes import random_scene
from rudalle_lib.training.demo.quality import SEED, draw, scenes_of
from rudalle_lib.weights.loading import load_vqgan
from tests.benchmarks.documentation import TRAINING, write_block
from tests.benchmarks.engine import RESULTS, machine
from tests.benchmarks.fine_tuning import Clock, Models, draw_dataset, fine_tune

PATH = RESULTS / "expert_iteration.json"
MARK = "expert"
"""Name of the block in the documentation."""

ROUNDS = 2


def agreement(name: str, models: Models, prompts: int, replicas: int) -> float:
    """The share of single images that show their prompt, one with a held-out combination."""
    weights = WeightsConfig.model_validate({"models": models})
    vqgan = load_vqgan("demo-vqgan", weights).model
    scenes = scenes_of(SEED + 2, prompts)
    images = draw(vqgan, scenes, replicas, weights, name)
    right = sum(check(i, s).ok for row, s in zip(images, scenes, strict=True) for i in row)
    return right / (prompts * replicas)


def play_round(work: Path, number: int, name: str, models: Models, options: Any) -> Path:
    """Draw with a decoder, fine-tune it on what was chosen; return the folder of the new one."""
    rng = random.Random(f"expert {number}")
    scenes = [random_scene(rng) for _ in range(options.drawn)]
    drawn = draw_dataset(work / f"drawn-{number}", scenes, options.candidates, name, models)
    return fine_tune(FineTuneConfig.model_validate({
        "name": f"expert-{number}", "seed": number, "output": str(work / f"tuned-{number}"),
        "base": name, "data": [{"uri": drawn}], "weights": {"models": models},
        "encoding": {"held_out": 0.0},
        "training": {
            "steps": options.steps, "batch_size": 16, "learning_rate": options.rate,
            "warmup_steps": 10, "average": 0.99, "dtype": "bfloat16",
        },
    }))  # fmt: skip


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{figures['measured']}, {figures['prompts'] * figures['replicas']:,} images:",
        "",
        "| rounds | images that show their prompt | minutes, in all |",
        "| ---: | ---: | ---: |",
        *(
            f"| {row['round']} | {row['agreement']:.1%} | {row.get('minutes', 0):.0f} |"
            for row in figures["rows"]
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the command line: iterate, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/expert"))
    parser.add_argument("--drawn", type=int, default=4000, help="prompts that a round draws")
    parser.add_argument("--candidates", type=int, default=4, help="images per prompt")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each fine-tuning")
    parser.add_argument("--rate", type=float, default=1.5e-4, help="learning rate")
    parser.add_argument("--prompts", type=int, default=200, help="test prompts")
    parser.add_argument("--replicas", type=int, default=8, help="images per test prompt")
    options = parser.parse_args()
    measured = (options.prompts, options.replicas)
    models: Models = {}
    name = "demo-dalle"
    rows: list[dict[str, float]] = [{"round": 0, "agreement": agreement(name, models, *measured)}]
    clock = Clock(options.work / "minutes.json")
    for number in range(1, ROUNDS + 1):
        with clock.part(f"round {number}"):
            folder = play_round(options.work, number, name, models, options)
        name = f"expert-{number}"
        models = {**models, name: {"base": "demo-dalle", "folder": str(folder)}}
        row = {
            "round": number,
            "agreement": agreement(name, models, *measured),
            "minutes": clock.total(until=f"round {number}"),
            "core_minutes": clock.total("core_minutes", until=f"round {number}"),
        }
        print(row, flush=True)
        rows.append(row)
    figures = {
        "measured": f"`python -m tests.benchmarks.expert_iteration`, {machine(2)}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        **{key: value for key, value in vars(options).items() if key != "work"},
        "rows": rows,
    }
    text = json.dumps(figures, indent=1) + "\n"
    (options.work / "result.json").write_text(text, "utf-8")
    print(text)
    if options.prompts == 200:
        PATH.write_text(text, "utf-8")
        write_block(TRAINING, MARK, table(figures))


if __name__ == "__main__":
    main()
