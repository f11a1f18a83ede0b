"""Runs that can be killed, and what is left of them: the parts that all chaos tests share."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec.config
import pyarrow.parquet as pq

from rudalle_lib.storage import Storage

PRELOADED = ["flows.generate_dataset", "tests.chaos.attempts"]
"""Imported once, in the process that all attempts are forked from: an attempt starts at once."""

TIMES = {
    *("seconds", "started", "finished", "config_digest", "cost", "seal"),
    *("use", "usage", "waited", "waiting", "until", "devices"),
}
"""Keys of manifests that may differ between equal runs; the digest covers the output's URL, the
seal all others."""


@dataclass
class Attempt:
    """A run in a process of its own, that ends by itself or is killed."""

    process: BaseProcess
    report: Path
    killed: bool = field(default=False)

    @staticmethod
    def start(
        config: Mapping[str, Any], environment: Mapping[str, str], api: str, report: Path
    ) -> Attempt:
        """Start a run of `config` that reports to the Prefect server at `api`."""
        report.unlink(missing_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        arguments = (dict(config), dict(environment), api, str(report))
        process = context.Process(target=_run, args=arguments)
        process.start()
        return Attempt(process, report)

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out."""
        self.killed = True
        self.process.kill()

    def wait(self, patience: float = 300.0) -> str | None:
        """The error that the run ended with, None where it ended well.

        Raises `AssertionError` where it hangs, or dies without having been killed.
        """
        self.process.join(patience)
        hung = self.process.is_alive()
        if hung:
            self.process.kill()
            self.process.join()
        assert not hung, f"the run did not end within {patience} s: {self.output()}"
        assert self.killed or self.process.exitcode == 0, self.output()
        if self.process.exitcode != 0:
            return "killed"
        return json.loads(self.report.read_text())["error"]

    def output(self) -> str:
        """What the run said."""
        with contextlib.suppress(FileNotFoundError):
            return self.report.with_suffix(".txt").read_text(errors="replace")[-3000:]
        return ""


def _run(config: dict[str, Any], environment: dict[str, str], api: str, report: str) -> None:
    """The process of an attempt."""
    with open(Path(report).with_suffix(".txt"), "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    fsspec.config.set_conf_env(fsspec.config.conf, environment)  # it has been imported before
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.generate_dataset import generate_dataset
    from rudalle_lib.config import RunConfig
    from rudalle_lib.errors import RudalleError

    error: str | None = None
    with temporary_settings({PREFECT_API_URL: api}):
        try:
            generate_dataset(RunConfig.model_validate(config))
        except RudalleError as problem:
            error = f"{type(problem).__name__}: {problem}"
    Path(report).write_text(json.dumps({"error": error}))


# --- what a run leaves -------------------------------------------------------------------------


def state_of(url: str) -> dict[str, Any]:
    """Everything below an output by path: bytes, or in manifests and stages all but the times."""
    storage = Storage(url)
    paths = [path for path in storage.list() if not path.startswith(("lease/", "metrics.prom"))]
    return {path: _without_times(path, _without_url(path, storage, url)) for path in paths}


def _without_url(path: str, storage: Storage, url: str) -> bytes:
    """The content of a file; pages and cards name the output, which differs from test to test."""
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
        return _plain(json.loads(content))
    if path == "README.md":
        lines = content.decode().splitlines()
        return [line for line in lines if not re.search(r"\d (s|min|h)\b|second|idle", line)]
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if key not in TIMES}
        kept.pop("output", None)
        return kept
    return [_plain(item) for item in value] if isinstance(value, list) else value


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """The same files with the same content: nothing lost, nothing left over, nothing changed."""
    assert sorted(found) == sorted(expected)
    assert [path for path in expected if found[path] != expected[path]] == []


def assert_nothing_twice(url: str) -> None:
    """Every image is published or rejected once, and every published file has its row."""
    storage = Storage(url)
    rows = [
        row
        for folder in ("data/metadata", "rejects")
        for path in storage.list(folder)
        for row in storage.read_table(path).to_pylist()
    ]
    images = [row["image_id"] for row in rows if row["image_id"]]
    assert len(images) == len(set(images)) > 0
    assert {row["path"] for row in rows if "path" in row} == set(storage.list("data/images"))
