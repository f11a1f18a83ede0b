"""Runs on Ray, in local processes."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect import task

from rudalle_lib.config.run import RunConfig
from rudalle_lib.schema.records import ShardSpec
from tasks.runtime.events import Event, Noticed, Step, listener
from tasks.runtime.job import Job
from tests.support.tiny_run import configure, contents

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "ray_environment")]

PARTS = ("data", "plan", "rejects")
SHARDS = 12


@pytest.fixture(scope="module")
def expected(
    prefect_server: None, settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files that a local run of the 24 prompts makes."""
    from flows.generate_dataset import generate_dataset

    folder = tmp_path_factory.mktemp("local")
    generate_dataset(configure(settings, folder / "out", prompts=many_prompts(folder)))
    return contents(folder / "out", *PARTS)


def many_prompts(folder: Path) -> dict[str, object]:
    """A table of 24 prompts in 12 shards; its path must not vary because rejects contain it."""
    table = folder.parent / "many.csv"
    rows = [f"{n} кругов на белом фоне,theme {n}" for n in range(24)]
    table.write_text("\n".join(["prompt,theme", *rows, ",empty", ""]), encoding="utf-8")
    return {"uri": str(table), "shard_size": 2}


@task(name="inspect")
def inspect_worker(job: Job, seconds: float) -> tuple[int, str, str, int]:
    """The worker's process, visible GPUs, device, and how often it loaded a network of a kind."""
    from tasks.runtime import models as loaded_models
    from tasks.runtime.device_locks import devices_for

    time.sleep(seconds)
    loads = max(loader.loads for loader in loaded_models._LOADERS)
    device = str(devices_for(job.runtime, 0, False)[0])
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), device, loads


def inspect(runner: Any, config: RunConfig, times: int) -> list[tuple[int, str, str, int]]:
    """Run `inspect_worker` for some shards that the run does not have."""
    specs = [ShardSpec(100 + n, f"plan/{n:05d}.parquet", 1, "fingerprint") for n in range(times)]
    jobs = [Job(spec, config.output, config.runtime, config.weights) for spec in specs]
    futures = [runner.submit(inspect_worker, job=job, seconds=1.0) for job in jobs]
    return [future.result() for future in futures]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[str]]:
    """By shard, the workers that reported steps of its stages."""
    from tasks.runtime.ray_worker import RayWorker

    found: defaultdict[int, set[str]] = defaultdict(set)
    receive = RayWorker._receive

    def watch(worker: RayWorker, report: Any, answer: Any) -> None:
        event = getattr(report, "event", None)
        if isinstance(event, Step):
            found[event.shard].add(worker.description)
        receive(worker, report, answer)

    monkeypatch.setattr(RayWorker, "_receive", watch)
    return found


def test_two_workers_make_the_same_files_as_a_local_run_and_load_networks_once(
    settings: dict[str, object],
    expected: dict[str, bytes],
    places: dict[int, set[str]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows import generate_dataset as flow
    from flows.runners import Runner, start_runner

    inspected = []

    @contextmanager
    def inspected_at_the_end(config: RunConfig) -> Iterator[Runner]:
        with start_runner(config) as runner:
            yield runner
            inspected.extend(inspect(runner, config, 4))

    monkeypatch.setattr(flow, "start_runner", inspected_at_the_end)
    folder = tmp_path_factory.mktemp("ray")
    on_ray = {"runner": "ray", "ray_cpus": 2, "shards_in_flight": 4}
    config = configure(settings, folder / "out", prompts=many_prompts(folder), runtime=on_ray)
    flow.generate_dataset(config)
    assert contents(folder / "out", *PARTS) == expected
    assert len({pid for pid, *_ in inspected}) == 2
    assert {loads for *_, loads in inspected} == {1}
    assert sorted(places) == list(range(SHARDS))
    assert {len(workers) for workers in places.values()} == {1}, "a shard stays with its worker"
    assert len(set.union(*places.values())) == 2


def test_the_shard_of_a_killed_worker_is_done_elsewhere_with_the_same_bytes(
    settings: dict[str, object],
    expected: dict[str, bytes],
    places: dict[int, set[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from flows.generate_dataset import generate_dataset

    events: list[Event] = []
    killed: list[str] = []

    def listen(event: Event) -> None:
        """Kill the worker that decodes shard 2 in the middle of it."""
        events.append(event)
        if isinstance(event, Step) and (event.stage, event.shard) == ("decode", 2) and not killed:
            killed.extend(places[2])
            os.kill(int(killed[0].rpartition("(")[2].rstrip(")")), signal.SIGKILL)

    folder = tmp_path_factory.mktemp("killed")
    on_ray = {"runner": "ray", "ray_cpus": 2, "shards_in_flight": 4}
    config = configure(settings, folder / "out", prompts=many_prompts(folder), runtime=on_ray)
    token = listener.set(listen)
    try:
        manifest = generate_dataset(config)
    finally:
        listener.reset(token)
    assert contents(folder / "out", *PARTS) == expected
    assert manifest.totals.shards == SHARDS
    assert len(killed) == 1 and places[2] - set(killed), "shard 2 went to another worker"
    notices = [event.message for event in events if isinstance(event, Noticed)]
    assert any(killed[0] in message and "has died" in message for message in notices)


def test_each_worker_sees_one_gpu(settings: dict[str, object], tmp_path: Path) -> None:
    import ray
    from prefect import flow

    from flows.runners import start_runner

    config = configure(settings, tmp_path / "out", runtime={"runner": "ray", "devices": "auto"})

    @flow
    def inspect_all() -> list[tuple[int, str, str, int]]:
        with start_runner(config) as runner:
            assert runner.devices == 2
            return inspect(runner, config, 4)

    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:  # the runner uses this Ray, which pretends to have GPUs
        found = inspect_all()
        assert ray.is_initialized(), "the runner leaves a Ray alone that it has not started"
    finally:
        ray.shutdown()
    assert len({pid for pid, *_ in found}) == 2
    assert {(visible, device) for _, visible, device, _ in found} == {
        ("0", "cuda:0"),
        ("1", "cuda:0"),
    }
