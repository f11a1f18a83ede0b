"""A guard is called before every change below its folder, and before no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.errors import LeaseLostError, StorageError
from rudalle_lib.storage.guards import guarding, replace_version
from rudalle_lib.storage.storage import Storage


def write_in_pieces(storage: Storage) -> None:
    with storage.writing("new") as stream:
        stream.write(b"1")


CHANGES: dict[str, Callable[[Storage], object]] = {
    "write": lambda storage: storage.write_bytes("old", b"2"),
    "create": lambda storage: storage.create("new", b"1"),
    "create many": lambda storage: storage.create_many({"new": b"1"}),
    "commit": lambda storage: storage.commit("old", b"2"),
    "write in pieces": write_in_pieces,
    "delete": lambda storage: storage.delete("old"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_guard_prevents_every_change(
    storage: Storage, tmp_path: Path, change: Callable[[Storage], object]
) -> None:
    def lost() -> None:
        raise LeaseLostError("lost")

    storage.write_bytes("old", b"1")
    with guarding(storage.url(), lost):
        with pytest.raises(LeaseLostError):
            change(storage)
        assert storage.list() == ["old"] and storage.read_bytes("old") == b"1"
        change(Storage(str(tmp_path / "another")))
    change(storage)
    assert not list(tmp_path.rglob(".tmp/*"))


def test_the_guard_that_was_set_last_counts(tmp_path: Path) -> None:
    called: list[int] = []
    storage = Storage(str(tmp_path))
    with guarding(storage.url(), lambda: called.append(1)):
        with guarding(storage.url(), lambda: called.append(2)):
            storage.write_bytes("a", b"1")
        storage.write_bytes("a", b"1")
    storage.write_bytes("a", b"1")
    assert called == [2, 1]


def put(storage: Storage, content: bytes) -> Callable[[], None]:
    """What another process does between the check of a guard and the request after it."""
    path = f"{storage._root}/README.md"
    return lambda: storage._file_system.pipe_file(path, content)


@pytest.mark.parametrize("output_url", ["s3"], indirect=True)
@pytest.mark.parametrize("before", [b"before", None])
def test_a_request_that_arrives_after_another_process_has_written_changes_nothing(
    storage: Storage, before: bytes | None
) -> None:
    if before is not None:
        storage.write_bytes("README.md", before)
    version = storage.version("README.md")
    assert (version == "") == (before is None)
    with (
        guarding(storage.url(), put(storage, b"another")),
        pytest.raises(StorageError, match=r"README\.md was written by another run"),
    ):
        storage.write_bytes("README.md", b"late", version)
    assert storage.read_bytes("README.md") == b"another"
    with guarding(storage.url(), put(storage, b"same")):  # as if an answer had been lost
        storage.write_bytes("README.md", b"same", version)


def test_a_version_is_replaced_on_every_storage(storage: Storage) -> None:
    for content in (b"first", b"second"):
        storage.write_bytes("README.md", content, storage.version("README.md"))
        storage.commit("run.json", content, storage.version("run.json"))
        with storage.writing("large", storage.version("large")) as stream:
            stream.write(content)
        assert {storage.read_bytes(path) for path in storage.list()} == {content}


class Server:
    """An S3 server that answers a condition with an error."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.written: list[bytes] = []

    def pipe_file(self, path: str, content: bytes, **headers: Any) -> None:
        if {"IfMatch", "IfNoneMatch"} & headers.keys():
            error = OSError("refused")
            error.response = {  # type: ignore[attr-defined]
                "ResponseMetadata": {"HTTPStatusCode": self.status}
            }
            raise error
        self.written.append(content)


def test_a_server_that_knows_no_conditions_gets_none() -> None:
    old, new, broken = Server(501), Server(412), Server(500)
    assert replace_version(old, "bucket/a", "1", b"x", {}) and old.written == [b"x"]
    assert not replace_version(new, "bucket/a", "1", b"x", {}) and new.written == []
    with pytest.raises(OSError, match="refused"):
        replace_version(broken, "bucket/a", "1", b"x", {})
