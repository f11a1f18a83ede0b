"""Where the tasks of a run work: in threads of the flow's process, or on Ray. There is no third.

Both give futures that Prefect knows, take each other's futures as parameters, and have come to an
end when their block is left.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows.embedded import embedded_address
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import ConfigError
from tasks.shard_stages import Start

RETRIES = 5
"""How often Ray starts a task again whose worker or node has died."""

EVERY_GPU = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Workers see all GPUs and are told which to use: one that may be given another GPU later must not
start CUDA with the first one alone."""


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""The terminal belongs to the progress; what workers log is in Ray's folder and in Prefect."""


Submit = Start[PrefectFuture[Any]]
"""Gives a task to the runner and returns at once; parameters may be futures of other tasks."""


@contextmanager
def start_runner(config: RunConfig) -> Iterator[Submit]:
    """The runner that the configuration names, for a block inside a flow.

    Raises:
        ConfigError: Ray is not installed, or has not what a task needs.
    """
    with _on_ray(config) if config.runtime.runner == "ray" else _in_threads() as submit:
        yield submit


@contextmanager
def _in_threads() -> Iterator[Submit]:
    threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner()
    with threads as runner:

        def submit(task: Task[Any, Any], **parameters: Any) -> PrefectFuture[Any]:
            return runner.submit(task, parameters)

        yield submit


@contextmanager
def _on_ray(config: RunConfig) -> Iterator[Submit]:
    try:
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise ConfigError(
            f"runtime.runner ray needs Ray, which is not installed ({error}); install it with "
            "pip install 'rudalle-flows[ray]', or set runtime.runner=local."
        ) from None

    runtime = config.runtime
    options: dict[str, Any] = {"runtime_env": {"env_vars": EVERY_GPU}, **QUIET}
    if runtime.ray_address is None:
        options |= {"address": "local", "include_dashboard": False, "num_cpus": runtime.ray_cpus}
    # Workers report to the server of the flow; without its address each would embed its own.
    address = PREFECT_API_URL.value() or embedded_address()
    with (
        temporary_settings({PREFECT_API_URL: address}),
        RayTaskRunner(runtime.ray_address, options) as runner,
    ):
        needs = resources(config, gpus_of_nodes())

        def submit(task: Task[Any, Any], **parameters: Any) -> PrefectFuture[Any]:
            # Ray ends a worker after one task with a GPU, and its networks with it: `max_calls`.
            with remote_options(max_calls=0, max_retries=RETRIES, **needs.get(task.name, {})):
                return runner.submit(task, parameters)

        yield submit


def gpus_of_nodes() -> list[float]:
    """How many GPUs each living node of the cluster has."""
    import ray

    return [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]


def resources(config: RunConfig, nodes: list[float]) -> dict[str, dict[str, float]]:
    """What one task of each stage with a network takes, by stage, as Ray has it.

    `nodes` is `gpus_of_nodes()`.

    Raises:
        ConfigError: more GPUs than any node has. Where an address names the cluster, it may be
            growing, and its tasks wait.
    """
    most = max(nodes, default=0.0)
    wanted = config.runtime.devices != "cpu" and (most > 0 or config.runtime.devices != "auto")
    needs = {}
    for stage in ("translate", "generate", "decode", "score", "upscale", "cutout"):
        section = getattr(config, stage)
        gpus = (1.0 if section.gpus is None else section.gpus) if wanted else 0.0
        if gpus > most and config.runtime.ray_address is None:
            raise ConfigError(
                f"A task of {stage} takes {gpus:g} GPUs, found {most:g} on this machine: change "
                f"{stage}.gpus or runtime.devices, or name a cluster by runtime.ray_address."
            )
        needs[stage] = {"num_cpus": section.cpus, "num_gpus": gpus}
    return needs
