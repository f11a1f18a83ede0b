"""What running costs beside the networks: many shards, and looking for what is left of them.

    python -m tests.benchmarks.running [--shards 1000]

Prints one row a figure, with its bar. Every measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.demo_stack import row

ROOT = Path(__file__).resolve().parents[2]


def call(*words: str, **environment: str) -> str:
    """The output of a Python module with arguments, in a process of its own."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, env=given, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


# --- many shards, and a finished run again -----------------------------------------------------


def measure_many_shards(folder: Path, shards: int) -> None:
    """Memory of the flow over many shards, then the same run again, which finds all finished."""
    config = folder / "dummy.yaml"
    words = ["tests.benchmarks.dummy_engine", "--shards", str(shards), "--config", str(config)]
    figures = json.loads(call(*words).splitlines()[-1])
    growth = figures["last_quarter_mb"] / figures["second_quarter_mb"] - 1
    row(f"{shards:,} shards, dummy engine", f"{figures['seconds']:,.0f} s")
    row("  a task run", f"{1000 * figures['seconds'] / figures['task_runs']:.1f} ms")
    row("  memory, second quarter", f"{figures['second_quarter_mb']:,.0f} MB")
    row("  growth to the last quarter (bar: 5%)", f"{growth:.1%}")
    started = time.perf_counter()
    said = call("tests.benchmarks.running", "--resume", str(config))
    row("  nothing to do (bar: 10 s)", f"{time.perf_counter() - started:.1f} s")
    row("  networks loaded meanwhile (bar: 0)", said.splitlines()[-1])


def resume(config: str) -> None:
    """Run a finished configuration as the command line does; print how many networks it loaded."""
    from flows.cli import load, run_flow

    run_flow(load(config, None, None, None))
    if "tasks.loaded_models" not in sys.modules:
        print(0)
        return
    from tasks.loaded_models import _LOADERS

    print(sum(loader.cache_info().misses for loader in _LOADERS))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume:
        resume(arguments.resume)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure_many_shards(Path(folder), arguments.shards)


if __name__ == "__main__":
    main()
