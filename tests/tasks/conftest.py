"""One planned shard, and the tiny stack to work on it; tasks are called as plain functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config import RunConfig
from rudalle_lib.planning import plan_run
from rudalle_lib.storage import Storage
from tasks.job import Job
from tests.tiny_run import configure
from tests.tiny_stack import write_tiny_stack


@pytest.fixture(scope="session")
def tiny_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny random models."""
    return write_tiny_stack(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def config(tiny_stack: Path, tmp_path: Path) -> RunConfig:
    """Three Russian prompts, one that is English and one that says it is German."""
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
