"""Tiny models and one real Prefect server for all tests of the flow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.options import PACKAGED
from flows.prefect_settings import set_up_prefect
from tests.support.tiny_run import TABLE
from tests.support.tiny_stack import write_tiny_stack

set_up_prefect(os.environ)  # before prefect is imported


@pytest.fixture(scope="session")
def tiny_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tiny random models."""
    return write_tiny_stack(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """An embedded Prefect server with its own database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=240):
        yield


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompt table of these tests."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def settings(tiny_stack: Path, table: Path) -> dict[str, object]:
    """Settings of a small run, without the output."""
    return {
        "name": "tiny",
        "seed": 3,
        "prompts": {"uri": str(table), "shard_size": 2},
        "weights": {"folder": str(tiny_stack), "offline": True},
        "runtime": {"devices": "cpu", "threads": 1},
        "generate": {"images": 4, "batch_size": 8},
        "score": {"keep_best": 2},
        "publish": {"contact_sheet": 4},
    }


@pytest.fixture
def ray_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers import this tree, and have time to start on a busy machine."""
    monkeypatch.setenv("PYTHONPATH", str(PACKAGED.parent))
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "600")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "60000")
