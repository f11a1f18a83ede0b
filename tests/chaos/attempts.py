"""Runs that can be killed, and comparisons of the files that they leave."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec.config
import pyarrow.parquet as pq

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.storage.storage import Storage
from tests.chaos.disturbances import DISTURBANCE, disturb
from tests.support.fork_server import CONTEXT, preload

preload("flows.generate_shards", "tests.chaos.attempts")

SHARDS = "TEST_SHARDS"
"""Variable with the shards of an attempt, as `rudalle-flows run --shards` takes them."""

TIMES = {
    *("seconds", "started", "finished", "config_digest", "cost", "seal"),
    *("use", "usage", "waited", "waiting", "until", "devices", "device_ids", "files"),
}
"""Keys of manifests that may differ between equal runs. `config_digest` depends on the URL of the
output, `seal` on all other keys, `files` on the times in the dataset card."""


@dataclass
class Attempt:
    """A run in a separate process, which ends by itself or is killed."""

    process: BaseProcess
    report: Path
    killed: bool = field(default=False)

    @staticmethod
    def start(
        config: Mapping[str, Any], environment: Mapping[str, str], api: str, report: Path
    ) -> Attempt:
        """Start a run.

        Args:
            config: Configuration.
            environment: Environment variables to set.
            api: URL of the Prefect server.
            report: File for the result.
        """
        report.unlink(missing_ok=True)
        arguments = (dict(config), dict(environment), api, str(report))
        process = CONTEXT.Process(target=_run, args=arguments)
        process.start()
        return Attempt(process, report)

    def kill(self) -> None:
        """Send SIGKILL, like the kernel when memory runs out."""
        self.killed = True
        self.process.kill()

    def pause(self) -> None:
        """Stop the process and all of its threads, like a machine that is suspended."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self.process.pid is not None
        return self.process.pid

    def is_paused(self, timeout: float = 120.0) -> bool:
        """Wait until the process has paused itself, or has ended."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.is_alive():
            stat = Path(f"/proc/{self.pid}/stat").read_text()
            if stat.rpartition(")")[2].split()[0] == "T":
                return True
            time.sleep(0.02)
        assert not self.process.is_alive(), f"neither paused nor ended: {self.output()}"
        return False

    def wait(self, timeout: float = 300.0) -> str | None:
        """Wait until the run ends.

        Returns:
            The error that it ended with, None if it succeeded.

        Raises:
            AssertionError: It did not end in time, or died without having been killed.
        """
        self.process.join(timeout)
        hung = self.process.is_alive()
        if hung:
            self.process.kill()
            self.process.join()
        assert not hung, f"the run did not end within {timeout} s: {self.output()}"
        assert self.killed or self.process.exitcode == 0, self.output()
        if self.process.exitcode != 0:
            return "killed"
        return json.loads(self.report.read_text())["error"]

    def output(self) -> str:
        """The end of what the run printed."""
        with contextlib.suppress(FileNotFoundError):
            return self.report.with_suffix(".txt").read_text(errors="replace")[-3000:]
        return ""


def _run(config: dict[str, Any], environment: dict[str, str], api: str, report: str) -> None:
    """Run in the process of an attempt."""
    with open(Path(report).with_suffix(".txt"), "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    if DISTURBANCE in environment:
        disturb(environment[DISTURBANCE], config["output"])
    fsspec.config.set_conf_env(fsspec.config.conf, environment)  # fsspec has been imported already
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.generate_dataset import generate_dataset
    from flows.generate_shards import generate_shards
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.errors import RudalleError

    error: str | None = None
    with temporary_settings({PREFECT_API_URL: api}):
        try:
            settings = RunConfig.model_validate(config)
            if SHARDS in environment:
                generate_shards(settings, environment[SHARDS])
            else:
                generate_dataset(settings)
        except RudalleError as problem:
            error = f"{type(problem).__name__}: {problem}"
    Path(report).write_text(json.dumps({"error": error}))


# --- files of a run ----------------------------------------------------------------------------


def state_of(url: str) -> dict[str, Any]:
    """The content of all files of an output by path; in manifests and artifacts without times."""
    storage = Storage(url)
    paths = [path for path in storage.list() if not path.startswith(("lease/", "metrics.prom"))]
    return {path: _without_times(path, _without_url(path, storage, url)) for path in paths}


def _without_url(path: str, storage: Storage, url: str) -> bytes:
    """The content of a file; pages and cards contain the output's URL, which differs per test."""
    content = storage.read_bytes(path)
    return content.replace(url.encode(), b"URL") if path.endswith((".html", ".md")) else content


def _without_times(path: str, content: bytes) -> Any:
    if path.startswith("stages/"):
        table = pq.read_table(io.BytesIO(content))
        metadata = {
            key: value for key, value in table.schema.metadata.items() if key.decode() not in TIMES
        }
        return table.to_pylist(), metadata
    if path.endswith(".json"):
        return _without_time_keys(json.loads(content))
    if path == "README.md":
        of_last_run = r"\d (s|min|h)\b|second|idle|\.\.\. images drawn"
        lines = content.decode().splitlines()
        return [line for line in lines if not re.search(of_last_run, line)]
    return content


def _without_time_keys(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_time_keys(item) for key, item in value.items() if key not in TIMES}
        kept.pop("output", None)
        return kept
    return [_without_time_keys(item) for item in value] if isinstance(value, list) else value


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that the same files exist with the same content."""
    assert sorted(found) == sorted(expected)
    different = [path for path in expected if found[path] != expected[path]]
    assert different == [], different


def images_of(url: str) -> dict[str, bytes]:
    """The published images by their id, found through the manifests."""
    storage = Storage(url)
    rows = [
        row
        for manifest in read_shard_manifests(storage)
        for row in storage.read_table(manifest.metadata.path, ["image_id", "path"]).to_pylist()
    ]
    contents = storage.read_many([row["path"] for row in rows])
    return {row["image_id"]: content for row, content in zip(rows, contents, strict=True)}


def assert_clean(url: str) -> None:
    """Assert that `verify` finds no fault: every file is what its manifest says, none is left."""
    audit = audit_output(Storage(url))
    assert audit.faults == [], audit.faults
    assert audit.notes == [], audit.notes


def assert_nothing_twice(url: str) -> None:
    """Assert that every image is published or rejected once, and that every file has its row."""
    storage = Storage(url)
    rows = [
        row
        for folder in ("data/metadata", "rejects")
        for path in storage.list(folder)
        for row in storage.read_table(path).to_pylist()
    ]
    images = [row["image_id"] for row in rows if row["image_id"]]
    assert len(images) == len(set(images)) > 0
    published = {path for path in storage.list("data/images") if _is_image(path)}
    assert {row["path"] for row in rows if "path" in row} == published
    assert_clean(url)


def _is_image(path: str) -> bool:
    name = layout.parse(path)
    return name is not None and name.kind == "image"
