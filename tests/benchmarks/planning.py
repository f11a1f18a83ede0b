"""Measure the time and memory for planning a large prompt table.

    python -m tests.benchmarks.planning [--rows 100000 1000000] [--output FOLDER_OR_URL]

The tables are Parquet files of random captions with three pass-through columns and a few bad and
duplicate rows. Each table is planned twice, each time in a new process, into shards of the default
size. The second time there is nothing new. The plan is written to an S3 server that this starts and
stops, or to `--output`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import row
from tests.support.s3_server import S3Server

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "красный",
    "синий",
    "жёлтый",
    "чёрный",
    "белый",
    "круг",
    "квадрат",
    "крест",
    "слева",
    "над",
]
ROW_GROUP = 20_000
"""Rows per row group of a table."""


def write_table(path: Path, rows: int) -> None:
    """Write a table in row groups, so that this needs little memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = random.Random(0)
    writer = None
    for start in range(0, rows, ROW_GROUP):
        table = pa.table(dict(_columns(generator, start, min(ROW_GROUP, rows - start))))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _columns(generator: random.Random, start: int, count: int) -> Iterator[tuple[str, list[Any]]]:
    texts: list[str | None] = [
        " ".join(generator.choices(WORDS, k=8)) + f" {start + i}" for i in range(count)
    ]
    texts[::1000] = [None] * len(texts[::1000])
    texts[1::1000] = ["круг"] * len(texts[1::1000])
    yield "prompt", texts
    yield "images", [generator.choice([None, None, 4, 8]) for _ in range(count)]
    yield "source", [f"row-{start + i}" for i in range(count)]
    yield "weight", [generator.random() for _ in range(count)]
    yield "split", [generator.choice(["train", "test"]) for _ in range(count)]


def plan(table: str, output: str) -> dict[str, float]:
    """Plan once in this process; return seconds, peak memory and the number of shards."""
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.config.sections import PromptsConfig
    from rudalle_lib.prompts.plan import plan_run
    from rudalle_lib.storage.storage import Storage

    config = RunConfig(output=output, prompts=PromptsConfig(uri=table))
    start = time.perf_counter()
    result = plan_run(config, Storage(output))
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "shards": len(result.shards),
    }


def measure(rows: int, output: str) -> None:
    """Plan a table of `rows` rows twice; print time and memory of both."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "prompts.parquet")
        write_table(table, rows)
        command = [sys.executable, "-m", "tests.benchmarks.planning", "--plan", str(table)]
        command += ["--output", f"{output.rstrip('/')}/{rows}"]
        for label in ("", ", nothing new"):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
            figures = json.loads(done.stdout)
            what = f"plan {rows:,} prompts, {figures['shards']:,} shards{label}"
            row(what, f"{figures['seconds']} s, {figures['peak_mb']} MB")


def main() -> None:
    """Run the command line: measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="rows per table"
    )
    parser.add_argument("--output", help="folder or URL; default: an S3 server that this starts")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        print(json.dumps(plan(arguments.plan, arguments.output)))
        return
    with contextlib.ExitStack() as stack:
        output = arguments.output
        if output is None:
            server = stack.enter_context(S3Server.start())
            os.environ.update(server.environment)
            output = server.url
        for rows in arguments.rows:
            measure(rows, output)


if __name__ == "__main__":
    main()
