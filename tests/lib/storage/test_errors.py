"""Every error of a storage is one sentence without secrets that says what to do."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rudalle_lib.errors import StorageError
from rudalle_lib.storage.errors import mask_secrets, public_url, translate_errors
from rudalle_lib.storage.probes import check_writable
from rudalle_lib.storage.storage import Storage
from tests.support.s3_server import S3Server


def error_of(url: str) -> str:
    """The error of a storage that cannot be written to."""
    with pytest.raises(StorageError) as error:
        check_writable(Storage(url))
    message = str(error.value)
    assert "\n" not in message
    assert error.value.__cause__ is None and error.value.__suppress_context__
    return message


# --- local folders -------------------------------------------------------------------------------


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "a file is in the way where a folder was expected" in error_of(str(tmp_path / "file"))


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Run as another user than root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_folder_that_may_not_be_written(tmp_path: Path, unprivileged: None) -> None:
    with contextlib.suppress(PermissionError):
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "permission denied" in error_of(str(tmp_path / "output"))


def test_a_folder_that_may_not_be_listed(tmp_path: Path, unprivileged: None) -> None:
    with contextlib.suppress(PermissionError):
        tmp_path.chmod(0)
    with pytest.raises(StorageError, match=r"^Cannot list .*: permission denied"):
        Storage(str(tmp_path)).list()
    with contextlib.suppress(PermissionError):
        tmp_path.chmod(stat.S_IRWXU)


def test_a_nearly_full_disk_is_an_error_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rudalle_lib.storage.probes.MIN_FREE_BYTES", 2**60)
    assert "the disk is full; free some space" in error_of(str(tmp_path / "output"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- S3 ------------------------------------------------------------------------------------------


def test_a_bucket_that_does_not_exist(s3_url: str, s3_server: S3Server) -> None:
    assert error_of("s3://nowhere/x") == (
        "Cannot write to s3://nowhere/x: there is no bucket 'nowhere' on the S3 server at "
        f"{s3_server.endpoint}; create it or correct the URL."
    )


def test_many_files_in_a_bucket_that_does_not_exist(s3_url: str, s3_server: S3Server) -> None:
    with pytest.raises(StorageError, match=r"create s3://none/\w+: there is no bucket 'none'"):
        Storage("s3://none").create_many({f"f{n}": b"" for n in range(40)})


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(s3_url: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "WRONGWRONGWRONG")
    message = error_of(s3_url)
    assert "does not accept the credentials; check AWS_ACCESS_KEY_ID" in message
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name] not in message


def test_no_credentials(s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "no S3 credentials were found; set AWS_ACCESS_KEY_ID" in error_of(s3_url)


def test_a_wrong_endpoint(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert error_of(s3_url) == (
        f"Cannot write to {s3_url}: the S3 server at http://127.0.0.1:9 does not answer; check "
        "AWS_ENDPOINT_URL and the network."
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert "AWS_ENDPOINT_URL is not a URL" in error_of(s3_url)


class _WebSite(BaseHTTPRequestHandler):
    """Answers all requests with HTML, like a web server, a login page or a proxy."""

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
        """Do not log."""


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
        assert error_of(s3_url) == (
            f"Cannot write to {s3_url}: the S3 server at {endpoint} answered with a web page; is "
            "it an S3 server? Check AWS_ENDPOINT_URL."
        )
        server.shutdown()


# --- secrets -------------------------------------------------------------------------------------


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert mask_secrets("the key hunter2 is wrong") == "the key *** is wrong"
    with (
        pytest.raises(StorageError, match=r"^Cannot read s3://b/x: signed with \*\*\*\.$"),
        translate_errors("read", "s3://user:hunter2@b/x?sig=hunter2"),
    ):
        raise RuntimeError("signed with hunter2.")


def test_a_public_url_has_no_credentials() -> None:
    assert public_url("https://me:pw@host/a.csv?sig=1#x") == "https://host/a.csv"
    assert public_url("s3://bucket/a b") == "s3://bucket/a b"
    assert public_url("/a/b?c#d") == "/a/b?c#d"
