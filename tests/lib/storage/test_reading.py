"""Reads end in time, and files without a content of their own are not read."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from rudalle_lib.errors import ConfigError, StorageError
from rudalle_lib.storage.filesystems import open_input, read_start, read_text
from rudalle_lib.storage.reading import (
    MAX_SILENCES,
    ROWS,
    SILENT_SECONDS,
    Reading,
    SilentServers,
    TimedFile,
    call_within,
    open_regular,
)
from tests.support.web_servers import slow_server


def test_a_call_returns_raises_or_is_given_up() -> None:
    assert call_within(10, lambda a, b: a + b, 1, 2) == 3
    assert call_within(10, lambda: None) is None
    with pytest.raises(KeyError):
        call_within(10, lambda: dict[str, int]()["x"])
    ended = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0.1 seconds"):
        call_within(0.1, ended.wait)
    assert time.monotonic() - started < 5
    ended.set()


class Stuck(io.BytesIO):
    """A file whose reads wait after the first ten bytes."""

    def __init__(self, ended: threading.Event) -> None:
        super().__init__(bytes(20))
        self._ended = ended

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 10:
            self._ended.wait()
        return super().read(min(size or 10, 10))


def test_a_read_of_a_remote_file_ends_in_time() -> None:
    ended = threading.Event()
    with TimedFile(Stuck(ended), Reading(total_seconds=0.1)) as file:
        assert file.seekable() and file.readable() and file.read(4) == bytes(4)
        assert file.seek(0, os.SEEK_END) == 20 and file.tell() == 20
        with pytest.raises(TimeoutError, match="did not answer in time .*total_seconds 0.1"):
            file.read(4)
        ended.set()


def test_a_silent_server_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    servers, now = SilentServers(), 1000.0
    monkeypatch.setattr("rudalle_lib.storage.reading.time.monotonic", lambda: now)
    for _ in range(MAX_SILENCES):
        servers.check("http://a")
        servers.note("http://a", answered=False)
    with pytest.raises(TimeoutError, match="not answer in time 3 times, and is not asked again"):
        servers.check("http://a")
    servers.check("http://b")
    now += SILENT_SECONDS
    servers.check("http://a")
    servers.note("http://a", answered=True)
    now -= 1
    servers.check("http://a")


def test_rows_of_a_silent_server_are_rejected_at_once_after_a_few() -> None:
    rules = Reading(total_seconds=0.3)
    with slow_server() as url:
        started = time.monotonic()
        for number in range(50):
            with pytest.raises(StorageError, match="did not answer in time"):
                read_start(f"{url}/{number}.png", 10, "image prompt", rules)
        assert time.monotonic() - started < 5


# --- special files -------------------------------------------------------------------------------


def special_files(folder: Path) -> dict[str, str]:
    """Paths that exist and are no regular files, with the words that name them."""
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket.png"))
    return {
        str(folder / "pipe.png"): "a named pipe",
        str(folder / "link.png"): "a named pipe",
        (folder / "pipe.png").as_uri(): "a named pipe",
        str(folder / "socket.png"): "socket|No such device",
        str(folder / "folder.png"): "it is a folder",
        str(folder / "folder.png") + "/": "it is a folder",
        str(folder / "none.png"): "does not exist",
        "/dev/zero": "a device",
        "file:///dev/urandom": "a device",
        "/dev/null": "a device",
        "/dev/tty": "a device|No such device",
        "/proc/self/environ": "made by the kernel",
        "/proc/kmsg": "made by the kernel|permission denied|not permitted",
        "/proc/self/mem": "made by the kernel",
        "/proc/thread-self/../kcore": "made by the kernel|permission denied|exist|not permitted",
        "/sys/kernel/notes": "made by the kernel|exist",
        "\0": "control characters",
    }


def test_a_special_file_is_refused_at_once_by_every_reader(tmp_path: Path) -> None:
    (tmp_path / "proc.png").symlink_to("/proc/self/environ")
    files = special_files(tmp_path) | {str(tmp_path / "proc.png"): "made by the kernel"}
    for path, words in files.items():
        started = time.monotonic()
        with pytest.raises(StorageError, match=words) as raised:
            read_start(path, 100, "image prompt", ROWS)
        assert "\n" not in str(raised.value)
        with pytest.raises(StorageError, match=words), open_input(path, "prompt table"):
            pass
        with pytest.raises(StorageError, match=words):
            read_text(path)
        assert time.monotonic() - started < 1, path


def test_a_pipe_that_somebody_writes_to_is_no_file_either(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(writer, b"content")
    with pytest.raises(OSError, match="it is a named pipe; expected a regular file"):
        open_regular(str(tmp_path / "pipe"))
    os.close(writer)


def test_a_device_as_a_configuration_or_table_is_one_sentence() -> None:
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.prompts.rows import read_prompts

    with pytest.raises(StorageError, match="run configuration /dev/zero: it is a device, .* large"):
        RunConfig.load("/dev/zero")
    with pytest.raises(StorageError, match="prompt table /dev/zero: it is a device"):
        list(read_prompts("/dev/zero"))
    with pytest.raises((StorageError, ConfigError), match="s3://"):
        RunConfig.load("s3:/bucket/run.yaml")


def test_files_in_shared_memory_are_regular() -> None:
    path = Path("/dev/shm") / f"rudalle-test-{os.getpid()}"
    path.write_text("круг", encoding="utf-8")
    try:
        assert read_text(str(path)) == "круг"
    finally:
        path.unlink()
