"""Files are read without trust: what is not as described is a fault, and not an exception."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rudalle_lib.checks.faults import Audit, Fault, is_as_described, read_content, read_sealed
from rudalle_lib.schema.records import DataFile
from rudalle_lib.storage.storage import Storage

FILE = DataFile.of("data/a.png", b"content")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_a_file_is_read_if_it_is_as_described(storage: Storage) -> None:
    audit = Audit()
    storage.write_bytes(FILE.path, b"content")
    assert read_content(storage, FILE, 3, audit) == b"content"
    assert audit.faults == [] and audit.checked == {"bytes": 7}


def test_a_missing_file_is_a_fault_of_its_shard(storage: Storage) -> None:
    audit = Audit()
    assert read_content(storage, FILE, 3, audit) is None
    assert audit.faults == [Fault("missing", FILE.path, "the file does not exist", 3)]


@pytest.mark.parametrize("instead", ["folder", "link", "loop"])
def test_something_else_in_the_place_of_a_file_is_a_fault(
    storage: Storage, tmp_path: Path, instead: str
) -> None:
    place, audit = tmp_path / FILE.path, Audit()
    place.parent.mkdir()
    if instead == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "other" if instead == "link" else place.name)
    assert read_content(storage, FILE, 3, audit) is None
    (fault,) = audit.faults
    assert (fault.kind, fault.path, fault.shard) == ("damaged", FILE.path, 3)
    assert str(place) in fault.detail and ("is a folder" in fault.detail or "link" in fault.detail)


@pytest.mark.parametrize("content", [b"", b"Content", b"content and more"])
def test_a_changed_file_is_a_fault_with_both_sizes_and_digests(
    storage: Storage, content: bytes
) -> None:
    audit = Audit()
    storage.write_bytes(FILE.path, content)
    assert read_content(storage, FILE, 3, audit) is None
    (fault,) = audit.faults
    assert (fault.kind, fault.path, fault.shard) == ("damaged", FILE.path, 3)
    expected, found = f"{FILE.sha256[:12]}", DataFile.of("", content).sha256[:12]
    assert fault.detail == (
        f"expected 7 bytes with SHA-256 {expected}..., found {len(content)} with {found}..."
    )
    assert not is_as_described(content, FILE, 3, audit)


def test_a_sealed_table_is_read_if_it_is_intact(storage: Storage) -> None:
    audit, path = Audit(), "plan/00003.parquet"
    content = storage.write_table(path, pa.table({"a": [1]}))
    table = read_sealed(storage, path, audit, 3)
    assert table is not None and table.to_pylist() == [{"a": 1}]
    storage.write_bytes(path, content[:-1])
    assert read_sealed(storage, path, audit, None) is None
    storage.delete(path)
    assert read_sealed(storage, path, audit, 3) is None
    kinds = [(fault.kind, fault.path, fault.shard) for fault in audit.faults]
    assert kinds == [("damaged", path, None), ("damaged", path, 3)]
