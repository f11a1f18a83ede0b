"""Runs on Ray, in processes of this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import task

from rudalle_lib.config_runtime import RuntimeConfig
from tests.tiny_run import configure, contents

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "ray_environment")]

PARTS = ("data", "plan", "rejects")


@pytest.fixture(scope="module")
def expected(
    prefect_server: None, settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What a local run of the many prompts makes."""
    from flows.generate_dataset import generate_dataset

    folder = tmp_path_factory.mktemp("local")
    generate_dataset(configure(settings, folder / "out", prompts=many_prompts(folder)))
    return contents(folder / "out", *PARTS)


def many_prompts(folder: Path) -> dict[str, object]:
    """A table of 24 prompts in 12 shards, always at the same path for the sake of the rejects."""
    table = folder.parent / "many.csv"
    rows = [f"{n} кругов на белом фоне,theme {n}" for n in range(24)]
    table.write_text("\n".join(["prompt,theme", *rows, ",empty", ""]), encoding="utf-8")
    return {"uri": str(table), "shard_size": 2}


@task(name="generate")
def look_around(runtime: RuntimeConfig, seconds: float) -> tuple[int, str, int]:
    """Stands for `generate` on a worker: process, device, and how often networks were loaded."""
    from tasks import loaded_models
    from tasks.devices_in_turn import devices_for

    time.sleep(seconds)
    loaded = max(loader.cache_info().misses for loader in loaded_models._LOADERS)
    return os.getpid(), str(devices_for(runtime, 0, False)[0]), loaded


def look(config: Any, times: int, seconds: float) -> list[tuple[int, str, int]]:
    """Let workers look around, inside a flow."""
    from prefect import flow

    from flows.runners import start_runner

    @flow
    def looking() -> list[tuple[int, str, int]]:
        with start_runner(config) as submit:
            futures = [
                submit(look_around, runtime=config.runtime, seconds=seconds) for _ in range(times)
            ]
            return [future.result() for future in futures]

    return looking()


def test_two_workers_make_what_a_local_run_makes_and_load_networks_once(
    settings: dict[str, object],
    expected: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    import ray

    from flows.generate_dataset import generate_dataset

    folder = tmp_path_factory.mktemp("ray")
    on_ray = {"runner": "ray", "shards_in_flight": 4}
    config = configure(settings, folder / "out", prompts=many_prompts(folder), runtime=on_ray)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:  # the runner uses the Ray that is there, so its workers can be asked afterwards
        generate_dataset(config)
        workers = dict((pid, loaded) for pid, _, loaded in look(config, 8, 1.0))
    finally:
        ray.shutdown()
    assert contents(folder / "out", *PARTS) == expected
    assert len(workers) == 2
    assert set(workers.values()) == {1}


def test_tasks_get_a_gpu_each_and_workers_stay(settings: dict[str, object], tmp_path: Path) -> None:
    import ray

    from flows.runners import EVERY_GPU

    on_ray = {"runner": "ray", "devices": "auto"}
    config = configure(settings, tmp_path / "out", runtime=on_ray)
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": EVERY_GPU},  # as the runner asks of a Ray that it starts itself
    )
    try:
        first, second = look(config, 2, 20.0), look(config, 4, 1.0)
    finally:
        ray.shutdown()
    assert sorted(device for _, device, _ in first) == ["cuda:0", "cuda:1"]
    assert {pid for pid, _, _ in second} <= {pid for pid, _, _ in first}
