"""One heavy task per device across runs, by global concurrency limits of a real Prefect server."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.support.tiny_run import configure

pytestmark = pytest.mark.usefixtures("prefect_server")

CPU = torch.device("cpu")


def test_another_run_waits_until_the_device_is_released() -> None:
    from tasks.runtime.device_locks import limited_across_runs

    inside, events = threading.Event(), []

    def other_run() -> None:
        inside.wait()
        with limited_across_runs([CPU]):
            events.append("other")

    other = threading.Thread(target=other_run)
    other.start()
    with limited_across_runs([CPU]):
        inside.set()
        time.sleep(3)
        events.append("first")
    other.join()
    assert events == ["first", "other"]


def test_a_run_holds_the_limit_of_its_device_and_releases_it(
    settings: dict[str, object], tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client

    from flows.generate_dataset import generate_dataset
    from tasks.runtime.device_locks import limit_name
    from tasks.runtime.events import Step, listener

    name = limit_name(socket.gethostname(), CPU)
    taken: list[int] = []

    def slots() -> int:
        with get_client(sync_client=True) as client:
            return client.read_global_concurrency_limit_by_name(name).active_slots

    def watch(event: object) -> None:
        if isinstance(event, Step) and event.done == event.total:
            taken.append(slots())

    token = listener.set(watch)
    try:
        limited = {"limit_devices": True}
        out = tmp_path / "out"
        generate_dataset(configure(settings, out, prompts={"limit": 1}, runtime=limited))
    finally:
        listener.reset(token)
    assert set(taken) == {1}
    assert slots() == 0
