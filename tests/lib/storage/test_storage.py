"""Files appear whole or not at all, in a local folder and on a real S3 server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from rudalle_lib.errors import DamagedError, StorageError
from rudalle_lib.storage.probes import check_writable
from rudalle_lib.storage.storage import Storage


def test_bytes_are_written_read_listed_and_deleted(storage: Storage) -> None:
    storage.write_bytes("a/b/one.bin", b"1")
    storage.write_bytes("a/two.bin", b"22")
    storage.write_bytes("a/two.bin", b"222")
    assert storage.read_bytes("a/b/one.bin") == b"1"
    assert storage.read_bytes("a/two.bin") == b"222"
    assert storage.size("a/two.bin") == 3
    assert storage.list() == ["a/b/one.bin", "a/two.bin"]
    assert storage.list("a/b") == ["a/b/one.bin"]
    assert storage.exists("a/two.bin") and not storage.exists("a/three.bin")
    storage.delete("a/two.bin")
    storage.delete("a/two.bin")
    assert not storage.exists("a/two.bin")


def test_missing_files(storage: Storage) -> None:
    assert storage.list("nothing") == []
    assert storage.read_bytes_if_any("nothing") is None
    assert storage.read_metadata("nothing.parquet") is None
    with pytest.raises(StorageError, match=r"Cannot read .*nothing: it does not exist\."):
        storage.read_bytes("nothing")


def test_many_files_are_read_in_order(storage: Storage) -> None:
    files = {f"m/{n}.json": f"{n}".encode() for n in range(70)}
    storage.create_many(files)
    assert storage.list("m") == sorted(files)
    assert storage.read_many(["m/69.json", "m/3.json", "m/0.json"]) == [b"69", b"3", b"0"]
    assert storage.read_many([]) == []


@pytest.mark.parametrize("output_url", ["local", "s3"], indirect=True)  # rclone cannot lock
def test_one_of_many_that_exists_must_be_equal(storage: Storage) -> None:
    storage.create_many({"a": b"1", "b": b"2"})
    storage.create_many({"b": b"2", "c": b"3"})  # as after the answer to a request was lost
    with pytest.raises(StorageError, match=r"/b was written by another run in the meantime"):
        storage.create_many({"d": b"4", "b": b"other"})
    assert storage.read_many(["a", "b", "c"]) == [b"1", b"2", b"3"]


def test_the_missing_file_of_many_is_named(storage: Storage) -> None:
    storage.create_many({"a": b"1", "c": b"3"})
    with pytest.raises(StorageError, match=r"Cannot read [^ ]*/b: it does not exist\.") as error:
        storage.read_many(["a", "b", "c"])
    assert storage.public_path("b") in str(error.value)


def test_the_file_of_many_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(StorageError, match=r"Cannot read .*/b: it is a folder"):
        Storage(str(tmp_path)).create_many({"a": b"1", "b": b"2", "c": b"3"})


def test_a_table_keeps_its_metadata(storage: Storage) -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    content = storage.write_table("t/0.parquet", table, {"fingerprint": "abc", "Größe": "ü"})
    assert storage.read_bytes("t/0.parquet") == content
    assert storage.read_metadata("t/0.parquet") == {"fingerprint": "abc", "Größe": "ü"}
    assert storage.read_table("t/0.parquet").equals(table)
    assert storage.read_table("t/0.parquet", ["b"]).column_names == ["b"]


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not Parquet at all", None])
def test_a_damaged_table_counts_as_absent(storage: Storage, damage: bytes | None) -> None:
    whole = storage.write_table("t.parquet", pa.table({"a": [1]}), {"fingerprint": "abc"})
    storage.write_bytes("t.parquet", whole[:-30] if damage is None else damage)
    assert storage.read_metadata("t.parquet") is None
    with pytest.raises(StorageError, match=r"t\.parquet(: it is not a whole| is damaged)"):
        storage.read_table("t.parquet")


def test_any_changed_byte_of_a_table_is_detected(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    whole = storage.write_table("t.parquet", table, {"fingerprint": "abc"})
    for place in range(len(whole)):
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        storage.write_bytes("t.parquet", flipped)
        try:
            read = storage.read_table("t.parquet")
        except DamagedError:
            continue
        raise AssertionError(f"byte {place} of {len(whole)}: {read}")


def test_urls_and_paths_convert_to_each_other(storage: Storage, output_url: str) -> None:
    assert storage.url() == output_url
    assert storage.url("a/b") == f"{output_url}/a/b"
    assert storage.relative(storage.url("a/b")) == "a/b"
    assert Storage(output_url + "/").url("a") == storage.url("a")
    with pytest.raises(StorageError, match="is not in"):
        storage.relative("/elsewhere/a")


def test_a_local_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("runs/demo").url("a") == f"{tmp_path}/runs/demo/a"
    assert Storage(f"file://{tmp_path}/x").url("a") == f"{tmp_path}/x/a"


@pytest.mark.parametrize("path", ["../out", "a/../../out", "/etc/passwd"])
def test_no_path_leaves_the_root(storage: Storage, path: str) -> None:
    with pytest.raises(StorageError, match="must stay below"):
        storage.write_bytes(path, b"")


def test_check_writable_leaves_no_files(storage: Storage) -> None:
    check_writable(storage)
    assert storage.list() == []


def test_a_file_that_is_written_in_pieces_appears_at_the_end(storage: Storage) -> None:
    with storage.writing("a/b.bin") as stream:
        stream.write(b"12")
        stream.write(b"3")
        assert storage.list() == []
    assert storage.read_bytes("a/b.bin") == b"123"


def test_a_failed_writer_leaves_the_old_file(storage: Storage) -> None:
    storage.write_bytes("a.bin", b"old")
    full = pytest.raises(StorageError, match=r"Cannot write .*a\.bin: the disk is full")
    with full, storage.writing("a.bin") as stream:
        stream.write(b"new")
        raise OSError(28, "No space left on device")
    assert storage.read_bytes("a.bin") == b"old"
    assert storage.list() == ["a.bin"]


def test_a_large_object_is_uploaded_in_parts(s3_url: str) -> None:
    storage = Storage(s3_url)
    content = os.urandom(2**20) * 101
    storage.write_bytes("large.bin", content)
    assert storage.read_bytes("large.bin") == content


def test_only_old_temporary_files_of_a_local_folder_are_swept(storage: Storage) -> None:
    old, recent = (f".tmp/{32 * digit}" for digit in "ab")
    storage.create_many({old: b"half", recent: b"half"})
    local = Path(storage.url()).is_dir()
    if local:
        os.utime(storage.url(old), (1, 1))
    storage.sweep_temporary(60)
    assert storage.exists(recent)
    assert storage.exists(old) is not local
    assert storage.list() == []


@pytest.mark.parametrize(
    "path",
    ["README.md", "data/images/00000/a.png", "shards/00000.json", "stages/x", "a/b/c"],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_links_below_the_root_are_never_followed(tmp_path: Path, path: str, depth: int) -> None:
    """Whoever puts one there decides otherwise what a run overwrites and deletes."""
    theirs, output = tmp_path / "theirs", tmp_path / "output"
    theirs.mkdir()
    parts = Path(path).parts
    link = output.joinpath(*parts[: max(1, len(parts) - depth)])
    rest = Path(*parts[len(link.relative_to(output).parts) :])
    target = theirs / rest if rest.parts else theirs / "file"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"mine")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(theirs if rest.parts else target)
    storage = Storage(str(output))
    attempts: list[Callable[[], object]] = [
        lambda: storage.write_bytes(path, b"x"),
        lambda: storage.create(path, b"x"),
        lambda: storage.create_many({path: b"x"}),
        lambda: storage.commit(path, b"x"),
        lambda: storage.delete(path),
        lambda: storage.read_bytes(path),
        lambda: storage.writing(path).__enter__(),
    ]
    for attempt in attempts:
        with pytest.raises(StorageError, match="is a symbolic link"):
            attempt()
    assert target.read_bytes() == b"mine"
    assert storage.list() in ([], [link.relative_to(output).as_posix()])


def test_a_link_instead_of_the_temporary_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / ".tmp").symlink_to(tmp_path / "theirs")
    with pytest.raises(StorageError, match="is a symbolic link"):
        Storage(str(tmp_path / "output")).write_bytes("a", b"x")
    assert list((tmp_path / "theirs").iterdir()) == []


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "disk")
    storage = Storage(str(tmp_path / "output"))
    storage.write_bytes("a/b", b"x")
    assert storage.list() == ["a/b"] and (tmp_path / "disk/a/b").read_bytes() == b"x"


def test_folder_markers_of_other_tools_are_no_files(s3_url: str) -> None:
    """Some S3 tools create empty objects whose names end in a slash."""
    storage = Storage(s3_url)
    storage.write_bytes("shards/00000.json", b"{}")
    for marker in ("/", "/plan/"):
        storage._file_system.pipe_file(storage._root + marker, b"")
    storage._file_system.pipe_file(storage._root + "/shards/", b"")
    storage._file_system.invalidate_cache()
    assert storage.list() == ["shards/00000.json"]
    assert storage.list("plan") == []
    assert set(storage.entries()) <= {"plan", "shards"}
