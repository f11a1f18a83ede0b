"""The demo from its prompt table to published images, through the command that users run."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rudalle_lib.demo import prompt_table
from tests.gpu_check.results import Check, judged, measured
from tests.gpu_check.scale import Scale

ROOT = Path(__file__).resolve().parents[2]

LARGEST_IDLE_SHARE = 0.05
"""Bar for large runs; the demo's images are so small that it is only reported."""


def checks(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Run the demo; look at its report and at the time that the device was idle."""
    with tempfile.TemporaryDirectory() as folder:
        output, table = Path(folder) / "output", Path(folder) / "prompts.csv"
        table.write_text(_prompts(scale), "utf-8")
        arguments = ["--prompts", str(table), "--set", f"runtime.devices={device}"]
        found, run = run_flow("configs/demo.yaml", output, *arguments)
    yield judged("demo run, end to end", run is not None, found, "exit code 0")
    if run is None:
        return
    totals, usage = run["totals"], run["usage"]
    idle = usage["idle_share"]
    speed = usage["images_per_second"]
    yield measured(
        "demo run, images per second", f"{speed} of {totals['images']} drawn, "
        f"{totals['kept']} kept", images_per_second=speed,
    )  # fmt: skip
    yield measured(
        "demo run, idle share of the device",
        "unknown"
        if idle is None
        else f"{idle:.0%}; large runs are to reach {LARGEST_IDLE_SHARE:.0%}",
        idle_share=idle,
    )


def run_flow(config: str, output: Path, *arguments: str) -> tuple[str, dict[str, Any] | None]:
    """Run the command that users run.

    Args:
        config: path of the configuration.
        output: where it writes to.
        arguments: further ones of the command line.

    Returns:
        What happened in words, and the content of `run.json`; None if the run failed.
    """
    command = [sys.executable, "-m", "flows.cli", "run", config, "--output", str(output)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    report = output / "run.json"
    if done.returncode or not report.exists():
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return f"exit code {done.returncode}: {last}", None
    return "all shards finished", json.loads(report.read_text("utf-8"))


def _prompts(scale: Scale) -> str:
    rows = [row for row in prompt_table.rows() if row["theme"] == "malevich"]
    if scale.prompts is None:
        return prompt_table.to_csv()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ("prompt", "images"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {"prompt": row["prompt"], "images": scale.replicas} for row in rows[: scale.prompts]
    )
    return buffer.getvalue()
