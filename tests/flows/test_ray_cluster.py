"""Runs on a Ray cluster during which a node dies, with the output on S3, or one joins."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Event, ShardFinished, listener
from tasks.runtime.worker_pool import Worker, WorkerPool
from tests.flows.test_ray import PARTS, many_prompts, places  # noqa: F401 - a fixture
from tests.support.tiny_run import configure, contents

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "ray_environment")]

NODES, SHARDS = 3, 12
TIMEOUT = 300.0


@pytest.fixture
def cluster(s3_url: str, ray_environment: None) -> Iterator[Cluster]:
    """A head without CPUs and three nodes with one CPU each, which can access the S3 server."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def small_cluster(ray_environment: None) -> Iterator[Cluster]:
    """A head without CPUs and a node with one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def dataset(url: str) -> dict[str, bytes]:
    """The files of the dataset."""
    storage = Storage(url)
    return {path: storage.read_bytes(path) for part in PARTS for path in storage.list(part)}


class Reaper(threading.Thread):
    """Kills a node, without warning, when the first shard is finished."""

    def __init__(self, cluster: Cluster, output: str) -> None:
        super().__init__()
        self.cluster, self.storage = cluster, Storage(output)
        self.finished = 0

    def run(self) -> None:
        """Wait for the first shard, at most `TIMEOUT` seconds."""
        deadline = time.monotonic() + TIMEOUT
        while not self.storage.list("shards"):
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        self.finished = len(self.storage.list("shards"))
        node = next(iter(self.cluster.worker_nodes))
        self.cluster.remove_node(node, allow_graceful=False)


def test_a_dead_node_does_not_change_the_dataset(
    settings: dict[str, object], s3_url: str, cluster: Cluster, tmp_path: Path
) -> None:
    from flows.generate_dataset import generate_dataset

    many = {**settings, "prompts": many_prompts(tmp_path), "generate": {"images": 16}}
    generate_dataset(configure(many, f"{s3_url}/local"))
    on_ray = {"runner": "ray", "ray_address": cluster.address, "shards_in_flight": 6}
    reaper = Reaper(cluster, f"{s3_url}/ray")
    reaper.start()
    generate_dataset(configure(many, f"{s3_url}/ray", runtime=on_ray))
    reaper.join()
    assert 0 < reaper.finished < SHARDS - NODES  # some of the others had not started
    assert len(cluster.worker_nodes) == NODES - 1
    assert dataset(f"{s3_url}/ray") == dataset(f"{s3_url}/local")


def test_a_node_that_joins_gets_the_worker_that_waits(
    settings: dict[str, object],
    small_cluster: Cluster,
    places: dict[int, set[str]],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.generate_dataset import generate_dataset

    pools: list[WorkerPool] = []

    class SeenPool(WorkerPool):
        """A pool that the test can ask which workers are ready."""

        def __init__(self, workers: Sequence[Worker]) -> None:
            super().__init__(workers)
            pools.append(self)

    monkeypatch.setattr("flows.runners.WorkerPool", SeenPool)
    many = {**settings, "prompts": many_prompts(tmp_path)}
    generate_dataset(configure(many, tmp_path / "local"))
    ready: list[bool] = []

    def join(event: Event) -> None:
        """Add a node when a shard is finished, and wait until its worker is ready."""
        if isinstance(event, ShardFinished) and not ready:
            ready.extend(sorted(worker.is_ready for worker in pools[0].workers))
            small_cluster.add_node(num_cpus=1)
            deadline = time.monotonic() + TIMEOUT
            while not all(worker.is_ready for worker in pools[0].workers):
                assert time.monotonic() < deadline
                time.sleep(0.05)

    on_ray = {"runner": "ray", "ray_address": small_cluster.address, "shards_in_flight": 4}
    token = listener.set(join)
    try:
        generate_dataset(configure(many, tmp_path / "ray", runtime=on_ray))
    finally:
        listener.reset(token)
    assert ready == [False, True], "one of two workers until then"
    assert len(set.union(*places.values())) == 2
    assert contents(tmp_path / "ray", *PARTS) == contents(tmp_path / "local", *PARTS)
