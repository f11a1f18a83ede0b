"""What running costs beside the networks: Prefect, many shards, looking for what is left, Ray.

    python -m tests.benchmarks.running [--shards 1000] [--images 1000] [--only overhead --rounds 3]

Prints one row a figure, with its bar. Every measurement has a process of its own, and is a ratio
within one run where it can be, because machines differ.
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
IMAGES_A_PROMPT, PROMPTS_A_SHARD = 8, 16
PARTS = ("many-shards", "overhead", "ray")


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


# --- the demo's models, through Prefect and without --------------------------------------------


def demo_run(
    folder: Path, name: str, images: int, prompts_a_shard: int = PROMPTS_A_SHARD, **runtime: Any
) -> Any:
    """A configuration of so many images, drawn with the demo's models."""
    from rudalle_lib.config import RunConfig

    table = folder / f"{name}.csv"
    prompts = max(images // IMAGES_A_PROMPT, 1)
    rows = [[CAPTIONS[n % len(CAPTIONS)], n] for n in range(prompts)]
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt", "seed"], *rows])
    return RunConfig.model_validate(
        {
            "name": name,
            "output": str(folder / name),
            "prompts": {"uri": str(table), "shard_size": prompts_a_shard},
            "generate": {"images": IMAGES_A_PROMPT, "top_k": 0},
            "score": {"keep_best": 2},
            "publish": {"gallery": False, "contact_sheet": 0},
            "runtime": {"devices": "cpu", **runtime},
        }
    )


def plain_loop(config: Any) -> None:
    """The stages of every shard, one after the other, without Prefect."""
    from rudalle_lib.planning import plan_run
    from rudalle_lib.preflight import check_run
    from rudalle_lib.report import write_report
    from rudalle_lib.storage import Storage
    from tasks.plain import work_on

    started = datetime.now(UTC).isoformat(timespec="seconds")
    weights = check_run(config)
    storage = Storage(config.output)
    plan = plan_run(config, storage)
    for shard in plan.shards:
        work_on(config, weights, shard)
    write_report(storage, config, weights, len(plan.shards), started)


def seconds_of(work: Any, *arguments: Any) -> float:
    """How long something takes."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of all below it, as Prefect's embedded server is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return own + sum(map(cpu_seconds, children))


def measure_overhead(folder: Path, images: int, rounds: int) -> None:
    """The same run through Prefect and in a plain loop, in turns; server and networks are there.

    CPU time is told too: beside other work on the machine it is what can be compared.
    """
    from flows.embedded import set_up_prefect

    set_up_prefect()
    from flows.generate_dataset import generate_dataset

    generate_dataset(demo_run(folder, "warm", IMAGES_A_PROMPT))
    seconds: dict[str, list[float]] = {"plain": [], "prefect": []}
    busy: dict[str, list[float]] = {"plain": [], "prefect": []}
    for turn in range(rounds):
        for name, work in (("plain", plain_loop), ("prefect", generate_dataset)):
            before = cpu_seconds(os.getpid())
            seconds[name].append(seconds_of(work, demo_run(folder, f"{name}-{turn}", images)))
            busy[name].append(cpu_seconds(os.getpid()) - before)
    row(f"{images:,} images of the demo in a plain loop", f"{median(seconds['plain']):,.1f} s")
    row("  the same through Prefect (bar: 1.05x)", ratio(seconds))
    row("  CPU time in a plain loop", f"{median(busy['plain']):,.1f} s")
    row("  CPU time through Prefect, with its server", ratio(busy))


def ratio(figures: dict[str, list[float]]) -> str:
    """Through Prefect against a plain loop: the median of the ratios of each turn."""
    return f"{median(map(truediv, figures['prefect'], figures['plain'])):.3f}x"


def measure_ray(folder: Path, images: int) -> None:
    """The same run in threads, and on Ray with two workers of one CPU thread each."""
    from flows.embedded import set_up_prefect

    set_up_prefect()
    import ray

    from flows.generate_dataset import generate_dataset

    few = 4 * IMAGES_A_PROMPT  # four shards, so that each worker gets one
    generate_dataset(demo_run(folder, "warm", few, prompts_a_shard=1))
    local = seconds_of(generate_dataset, demo_run(folder, "local", images))
    row(f"{images:,} images of the demo, runner local", f"{local:,.1f} s")
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    started = time.perf_counter()
    ray.init(address="local", **options)
    row("  starting Ray", f"{time.perf_counter() - started:,.1f} s")
    on_ray = {"runner": "ray", "shards_in_flight": 4, "threads": 1}
    first = seconds_of(generate_dataset, demo_run(folder, "start", few, 1, **on_ray))
    row(f"  the first {few:,} images: two workers load their networks", f"{first:,.1f} s")
    warmed = seconds_of(generate_dataset, demo_run(folder, "ray", images, **on_ray))
    row("  runner ray, two workers that have them", f"{warmed:,.1f} s, {warmed / local:.2f}x")
    ray.shutdown()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="of the comparison with a plain loop")
    parser.add_argument("--only", choices=PARTS)
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
