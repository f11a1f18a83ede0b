"""A finished run of several shards, and a stand-in for the hub."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rudalle_lib.config.run import RunConfig
from tests.support.finished_run import finished_below
from tests.support.hub_server import TOKEN, HubServer, hub_server


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of three shards with eight images."""
    return finished_below(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub that this process talks to; it has no Xet, so uploads go through LFS."""
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
