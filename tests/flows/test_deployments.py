"""Deployments on a real Prefect server: their forms, runs started there, and cancellation."""

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

from flows.cli.options import PACKAGED
from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.lease_files import read_lease
from rudalle_lib.errors import ConfigError
from rudalle_lib.storage.storage import Storage

ROOT = PACKAGED.parent
TIMEOUT = 1500.0


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    """Return the first true result of `condition`, polled while the process is running."""
    deadline = time.monotonic() + TIMEOUT
    while not (result := condition()):
        assert process.poll() is None and time.monotonic() < deadline, "timed out"
        time.sleep(0.5)
    return result


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_parameters_of_the_shipped_deployments_are_valid_configurations(
    deployment: dict[str, Any],
) -> None:
    kind = FineTuneConfig if deployment["entrypoint"].endswith("fine_tune") else RunConfig
    config = kind.model_validate(deployment["parameters"]["config"])
    if deployment["entrypoint"].endswith("generate_dataset"):
        assert config.name == deployment["name"]
    if not deployment["entrypoint"].endswith("generate_shards"):  # those share an output
        assert deployment["concurrency_limit"]["limit"] == 1


def test_the_runs_that_share_a_dataset_have_the_same_configuration() -> None:
    whole = ("generate_dataset", "fine_tune")
    shared = [one for one in deployments() if not one["entrypoint"].endswith(whole)]
    configs = [one["parameters"]["config"] for one in shared]
    assert len(configs) == 4 and all(config == configs[0] for config in configs)
    (parent,) = [one["parameters"] for one in shared if "deployment" in one["parameters"]]
    names = [f"generate-shards/{one['name']}" for one in shared]
    assert parent["deployment"] in names


def test_the_nightly_deployment_has_a_schedule_and_no_overlapping_runs() -> None:
    nightly = {deployment["name"]: deployment for deployment in deployments()}["nightly"]
    assert [schedule["cron"] for schedule in nightly["schedules"]] == ["0 2 * * *"]
    assert nightly["concurrency_limit"]["collision_strategy"] == "CANCEL_NEW"


def test_an_invalid_schedule_is_an_error() -> None:
    from flows.deployments import make_deployment

    with pytest.raises(ConfigError, match="--cron 'at night' is not a schedule; expected five"):
        make_deployment(RunConfig(), "at night")


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": {"uri": "https://host/a.csv?token=secret"}},
        {"output": "https://host/out?secret"},
        {"weights": {"endpoint": "https://host/?secret"}},
    ],
)
def test_a_signed_url_is_not_stored_on_a_server(change: dict[str, Any]) -> None:
    from flows.deployments import make_deployment

    with pytest.raises(ConfigError, match="is https://host/.* with a query.* Prefect would") as one:
        make_deployment(RunConfig.model_validate(change), None)
    assert "secret" not in str(one.value)


def test_open_doors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.deployments import open_doors

    names = [f"RUDALLE_ALLOW_{what}" for what in ("INPUTS", "OUTPUTS", "ENDPOINTS")]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    head, *doors = open_doors().splitlines()
    assert head.startswith("Warning: whoever can start runs on this Prefect server")
    assert [door.split()[0] for door in doors] == [f"{name}:" for name in names]
    monkeypatch.setenv(names[0], "/data")
    assert names[0] not in open_doors() and names[1] in open_doors()
    monkeypatch.setenv(names[1], "/data")
    monkeypatch.setenv(names[2], "")
    assert open_doors() == ""


@pytest.fixture(scope="module")
def server(prefect_server: None) -> Iterator[Any]:
    """A client of the Prefect server."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def environment(server: Any) -> dict[str, str]:
    """Environment of processes that use the server, like a shell in the project's folder."""
    from prefect.settings import PREFECT_API_URL

    api = PREFECT_API_URL.value()
    soon = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}  # seconds between two looks for runs
    return {**os.environ, **soon, "PREFECT_API_URL": api, "PYTHONPATH": str(ROOT), "PWD": str(ROOT)}


def test_all_shipped_deployments_are_accepted_by_a_server(
    server: Any, environment: dict[str, str]
) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    for pool in ("cpu", "gpu", "docker", "kubernetes"):
        kind = "process" if pool in ("cpu", "gpu") else pool
        server.create_work_pool(WorkPoolCreate(name=pool, type=kind), overwrite=True)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in deployments():
        flow = expected["entrypoint"].rpartition(".")[2].replace("_", "-")
        made = server.read_deployment_by_name(f"{flow}/{expected['name']}")
        assert made.parameters == expected["parameters"]
        assert made.work_pool_name == expected["work_pool"]["name"]
        limit = made.global_concurrency_limit
        assert (limit and limit.limit) == expected.get("concurrency_limit", {}).get("limit")
        if "working_dir" in expected["work_pool"].get("job_variables", {}):
            assert made.job_variables["working_dir"] == str(ROOT)


@pytest.fixture(scope="module")
def serving(
    settings: dict[str, object],
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[subprocess.Popen[bytes]]:
    """`rudalle-flows serve` with the tiny models, in a separate process."""
    folder = tmp_path_factory.mktemp("serve")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**settings, "name": "served", "output": str(folder / "out")}))
    for name in ("flows", "tasks"):  # a team's own packages hide nothing of ours
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    command = [str(Path(sys.executable).with_name("rudalle-flows")), "serve", str(path)]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
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
    """The served deployment, once it is registered."""
    from prefect.exceptions import ObjectNotFound

    def read() -> Any:
        try:
            return server.read_deployment_by_name("generate-dataset/served")
        except ObjectNotFound:
            return None

    return wait_for(read, serving)


def test_the_form_has_all_settings_of_the_configuration(
    served: Any, settings: dict[str, object]
) -> None:
    schema = served.parameter_openapi_schema
    assert schema["required"] == ["config"] and served.enforce_parameter_schema
    sections = schema["definitions"]
    for name, field in RunConfig.model_fields.items():
        # Pydantic omits a description that equals the docstring of the section.
        assert sections["RunConfig"]["properties"][name]["description"] == field.description
    generate = sections["GenerateConfig"]["properties"]
    assert generate["images"]["default"] == 8 and generate["images"]["minimum"] == 1
    assert "malevich-v3" in generate["model"]["anyOf"][0]["enum"]
    assert sections["RuntimeConfig"]["properties"]["runner"]["enum"] == ["local", "ray"]
    undescribed = [
        f"{section}.{key}"
        for section, content in sections.items()
        for key, item in content["properties"].items()
        if not item.get("description")
    ]
    assert undescribed == []
    assert served.parameters["config"]["seed"] == settings["seed"]


NAME = "Threshold 0.3"
"""Name of a run that a user types into the form."""


def start(server: Any, deployment: Any, output: Path, **changes: Any) -> UUID:
    """Start a run like the form does: with all values of the form, some of them changed."""
    config = {**deployment.parameters["config"], "output": str(output), **changes}
    run = server.create_flow_run_from_deployment(
        deployment.id, parameters={"config": config}, name=NAME
    )
    run_id: UUID = run.id
    return run_id


def final_state(server: Any, run: UUID, serving: subprocess.Popen[bytes]) -> Any:
    def read() -> Any:
        state = server.read_flow_run(run).state
        return state if state.is_final() else None

    return wait_for(read, serving)


def test_an_invalid_value_starts_no_run(server: Any, served: Any, tmp_path: Path) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    with pytest.raises(PrefectHTTPStatusError, match="(?s)409|422"):
        start(server, served, tmp_path, seed="many")


def test_a_cancelled_run_releases_its_lease_and_the_next_one_continues(
    server: Any, serving: subprocess.Popen[bytes], served: Any, tmp_path: Path
) -> None:
    from prefect.states import Cancelling

    out, table = tmp_path / "out", tmp_path / "long.csv"
    table.write_text("prompt,images\nкруг,1\n1,300\n2,300\n3,300\n", encoding="utf-8")
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
    assert server.read_flow_run(again).name == NAME
    assert len(list((out / "shards").iterdir())) == 4
    assert (out / "shards" / "00000.json").stat().st_mtime_ns == first
    assert (out / "run.json").exists()
