"""What a task takes of Ray, and what it is told where Ray is not there."""

from __future__ import annotations

import sys

import pytest

from flows.runners import resources, start_runner
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import ConfigError

STAGES = ("translate", "generate", "decode", "score", "upscale", "cutout")


def on_ray(*overrides: str) -> RunConfig:
    return RunConfig.parse("runtime: {runner: ray}", overrides)


def test_without_gpus_a_task_takes_a_cpu() -> None:
    needs = resources(on_ray("decode.cpus=0.5"), [0.0, 0.0])
    assert needs == {
        stage: {"num_cpus": 0.5 if stage == "decode" else 1.0, "num_gpus": 0.0} for stage in STAGES
    }


def test_with_gpus_a_task_takes_one_or_what_its_section_says() -> None:
    config = on_ray("translate.gpus=0", "decode.gpus=0.25", "generate.gpus=2")
    gpus = {stage: need["num_gpus"] for stage, need in resources(config, [0.0, 4.0]).items()}
    assert gpus == {
        "translate": 0,
        "generate": 2,
        "decode": 0.25,
        "score": 1,
        "upscale": 1,
        "cutout": 1,
    }


def test_gpus_are_left_alone_where_devices_is_cpu() -> None:
    needs = resources(on_ray("runtime.devices=cpu"), [4.0])
    assert {need["num_gpus"] for need in needs.values()} == {0.0}


def test_more_gpus_than_the_machine_has_are_refused_and_a_cluster_may_grow() -> None:
    with pytest.raises(ConfigError, match=r"task of generate takes 2 GPUs, found 1 on this"):
        resources(on_ray("generate.gpus=2"), [1.0])
    with pytest.raises(ConfigError, match="takes 1 GPUs, found 0"):
        resources(on_ray("runtime.devices=cuda"), [0.0])
    growing = on_ray("runtime.devices=cuda", "runtime.ray_address=head:6379")
    assert resources(growing, [0.0])["generate"]["num_gpus"] == 1


def test_without_ray_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with (
        pytest.raises(ConfigError, match=r"not installed.*pip install 'rudalle-flows\[ray\]'"),
        start_runner(on_ray()),
    ):
        pass
