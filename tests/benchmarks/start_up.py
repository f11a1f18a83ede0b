"""How soon commands answer: paired times of this tree and, if given, of another one.

.venv/bin/python -m tests.benchmarks.start_up --before /path/to/another/tree

Each round runs every command once per tree, in turn. The table has the least of all rounds, in CPU
seconds and by the clock. Other work on the machine hardly changes the former; a user waits for the
latter. With `--images` the demo runs until it has published an image; drawing uses all cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.running import own_cpu_seconds

HERE = Path(__file__).resolve().parents[2]
DATASET = HERE / "tests/data/before_rooms/dataset"
"""A finished output of version 0.1, which all versions read."""

COMMANDS = {
    "`--help`": ["--help"],
    "`status`": ["status", str(DATASET)],
    "`models`": ["models"],
    "`plan demo`, the first time": ["plan", "demo", "--output", "out-plan"],
    "`plan demo`, again": ["plan", "demo", "--output", "out-plan"],
}
"""Commands that are timed to their end, in this order."""

FIRST_LINE = "`run demo` into a pipe: its first line"
FIRST_IMAGE = "... its first published image"
LIMIT = 1800.0
"""Seconds after which the demo should have published an image."""


class Times(NamedTuple):
    """Seconds of the processor and of the clock."""

    cpu: float
    clock: float


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", type=Path, help="another tree, such as a git worktree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", action="store_true", help="also wait for the first image")
    options = parser.parse_args()
    trees = [HERE] if options.before is None else [options.before.resolve(), HERE]
    times: dict[str, dict[Path, list[Times]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.rounds):
        homes = {tree: Path(tempfile.mkdtemp(prefix="start-up-")) for tree in trees}
        for name, command in COMMANDS.items():
            for tree in trees:
                times[name][tree].append(time_of(tree, command, homes[tree]))
        for tree in trees:
            for name, taken in time_of_run(tree, homes[tree], options.images).items():
                times[name][tree].append(taken)
        for home in homes.values():
            shutil.rmtree(home)
    head = ["command", *("before" if tree != HERE else "now" for tree in trees)]
    print("CPU seconds, in brackets those of the clock:\n")
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for name, by_tree in times.items():
        least = [Times(*map(min, zip(*by_tree[tree], strict=True))) for tree in trees]
        cells = [f"{one.cpu:.2f} s ({one.clock:.2f} s)" for one in least]
        print(f"| {name} | {' | '.join(cells)} |")


def environment(tree: Path, home: Path) -> dict[str, str]:
    """That of a new user: an empty home, no settings of Prefect."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "XDG_"))}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(tree)}


def time_of(tree: Path, arguments: list[str], home: Path) -> Times:
    """Run a command in a folder of its own; returns what it took."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    silent = subprocess.DEVNULL
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=home, env=environment(tree, home), stdout=silent, stderr=silent
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Times(used.ru_utime + used.ru_stime, time.monotonic() - started)


def time_of_run(tree: Path, home: Path, images: bool) -> dict[str, Times]:
    """Start the demo; returns what it took to its first line and to its first image."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", "demo", "--output", "out"],
        cwd=home, env=environment(tree, home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "the run said nothing"
        found = {FIRST_LINE: Times(own_cpu_seconds(process.pid), time.monotonic() - started)}
        while images and not any((home / "out/shards").glob("*.json")):
            assert process.poll() is None and time.monotonic() - started < LIMIT
            time.sleep(0.02)
        if images:
            found[FIRST_IMAGE] = Times(own_cpu_seconds(process.pid), time.monotonic() - started)
        return found
    finally:
        process.terminate()
        process.communicate()


if __name__ == "__main__":
    main()
