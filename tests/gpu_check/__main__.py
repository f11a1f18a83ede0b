"""Check a GPU: `make gpu-check`, or `python -m tests.gpu_check --device cuda:0`.

Every group of checks runs in a process of its own, so that an error on the GPU ends only its group.
The results are printed as a table and written to tests/benchmarks/results/, as JSON and as a report
in Markdown that can be attached to an issue.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from rudalle_lib.errors import SettingsError
from rudalle_lib.runtime.devices import resolve_devices
from tests.gpu_check import ceilings, decoding, demo_run, equality, long_run, networks, peers
from tests.gpu_check.results import Check, describe_machine, judged, not_run, parse, show, write
from tests.gpu_check.scale import FULL, QUICK, Scale

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"

GROUPS: dict[str, Callable[[torch.device, Scale], Iterator[Check]]] = {
    "ceilings": ceilings.checks,
    "equality": equality.checks,
    "run": long_run.checks,
    "decoder": decoding.checks,
    "networks": networks.checks,
    "demo": demo_run.checks,
    "peers": peers.checks,
}
"""The groups in the order in which they run: what matters most comes first."""

NO_GPU = (
    "gpu-check needs an NVIDIA GPU that PyTorch can use, and found none. To see what it does "
    "without one: python -m tests.gpu_check --device cpu --quick"
)


def run_group(name: str, arguments: list[str], seconds: float) -> list[Check]:
    """Run a group in a process of its own.

    Args:
        name: of the group.
        arguments: of the command line, for the process.
        seconds: after which it is ended.
    """
    command = [sys.executable, "-m", "tests.gpu_check", *arguments, "--group", name]
    command += ["--left", f"{seconds:.0f}"]
    found, errors = list[Check](), list[str]()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        reader = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
        timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        reader.start()
        timer.start()
        for line in process.stdout:
            check = parse(line)
            if check is not None:
                found.append(check)
                print(f"  {check.what}: {check.found}", file=sys.stderr, flush=True)
        code = process.wait()
        timed_out = timer.finished.is_set()
        timer.cancel()
        reader.join()
    if code:
        last = (" ".join(errors).strip().splitlines() or [""])[-1]
        found.append(
            not_run(f"{name}: the rest", "the time was over")
            if timed_out
            else judged(f"{name}: the rest", False, f"exit code {code}: {last}", "no error")
        )
    return found


def run_all(arguments: list[str], groups: list[str], minutes: float) -> list[Check]:
    """Run groups one after another until the time is over."""
    end, checks = time.monotonic() + 60 * minutes, list[Check]()
    for name in groups:
        left = end - time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        if left <= 0:
            checks.append(not_run(name, "the time was over"))
        else:
            checks += run_group(name, arguments, left)
    return checks


def main() -> int:
    """Run the command line; returns the exit code, 1 if a check failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="a GPU such as cuda:0, or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see it run")
    parser.add_argument("--minutes", type=float, default=8, help="stop after so many minutes")
    parser.add_argument("--only", nargs="*", choices=GROUPS, help="only these groups")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    parser.add_argument("--left", type=float, default=480, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        device = resolve_devices(options.device)[0]
    except SettingsError as error:
        print(f"{NO_GPU}\n({error})", file=sys.stderr)
        return 2
    scale = dataclasses.replace(QUICK if options.quick else FULL, left=options.left)
    if options.group:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # on which graphs are captured
        for check in GROUPS[options.group](device, scale):
            print(check.line(), flush=True)
        return 0
    started = time.monotonic()
    arguments = ["--device", options.device, *(["--quick"] if options.quick else [])]
    checks = run_all(arguments, options.only or list(GROUPS), options.minutes)
    machine = describe_machine(device)
    today = datetime.datetime.now(datetime.UTC)
    command = " ".join(["python -m tests.gpu_check", *sys.argv[1:]])
    head = (
        f"`{command}`, {machine['device']}, torch {machine['torch']}, {today:%Y-%m-%d}, "
        f"{time.monotonic() - started:.0f} s"
    )
    show(checks, head)
    for path in write(options.results, checks, head, machine):
        print(f"Written: {path}")
    return 1 if any(check.outcome == "failed" for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
