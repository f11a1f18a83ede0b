"""The status of an output, from storage alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.errors import StorageError
from rudalle_lib.pipeline.status import read_status
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, tiny_config


def test_the_status_grows_from_plan_to_report(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, str(tmp_path / "out"))
    storage = Storage(config.output)
    with pytest.raises(StorageError, match="There is no run in"):
        read_status(storage)
    shards = plan_run(config, storage).shards
    planned = read_status(storage)
    assert (planned.planned, planned.totals.shards, planned.run) == (len(shards), 0, None)
    assert sum(planned.totals.rejected.values()) == 3, "rejects of the prompt table"
    run = finish(config)
    finished = read_status(storage)
    assert finished.run == run and finished.totals == run.totals
    assert finished.totals.shards == finished.planned == len(shards)
