"""One planned shard that is processed with tiny models; tasks are called as plain functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.storage.storage import Storage
from tasks.runtime.job import Job
from tests.support.tiny_run import configure


@pytest.fixture
def config(tiny_stack: Path, tmp_path: Path) -> RunConfig:
    """Three prompts in Russian, one in English, and one whose row says that it is German."""
    table = tmp_path / "prompts.csv"
    table.write_text(
        "prompt,prompt_id,lang,images,seed,top_p\n"
        "чёрный квадрат,black,,3,,\n"
        "красный круг,red,,,7,0.5\n"
        f"{'длинный ' * 20},long,,,,\n"
        "a red circle,english,,,,\n"
        "квадрат,german,de,,,\n",
        encoding="utf-8",
    )
    settings: dict[str, object] = {
        "seed": 3,
        "prompts": {"uri": str(table)},
        "weights": {"folder": str(tiny_stack), "offline": True},
        "runtime": {"devices": "cpu"},
        "generate": {"images": 2},
    }
    return configure(settings, tmp_path / "out")


@pytest.fixture
def job(config: RunConfig) -> Job:
    """The only shard of the plan, written to the output."""
    (shard,) = plan_run(config, Storage(config.output)).shards
    return Job(shard, config.output, config.runtime, config.weights)
