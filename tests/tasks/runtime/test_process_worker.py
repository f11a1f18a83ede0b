"""The processes of devices: they end with the pool and with the flow, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from rudalle_lib.errors import StoppedError
from tasks.runtime.process_worker import ProcessWorker, process_pool
from tests.support.worker_pools import call, devices

ROOT = Path(__file__).resolve().parents[3]


def test_processes_end_with_the_pool_even_while_they_work(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as flow:
        with closing(process_pool(devices(1))) as pool:
            running = flow.submit(call, pool, "step", folder=str(tmp_path), seconds=60.0)
            while not list(tmp_path.glob("pid *")):
                time.sleep(0.05)
            (worker,) = pool.workers
            assert isinstance(worker, ProcessWorker)
            pid = worker.pid
        with pytest.raises(StoppedError, match="The run has ended"):
            running.result(timeout=10)
    assert not Path(f"/proc/{pid}").exists()


def test_processes_end_with_a_flow_that_is_killed_and_ignore_signals_to_its_group() -> None:
    code = """
import sys, tempfile, threading
from tests.support.worker_pools import call, devices
from tasks.runtime.process_worker import process_pool
pool, folder = process_pool(devices(1)), tempfile.mkdtemp()
call(pool, "step", folder=folder, seconds=0.0)
print(pool.workers[0].pid, flush=True)
call(pool, "step", folder=folder, seconds=60.0)
"""
    flow = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert flow.stdout is not None
    worker = int(flow.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker, number)
    time.sleep(0.2)
    assert Path(f"/proc/{worker}").exists()
    flow.kill()
    flow.communicate()
    until = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
