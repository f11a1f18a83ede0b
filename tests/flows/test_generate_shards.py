"""Runs of some shards, on tiny models and a real Prefect server: the dataset is that of one run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.dataset.layout import ShardRange
from rudalle_lib.dataset.lease import HeldError, free, hold
from rudalle_lib.dataset.lease_files import PLAN
from rudalle_lib.dataset.manifests import finished_shards
from rudalle_lib.dataset.range_lease import see_workers
from rudalle_lib.errors import ConfigError, LeaseError, ShardError
from rudalle_lib.pipeline.open_shards import settings_digest
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.schema.records import RunManifest
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Event, Noticed, listener
from tests.support.tiny_run import block_stage, configure, contents

pytestmark = pytest.mark.usefixtures("prefect_server")

PUBLISHED = ("data", "rejects", "plan", "contact_sheet.png")


def run(
    settings: dict[str, object], output: Path, shards: str, **changes: object
) -> RunManifest | None:
    from flows.generate_shards import generate_shards

    return generate_shards(configure(settings, output, **changes), shards)


@pytest.fixture(scope="module")
def alone(
    prefect_server: None, settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of one run; tests only read it."""
    from flows.generate_dataset import generate_dataset

    folder = tmp_path_factory.mktemp("alone") / "out"
    generate_dataset(configure(settings, folder))
    return folder


def assert_same(output: Path, alone: Path) -> None:
    assert contents(output, *PUBLISHED) == contents(alone, *PUBLISHED)
    assert audit_output(Storage(str(output))).faults == []


def test_runs_of_ranges_make_the_dataset_of_one_run(
    settings: dict[str, object], alone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = run(settings, output, "1-9")
    assert first is not None and (first.totals.shards, first.shards_planned) == (2, 3)
    assert list(finished_shards(Storage(str(output)))) == [1, 2]
    second = run(settings, output, "0")
    assert second is not None and second.totals.shards == 3
    assert_same(output, alone)


def test_shards_of_an_automatic_size_are_chosen_by_the_first_run(
    settings: dict[str, Any], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import generate_dataset

    asked: list[int] = []

    def two(images: int) -> int:
        asked.append(images)
        return 2

    monkeypatch.setattr(generate_dataset, "cpu_shard_size", two)
    prompts = {**settings["prompts"], "shard_size": "auto"}
    output = tmp_path / "out"
    assert run(settings, output, "1-9", prompts=prompts) is not None
    assert run(settings, output, "0", prompts=prompts) is not None
    assert asked == [4], "the second run keeps the plan of the first"
    assert contents(output, "data") == contents(alone, "data")


def test_auto_makes_everything_that_nobody_works_on(
    settings: dict[str, object], alone: Path, tmp_path: Path
) -> None:
    seen: list[Event] = []
    token = listener.set(seen.append)
    try:
        manifest = run(settings, tmp_path / "out", "auto")
    finally:
        listener.reset(token)
    assert manifest is not None and manifest.totals.shards == 3
    taken = [event.message for event in seen if isinstance(event, Noticed)]
    assert taken[0] == "Working on shards 0-1: 2 shards to do"
    assert_same(tmp_path / "out", alone)
    again = run(settings, tmp_path / "out", "auto")
    assert again is not None and again.finished == manifest.finished  # nothing was left


def take(settings: dict[str, object], output: Path, shards: ShardRange, digest: str = "") -> None:
    """Hold shards like a run on another machine."""
    config, storage = configure(settings, output), Storage(str(output))
    digest = digest or settings_digest(config, weight_digests(config))
    with hold(storage, 60, purpose=PLAN) as planner:
        see_workers(storage, planner).take(shards, "other", 60, digest)


def test_the_report_is_left_to_a_run_that_still_works(
    settings: dict[str, object], alone: Path, tmp_path: Path
) -> None:
    from flows.generate_dataset import generate_dataset

    output, storage = tmp_path / "out", Storage(str(tmp_path / "out"))
    assert run(settings, output, "1") is not None
    take(settings, output, ShardRange(2, 2))
    assert run(settings, output, "0") is None
    with pytest.raises(HeldError, match="Shards 1-9 and 2 overlap"):
        run(settings, output, "1-9")
    with pytest.raises(LeaseError, match="works on shard 2 of"):
        generate_dataset(configure(settings, output))
    with pytest.raises(HeldError, match="with other settings"):
        run(settings, output, "0", seed=4)
    free(storage, "other")
    assert run(settings, output, "2") is not None
    assert_same(output, alone)


def test_auto_waits_for_the_shards_of_others(
    settings: dict[str, object], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import generate_shards

    output, waits = tmp_path / "out", []
    run(settings, output, "0")
    take(settings, output, ShardRange(1, 1))

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        free(Storage(str(output)), "other")

    monkeypatch.setattr(generate_shards, "time", SimpleNamespace(sleep=sleep))
    manifest = run(settings, output, "auto")
    assert manifest is not None and manifest.totals.shards == 3 and len(waits) == 1
    assert_same(output, alone)


def test_a_failed_shard_is_not_tried_again_and_again(
    settings: dict[str, object], alone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    blocked = block_stage(configure(settings, output), "decode", 1)
    with pytest.raises(ShardError, match=r"(?s)1 of 2 shards failed.*shard 00001, decode \(rows? "):
        run(settings, output, "auto")
    (blocked / "in the way").rmdir()
    blocked.rmdir()
    assert run(settings, output, "auto") is not None
    assert_same(output, alone)


def test_shards_that_are_not_planned_are_an_error(
    settings: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no shards 3-9: the plan has shards 0-2"):
        run(settings, tmp_path / "out", "3-9")


def test_runs_of_a_pool_make_a_dataset_together(
    settings: dict[str, object], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool is this process; a real one is in `test_work_pools`."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Completed, Crashed

    from flows import generate_shards

    output, started = tmp_path / "out", []

    async def start(name: str, parameters: dict[str, Any], flow_run_name: str) -> FlowRun:
        started.append((name, flow_run_name, parameters["shards"]))
        if len(started) == 1:  # its machine has died
            return FlowRun(flow_id=uuid4(), name=flow_run_name, state=Crashed())
        await asyncio.to_thread(run, settings, output, parameters["shards"])
        return FlowRun(flow_id=uuid4(), name=flow_run_name, state=Completed())

    monkeypatch.setattr(generate_shards, "arun_deployment", start)
    config = configure(settings, output)
    with pytest.raises(ShardError, match=r"not finished: 1 of 1 run failed \(tiny, 1 of 1\)"):
        asyncio.run(generate_shards.generate_on_workers.fn(config, workers=1))
    manifest = asyncio.run(generate_shards.generate_on_workers.fn(config, workers=2))
    assert manifest.totals.shards == 3
    assert started[1:] == [
        ("generate-shards/worker", f"tiny, {number} of 2", "auto") for number in (1, 2)
    ]
    assert_same(output, alone)
