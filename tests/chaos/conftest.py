"""A small run on a disk or a real S3 server, behind a proxy that injects faults or undisturbed."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from flows.prefect_settings import set_up_prefect
from rudalle_lib.dataset.lease_files import read_lease
from rudalle_lib.storage.storage import Storage
from tests.chaos.attempts import Attempt, images_of, state_of
from tests.chaos.fault_proxy import CLIENT_OPTIONS, FaultProxy
from tests.support.s3_server import S3Server
from tests.support.tiny_run import TABLE
from tests.support.tiny_stack import write_tiny_stack

set_up_prefect(os.environ)  # before anything imports prefect


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The URL of a Prefect server with a separate database."""
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
    """What attempts need: where outputs are, a Prefect server, and settings of the run.

    Attributes:
        settings: of the run, without its output.
        api: URL of the Prefect server.
        folder: for reports and, if there is no server, for outputs.
        server: the S3 server, if outputs are there.
        proxy: what runs reach it through, if anything.
    """

    settings: Mapping[str, Any]
    api: str
    folder: Path
    server: S3Server | None = None
    proxy: FaultProxy | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def new_output(self) -> str:
        """A URL that no other run uses."""
        place = self.folder if self.server is None else self.server.url
        return f"{place}/chaos-{uuid.uuid4().hex[:8]}"

    def start(
        self, output: str, changes: Mapping[str, Any] | None = None, /, **environment: str
    ) -> Attempt:
        """Start a run with changed settings, which reaches the output through the proxy."""
        access = {} if self.server is None else self.server.environment
        if self.proxy is not None:
            access |= {"AWS_ENDPOINT_URL": self.proxy.endpoint}
            access |= {"FSSPEC_S3": json.dumps({"config_kwargs": CLIENT_OPTIONS})}
        config = {**self.settings, "output": output, **(changes or {})}
        report = self.folder / f"report-{len(self.attempts)}.json"
        attempt = Attempt.start(config, {**access, **environment}, self.api, report)
        self.attempts.append(attempt)
        return attempt

    def wait_for_lease(self, output: str, attempt: Attempt) -> None:
        """Wait until a run holds the lease of its output, or has ended."""
        storage = Storage(output)
        while attempt.process.is_alive():
            lease = read_lease(storage)
            if lease is not None and not lease.free and f"process {attempt.pid}" in lease.holder:
                return
            time.sleep(0.02)


@dataclass
class S3Site(Site):
    """A site whose outputs are on an S3 server, which runs reach through a proxy."""

    server: S3Server = field(kw_only=True)
    proxy: FaultProxy = field(kw_only=True)


@dataclass(frozen=True)
class Undisturbed:
    """The files of an undisturbed run, and the number of its requests."""

    state: Mapping[str, Any]
    requests: int


@pytest.fixture(scope="session")
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """One proxy in front of the S3 server."""
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
) -> Iterator[S3Site]:
    """All parts together; the tests themselves bypass the proxy."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    proxy.requests.clear()
    proxy.faults.clear()
    site = S3Site(settings, prefect_server, tmp_path, server=s3_server, proxy=proxy)
    yield site
    proxy.decide = lambda _: None
    end(site)


@pytest.fixture
def rclone_site(
    rclone_server: S3Server,
    settings: dict[str, Any],
    prefect_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    """Outputs on a server that ignores `If-None-Match`."""
    for name, value in rclone_server.environment.items():
        monkeypatch.setenv(name, value)
    site = Site(settings, prefect_server, tmp_path, rclone_server)
    yield site
    end(site)


@pytest.fixture
def local_site(settings: dict[str, Any], prefect_server: str, tmp_path: Path) -> Iterator[Site]:
    """Outputs on the local disk."""
    site = Site(settings, prefect_server, tmp_path)
    yield site
    end(site)


def end(site: Site) -> None:
    """Kill what a failed test left running."""
    for attempt in site.attempts:
        if attempt.process.is_alive():
            attempt.kill()
            attempt.process.join()


@pytest.fixture(scope="session")
def undisturbed(
    s3_server: S3Server, settings: dict[str, Any], prefect_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:  # fmt: skip
    """A run without faults."""
    with pytest.MonkeyPatch.context() as patch, FaultProxy.start(s3_server.endpoint) as proxy:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("undisturbed")
        site = S3Site(settings, prefect_server, folder, server=s3_server, proxy=proxy)
        output = site.new_output()
        assert site.start(output).wait() is None
        return Undisturbed(state_of(output), len(proxy.requests))


OTHER: dict[str, Any] = {"seed": 4, "publish": {"contact_sheet": 2}}
"""Other settings for the same output."""


@dataclass
class References:
    """The images of undisturbed runs by their id, made when they are first asked for."""

    site: Site

    @cached_property
    def images(self) -> dict[str, bytes]:
        """Of a run with the settings of all tests."""
        return self._make({})

    @cached_property
    def other_images(self) -> dict[str, bytes]:
        """Of a run with `OTHER` settings."""
        return self._make(OTHER)

    def _make(self, changes: Mapping[str, Any]) -> dict[str, bytes]:
        output = self.site.new_output()
        assert self.site.start(output, changes).wait() is None
        return images_of(output)


@pytest.fixture(scope="session")
def references(
    settings: dict[str, Any], prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> References:
    """What disturbed runs are compared with."""
    return References(Site(settings, prefect_server, tmp_path_factory.mktemp("references")))
