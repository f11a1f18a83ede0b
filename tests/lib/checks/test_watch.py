"""Looks at a run from its output alone, while it is planned, drawn, stalled, resumed and done."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from rudalle_lib.checks.watch import Watcher
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.layout import ShardRange
from rudalle_lib.dataset.lease import Holding, acquire, free, hold
from rudalle_lib.dataset.lease_files import PLAN
from rudalle_lib.dataset.manifests import write_run_manifest, write_shard_manifest
from rudalle_lib.dataset.range_lease import see_workers
from rudalle_lib.schema.records import (
    DataFile,
    RunManifest,
    RunTotals,
    ShardManifest,
    StageArtifact,
)
from rudalle_lib.storage.storage import Storage

SHARDS = 4


class Clock:
    """Seconds since 1970, as the test sets them."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def iso(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).isoformat()


def plan(storage: Storage) -> None:
    for index in range(SHARDS):
        storage.write_bytes(layout.plan_path(index), b"")


def publish(storage: Storage, index: int, clock: Clock, kept: int = 2) -> None:
    """Publish a shard of 8 images whose decoder has just worked for ten seconds."""
    drawn = StageArtifact(storage.url("s"), "f", 8, 10.0, devices=1, until=clock.iso())
    write_shard_manifest(storage, ShardManifest(
        index=index, fingerprint="f", config_digest="c", prompts=2, images=8, kept=kept,
        rejected={"not_in_best_k": 8 - kept}, image_bytes=10, metadata=DataFile("m", 1, ""),
        rejects=None, stages={"generate": drawn}, finished=clock.iso(),
    ))  # fmt: skip


def test_a_run_is_watched_from_its_plan_to_its_report(storage: Storage) -> None:
    look = Watcher(storage.url()).look()
    assert look.state == "unreadable" and "There is no run in" in str(look.problem)
    plan(storage)
    holding = Holding(storage, acquire(storage, 120.0, token="token"))
    clock = Clock(holding.lease.since)
    watcher = Watcher(storage.url(), clock)
    look = watcher.look()
    assert (look.state, look.planned, look.missing) == ("running", SHARDS, SHARDS)
    assert look.usage is None and look.seconds_left is None
    assert look.holder == holding.lease.holder and look.name == storage.url().rpartition("/")[2]

    for index in (0, 1):
        clock.now += 20.0
        publish(storage, index, clock)
        holding.renew()
    look = watcher.look()
    assert (look.totals.shards, look.totals.kept, look.missing) == (2, 4, 2)
    assert look.usage is not None and look.usage.idle_share == pytest.approx(0.5, abs=0.02)
    assert look.usage.images_per_second == pytest.approx(16 / 40, abs=0.02)
    assert look.seconds_left == pytest.approx(40.0, abs=0.5)

    free(storage, "token")
    assert watcher.look().state == "unfinished"
    for index in (2, 3):
        publish(storage, index, clock)
    run = RunManifest("the name", {}, "", {}, {}, SHARDS, RunTotals(), clock.iso(), clock.iso())
    write_run_manifest(storage, run)
    look = Watcher(storage.url(), clock).look()
    assert (look.state, look.name, look.seconds_left) == ("finished", "the name", None)
    assert json.loads(json.dumps(look.as_json()))["totals"]["images"] == 32


def test_a_holder_is_alive_while_it_renews_whatever_its_clock_says(storage: Storage) -> None:
    plan(storage)
    holding = Holding(storage, acquire(storage, 60.0, token="token"))
    ahead = Clock(holding.lease.since + 3600)
    watcher = Watcher(storage.url(), ahead)
    assert watcher.look().state == "stalled", "one look knows the clocks alone"
    holding.renew()
    assert watcher.look().state == "running"
    ahead.now += 50
    assert watcher.look().state == "running"
    ahead.now += 50
    assert watcher.look().state == "stalled"
    holding.renew()
    assert watcher.look().state == "running"


def take(storage: Storage, shards: ShardRange, token: str, seconds: float = 60.0) -> Holding:
    """Hold shards like a run of `run --shards`."""
    with hold(storage, 60, purpose=PLAN) as planner:
        return Holding(storage, see_workers(storage, planner).take(shards, token, seconds, "same"))


def test_runs_that_share_an_output_are_watched_each(storage: Storage) -> None:
    plan(storage)
    first = take(storage, ShardRange(0, 2), "first")
    clock = Clock(first.lease.since)
    watcher = Watcher(storage.url(), clock)
    look = watcher.look()
    assert look.state == "running" and [one.shards for one in look.workers] == ["0-2"]
    take(storage, ShardRange(3, 9), "second", seconds=30.0)
    clock.now += 20.0
    first.renew()
    publish(storage, 1, clock)
    look = watcher.look()
    one, two = look.workers
    assert (one.planned, one.totals.shards, one.state) == (3, 1, "running")
    assert one.holder == first.lease.holder and one.usage is not None
    assert one.usage.images_per_second == pytest.approx(8 / 20, abs=0.05)
    assert (two.shards, two.planned, two.totals.shards, two.usage) == ("3-9", 1, 0, None)
    assert look.seconds_left == pytest.approx(60.0, abs=2.0)

    clock.now += 40.0
    first.renew()
    look = watcher.look()
    assert (look.state, [one.state for one in look.workers]) == ("running", ["running", "stalled"])
    free(storage, "first")
    look = watcher.look()
    assert (look.state, [one.shards for one in look.workers]) == ("stalled", ["3-9"])
    assert json.loads(json.dumps(look.as_json()))["workers"][0]["state"] == "stalled"
    free(storage, "second")
    assert watcher.look().state == "unfinished"
    take(storage, ShardRange(0, 9), "third")
    assert watcher.look().since == pytest.approx(clock.now - 60.0, abs=30.0)


def test_replaced_deleted_and_damaged_manifests_are_noticed(storage: Storage) -> None:
    plan(storage)
    clock = Clock(1e9)
    watcher = Watcher(storage.url(), clock)
    for index in range(SHARDS):
        publish(storage, index, clock)
    assert watcher.look().totals.kept == 8
    publish(storage, 0, clock, kept=5)
    storage.delete(layout.shard_manifest_path(1))
    storage.write_bytes(layout.shard_manifest_path(2), b"{}")
    look = watcher.look()
    assert (look.totals.kept, look.totals.shards, look.state) == (7, 2, "unfinished")


def test_a_look_at_a_bucket_takes_three_requests_and_one_per_new_shard(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documentation states this number."""
    storage = Storage(s3_url)
    plan(storage)
    holding = Holding(storage, acquire(storage, 120.0, token="token"))
    watcher = Watcher(s3_url)
    watcher.look()
    made: Counter[str] = Counter()
    client = importlib.import_module("aiobotocore.client").AioBaseClient
    call = client._make_api_call
    with monkeypatch.context() as patch:

        async def counted(self: Any, operation: str, parameters: Any) -> Any:
            made[operation] += 1
            return await call(self, operation, parameters)

        patch.setattr(client, "_make_api_call", counted)
        watcher.look()
        assert made == {"ListObjectsV2": 2, "GetObject": 1}
        publish(storage, 0, Clock(holding.lease.since))
        made.clear()
        assert watcher.look().totals.shards == 1
        assert made == {"ListObjectsV2": 2, "GetObject": 2}
