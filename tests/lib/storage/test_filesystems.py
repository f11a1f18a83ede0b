"""Any path or URL can be read, and many requests run concurrently."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from rudalle_lib.errors import StorageError
from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.storage.errors import translate_errors
from rudalle_lib.storage.filesystems import (
    MAX_CONCURRENT,
    MAX_TEXT_BYTES,
    connect,
    list_stamps,
    open_input,
    read_start,
    read_text,
    run_concurrently,
    url_of,
)
from rudalle_lib.storage.reading import ROWS, Reading
from rudalle_lib.storage.storage import Storage
from tests.support.web_servers import slow_server


def test_a_text_is_read_from_any_url(storage: Storage) -> None:
    storage.write_bytes("a.txt", "круг".encode())
    storage.write_bytes("b.txt", b"\xff\xff")
    assert read_text(storage.url("a.txt")) == "круг"
    with pytest.raises(StorageError, match=r"The letter .*b\.txt is not UTF-8 text"):
        read_text(storage.url("b.txt"), what="letter")


def test_a_file_that_is_too_large_for_a_text_is_rejected(storage: Storage) -> None:
    storage.write_bytes("a.txt", bytes(MAX_TEXT_BYTES + 1))
    with pytest.raises(
        StorageError, match=r"a\.txt is too large: expected at most 4,194,304 bytes"
    ):
        read_text(storage.url("a.txt"))


def test_an_input_can_be_read_in_pieces(storage: Storage) -> None:
    storage.write_bytes("a.bin", bytes(range(256)) * 100)
    with open_input(storage.url("a.bin")) as stream:
        stream.seek(-3, os.SEEK_END)
        assert stream.read() == bytes([253, 254, 255])


def test_other_kinds_of_url() -> None:
    storage = Storage("memory://bucket/x")
    storage.write_bytes("a", b"1")
    assert storage.list() == ["a"]
    with pytest.raises(StorageError, match=r"Cannot open s4://b: unknown kind of URL; expected"):
        Storage("s4://b")
    with pytest.raises(StorageError, match=r"s3:// names no bucket; expected s3://bucket/prefix"):
        Storage("s3://")


def test_work_runs_concurrently_in_order_and_with_a_limit() -> None:
    file_system, _ = connect("/")
    running: list[int] = []
    peaks: list[int] = []
    together = threading.Barrier(MAX_CONCURRENT)

    def work(item: int) -> int:
        running.append(item)
        together.wait(30)
        peaks.append(len(running))
        together.wait(30)
        running.remove(item)
        return 10 * item

    async def unused(item: int) -> int:
        raise AssertionError

    items = range(2 * MAX_CONCURRENT)
    assert run_concurrently(file_system, work, unused, items) == [10 * item for item in items]
    assert max(peaks) <= MAX_CONCURRENT


def test_work_in_an_event_loop_raises_the_first_error(s3_url: str) -> None:
    file_system, _ = connect(s3_url)

    def unused(item: int) -> int:
        raise AssertionError

    async def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    assert run_concurrently(file_system, unused, work, range(3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        run_concurrently(file_system, unused, work, range(5))


# --- names ---------------------------------------------------------------------------------------

ODD_NAMES = ("a#b", "a?b", "a%20b", "a b", "кот", "a+b", "a&b=c", "a@b", "a:b", "a'b\"c", "%", "#",
             "?", "[a]", "a*b", "~a", "ё;,$!()", "a{b}", "x" * 200)  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_of_files_are_taken_as_they_are(output_url: str, name: str) -> None:
    root = Storage(f"{output_url}/{name}")
    path = f"{name}/{name}.csv"
    root.write_bytes(path, b"prompt\n1\n")
    assert root.create(f"{name}/new", b"2")
    assert root.list() == sorted([path, f"{name}/new"])
    assert root.read_bytes(path) == b"prompt\n1\n" and root.size(path) == 9
    assert root.read_many([path, f"{name}/new"]) == [b"prompt\n1\n", b"2"]
    assert root.exists(path) and not root.exists(f"{name}/none")
    assert root.relative(root.url(path)) == path
    assert root.url() == root.public_path() == f"{output_url}/{name}"
    url = root.url(path)
    assert read_text(url) == "prompt\n1\n" and read_start(url, 6, "x", ROWS) == b"prompt"
    assert Storage(root.public_path()).list() == root.list()
    root.delete(path)
    with pytest.raises(StorageError) as raised:
        read_text(url)
    assert f"Cannot read the file {url}: it does not exist." == str(raised.value)


def test_a_file_url_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a b к#?%.txt").write_text("1")
    assert read_text((tmp_path / "a b к#?%.txt").as_uri()) == "1"
    assert read_text(f"file://localhost{tmp_path}/a%20b%20к%23%3F%25.txt") == "1"
    storage = Storage((tmp_path / "new folder").as_uri())
    storage.write_bytes("x", b"1")
    assert (tmp_path / "new folder" / "x").exists() and storage.url() == f"{tmp_path}/new folder"


@pytest.mark.parametrize(
    "url", ["a::b", "s3:/b/x", "htp://b/x", "s3//b", "file:/x", "zip://a::s3://b/c", "C:\\x"]
)
def test_a_misspelt_url_makes_no_local_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (Storage, read_text, lambda url: list(read_prompts(url))):
        with pytest.raises(StorageError) as raised:
            use(url)
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_version_of_a_file_is_no_folder() -> None:
    """s3fs would cut the names of all files below it, so that one overwrites the other."""
    with pytest.raises(StorageError, match="names a version of a file; expected a folder"):
        Storage("s3://bucket/folder?versionId=1")


@pytest.mark.parametrize(
    ("url", "extra"),
    [("gs://bucket/x", "gcs"), ("abfs://container@account.dfs.core.windows.net/x", "azure")],
)
def test_a_package_that_is_missing_is_the_only_objection(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container of an Azure account is no password."""

    def missing(scheme: str) -> None:
        raise ImportError(f"no package for {scheme}")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    scheme = url.partition(":")[0]
    expected = rf"for {scheme}:// is not installed .*pip install 'rudalle-flows\[{extra}\]'"
    with pytest.raises(StorageError, match=expected):
        Storage(url)


def test_a_url_on_azure_names_its_account() -> None:
    """Otherwise the command that replays an image would ask another account, or none."""

    class Azure:
        protocol = ("abfs", "az", "abfss")
        account_name = "account"

    assert url_of(Azure(), "container/a/b") == "abfs://container@account.dfs.core.windows.net/a/b"
    assert url_of(Azure(), "container") == "abfs://container@account.dfs.core.windows.net"


def test_an_s3_server_that_says_nothing_ends_in_time(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    for said, per_second in ((b"", 0.0), (head, 20.0)):
        with slow_server(said, per_second) as silent:
            monkeypatch.setenv("AWS_ENDPOINT_URL", silent)
            for use in (read_start_of, open_and_read):
                started = time.monotonic()
                with pytest.raises(StorageError, match="does not answer|in time|no answer|closed"):
                    use(f"{s3_url}/a.csv", Reading(total_seconds=1.0))
                assert time.monotonic() - started < 5


def read_start_of(url: str, rules: Reading) -> None:
    read_start(url, 10, "image prompt", rules)


def open_and_read(url: str, rules: Reading) -> None:
    with translate_errors("read the table", url), open_input(url, "table", rules) as stream:
        stream.read()


@pytest.mark.parametrize("url", ["/", "//", "file:///"])
def test_the_root_of_the_file_system_is_not_the_working_directory(url: str) -> None:
    with pytest.raises(StorageError, match="root of the file system; expected a folder below it"):
        Storage(url)
    assert connect(url)[1] == "/"


def test_a_stamp_changes_with_its_file_alone(storage: Storage) -> None:
    assert list_stamps(storage.url("shards")) == {}
    for name in ("a", "b"):
        storage.write_bytes(f"shards/{name}.json", b"1")
    storage.write_bytes("other/c.json", b"1")
    before = list_stamps(storage.url("shards"))
    assert sorted(before) == ["a.json", "b.json"]
    assert list_stamps(storage.url("shards")) == before
    storage.write_bytes("shards/b.json", b"2")
    after = list_stamps(storage.url("shards"))
    assert after["a.json"] == before["a.json"]
    assert after["b.json"] != before["b.json"]
