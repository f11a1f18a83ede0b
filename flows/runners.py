"""Task runners of a flow: threads of its process, a process per GPU, or the workers of Ray.

Tasks are always Prefect's, in threads of the flow. With workers, they wait there for a worker.
All return Prefect futures, accept futures of other tasks as parameters, and wait for all tasks at
the end of their block.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache, partial, wraps
from typing import Any, NamedTuple

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner

from flows import embedded_server
from flows.watchdog import install_in_flow_run
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.runtime import RuntimeConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.pipeline.stages import active_stages
from rudalle_lib.runtime.devices import resolve_devices
from tasks.runtime.process_worker import process_pool
from tasks.runtime.worker_pool import WorkerPool
from tasks.shard_stages import Start

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""The terminal shows only our progress; logs of workers are in Ray's folder and in Prefect."""

embedded_server.use_detached_server()  # before the first run starts Prefect's embedded server

Submit = Start[PrefectFuture[Any]]
"""Submits a task and returns its future; parameters may be futures of other tasks."""


Ask = Callable[..., list[Any]]
"""Has every worker run a task with the same parameters, and returns the results."""

SHARDS_PER_DEVICE = 2
"""Shards in flight per GPU, if the configuration does not say: one is drawn while the other one is
decoded, scored and published."""


class Runner(NamedTuple):
    """A runner that has been started.

    Attributes:
        submit: submits a task.
        ask: has all workers run a task.
        devices: how many shards can be drawn at the same time, at least 1.
        on_gpus: whether they are drawn on GPUs.
    """

    submit: Submit
    ask: Ask
    devices: int
    on_gpus: bool

    def shards_in_flight(self, config: RunConfig) -> int:
        """How many shards are in progress at the same time."""
        return shards_in_flight(config, self.devices)


def shards_in_flight(config: RunConfig, devices: int) -> int:
    """How many shards are in progress at the same time on some devices."""
    return config.runtime.shards_in_flight or SHARDS_PER_DEVICE * devices


@contextmanager
def start_runner(config: RunConfig) -> Iterator[Runner]:
    """Start the configured runner for a block inside a flow.

    Raises:
        ConfigError: when Ray is not installed, or lacks the resources of a task.
    """
    install_in_flow_run()
    if config.runtime.runner == "ray":
        start = _on_ray(config)
    elif len(devices := worker_devices(config)) > 1:
        start = _in_processes(config, devices)
    else:
        start = _in_threads(config)
    with start as runner:
        yield runner


def worker_devices(config: RunConfig) -> list[str]:
    """The devices of this machine that a run gives a process each.

    A decoder that is spread over all devices needs one process for all of them.
    """
    if config.runtime.split_decoder:
        return []
    return [str(device) for device in resolve_devices(config.runtime.devices)]


@contextmanager
def _in_threads(config: RunConfig) -> Iterator[Runner]:
    threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner()
    devices = [str(device) for device in resolve_devices(config.runtime.devices)]
    with threads as runner:

        def submit(task: Task[Any, Any], **parameters: Any) -> PrefectFuture[Any]:
            return runner.submit(task, parameters)

        def ask(task: Task[Any, Any], **parameters: Any) -> list[Any]:
            return [submit(task, **parameters).result()]

        yield Runner(submit, ask, 1, _are_gpus(devices))


@contextmanager
def _in_processes(config: RunConfig, devices: list[str]) -> Iterator[Runner]:
    api = PREFECT_API_URL.value() or (
        embedded_server.start() if config.runtime.limit_devices else None
    )
    with _by_workers(process_pool(devices, api)) as (submit, ask):
        yield Runner(submit, ask, len(devices), _are_gpus(devices))


def _are_gpus(devices: Sequence[str]) -> bool:
    return any(device.startswith("cuda") for device in devices)


@contextmanager
def _by_workers(pool: WorkerPool) -> Iterator[tuple[Submit, Ask]]:
    """Tasks are Prefect's, in threads of this process, and each is run by a worker."""
    threads: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner()
    with closing(pool), threads as runner:
        by_one, by_all = cache(partial(_remote, pool.call)), partial(_remote, pool.ask_all)

        def submit(task: Task[Any, Any], **parameters: Any) -> PrefectFuture[Any]:
            return runner.submit(by_one(task), parameters)

        def ask(task: Task[Any, Any], **parameters: Any) -> list[Any]:
            answers: list[Any] = runner.submit(by_all(task), parameters).result()
            return answers

        yield submit, ask


def _remote(
    run: Callable[[str, str, Mapping[str, Any]], Any], task: Task[Any, Any]
) -> Task[Any, Any]:
    """A task of the same name and options whose function is run by workers of a pool."""
    signature, module, name = inspect.signature(task.fn), task.fn.__module__, task.fn.__name__

    @wraps(task.fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return run(module, name, signature.bind(*args, **kwargs).arguments)

    remote = task.with_options()
    remote.fn = call
    return remote


@contextmanager
def _on_ray(config: RunConfig) -> Iterator[Runner]:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"runtime.runner=ray needs Ray, which is not installed ({error}). Install it with "
            "pip install 'rudalle-flows[ray]', or set runtime.runner=local."
        ) from None
    from tasks.runtime.ray_worker import RayWorker

    owned = not ray.is_initialized()
    if owned:
        ray.init(**ray_options(config.runtime))
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        devices = max(1, int(sum(node.get("GPU", 0.0) for node in nodes)))
        in_flight = shards_in_flight(config, devices)
        needs = worker_resources(config, nodes)
        count = worker_count(config, nodes, needs, in_flight)
        pool = WorkerPool([RayWorker(needs, in_flight) for _ in range(count)])
        with _by_workers(pool) as (submit, ask):
            yield Runner(submit, ask, devices, needs["num_gpus"] > 0)
    finally:
        if owned:
            ray.shutdown()


def ray_options(runtime: RuntimeConfig) -> dict[str, Any]:
    """What Ray is started with, or connected to a cluster with."""
    if runtime.ray_address is not None:
        return {"address": runtime.ray_address, **QUIET}
    local = {"address": "local", "include_dashboard": False, "num_cpus": runtime.ray_cpus}
    return {**local, **QUIET}


Node = Mapping[str, float]
"""The resources of a machine, such as {"CPU": 8.0, "GPU": 1.0}."""


def worker_resources(config: RunConfig, nodes: Sequence[Node]) -> dict[str, float]:
    """What Ray reserves for a worker: the most that a stage of the run asks for.

    Args:
        config: the run.
        nodes: the live machines of the cluster.

    Returns:
        The options `num_cpus` and `num_gpus`.

    Raises:
        ConfigError: this machine cannot hold a worker. With `runtime.ray_address` there is no
            error, because a cluster may still grow; its workers wait.
    """
    max_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    use_gpus = config.runtime.devices != "cpu" and (
        max_gpus > 0 or config.runtime.devices != "auto"
    )
    stages = [stage for stage in active_stages(config) if stage.model_kind is not None]
    sections: dict[str, Any] = {stage.name: stage.section(config) for stage in stages}
    cpus = {name: section.cpus for name, section in sections.items()}
    gpus = {
        name: (1.0 if section.gpus is None else section.gpus) if use_gpus else 0.0
        for name, section in sections.items()
    }
    if config.runtime.ray_address is None:
        _check_fits("gpus", gpus, nodes)
        _check_fits("cpus", cpus, nodes)
    return {"num_cpus": max(cpus.values()), "num_gpus": max(gpus.values())}


def _check_fits(what: str, needs: Mapping[str, float], nodes: Sequence[Node]) -> None:
    resource = what[:-1].upper()
    found = max((node.get(resource, 0.0) for node in nodes), default=0.0)
    stage = max(needs, key=lambda name: needs[name])
    if needs[stage] > found:
        raise ConfigError(
            f"A worker needs {needs[stage]:g} {resource}s for {stage}, found {found:g} on this "
            f"machine. Change {stage}.{what}, runtime.devices or runtime.ray_cpus, or set "
            "runtime.ray_address to use a cluster."
        )


def worker_count(
    config: RunConfig, nodes: Sequence[Node], needs: Mapping[str, float], in_flight: int
) -> int:
    """How many workers a run starts: those that fit on the machines, at most one per shard.

    A cluster is asked for as many as `runtime.shards_in_flight` needs, if it is set. Those that do
    not fit yet wait for a machine that joins.

    Args:
        config: the run.
        nodes: the live machines of the cluster.
        needs: the resources of a worker, see `worker_resources`.
        in_flight: shards in progress at the same time.
    """
    fit = sum(_workers_on(node, needs) for node in nodes)
    runtime = config.runtime
    grows = runtime.ray_address is not None and runtime.shards_in_flight is not None
    wanted = -(-in_flight // SHARDS_PER_DEVICE) if grows else 1
    return min(in_flight, max(fit, wanted))


def _workers_on(node: Node, needs: Mapping[str, float]) -> int:
    resources = {"num_cpus": "CPU", "num_gpus": "GPU"}
    return min(int(node.get(resources[key], 0.0) / need) for key, need in needs.items() if need > 0)
