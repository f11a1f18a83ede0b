"""Web servers of every kind are read in bounded time, and only those that are allowed are asked."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rudalle_lib.errors import StorageError, TransientError
from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.storage import hosts, http_files
from rudalle_lib.storage.bounds import INPUTS
from rudalle_lib.storage.filesystems import open_input, read_start, read_text
from rudalle_lib.storage.reading import OWN, ROWS, TABLE, Reading
from tests.support.web_servers import WebServer, slow_server, web_server

CONTENT = bytes(range(256)) * 100
QUICK = Reading(connect_seconds=1.0, read_seconds=1.0, total_seconds=1.5)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server() as running:
        running.files["/a.bin"] = CONTENT
        yield running


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_files, "BLOCK", 4096)
    monkeypatch.setattr("rudalle_lib.storage.filesystems.READ_BUFFER", 512)


def read(url: str, rules: Reading = TABLE) -> bytes:
    with open_input(url, rules=rules) as stream:
        return stream.read()


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 25_600])
def test_a_file_can_be_read_anywhere(server: WebServer, ranges: bool, size: int) -> None:
    server.ranges = ranges
    server.files["/a.bin"] = CONTENT[:size]
    with open_input(f"{server.url}/a.bin") as stream:
        assert stream.seek(0, os.SEEK_END) == size
        stream.seek(max(0, size - 3))
        assert stream.read() == CONTENT[:size][-3:]
        stream.seek(0)
        assert stream.read(5000) == CONTENT[:size][:5000]
        assert stream.read() == CONTENT[:size][5000:]
        assert stream.read() == b""


def test_only_the_parts_that_are_needed_are_requested(server: WebServer) -> None:
    with open_input(f"{server.url}/a.bin") as stream:
        stream.seek(-10, os.SEEK_END)
        assert stream.read() == CONTENT[-10:]
    assert [wanted for _, _, wanted in server.requests] == ["bytes=0-4095", "bytes=24576-28671"]


def test_a_file_that_changes_while_it_is_read_is_an_error(server: WebServer) -> None:
    with open_input(f"{server.url}/a.bin") as stream:
        stream.read(10)
        server.files["/a.bin"] = CONTENT[:-1]
        with pytest.raises(OSError, match="changed on the server"):
            stream.read()


def test_an_endless_download_is_bounded(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ranges = False
    monkeypatch.setattr(http_files, "MAX_DOWNLOAD", 8192)
    with open_input(f"{server.url}/a.bin") as stream:
        assert stream.read(100) == CONTENT[:100]
        with pytest.raises(OSError, match="knows no ranges, and the file is larger than 8,192"):
            stream.read()


def test_closing_ends_a_download_and_its_thread(server: WebServer) -> None:
    server.ranges = False
    server.files["/a.bin"] = bytes(64 * 2**20)
    file = http_files.HttpFile(f"{server.url}/a.bin", TABLE)
    download = file._download
    assert download is not None and file.read(10) == bytes(10)
    file.close()
    deadline = time.monotonic() + 10
    while not download._file.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert download._file.closed and download._size < 64 * 2**20


@pytest.mark.parametrize(
    ("path", "words"),
    [("none.bin", r"Cannot read the file http://127.0.0.1:\d+/none.bin: it does not exist\.$")],
)
def test_a_missing_file_is_named(server: WebServer, path: str, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        read(f"{server.url}/{path}?token=secret")


def test_answers_that_fail_and_break_off(server: WebServer) -> None:
    server.query = "right"
    with pytest.raises(StorageError, match="answered 403 Forbidden; a signature may be") as one:
        read(f"{server.url}/a.bin?token=secret")
    assert "secret" not in str(one.value)
    server.query, server.cut = None, True
    with pytest.raises(TransientError):
        read(f"{server.url}/a.bin")


def test_names_and_queries_reach_the_server_as_they_are(server: WebServer) -> None:
    server.files["/%D0%BA%20a%2Bb%25.bin"] = b"1"
    assert read(f"{server.url}/к a%2Bb%25.bin") == b"1"
    query = "X-Amz-Credential=AK%2F2026%2Fs3&sig=a%2Bb%3D%3D&x=~"
    server.query = query
    assert read(f"{server.url}/a.bin?{query}#part") == CONTENT
    server.query = None
    server.files["/100%25.bin"] = b"2"
    assert read(f"{server.url}/100%.bin") == b"2"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_table_is_read_from_any_server(
    server: WebServer, suffix: str, ranges: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"t.{suffix}"
    texts = [f"круг {number}" for number in range(2000)]
    if suffix == "parquet":
        pq.write_table(pa.table({"prompt": texts}), path, row_group_size=100)
    elif suffix == "csv":
        path.write_text("\n".join(["prompt", *texts]), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    server.ranges = ranges
    server.files[f"/t.{suffix}"] = path.read_bytes()
    server.query = "token=secret"
    rows = list(read_prompts(f"{server.url}/t.{suffix}?token=secret"))
    assert [row.text for row in rows] == texts


def test_a_configuration_is_read_over_http(server: WebServer) -> None:
    server.files["/run.yaml"] = b"seed: 7"
    assert read_text(f"{server.url}/run.yaml") == "seed: 7"


# --- time ----------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "per_second"),
    [
        (b"", 0),
        (b"", 20),  # trickles what is no header
        (b"HTTP/1.1 200 OK\r\nX-", 20),  # trickles a header
        (HEAD, 0),
        (HEAD, 20),  # trickles the content
        (HEAD.replace(b"200 OK", b"302 Found"), 20),
    ],
)
@pytest.mark.parametrize("rows", [True, False])
def test_a_server_that_says_little_or_nothing_ends_in_time(
    head: bytes, per_second: float, rows: bool
) -> None:
    with slow_server(head, per_second) as url:
        started = time.monotonic()
        with pytest.raises(StorageError, match="not answer in time|is not HTTP|302") as raised:
            if rows:
                read_start(f"{url}/a.png?token=secret", 2000, "image prompt", QUICK)
            else:
                read(f"{url}/a.csv?token=secret", QUICK)
        assert time.monotonic() - started < 4
        assert "secret" not in str(raised.value)
        assert not (rows and isinstance(raised.value, TransientError))


def test_a_download_that_trickles_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(5000)
    with slow_server(head, 20) as url, open_input(f"{url}/a.csv", rules=QUICK) as stream:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="did not answer in time"):
            stream.read()
        assert time.monotonic() - started < 4


# --- who may be asked ----------------------------------------------------------------------------


def addresses(url: str) -> list[str]:
    """Other ways to write a URL of 127.0.0.1."""
    hosts_of_loopback = [
        "127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
        "127.0.0.1.", "[::ffff:127.0.0.1]", "0.0.0.0", "0", "[::]", "[::ffff:7f00:1]",
        "%31%32%37.0.0.1", "①②⑦.0.0.1", "127。0。0。1", "ⓛocalhost",
    ]  # fmt: skip
    return [url.replace("127.0.0.1", host) for host in hosts_of_loopback]


def test_a_row_reaches_no_private_host_however_it_is_written(server: WebServer) -> None:
    for url in addresses(f"{server.url}/a.bin"):
        with pytest.raises(StorageError, match="Cannot read the image prompt"):
            read_start(url, 10, "image prompt", ROWS)
    assert server.requests == []
    allowed = replace(ROWS, private_hosts=True)
    assert read_start(f"{server.url}/a.bin", 10, "image prompt", allowed) == CONTENT[:10]


def test_the_error_of_a_private_host_names_the_setting(server: WebServer) -> None:
    with pytest.raises(StorageError, match=r"127\.0\.0\.1; prompts\.allow_private_hosts allows"):
        read_start(f"{server.url}/a.bin", 10, "image prompt", ROWS)


def test_the_environment_can_name_a_private_host(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INPUTS, f"{server.url}/a.bin")
    assert read_start(f"{server.url}/a.bin", 10, "image prompt", ROWS) == CONTENT[:10]
    with pytest.raises(StorageError, match="RUDALLE_ALLOW_INPUTS does not allow it"):
        read_start(f"{server.url}/b.bin", 10, "image prompt", ROWS)
    with pytest.raises(StorageError, match="RUDALLE_ALLOW_INPUTS does not allow it"):
        read(f"{server.url}/b.bin")
    server.redirects["/a.bin"] = f"{server.url}/b.bin"
    with pytest.raises(StorageError, match="RUDALLE_ALLOW_INPUTS does not allow it"):
        read(f"{server.url}/a.bin")
    assert len(server.requests) == 2
    server.files["/run.yaml"] = b"seed: 7"
    assert read_text(f"{server.url}/run.yaml") == "seed: 7"  # named by the person who runs


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "s3://bucket/x",
        "reference://x::http://127.0.0.1/x",
        "ftp://127.0.0.1/x",
        "http://me:secret@127.0.0.1/x",
        "http://[::1/",
    ],
)
def test_a_redirect_to_another_kind_of_url_is_not_followed(server: WebServer, target: str) -> None:
    server.redirects["/a.bin"] = target
    with pytest.raises(StorageError) as raised:
        read(f"{server.url}/a.bin")
    assert "secret" not in str(raised.value) and len(server.requests) == 1


def test_redirects_are_followed_and_end(server: WebServer) -> None:
    server.redirects["/r"] = "/a.bin"
    server.redirects["/loop"] = "loop"
    assert read(f"{server.url}/r") == CONTENT
    with pytest.raises(StorageError, match="redirects more than 5 times"):
        read(f"{server.url}/loop")


def test_a_public_server_cannot_redirect_into_a_private_network(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 plays the public server, and 127.0.0.2 the private one."""
    with web_server("127.0.0.2") as private:
        private.files["/b.bin"] = b"private"
        server.redirects["/r"] = f"{private.url}/b.bin"
        assert read(f"{server.url}/r") == b"private"  # from private to private
        monkeypatch.setattr(hosts, "is_public", lambda address: address == "127.0.0.1")
        server.requests.clear()
        private.requests.clear()
        for rules in (TABLE, OWN, ROWS, replace(ROWS, private_hosts=True)):
            with pytest.raises(StorageError, match=r"host 127\.0\.0\.2 has the private address"):
                read(f"{server.url}/r", rules)
        assert private.requests == []
    assert {path for _, path, _ in server.requests} == {"/r"}
    assert len(server.requests) == 4


def test_a_name_that_resolves_differently_the_second_time_is_of_no_use(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the address that was checked is the one that is connected to."""
    answers = iter([["1.1.1.1"], ["127.0.0.1"], ["127.0.0.1"]])
    asked: list[str] = []

    def resolve(host: str, port: int = 0) -> list[str]:
        asked.append(host)
        return next(answers)

    monkeypatch.setattr(hosts, "resolve", resolve)
    quick = replace(QUICK, private_hosts=False, connect_seconds=0.3)
    with pytest.raises(StorageError):
        read_start(f"http://rebinding.test:{server.port}/a.bin", 10, "image prompt", quick)
    assert server.requests == [] and asked == ["rebinding.test"]


# --- proxies -------------------------------------------------------------------------------------


@pytest.fixture
def proxied(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """The server as the proxy of the environment."""
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    return server


def test_a_proxy_is_asked_for_hosts_that_only_it_knows(proxied: WebServer) -> None:
    assert read("http://inside.invalid/a.bin") == CONTENT
    assert read_start("http://inside.invalid/a.bin", 10, "image prompt", ROWS) == CONTENT[:10]
    assert {path for _, path, _ in proxied.requests} == {"http://inside.invalid/a.bin"}


def test_loopback_and_exceptions_need_no_proxy(
    proxied: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server() as other:
        other.files["/a.bin"] = b"direct"
        assert read(f"{other.url}/a.bin") == b"direct"
        assert read(f"http://localhost:{other.port}/a.bin") == b"direct"
    assert proxied.requests == []
    monkeypatch.setenv("no_proxy", "inside.invalid")
    with pytest.raises(StorageError):
        read("http://inside.invalid/a.bin")
    assert proxied.requests == []


def test_a_proxy_does_not_lead_a_row_into_a_private_network(proxied: WebServer) -> None:
    for host in ("10.0.0.1", "169.254.169.254", "2852039166"):
        with pytest.raises(StorageError, match="private address"):
            read_start(f"http://{host}/a.bin", 10, "image prompt", ROWS)
    assert proxied.requests == []
