"""A run with stand-ins for the networks that take no time. Flow, Prefect, plan and files are real.

    python -m tests.benchmarks.dummy_engine --shards 1000 [--output s3://bucket/prefix]

Prints as JSON the duration of the run, the number of task runs, and the memory of the process in
the second and in the last quarter of the shards.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import threading
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from flows.prefect_settings import set_up_prefect

set_up_prefect()

import torch  # noqa: E402
from prefect import Task, flow, task  # noqa: E402
from prefect.futures import PrefectFuture  # noqa: E402

from flows.generate_dataset import make_missing  # noqa: E402
from flows.runners import start_runner  # noqa: E402
from rudalle_lib.config.run import RunConfig  # noqa: E402
from rudalle_lib.config.sections import DecodeConfig, GenerateConfig, ScoreConfig  # noqa: E402
from rudalle_lib.dataset.lease import hold  # noqa: E402
from rudalle_lib.generation.candidates import candidates_of  # noqa: E402
from rudalle_lib.images.codecs import encode_image  # noqa: E402
from rudalle_lib.pipeline.artifacts import read_artifact, write_artifact  # noqa: E402
from rudalle_lib.pipeline.stages import weight_digests  # noqa: E402
from rudalle_lib.prompts.plan import read_shard  # noqa: E402
from rudalle_lib.schema.arrow import from_table, to_table  # noqa: E402
from rudalle_lib.schema.records import (  # noqa: E402
    PixelsRecord,
    RunManifest,
    ScoreRecord,
    StageArtifact,
    TokensRecord,
)
from rudalle_lib.storage.storage import Storage  # noqa: E402
from tasks.runtime.events import ShardFinished, listener  # noqa: E402
from tasks.runtime.job import Job  # noqa: E402
from tasks.runtime.options import OPTIONS, run_name  # noqa: E402
from tasks.runtime.stopping import stop_at_the_end  # noqa: E402

SIDE = 64
"""Side of an image in pixels."""

TASKS_PER_SHARD = 5
"""translate, generate, decode, score, publish. Upscaling is off."""


@cache
def image() -> bytes:
    """Return the one image that all candidates show."""
    return encode_image(torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8))


@task(name="generate", task_run_name=run_name("generate"), **OPTIONS)
def generate(
    section: GenerateConfig, job: Job, translated: StageArtifact, fingerprint: str, run_seed: int
) -> StageArtifact:
    """Write one token per image."""
    storage = Storage(job.output)
    rows = [
        TokensRecord(
            image_id=candidate.image_id, prompt_id=candidate.prompt_id, replica=candidate.replica,
            seed=candidate.seed, tokens=[0], logprob=-1.0, ppl=1.0, temperature=1.0, top_k=0,
            top_p=1.0, truncated=False, rows=1, columns=1,
        )
        for candidate in candidates_of(read_shard(storage, job.shard), section, run_seed)
    ]  # fmt: skip
    table = to_table(rows, TokensRecord)
    return write_artifact(storage, "generate", job.shard, fingerprint, table, 0.0)


@task(name="decode", task_run_name=run_name("decode"), **OPTIONS)
def decode(
    section: DecodeConfig, job: Job, generated: StageArtifact, fingerprint: str
) -> StageArtifact:
    """Write the same image for all candidates."""
    storage = Storage(job.output)
    rows = [
        PixelsRecord(row.image_id, row.prompt_id, SIDE, SIDE, image())
        for row in from_table(read_artifact(storage, generated), TokensRecord)
    ]
    table = to_table(rows, PixelsRecord)
    return write_artifact(storage, "decode", job.shard, fingerprint, table, 0.0)


@task(name="score", task_run_name=run_name("score"), **OPTIONS)
def score(
    section: ScoreConfig,
    job: Job,
    translated: StageArtifact,
    decoded: StageArtifact,
    fingerprint: str,
) -> StageArtifact:
    """Write the same score for all candidates."""
    storage = Storage(job.output)
    rows = [
        ScoreRecord(row.image_id, row.prompt_id, 0.5, 1)
        for row in from_table(read_artifact(storage, decoded), PixelsRecord)
    ]
    table = to_table(rows, ScoreRecord)
    return write_artifact(storage, "score", job.shard, fingerprint, table, 0.0)


STAND_INS: dict[str, Task[Any, Any]] = {"generate": generate, "decode": decode, "score": score}
"""Stand-ins by the name of the task that they replace."""


@flow(name="dummy-run")
def dummy_run(config: RunConfig) -> RunManifest:
    """Run `generate_dataset` with stand-ins instead of the tasks with networks."""
    weights = weight_digests(config)
    with (
        hold(Storage(config.output), config.runtime.lease_seconds) as lease,
        start_runner(config) as runner,
        stop_at_the_end(threading.Event()),
    ):

        def submit_stand_in(task: Task[Any, Any], **parameters: Any) -> PrefectFuture[Any]:
            return runner.submit(STAND_INS.get(task.name, task), **parameters)

        started = datetime.now(UTC).isoformat(timespec="seconds")
        return make_missing(
            config, weights, lease, started, runner._replace(submit=submit_stand_in)
        )


def configure(folder: Path, shards: int, output: str) -> RunConfig:
    """Return a configuration with one prompt and one image per shard."""
    table = folder / "prompts.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([f"круг {n}"] for n in range(shards))])
    return RunConfig.model_validate(
        {
            "name": "dummy",
            "output": output,
            "prompts": {"uri": str(table), "shard_size": 1},
            "generate": {"images": 1},
            "upscale": {"model": None},
            "publish": {"gallery": False, "contact_sheet": 0},
        }
    )


def resident_mb() -> float:
    """Return the resident memory of this process in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(config: RunConfig) -> dict[str, float]:
    """Run, and measure the memory after each shard."""
    memory: list[float] = []

    def on_event(event: object) -> None:
        if isinstance(event, ShardFinished):
            memory.append(resident_mb())

    token = listener.set(on_event)
    started = time.perf_counter()
    try:
        manifest = dummy_run(config)
    finally:
        listener.reset(token)
    seconds = time.perf_counter() - started
    quarter = max(len(memory) // 4, 1)
    second = statistics.median(memory[quarter : 2 * quarter] or memory)
    last = statistics.median(memory[-quarter:])
    return {
        "seconds": round(seconds, 1),
        "shards": manifest.totals.shards,
        "task_runs": manifest.totals.shards * TASKS_PER_SHARD,
        "second_quarter_mb": round(second, 1),
        "last_quarter_mb": round(last, 1),
    }


def main() -> None:
    """Run the command line: one run in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000, help="shards of the run")
    parser.add_argument("--output", help="folder or URL; default: a temporary folder")
    parser.add_argument("--config", type=Path, help="file to write the configuration to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.config.parent if arguments.config else Path(temporary)
        config = configure(folder, arguments.shards, arguments.output or f"{folder}/output")
        if arguments.config:
            arguments.config.write_text(config.model_dump_json())
        print(json.dumps(measure(config)))


if __name__ == "__main__":
    main()
