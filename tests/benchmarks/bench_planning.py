"""How long a large prompt table takes to plan, and how much memory.

    python tests/benchmarks/bench_planning.py --rows 100000 [--output s3://bucket/prefix]

Writes a Parquet table of random captions with three pass-through columns and a few bad and doubled
rows, plans it twice (the second time there is nothing new), each in a process of its own, and
prints seconds and peak memory of each as JSON. Bars: 100,000 rows in 20 s, 1,000,000 in 60 s, both
below 500 MB.
"""

from __future__ import annotations

import argparse
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


def write_table(path: Path, rows: int) -> None:
    """Write the table in row groups, so that making it needs little memory either."""
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


def _columns(generator: random.Random, start: int, count: int) -> Iterator[tuple[str, list]]:
    texts = [" ".join(generator.choices(WORDS, k=8)) + f" {start + i}" for i in range(count)]
    texts[::1000] = [None] * len(texts[::1000])
    texts[1::1000] = ["круг"] * len(texts[1::1000])
    yield "prompt", texts
    yield "images", [generator.choice([None, None, 4, 8]) for _ in range(count)]
    yield "source", [f"row-{start + i}" for i in range(count)]
    yield "weight", [generator.random() for _ in range(count)]
    yield "split", [generator.choice(["train", "test"]) for _ in range(count)]


def plan(table: str, output: str, shard_size: int) -> dict[str, float]:
    """Plan once in this process."""
    from rudalle_lib.config import RunConfig
    from rudalle_lib.planning import plan_run
    from rudalle_lib.storage import Storage

    config = RunConfig(output=output, prompts={"uri": table, "shard_size": shard_size})
    start, busy = time.perf_counter(), time.process_time()
    made = plan_run(config, Storage(output))
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rows": made.rows,
        "shards": len(made.shards),
        "new_prompts": made.new_prompts,
        "rejected": sum(made.rejected.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--output", help="default: a temporary folder")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        print(json.dumps(plan(arguments.plan, arguments.output, arguments.shard_size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "prompts.parquet")
        write_table(table, arguments.rows)
        output = arguments.output or f"{folder}/output"
        for label in ("first", "again"):
            command = [sys.executable, __file__, "--plan", str(table), "--output", output]
            command += ["--shard-size", str(arguments.shard_size)]
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            result = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
            )
            print(label, result.stdout.decode().strip(), flush=True)


if __name__ == "__main__":
    main()
