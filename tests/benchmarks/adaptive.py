"""Compare drawing in rounds with a fixed number of images per prompt, on the demo stack.

    python -m tests.benchmarks.adaptive [--docs]

The demo's best 2 of 8 images per prompt are kept if their score is above the 60% quantile of all.
Then the same prompts are drawn in rounds until 2 images are accepted. Bar: as many accepted images,
with at least 30% fewer drawn. Runs in rounds begin with a copy of the fixed run, so only missing
images are drawn: what is counted is what a run from the start draws (`tests/tasks/test_rounds.py`
compares both). This prints a table and writes `results/adaptive.json`; `--docs` puts the table into
docs/operations.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.pipeline.artifacts import read_artifact
from rudalle_lib.pipeline.diff import compare
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.storage.storage import Storage
from tasks.without_prefect import process_shard
from tests.benchmarks.documentation import OPERATIONS, write_block
from tests.benchmarks.engine import RESULTS, ROOT

FIXED, ENOUGH, QUANTILE = 8, 2, 0.6
"""Images per prompt without rounds, those that are kept, and the quantile of the least score."""

ROUNDS = ((1, FIXED), (2, FIXED), (4, FIXED), (2, 2 * FIXED))
"""Images per round and the most per prompt, of the runs in rounds."""

BAR = 0.7
"""Share of the images of the fixed run that rounds with as many at most may draw."""

PATH = RESULTS / "adaptive.json"
MARK = "adaptive"
"""Name of the block in the documentation."""

Figures = dict[str, Any]


def make(output: str, generate: Mapping[str, Any], min_score: float | None) -> RunConfig:
    """Make the demo dataset with these settings, or what is missing of it; no image is enlarged."""
    config = RunConfig.load(str(ROOT / "configs" / "demo.yaml"))
    settings = config.model_dump(mode="json") | {"output": output}
    settings["generate"] |= generate
    settings["score"] |= {"min_score": min_score, "keep_best": ENOUGH}
    settings["upscale"] |= {"model": None}
    made = RunConfig.model_validate(settings)
    storage, weights = Storage(output), weight_digests(made)
    plan = plan_run(made, storage)
    for shard in compare(made, weights, plan.shards, read_shard_manifests(storage)).todo:
        process_shard(made, weights, shard)
    return made


def count(output: str) -> tuple[int, int]:
    """Images that a dataset's runs from the start would have drawn, and those accepted."""
    manifests = read_shard_manifests(Storage(output))
    return sum(m.images for m in manifests), sum(m.kept for m in manifests)


def quantile(output: str) -> float:
    """The least score: a quantile of the scores of all images."""
    storage = Storage(output)
    scores = [
        score
        for manifest in read_shard_manifests(storage)
        for score in read_artifact(storage, manifest.stages["score"]).column("score").to_pylist()
    ]
    return float(np.quantile(scores, QUANTILE))


def measure(folder: str) -> list[Figures]:
    """The figures of the fixed run and of all runs in rounds."""
    fixed = f"{folder}/fixed"
    make(fixed, {"images": FIXED}, None)
    least = quantile(fixed)
    rows: list[Figures] = []
    for images, most in ((FIXED, 0), *ROUNDS):
        print(f"  {images} images, at most {most or images} ...", file=sys.stderr, flush=True)
        rounds = {"until_accepted": ENOUGH, "max_images": most} if most else {}
        output = f"{folder}/{images}-{most}"
        shutil.copytree(fixed, output)
        make(output, {"images": images, **rounds}, least)
        drawn, accepted = count(output)
        rows.append({"images": images, "most": most, "drawn": drawn, "accepted": accepted})
    return rows


def table(head: str, rows: list[Figures]) -> str:
    """The figures as Markdown, with the images drawn relative to the fixed number."""
    lines = [
        f"{head}:",
        "",
        "| images per prompt | drawn | accepted | drawn, of the fixed number |",
        "| --- | --- | --- | --- |",
    ]
    fixed = rows[0]["drawn"]
    for row in rows:
        rounds = f"rounds of {row['images']}, at most {row['most']}"
        lines.append(
            f"| {rounds if row['most'] else row['images']} | {row['drawn']:,} "
            f"| {row['accepted']:,} | {row['drawn'] / fixed:.0%} |"
        )
    return "\n".join(lines)


def meets_the_bar(rows: list[Figures]) -> bool:
    """Whether some run in rounds has as many accepted images, with at least 30% fewer drawn."""
    fixed = rows[0]
    return any(
        row["accepted"] >= fixed["accepted"] and row["drawn"] <= BAR * fixed["drawn"]
        for row in rows[1:]
    )


def main() -> None:
    """Run the command line: measure, print, write; exit code 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="update docs/operations.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(folder)
    today = datetime.datetime.now(datetime.UTC)
    head = (
        f"`python -m tests.benchmarks.adaptive`, demo stack, at most {ENOUGH} per prompt kept, "
        f"score above the {QUANTILE:.0%} quantile, {today:%Y-%m-%d}"
    )
    PATH.write_text(json.dumps({"measured": head, "rows": rows}, indent=1) + "\n", "utf-8")
    text = table(head, rows)
    print(text)
    if options.docs:
        write_block(OPERATIONS, MARK, text)
    if not meets_the_bar(rows):
        sys.exit("The bar is missed: 30% fewer images drawn for as many accepted ones.")


if __name__ == "__main__":
    main()
