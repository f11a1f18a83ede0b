"""Fixtures of many tests: a real S3 server, and outputs on it and on the local disk."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from rudalle_lib.storage.storage import Storage
from tests.support.s3_server import S3Server

# The networks of the tests are tiny: more threads only wait for each other. Must precede torch.
os.environ.setdefault("OMP_NUM_THREADS", "2")

# Programs that are started in the background ignore signals, and so does all that they start: runs
# would not get those that tests send them.
for _signal, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _handler)

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for others.
settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One SeaweedFS server for the whole session; it takes about ten seconds to start."""
    with S3Server.start() as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[S3Server]:
    """Another S3 server, of another maker, which ignores `If-None-Match`."""
    with S3Server.start(maker="rclone") as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL on the S3 server that no other test uses; credentials are in the environment."""
    return _new_url(s3_server, monkeypatch)


@pytest.fixture
def rclone_url(rclone_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same on the S3 server of another maker."""
    return _new_url(rclone_server, monkeypatch)


def _new_url(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{server.url}/test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", "s3", "rclone"])
def output_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output that does not exist yet, in a local folder or on one of two S3 servers."""
    if request.param != "local":
        return str(request.getfixturevalue(f"{request.param}_url"))
    return str(tmp_path / "output")


@pytest.fixture
def storage(output_url: str) -> Storage:
    """Storage on `output_url`."""
    return Storage(output_url)


@pytest.fixture(scope="session")
def tiny_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights folder of tiny random models, one per stage."""
    from tests.support.tiny_stack import write_tiny_stack  # imports torch

    return write_tiny_stack(tmp_path_factory.mktemp("weights"))
