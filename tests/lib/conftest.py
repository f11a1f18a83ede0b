"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rudalle_lib.config.run import RunConfig
from tests.support.finished_run import finished_below
from tests.support.tiny_marian import write_tiny_marian


@pytest.fixture(scope="session")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights folder of a tiny translator."""
    return write_tiny_marian(tmp_path_factory.mktemp("marian"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run, whose output no test may change."""
    return finished_below(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def config(finished: RunConfig, tmp_path: Path) -> RunConfig:
    """The same run with an output that the test may change."""
    shutil.copytree(finished.output, tmp_path / "out")
    return finished.model_copy(update={"output": str(tmp_path / "out")})
