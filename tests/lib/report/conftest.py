"""A run with one published shard, made without any network."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.storage.storage import Storage
from tests.support.hand_made import plan_by_hand, publish_by_hand


@pytest.fixture
def config(output_url: str, storage: Storage, tmp_path: Path) -> RunConfig:
    """The configuration of a run whose only shard is published."""
    config = RunConfig.model_validate(
        {"name": "by hand", "output": output_url, "score": {"keep_best": 1}}
    )
    publish_by_hand(storage, config, plan_by_hand(config, tmp_path))
    return config
