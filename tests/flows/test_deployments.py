"""Deployments on a real Prefect server: their forms, runs started there, and cancelling."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from flows.cli import PACKAGED
from rudalle_lib.config import RunConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.lease import read_lease
from rudalle_lib.storage import Storage

ROOT = PACKAGED.parent
PATIENCE = 1500.0


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """The first true answer; asked twice a second as long as the process lives."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := what()):
        assert process.poll() is None and time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.5)
    return answer


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_parameters_of_the_shipped_deployments_are_configurations(
    deployment: dict[str, Any],
) -> None:
    config = RunConfig.model_validate(deployment["parameters"]["config"])
    assert config.name == deployment["name"]
    assert deployment["concurrency_limit"]["limit"] == 1


def test_the_nightly_one_has_a_schedule_and_is_not_overtaken() -> None:
    nightly = {deployment["name"]: deployment for deployment in deployments()}["nightly"]
    assert [schedule["cron"] for schedule in nightly["schedules"]] == ["0 2 * * *"]
    assert nightly["concurrency_limit"]["collision_strategy"] == "CANCEL_NEW"


def test_a_schedule_that_is_none_is_named() -> None:
    from flows.deployments import make_deployment

    with pytest.raises(ConfigError, match="--cron 'at night' is no schedule; expected five"):
        make_deployment(RunConfig(), "at night")


@pytest.fixture(scope="module")
def server(prefect_server: None) -> Iterator[Any]:
    """A client of the Prefect server."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def environment(server: Any) -> dict[str, str]:
    """For processes that use the server, as a shell in the project's folder would have it."""
    from prefect.settings import PREFECT_API_URL

    api = PREFECT_API_URL.value()
    return {**os.environ, "PREFECT_API_URL": api, "PYTHONPATH": str(ROOT), "PWD": str(ROOT)}


def test_all_shipped_deployments_are_accepted_by_a_server(
    server: Any, environment: dict[str, str]
) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    for pool in ("cpu", "gpu"):
        server.create_work_pool(WorkPoolCreate(name=pool, type="process"), overwrite=True)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in deployments():
        made = server.read_deployment_by_name(f"generate-dataset/{expected['name']}")
        assert made.parameters == expected["parameters"]
        assert made.work_pool_name == expected["work_pool"]["name"]
        assert made.global_concurrency_limit.limit == 1
        assert made.job_variables["working_dir"] == str(ROOT)


@pytest.fixture(scope="module")
def serving(
    settings: dict[str, object],
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[subprocess.Popen[bytes]]:
    """`rudalle-flows serve` with the tiny stack, in a process of its own."""
    folder = tmp_path_factory.mktemp("serve")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**settings, "name": "served", "output": str(folder / "out")}))
    command = [sys.executable, "-m", "flows.cli", "serve", str(path)]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def served(server: Any, serving: subprocess.Popen[bytes]) -> Any:
    """The deployment that is served, once it is there."""
    from prefect.exceptions import ObjectNotFound

    def read() -> Any:
        try:
            return server.read_deployment_by_name("generate-dataset/served")
        except ObjectNotFound:
            return None

    return wait_for(read, serving)


def test_the_form_is_the_configuration(served: Any, settings: dict[str, object]) -> None:
    schema = served.parameter_openapi_schema
    assert schema["required"] == ["config"] and served.enforce_parameter_schema
    sections = schema["definitions"]
    for name, field in RunConfig.model_fields.items():
        assert sections["RunConfig"]["properties"][name]["description"] == field.description
    generate = sections["GenerateConfig"]["properties"]
    assert generate["images"]["default"] == 8 and generate["images"]["minimum"] == 1
    assert "malevich-v3" in generate["model"]["enum"]
    assert sections["RuntimeConfig"]["properties"]["runner"]["enum"] == ["local", "ray"]
    undescribed = [
        f"{section}.{key}"
        for section, content in sections.items()
        for key, item in content["properties"].items()
        if not item.get("description")
    ]
    assert undescribed == []
    assert served.parameters["config"]["seed"] == settings["seed"]


def start(server: Any, deployment: Any, output: Path, **changes: Any) -> UUID:
    """Start a run as the form does: all values of the form, some changed."""
    config = {**deployment.parameters["config"], "output": str(output), **changes}
    run = server.create_flow_run_from_deployment(deployment.id, parameters={"config": config})
    identity: UUID = run.id
    return identity


def final_state(server: Any, run: UUID, serving: subprocess.Popen[bytes]) -> Any:
    def read() -> Any:
        state = server.read_flow_run(run).state
        return state if state.is_final() else None

    return wait_for(read, serving)


def test_a_value_that_the_form_forbids_starts_nothing(
    server: Any, served: Any, tmp_path: Path
) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    with pytest.raises(PrefectHTTPStatusError, match="(?s)409|422"):
        start(server, served, tmp_path, seed="many")


def test_a_cancelled_run_leaves_no_lock_and_the_next_one_goes_on(
    server: Any, serving: subprocess.Popen[bytes], served: Any, tmp_path: Path
) -> None:
    from prefect.states import Cancelling

    out, table = tmp_path / "out", tmp_path / "long.csv"
    table.write_text("prompt,images\nкруг,1\n1,600\n2,600\n3,600\n", encoding="utf-8")
    prompts = {"uri": str(table), "shard_size": 1}
    run = start(server, served, out, prompts=prompts, generate={"batch_size": 1})
    wait_for(lambda: (out / "shards" / "00000.json").exists(), serving)
    server.set_flow_run_state(run, Cancelling(), force=True)
    assert final_state(server, run, serving).is_cancelled()
    lease = read_lease(Storage(str(out)))
    assert lease is not None and lease.free
    first = (out / "shards" / "00000.json").stat().st_mtime_ns
    assert not (out / "shards" / "00003.json").exists()

    again = start(server, served, out, prompts=prompts, generate={"batch_size": 64})
    state = final_state(server, again, serving)
    assert state.is_completed(), state.message
    assert len(list((out / "shards").iterdir())) == 4
    assert (out / "shards" / "00000.json").stat().st_mtime_ns == first
    assert (out / "run.json").exists()
