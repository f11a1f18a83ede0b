"""Google Cloud Storage and Azure, by emulators: what a run needs of a storage."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from rudalle_lib.dataset.lease import acquire, hold
from rudalle_lib.dataset.lease_files import read_lease
from rudalle_lib.errors import LeaseError, StorageError
from rudalle_lib.storage.probes import check_writable, creates_exclusively
from rudalle_lib.storage.storage import Storage
from tests.support.cloud_servers import BUCKET, azure_server, azurite, google_server

SERVERS = {"gs": google_server, "az": azure_server}


@pytest.fixture(scope="module", params=["gs", "az"])
def cloud(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The scheme of a storage whose server runs."""
    if request.param == "az" and azurite() is None:
        pytest.skip("azurite is not installed; make azurite does so")
    with (
        SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield request.param


@pytest.fixture
def storage(cloud: str) -> Storage:
    """A folder that no other test uses."""
    return Storage(f"{cloud}://{BUCKET}/test-{uuid.uuid4().hex[:8]}")


def test_files_are_written_listed_read_and_deleted(storage: Storage) -> None:
    check_writable(storage)
    assert storage.list() == []
    storage.write_bytes("a/b c#1.json", b"1")
    storage.create_many({"m/1": b"1", "m/2": b"2"})
    storage.create_many({"m/1": b"1"})  # the answer to the first request was lost
    assert storage.list() == ["a/b c#1.json", "m/1", "m/2"]
    assert storage.entries() == ["a", "m"]
    assert storage.read_many(["m/2", "m/1"]) == [b"2", b"1"]
    assert storage.size("m/1") == 1 and storage.modified("m/1") is not None
    assert storage.relative(storage.url("m/1")) == "m/1"
    assert Storage(storage.url()).read_bytes("m/1") == b"1"
    assert storage.read_bytes_if_any("m/3") is None
    for _ in range(2):
        storage.delete("m/1")
    assert storage.list("m") == ["m/2"]


def test_what_another_worker_writes_is_listed_at_once(storage: Storage) -> None:
    other = Storage(storage.url(), {"skip_instance_cache": True})
    for number in range(3):
        other.write_bytes(f"shards/{number:05d}.json", b"{}")
        assert len(storage.list("shards")) == number + 1


def test_one_run_at_a_time(cloud: str, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rudalle_lib.dataset.lease.SETTLING_SECONDS", 0.0)
    assert creates_exclusively(storage) == (cloud == "az")  # Google's emulator cannot
    with hold(storage, 60) as holding:
        assert read_lease(storage) == holding.lease
        with pytest.raises(LeaseError, match="Another run writes to"):
            acquire(storage, 60)
    assert acquire(storage, 60).number == 2


def test_a_bucket_that_does_not_exist_is_an_error(cloud: str) -> None:
    with pytest.raises(StorageError):
        check_writable(Storage(f"{cloud}://no-such-bucket/folder"))
