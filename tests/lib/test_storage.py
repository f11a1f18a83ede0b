"""Objects appear whole or not at all, on a local folder and on a real S3 server alike; what a
storage refuses is said in one sentence without secrets.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from rudalle_lib.errors import DamagedError, StorageError
from rudalle_lib.file_systems import open_input, read_text
from rudalle_lib.storage import Storage
from rudalle_lib.storage_errors import clear_errors, masked, public_url
from tests.s3_server import S3Server


def refusal(url: str) -> str:
    with pytest.raises(StorageError) as error:
        Storage(url).check_writable()
    message = str(error.value)
    assert "\n" not in message
    assert error.value.__cause__ is None and error.value.__suppress_context__
    return message


# --- both kinds ----------------------------------------------------------------------------------


def test_bytes_come_back(storage: Storage) -> None:
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


def test_what_is_not_there(storage: Storage) -> None:
    assert storage.list("nothing") == []
    assert storage.read_bytes_if_any("nothing") is None
    assert storage.read_metadata("nothing.parquet") is None
    with pytest.raises(StorageError, match=r"Cannot read .*nothing: it does not exist\."):
        storage.read_bytes("nothing")


def test_many_files_come_back_in_order(storage: Storage) -> None:
    files = {f"m/{n}.json": f"{n}".encode() for n in range(70)}
    storage.write_many(files)
    storage.write_many({"m/3.json": b"new"})
    assert storage.list("m") == sorted(files)
    assert storage.read_many(["m/69.json", "m/3.json", "m/0.json"]) == [b"69", b"new", b"0"]
    assert storage.read_many([]) == []


def test_of_many_files_the_missing_one_is_named(storage: Storage) -> None:
    storage.write_many({"a": b"1", "c": b"3"})
    with pytest.raises(StorageError, match=r"Cannot read [^ ]*/b: it does not exist\.") as error:
        storage.read_many(["a", "b", "c"])
    assert storage.public_path("b") in str(error.value)


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


def test_every_changed_byte_of_a_table_shows(tmp_path: Path) -> None:
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


def test_urls_and_paths_are_two_names_of_one_thing(storage: Storage, output_url: str) -> None:
    assert storage.url() == output_url
    assert storage.url("a/b") == f"{output_url}/a/b"
    assert storage.relative(storage.url("a/b")) == "a/b"
    assert Storage(output_url + "/").url("a") == storage.url("a")
    with pytest.raises(StorageError, match="does not lie in"):
        storage.relative("/elsewhere/a")


@pytest.mark.parametrize("path", ["../out", "a/../../out", "/etc/passwd"])
def test_no_path_leaves_the_root(storage: Storage, path: str) -> None:
    with pytest.raises(StorageError, match="must stay below"):
        storage.write_bytes(path, b"")


def test_a_check_leaves_nothing_behind(storage: Storage) -> None:
    storage.check_writable()
    assert storage.list() == []


def test_a_text_is_read_from_any_url(storage: Storage) -> None:
    storage.write_bytes("a.txt", "круг".encode())
    storage.write_bytes("b.txt", b"\xff\xff")
    assert read_text(storage.url("a.txt")) == "круг"
    with pytest.raises(StorageError, match=r"The letter .*b\.txt is not UTF-8 text"):
        read_text(storage.url("b.txt"), what="letter")


def test_an_input_can_be_read_in_pieces(storage: Storage) -> None:
    storage.write_bytes("a.bin", bytes(range(256)) * 100)
    with open_input(storage.url("a.bin")) as stream:
        stream.seek(-3, os.SEEK_END)
        assert stream.read() == bytes([253, 254, 255])


def test_a_file_that_is_written_in_pieces_appears_at_the_end(storage: Storage) -> None:
    with storage.writing("a/b.bin") as stream:
        stream.write(b"12")
        stream.write(b"3")
        assert storage.list() == []
    assert storage.read_bytes("a/b.bin") == b"123"


def test_nothing_appears_of_a_file_whose_writer_fails(storage: Storage) -> None:
    storage.write_bytes("a.bin", b"old")
    full = pytest.raises(StorageError, match=r"Cannot write .*a\.bin: the disk is full")
    with full, storage.writing("a.bin") as stream:
        stream.write(b"new")
        raise OSError(28, "No space left on device")
    assert storage.read_bytes("a.bin") == b"old"
    assert storage.list() == ["a.bin"]


# --- the local disk ------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a.bin", b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StorageError, match="the disk is full"):
        storage.write_bytes("a.bin", b"new")
    assert storage.read_bytes("a.bin") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.bin"]


def test_what_a_killed_writer_left_is_not_listed_and_can_be_deleted(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("a.bin", b"1")
    (tmp_path / ".tmp" / "0123").write_bytes(b"half")
    assert storage.list() == ["a.bin"]
    storage.delete_temporary()
    assert not (tmp_path / ".tmp").exists()


def test_a_local_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("runs/demo").url("a") == f"{tmp_path}/runs/demo/a"
    assert Storage(f"file://{tmp_path}/x").url("a") == f"{tmp_path}/x/a"


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "a file is in the way where a folder was expected" in refusal(str(tmp_path / "file"))


def test_of_many_files_the_one_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(StorageError, match=r"Cannot write .*/b: it is a folder"):
        Storage(str(tmp_path)).write_many({"a": b"1", "b": b"2", "c": b"3"})


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may write anywhere, so be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_folder_that_may_not_be_written(tmp_path: Path, nobody: None) -> None:
    with contextlib.suppress(PermissionError):
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "permission denied" in refusal(str(tmp_path / "output"))


def test_a_disk_that_is_nearly_full_is_known_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rudalle_lib.storage.MIN_FREE_BYTES", 2**60)
    assert "the disk is full; free some space" in refusal(str(tmp_path / "output"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_kinds_of_url() -> None:
    storage = Storage("memory://bucket/x")
    storage.write_bytes("a", b"1")
    assert storage.list() == ["a"]
    with pytest.raises(StorageError, match=r"Cannot open s4://b: unknown kind of URL; expected"):
        Storage("s4://b")
    with pytest.raises(StorageError, match=r"s3:// names no bucket; expected s3://bucket/prefix"):
        Storage("s3://")


# --- S3 ------------------------------------------------------------------------------------------


def test_a_large_object_is_uploaded_in_parts(s3_url: str) -> None:
    storage = Storage(s3_url)
    content = os.urandom(2**20) * 101
    storage.write_bytes("large.bin", content)
    assert storage.read_bytes("large.bin") == content


def test_a_bucket_that_does_not_exist(s3_url: str, s3_server: S3Server) -> None:
    assert refusal("s3://nowhere/x") == (
        "Cannot write to s3://nowhere/x: there is no bucket 'nowhere' on the S3 server at "
        f"{s3_server.endpoint}; create it or correct the URL."
    )


def test_many_files_into_no_bucket(s3_url: str, s3_server: S3Server) -> None:
    with pytest.raises(StorageError, match=r"write s3://none/\w+: there is no bucket 'none'"):
        Storage("s3://none").write_many({f"f{n}": b"" for n in range(40)})


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(s3_url: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "WRONGWRONGWRONG")
    message = refusal(s3_url)
    assert "does not accept the credentials; check AWS_ACCESS_KEY_ID" in message
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name] not in message


def test_no_credentials(s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "no S3 credentials were found; set AWS_ACCESS_KEY_ID" in refusal(s3_url)


def test_a_wrong_endpoint(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert refusal(s3_url) == (
        f"Cannot write to {s3_url}: the S3 server at http://127.0.0.1:9 does not answer; check "
        "AWS_ENDPOINT_URL and the network."
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert "AWS_ENDPOINT_URL is not a URL" in refusal(s3_url)


class _WebSite(BaseHTTPRequestHandler):
    """Answers every request with a page, as a web server, a login page or a proxy does."""

    protocol_version = "HTTP/1.1"
    status = 200

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        page = b"<!doctype html><html><body><h1>Welcome</h1></body></html>"
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_GET = do_PUT = do_POST = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("status", [200, 400, 403, 404, 405, 502])
def test_an_endpoint_that_is_a_web_site(
    s3_url: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_WebSite, "status", status)
    with ThreadingHTTPServer(("127.0.0.1", 0), _WebSite) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert refusal(s3_url) == (
            f"Cannot write to {s3_url}: the S3 server at {endpoint} answered with a web page; is "
            "it an S3 server? Check AWS_ENDPOINT_URL."
        )
        server.shutdown()


# --- secrets -------------------------------------------------------------------------------------


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert masked("the key hunter2 is wrong") == "the key *** is wrong"
    with (
        pytest.raises(StorageError, match=r"^Cannot read s3://b/x: signed with \*\*\*\.$"),
        clear_errors("read", "s3://user:hunter2@b/x?sig=hunter2"),
    ):
        raise RuntimeError("signed with hunter2.")


def test_a_public_url_has_no_credentials() -> None:
    assert public_url("https://me:pw@host/a.csv?sig=1#x") == "https://host/a.csv"
    assert public_url("s3://bucket/a b") == "s3://bucket/a b"
    assert public_url("/a/b?c#d") == "/a/b?c#d"
