"""Measure the search for near-duplicates: time and memory.

    python -m tests.benchmarks.duplicates [--images 100000]

The embeddings are like those of a CLIP: 512 numbers in a narrow cone, a tenth of them
near-duplicates of earlier ones. All are compared with each other, by embeddings and hashes. Bars
for 100,000 images: 60 s and 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.tables import row

ROOT = Path(__file__).resolve().parents[2]
SIZE, SHARD, SHARE = 512, 1000, 0.1
"""Numbers of an embedding, images per shard, and the share of near-duplicates."""


def shards(images: int) -> Iterator[object]:
    """Yield embeddings and hashes of shards; near-duplicates are of images of the same shard."""
    from rudalle_lib.images.duplicates import Batch

    rng = np.random.default_rng(0)
    centre = rng.normal(size=SIZE).astype(np.float32)
    scales = (1 / np.sqrt(1 + np.arange(SIZE))).astype(np.float32)  # directions differ in variance
    for start in range(0, images, SHARD):
        count = min(SHARD, images - start)
        points = 0.5 * centre / np.sqrt(SIZE) + 0.2 * scales * rng.normal(size=(count, SIZE))
        hashes = rng.integers(0, 2**64, count, np.uint64)
        again = int(SHARE * count)
        points[-again:] = points[:again] + 0.002 * rng.normal(size=(again, SIZE))
        hashes[-again:] = hashes[:again] ^ np.uint64(1)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        yield Batch(points.astype(np.float16), hashes)


def measure(images: int) -> dict[str, float]:
    """Search all images in this process, which has nothing else in its memory."""
    from rudalle_lib.images.duplicates import Limits, find_duplicates

    started, waiting = time.perf_counter(), 0.0

    def timed() -> Iterator[object]:
        nonlocal waiting
        source = shards(images)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            waiting += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    found = sum(near is not None for near in find_duplicates(timed(), Limits(0.02, 3)))  # type: ignore[arg-type]
    status = Path("/proc/self/status").read_text("ascii")
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    seconds = time.perf_counter() - started - waiting
    return {"seconds": seconds, "bytes": peak, "found": found, "expected": int(SHARE * images)}


def main() -> None:
    """Run the command line: measure in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000, help="images to compare")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.images)))
        return
    command = [sys.executable, "-m", "tests.benchmarks.duplicates", "--here"]
    printed = subprocess.run(
        [*command, "--images", str(arguments.images)],
        cwd=ROOT, stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout  # fmt: skip
    found = json.loads(printed)
    what = f"near-duplicates among {arguments.images:,} images"
    row(f"{what} (bar: 60 s)", f"{found['seconds']:.1f} s")
    row("  most memory of the process (bar: 1 GB)", f"{found['bytes'] / 1e9:.2f} GB")
    row("  found, and expected", f"{found['found']:,} / {found['expected']:,}")


if __name__ == "__main__":
    main()
