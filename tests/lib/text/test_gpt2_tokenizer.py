"""The tokenizer of ruCLIP Small is read with bounds, whatever its files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rudalle_lib.errors import WeightsError
from rudalle_lib.text.gpt2_tokenizer import Gpt2Tokenizer
from tests.support.limited_process import call_limited

VOCABULARY = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "b": 4, "ab": 5, "abab": 6, "\u0120": 7}
MERGES = "#version: 0.2\na b\nab ab\n"


def write(folder: Path, vocabulary: bytes, merges: bytes) -> Path:
    (folder / "vocab.json").write_bytes(vocabulary)
    (folder / "merges.txt").write_bytes(merges)
    return folder


def load(folder: Path) -> Gpt2Tokenizer:
    return Gpt2Tokenizer.load(folder / "vocab.json", folder / "merges.txt")


def test_captions_are_padded_and_truncated_before_their_end(tmp_path: Path) -> None:
    tokenizer = load(write(tmp_path, json.dumps(VOCABULARY).encode(), MERGES.encode()))
    assert tokenizer.vocab_size == 8
    assert tokenizer.encode_clip("ababab", 6) == ([0, 6, 5, 1, 2, 2], False)
    assert tokenizer.encode_clip("  abab \n abab ", 6).ids == [0, 6, 7, 6, 1, 2]
    assert tokenizer.encode_clip("abab" * 9, 4) == ([0, 6, 6, 1], True)
    assert tokenizer.encode_clip("</s>\ud800", 4).ids[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", b"", "it is empty"),
        ("vocab.json", b"[]", "it holds a list"),
        ("vocab.json", b'{"a": 0}', "KeyError"),
        ("vocab.json", b'{"<s>": -1}', "expected an id from 0"),
        ("vocab.json", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ("merges.txt", b"<html>", "an HTML page"),
        ("merges.txt", b"a x\n", "`x` out of vocabulary"),
        ("merges.txt", b"a b\n\xff\xfe\x00", "valid UTF-8"),
        ("merges.txt", b"a b\n" * 5_000_000, "more than 16,777,216 bytes"),
    ],
)
def test_other_files_are_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    write(tmp_path, json.dumps(VOCABULARY).encode(), MERGES.encode())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"vocab.json and merges.txt are not .*{reason}"):
        load(tmp_path)


@settings(deadline=20_000, max_examples=100, suppress_health_check=[
    HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_damaged_files_are_a_tokenizer_or_an_error(data: st.DataObject, tmp_path: Path) -> None:
    files = [bytearray(json.dumps(VOCABULARY).encode()), bytearray(MERGES.encode())]
    added = st.sampled_from([b"9" * 20, b"-1", b"null", b"\n\n", b"ab ab\n", b'"x":'])
    for _ in range(data.draw(st.integers(1, 4))):
        file = data.draw(st.sampled_from(files))
        position = data.draw(st.integers(0, len(file)))
        size = data.draw(st.integers(0, 4))
        file[position : position + size] = data.draw(added | st.binary(max_size=4))
    write(tmp_path, *map(bytes, files))
    try:
        assert len(load(tmp_path).encode_clip("abab ab", 9).ids) == 9
    except WeightsError as error:
        assert len(str(error)) < 1_000


def load_limited(folder: str) -> int:
    return load(Path(folder)).vocab_size


def test_large_files_take_little_memory(tmp_path: Path) -> None:
    pieces = {**VOCABULARY, **{f"piece{n}": n for n in range(8, 300_000)}}
    write(tmp_path, json.dumps(pieces, separators=(",", ":")).encode(), b"a b\n" * 1_000_000)
    found = call_limited(load_limited, str(tmp_path))
    assert found.megabytes < 900 and found.seconds < 25
