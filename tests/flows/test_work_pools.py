"""A dataset made by runs in a real work pool: a Prefect server and two of Prefect's workers.

The workers start in a folder that has packages `flows` and `tasks` of its own, as a team's may.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli.options import PACKAGED
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.storage.storage import Storage
from tests.flows.test_deployments import deployments, wait_for
from tests.support.tiny_run import configure, contents

ROOT = PACKAGED.parent

PUBLISHED = ("data", "rejects", "plan", "contact_sheet.png")

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A team's folder, with the two shipped deployments that share a dataset."""
    for name in ("flows", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    shared = [one for one in deployments() if one["name"] in ("on-workers", "worker")]
    for one in shared:
        one["work_pool"]["job_variables"] = {"working_dir": str(tmp_path)}
    settings = {"name": "team", "pull": [], "deployments": shared}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


@pytest.fixture
def environment(prefect_server: None) -> dict[str, str]:
    from prefect.settings import PREFECT_API_URL

    return {
        **os.environ,
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def worker(name: str, folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[Any]]:
    """A worker of the pool that starts at most two runs at once."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu"]
    command += ["--name", name, "--limit", "2"]
    with (folder / f"{name}.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_two_workers_make_the_dataset_of_one_run(
    settings: dict[str, object], folder: Path, environment: dict[str, str]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    output = folder / "out"
    config = configure(settings, output).model_dump(mode="json")
    with get_client(sync_client=True) as server, ExitStack() as workers:
        server.create_work_pool(WorkPoolCreate(name="cpu", type="process"), overwrite=True)
        deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(deploy, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        first, _ = [
            workers.enter_context(worker(name, folder, environment)) for name in ("one", "two")
        ]
        parent = server.create_flow_run_from_deployment(
            server.read_deployment_by_name("generate-on-workers/on-workers").id,
            parameters={
                "config": config, "workers": 2, "deployment": "generate-shards/worker",
            },
        )  # fmt: skip

        def final() -> Any:
            state = server.read_flow_run(parent.id).state
            return state if state is not None and state.is_final() else None

        state = wait_for(final, first)
        logs = "\n".join((folder / f"{name}.txt").read_text() for name in ("one", "two"))
        assert state.is_completed(), f"{state.message}\n{logs}"
        children = [
            run for run in server.read_flow_runs()
            if run.parent_task_run_id is not None and run.deployment_id is not None
        ]  # fmt: skip
    assert {run.name for run in children} == {"tiny, 1 of 2", "tiny, 2 of 2"}
    assert all(run.state is not None and run.state.is_completed() for run in children)
    for name in ("one", "two"):  # three runs at once: each worker has started some
        assert "submitting flow run" in (folder / f"{name}.txt").read_text()
    from flows.generate_dataset import generate_dataset

    generate_dataset(configure(settings, folder / "alone"))
    assert contents(output, *PUBLISHED) == contents(folder / "alone", *PUBLISHED)
    assert audit_output(Storage(str(output))).faults == []
