"""How many workers Ray gets and with what, the runner with threads, and the error without Ray."""

from __future__ import annotations

import sys

import pytest

from flows.runners import (
    Node,
    ray_options,
    shards_in_flight,
    start_runner,
    worker_count,
    worker_resources,
)
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import ConfigError

CPUS: list[Node] = [{"CPU": 4.0}, {"CPU": 4.0}]
GPUS: list[Node] = [{"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}]
CLUSTER = "runtime.ray_address=head:6379"


def on_ray(*overrides: str) -> RunConfig:
    return RunConfig.parse("runtime: {runner: ray}", overrides)


def count(config: RunConfig, nodes: list[Node], devices: int = 1) -> int:
    needs = worker_resources(config, nodes)
    return worker_count(config, nodes, needs, shards_in_flight(config, devices))


def test_a_worker_needs_the_most_that_a_stage_of_the_run_asks_for() -> None:
    assert worker_resources(on_ray("decode.cpus=0.5"), CPUS) == {"num_cpus": 1.0, "num_gpus": 0.0}
    assert worker_resources(on_ray("decode.cpus=3"), CPUS) == {"num_cpus": 3.0, "num_gpus": 0.0}
    assert worker_resources(on_ray("translate.gpus=0"), GPUS)["num_gpus"] == 1
    assert worker_resources(on_ray("generate.gpus=2"), GPUS)["num_gpus"] == 2
    shared = [f"{stage}.gpus=0.5" for stage in ("translate", "generate", "decode", "score")]
    shared.append("upscale.model=null")
    assert worker_resources(on_ray(*shared), GPUS)["num_gpus"] == 0.5, "off does not count"


def test_devices_cpu_uses_no_gpus() -> None:
    assert worker_resources(on_ray("runtime.devices=cpu"), GPUS)["num_gpus"] == 0


def test_more_than_the_machine_has_is_an_error_but_a_cluster_may_grow() -> None:
    one: list[Node] = [{"CPU": 2.0, "GPU": 1.0}]
    with pytest.raises(
        ConfigError,
        match=r"needs 2 GPUs for generate, found 1 on this machine.*Change generate\.gpus",
    ):
        worker_resources(on_ray("generate.gpus=2"), one)
    with pytest.raises(ConfigError, match="needs 1 GPUs for .*, found 0"):
        worker_resources(on_ray("runtime.devices=cuda"), CPUS)
    with pytest.raises(ConfigError, match="needs 9 CPUs for score, found 2"):
        worker_resources(on_ray("score.cpus=9"), one)
    growing = on_ray("runtime.devices=cuda", CLUSTER)
    assert worker_resources(growing, CPUS)["num_gpus"] == 1
    assert count(growing, CPUS) == 1, "one waits for the first GPU"


@pytest.mark.parametrize(
    ("settings", "nodes", "devices", "workers"),
    [
        ([], GPUS, 4, 4),
        (["generate.gpus=2"], GPUS, 4, 2),
        (["generate.cpus=5"], GPUS, 4, 3),
        (["runtime.shards_in_flight=3"], GPUS, 4, 3),
        ([], CPUS, 1, 2),
        (["runtime.shards_in_flight=6"], CPUS, 1, 6),
        (["runtime.shards_in_flight=60"], CPUS, 1, 8),
        ([CLUSTER, "runtime.shards_in_flight=60"], CPUS, 1, 30),
        ([CLUSTER, "runtime.shards_in_flight=16"], GPUS, 4, 8),
        ([CLUSTER], GPUS, 4, 4),
    ],
)
def test_there_is_a_worker_per_gpu_and_at_most_one_per_shard(
    settings: list[str], nodes: list[Node], devices: int, workers: int
) -> None:
    assert count(on_ray(*settings), nodes, devices) == workers


def test_an_own_ray_is_limited_and_a_cluster_is_not() -> None:
    own = ray_options(on_ray("runtime.ray_cpus=3").runtime)
    assert (own["address"], own["num_cpus"]) == ("local", 3)
    cluster = ray_options(on_ray(CLUSTER).runtime)
    assert cluster["address"] == "head:6379" and "num_cpus" not in cluster


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"not installed.*pip install 'rudalle-flows\[ray\]'"),
        start_runner(on_ray()),
    ):
        pass
