"""Small files of strangers are read with bounds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rudalle_lib.storage.small_files import (
    MAX_JSON_BYTES,
    MAX_PIECES,
    TEXT,
    read_small,
    read_small_json,
    read_vocabulary,
)
from tests.support.limited_process import call_limited


def test_a_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_small(path, 5) == b"12345"
    with pytest.raises(ValueError, match="it has more than 4 bytes"):
        read_small(path, 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is empty, delete it"),
        ("version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer"),
        ("<html>", "it is an HTML page"),
        ("[1]", "it holds a list, expected a JSON object"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": ' + "9" * 5_000 + "}", "digits"),
        ('{"a": "' + "x" * MAX_JSON_BYTES + '"}', "it has more than 1,048,576 bytes"),
    ],
)
def test_other_json_is_an_error(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_small_json(tmp_path / "a.json")


def test_a_pipe_or_folder_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="it is not a regular file"):
            read_small(path, 9)
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "absent", 9)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="symbolic links"):
        read_small(tmp_path / "loop", 9)


def test_kinds_that_are_expected_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a b\n")
    assert read_small(tmp_path / "a", 9, TEXT) == b"a b\n"
    with pytest.raises(ValueError, match="it is text, probably the answer of a server"):
        read_small(tmp_path / "a", 9, "a zip archive")


@pytest.mark.parametrize("id_", [-1, 2**24, 1.5, "1", None, True, [1]])
def test_ids_are_whole_numbers(id_: object, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": id_}))
    with pytest.raises(ValueError, match="expected an id from 0 per piece"):
        read_vocabulary(tmp_path / "vocab.json")


def read_limited(path: str) -> str:
    try:
        return f"{len(read_vocabulary(Path(path)))} pieces"
    except ValueError as error:
        return str(error)


BOMBS: dict[str, Callable[[], str]] = {
    "it has 600,001 pieces": lambda: "{" + "".join(f'"{n}":0,' for n in range(600_000)) + '"":0}',
    "expected an id from 0": lambda: '{"a":[' + "{}," * 4_000_000 + "{}]}",
    "it is nested too deeply": lambda: '{"a":' + "[" * 8_000_000,
}  # fmt: skip


@pytest.mark.parametrize("reason", BOMBS)
def test_a_bomb_takes_little_memory(reason: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(BOMBS[reason]())
    found = call_limited(read_limited, str(tmp_path / "vocab.json"))
    assert found.value.startswith(reason)
    assert found.megabytes < 800 and found.seconds < 15
    assert MAX_PIECES < 600_000
