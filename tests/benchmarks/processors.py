"""Compare precisions on this CPU and on the same CPU limited to AVX2, which most rented ones have.

    python -m tests.benchmarks.processors [--docs]

Figures are CPU seconds of one thread, the least of several, so a busy machine hardly changes them.
They are for a few layers of Malevich's size with the image head, in the middle of an image. This
prints a table and writes `results/processors.json`; `--docs` puts the table into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from typing import Any

from tests.benchmarks.documentation import PERFORMANCE, write_block
from tests.benchmarks.engine import RESULTS, ROOT, machine
from tests.support.compiled import AVX2_ENVIRONMENT

LAYERS, REPLICAS, REPEATS = 4, 8, 1
BATCHES = (8, 64)
DTYPES = ("float32", "bfloat16", "int8_dynamic")

LIMITS = {"AVX2": AVX2_ENVIRONMENT, "all of this CPU": {}}
"""Environment of a measurement, by what the CPU may use."""

PATH = RESULTS / "processors.json"
MARK = "processors"
"""Name of the block in the documentation."""

Figures = dict[str, Any]


def measure(limit: str, dtype: str, batch: int) -> Figures:
    """Measure one precision in a process of its own."""
    options = {"dtype": dtype, "batch": batch, "layers": LAYERS, "replicas": REPLICAS,
               "repeats": REPEATS}  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.measure_engine", "cpu_seconds"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, **LIMITS[limit], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FIGURES "))
    figures: Figures = json.loads(line.removeprefix("FIGURES "))
    return {"limit": limit, "dtype": dtype, "batch": batch, **figures}


def table(head: str, rows: list[Figures]) -> str:
    """The figures as Markdown, with the speed of a step relative to float32."""
    lines = [
        f"{head}:",
        "",
        "| CPU | precision | batch | texts | step | products alone | step, of float32 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        exact = next(
            other["step"]
            for other in rows
            if (other["limit"], other["batch"], other["dtype"])
            == (row["limit"], row["batch"], "float32")
        )
        lines.append(
            f"| {row['limit']} | {row['dtype']} | {row['batch']} | {row['prefill']:.2f} s | "
            f"{1000 * row['step']:.0f} ms | {1000 * row['floor']:.0f} ms | "
            f"{row['step'] / exact:.2f}x |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command line: measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="update docs/performance.md")
    options = parser.parse_args()
    rows = []
    for limit in LIMITS:
        for batch in BATCHES:
            for dtype in DTYPES:
                print(f"  {limit}, {dtype}, batch {batch} ...", file=sys.stderr, flush=True)
                rows.append(measure(limit, dtype, batch))
    today = datetime.datetime.now(datetime.UTC)
    head = (
        f"`python -m tests.benchmarks.processors`, {machine(1)}, {LAYERS} layers, {today:%Y-%m-%d}"
    )
    PATH.write_text(json.dumps({"measured": head, "rows": rows}, indent=1) + "\n", "utf-8")
    text = table(head, rows)
    print(text)
    if options.docs:
        write_block(PERFORMANCE, MARK, text)


if __name__ == "__main__":
    main()
