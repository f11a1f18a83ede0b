"""A small dataset on a real S3 server behind a proxy that breaks things, and how it should be."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flows.embedded import set_up_prefect
from tests.chaos.attempts import Attempt, state_of
from tests.chaos.fault_proxy import CLIENT_OPTIONS, FaultProxy
from tests.s3_server import S3Server
from tests.tiny_run import TABLE
from tests.tiny_stack import write_tiny_stack

set_up_prefect(os.environ)  # before anything imports prefect


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The address of a Prefect server with a database of its own."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=240):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a small run, without its output."""
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "prompts.csv").write_text(TABLE, encoding="utf-8")
    return {
        "name": "chaos",
        "seed": 3,
        "prompts": {"uri": str(folder / "prompts.csv"), "shard_size": 2},
        "weights": {"folder": str(write_tiny_stack(folder / "weights")), "offline": True},
        "runtime": {"devices": "cpu", "threads": 1},
        "generate": {"images": 4, "batch_size": 8},
        "score": {"keep_best": 2},
        "publish": {"contact_sheet": 4},
    }


@dataclass
class Site:
    """Where attempts work: S3 through the proxy, a Prefect server, and settings of the run."""

    server: S3Server
    proxy: FaultProxy
    settings: Mapping[str, Any]
    api: str
    folder: Path
    attempts: list[Attempt] = field(default_factory=list)

    def new_output(self) -> str:
        """A URL that no other run has used."""
        return f"{self.server.url}/chaos-{uuid.uuid4().hex[:8]}"

    def start(self, output: str, **environment: str) -> Attempt:
        """Start a run on an output, through the proxy."""
        access = {
            **self.server.environment,
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "FSSPEC_S3": json.dumps({"config_kwargs": CLIENT_OPTIONS}),
            **environment,
        }
        config = {**self.settings, "output": output}
        attempt = Attempt.start(config, access, self.api, self.folder / "report.json")
        self.attempts.append(attempt)
        return attempt


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nothing disturbed, and the requests that it took."""

    state: Mapping[str, Any]
    requests: int


@pytest.fixture(scope="session")
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """One proxy before the S3 server."""
    with FaultProxy.start(s3_server.endpoint) as running:
        yield running


@pytest.fixture
def site(
    s3_server: S3Server,
    proxy: FaultProxy,
    settings: dict[str, Any],
    prefect_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    """All parts together; the environment of the tests themselves goes around the proxy."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    proxy.requests.clear()
    proxy.faults.clear()
    yield Site(s3_server, proxy, settings, prefect_server, tmp_path)
    proxy.decide = lambda _: None


@pytest.fixture(scope="session")
def undisturbed(
    s3_server: S3Server, settings: dict[str, Any], prefect_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:  # fmt: skip
    """A run that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch, FaultProxy.start(s3_server.endpoint) as calm:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("undisturbed")
        site = Site(s3_server, calm, settings, prefect_server, folder)
        output = site.new_output()
        assert site.start(output).wait() is None
        return Undisturbed(state_of(output), len(calm.requests))
