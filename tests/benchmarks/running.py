"""Measure the costs of a run other than the networks: Prefect, many shards, resuming, Ray.

    python -m tests.benchmarks.running [--shards 1000] [--images 1000] [--only overhead --rounds 3]

Prints one row per figure, with its bar. Each measurement has its own process. If possible it is a
ratio within one run, because machines differ.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.tables import row

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ["красный круг на белом фоне", "чёрный квадрат на сером фоне"]
IMAGES_PER_PROMPT, PROMPTS_PER_SHARD = 8, 16
PARTS = ("many-shards", "overhead", "ray")
"""Names of the measurements."""


def call(*words: str, **environment: str) -> str:
    """Run a Python module with arguments in a new process; return its output."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


# --- many shards, and resuming a finished run ---------------------------------------------------


def measure_many_shards(folder: Path, shards: int) -> None:
    """Measure memory of the flow over many shards, then resume the finished run."""
    config = folder / "dummy.yaml"
    words = ["tests.benchmarks.dummy_engine", "--shards", str(shards), "--config", str(config)]
    figures = json.loads(call(*words).splitlines()[-1])
    growth = figures["last_quarter_mb"] / figures["second_quarter_mb"] - 1
    row(f"{shards:,} shards, dummy engine", f"{figures['seconds']:,.0f} s")
    row("  per task run", f"{1000 * figures['seconds'] / figures['task_runs']:.1f} ms")
    row("  memory, second quarter", f"{figures['second_quarter_mb']:,.0f} MB")
    row("  increase to the last quarter (bar: 5%)", f"{growth:.1%}")
    started = time.perf_counter()
    printed = call("tests.benchmarks.running", "--resume", str(config))
    row("  resuming with nothing to do (bar: 10 s)", f"{time.perf_counter() - started:.1f} s")
    row("  networks loaded by that (bar: 0)", printed.splitlines()[-1])


def resume(config: str) -> None:
    """Resume a finished run like the command line does; print how many networks it loaded."""
    from flows.cli.options import load
    from flows.run import make_dataset

    make_dataset(load(config, None, None, None))
    if "tasks.runtime.models" not in sys.modules:
        print(0)
        return
    from tasks.runtime.models import _LOADERS

    print(sum(loader.loads for loader in _LOADERS))


# --- the demo models, with and without Prefect -----------------------------------------------


def demo_run(
    folder: Path, name: str, images: int, prompts_per_shard: int = PROMPTS_PER_SHARD, **runtime: Any
) -> Any:
    """Return a configuration of a run with the demo models."""
    from rudalle_lib.config.run import RunConfig

    table = folder / f"{name}.csv"
    prompts = max(images // IMAGES_PER_PROMPT, 1)
    rows = [[CAPTIONS[n % len(CAPTIONS)], n] for n in range(prompts)]
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "seed"], *rows])
    return RunConfig.model_validate(
        {
            "name": name,
            "output": str(folder / name),
            "prompts": {"uri": str(table), "shard_size": prompts_per_shard},
            "generate": {"images": IMAGES_PER_PROMPT, "top_k": 0},
            "score": {"keep_best": 2},
            "publish": {"gallery": False, "contact_sheet": 0},
            "runtime": {"devices": "cpu", **runtime},
        }
    )


def plain_loop(config: Any) -> None:
    """Run the stages of all shards one after another, without Prefect."""
    from rudalle_lib.checks.preflight import check_run
    from rudalle_lib.prompts.plan import plan_run
    from rudalle_lib.report.report import write_report
    from rudalle_lib.storage.storage import Storage
    from tasks.without_prefect import process_shard

    started = datetime.now(UTC).isoformat(timespec="seconds")
    weights = check_run(config)
    storage = Storage(config.output)
    plan = plan_run(config, storage)
    for shard in plan.shards:
        process_shard(config, weights, shard)
    write_report(storage, config, weights, len(plan.shards), started)


def seconds_of(work: Any, *arguments: Any) -> float:
    """Return the wall-clock seconds of one call."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants, such as Prefect's embedded server."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return own_cpu_seconds(pid) + sum(map(cpu_seconds, children))


def own_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a running process without its descendants, from Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_overhead(folder: Path, images: int, rounds: int) -> None:
    """Measure the same run with Prefect and in a plain loop, alternately, after a warm-up.

    CPU time is printed too, because it is comparable even on a busy machine.
    """
    from flows.prefect_settings import set_up_prefect

    set_up_prefect()
    from flows.generate_dataset import generate_dataset

    generate_dataset(demo_run(folder, "warm", IMAGES_PER_PROMPT))
    seconds: dict[str, list[float]] = {"plain": [], "prefect": []}
    busy: dict[str, list[float]] = {"plain": [], "prefect": []}
    for turn in range(rounds):
        for name, work in (("plain", plain_loop), ("prefect", generate_dataset)):
            before = cpu_seconds(os.getpid())
            seconds[name].append(seconds_of(work, demo_run(folder, f"{name}-{turn}", images)))
            busy[name].append(cpu_seconds(os.getpid()) - before)
    row(f"{images:,} images of the demo in a plain loop", f"{median(seconds['plain']):,.1f} s")
    row("  with Prefect (bar: 1.05x)", ratio(seconds))
    row("  CPU time in a plain loop", f"{median(busy['plain']):,.1f} s")
    row("  CPU time with Prefect and its server", ratio(busy))


def ratio(figures: dict[str, list[float]]) -> str:
    """Return the median ratio of Prefect and a plain loop over all rounds."""
    return f"{median(map(truediv, figures['prefect'], figures['plain'])):.3f}x"


def measure_ray(folder: Path, images: int) -> None:
    """Measure the same run in threads, and on Ray with two workers of one CPU thread each."""
    from flows.prefect_settings import set_up_prefect

    set_up_prefect()
    import ray

    from flows.generate_dataset import generate_dataset

    few = 4 * IMAGES_PER_PROMPT  # four shards, so that each worker gets one
    generate_dataset(demo_run(folder, "warm", few, prompts_per_shard=1))
    local = seconds_of(generate_dataset, demo_run(folder, "local", images))
    row(f"{images:,} images of the demo, runner local", f"{local:,.1f} s")
    options: dict[str, Any] = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    started = time.perf_counter()
    ray.init(address="local", **options)
    row("  starting Ray", f"{time.perf_counter() - started:,.1f} s")
    on_ray: dict[str, Any] = {"runner": "ray", "shards_in_flight": 4, "threads": 1}
    first = seconds_of(generate_dataset, demo_run(folder, "start", few, 1, **on_ray))
    row(f"  {few:,} images: two workers start and load networks", f"{first:,.1f} s")
    seconds = seconds_of(generate_dataset, demo_run(folder, "ray", images, **on_ray))
    row("  runner ray, with the start of workers", f"{seconds:,.1f} s, {seconds / local:.2f}x")
    ray.shutdown()


def main() -> None:
    """Run the command line: measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000, help="shards of many-shards")
    parser.add_argument("--images", type=int, default=1000, help="images of overhead and ray")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of overhead")
    parser.add_argument("--only", choices=PARTS, help="run only this measurement")
    parser.add_argument("--here", choices=PARTS[1:], help=argparse.SUPPRESS)
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume:
        resume(arguments.resume)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.here == "overhead":
            measure_overhead(Path(folder), arguments.images, arguments.rounds)
        elif arguments.here == "ray":
            measure_ray(Path(folder), arguments.images)
        if arguments.here:
            return
        if arguments.only in (None, "many-shards"):
            measure_many_shards(Path(folder), arguments.shards)
        for part in PARTS[1:]:
            if arguments.only in (None, part):
                words = ["tests.benchmarks.running", "--here", part]
                words += ["--images", str(arguments.images), "--rounds", str(arguments.rounds)]
                print(call(*words), end="", flush=True)


if __name__ == "__main__":
    main()
