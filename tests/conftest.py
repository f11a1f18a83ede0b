"""Parts that many tests share: a real S3 server, and outputs on it and on the local disk."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rudalle_lib.storage import Storage
from tests.s3_server import S3Server

# The networks of the tests are tiny: more threads only wait for each other. Read when torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One SeaweedFS server for the whole session; it takes some ten seconds to start."""
    with S3Server.start() as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL on the S3 server that no other test uses; the environment gives access to it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{s3_server.url}/test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", "s3"])
def output_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output that does not exist yet, in a local folder and on the S3 server."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    return str(tmp_path / "output")


@pytest.fixture
def storage(output_url: str) -> Storage:
    """Storage on `output_url`."""
    return Storage(output_url)
