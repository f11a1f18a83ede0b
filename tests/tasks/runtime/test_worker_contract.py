"""What a run may rely on, whichever kind of worker its shards are on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from functools import partial
from pathlib import Path

import pytest

from rudalle_lib.errors import StoppedError, TransientError
from tasks.runtime.events import Event, Noticed, Step, listener
from tasks.runtime.process_worker import process_pool
from tasks.runtime.stopping import stop_requested
from tasks.runtime.worker_pool import WorkerPool
from tests.support.worker_pools import RAY_WORKERS, call, devices, ray_pool, wait_until_ready


@pytest.fixture(params=["process", pytest.param("ray", marks=pytest.mark.slow)])
def pool(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    """A pool of two workers of each kind."""
    if request.param == "ray":
        request.getfixturevalue("started_ray")
        with closing(ray_pool()) as pool:
            wait_until_ready(pool, RAY_WORKERS)
            yield pool
    else:
        with closing(process_pool(devices(2))) as pool:
            yield pool


def test_events_reach_the_listener_of_the_run(pool: WorkerPool, tmp_path: Path) -> None:
    events: list[Event] = []
    token = listener.set(events.append)
    try:
        call(pool, "step", 7, folder=str(tmp_path), seconds=0.3)
    finally:
        listener.reset(token)
    assert events[0] == Noticed("a file is damaged")
    assert len(events) > 2 and set(events[1:]) == {Step("generate", 7, 1, 2)}


def test_a_listener_that_fails_fails_the_task(pool: WorkerPool, tmp_path: Path) -> None:
    def listen(event: Event) -> None:
        raise KeyError("no terminal")

    token = listener.set(listen)
    try:
        with pytest.raises(KeyError, match="no terminal"):
            call(pool, "step", folder=str(tmp_path), seconds=60.0)
    finally:
        listener.reset(token)
    call(pool, "step", 1, folder=str(tmp_path), seconds=0.0)


def test_a_request_to_stop_reaches_the_tasks_in_progress(pool: WorkerPool, tmp_path: Path) -> None:
    stop = threading.Event()
    token = stop_requested.set(stop)
    context = copy_context()
    stop_requested.reset(token)
    with ThreadPoolExecutor(1) as flow:
        step = partial(call, pool, "step", folder=str(tmp_path), seconds=60.0)
        running = flow.submit(context.run, step)
        while not list(tmp_path.glob("pid *")):
            time.sleep(0.05)
        stop.set()
        with pytest.raises(StoppedError, match="asked to stop"):
            running.result(timeout=20)


def test_an_error_of_a_task_arrives_as_it_is_if_it_can(pool: WorkerPool) -> None:
    with pytest.raises(TransientError, match="no answer") as known:
        call(pool, "fail", error="known")
    assert "worker_tasks.py" in known.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Unknown: strange"):
        call(pool, "fail", error="unknown")
    with pytest.raises(Exception, match="no_such_task"):
        call(pool, "no_such_task")
