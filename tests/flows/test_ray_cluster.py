"""A run on a Ray cluster of several nodes, with its output on S3, of which one node dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rudalle_lib.storage import Storage
from tests.flows.test_ray import PARTS, many_prompts
from tests.tiny_run import configure

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "ray_environment")]

NODES, SHARDS = 3, 12
PATIENCE = 300.0


@pytest.fixture
def cluster(s3_url: str, ray_environment: None) -> Iterator[Cluster]:
    """A head that only directs, and three nodes of one CPU each, which may use the S3 server."""
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


def dataset(url: str) -> dict[str, bytes]:
    """What was made, byte for byte."""
    storage = Storage(url)
    return {path: storage.read_bytes(path) for part in PARTS for path in storage.list(part)}


class Reaper(threading.Thread):
    """Kills a node, with no time to say so, when the first shard is finished."""

    def __init__(self, cluster: Cluster, output: str) -> None:
        super().__init__()
        self.cluster, self.storage = cluster, Storage(output)
        self.finished = 0

    def run(self) -> None:
        """Wait for the moment, at most `PATIENCE` seconds."""
        deadline = time.monotonic() + PATIENCE
        while not self.storage.list("shards"):
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        self.finished = len(self.storage.list("shards"))
        node = next(iter(self.cluster.worker_nodes))
        self.cluster.remove_node(node, allow_graceful=False)


def test_a_node_dies_and_the_dataset_is_that_of_a_local_run(
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
    assert 0 < reaper.finished < SHARDS - NODES  # not all others were yet begun
    assert len(cluster.worker_nodes) == NODES - 1
    assert dataset(f"{s3_url}/ray") == dataset(f"{s3_url}/local")
