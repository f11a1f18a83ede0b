"""Texts in other encodings, with other line ends, and compressed: as UTF-8 lines."""

from __future__ import annotations

import codecs
import gzip
import io
import logging
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts import text_streams
from rudalle_lib.prompts.budgets import Budget
from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.prompts.text_streams import read_lines, spooled, unpacked, utf8
from rudalle_lib.schema.records import Prompt
from tests.support.prompt_tables import read_accepted

TABLE = "prompt,note\r\nкрасный круг,ёлка\r\nсиний крест,мост\r\n"
ROWS = [("красный круг", "ёлка"), ("синий крест", "мост")]


def read(path: Path, content: bytes, **options: str) -> list[tuple[str, str]]:
    path.write_bytes(content)
    found = read_accepted(str(path), **options)
    return [(row.text, row.extra["note"]) for row in found]


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be"),
        TABLE.encode("utf-32"),
        TABLE.replace("\r\n", "\r").encode(),
        TABLE.replace("\r\n", "\n").encode(),
        TABLE.replace("\r\n", "\r").encode("utf-16"),
        TABLE.replace("\r\n", "\r\r\n").encode(),
    ],
)
def test_unicode_of_any_form_is_read_without_a_word(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(tmp_path / "p.csv", content) == ROWS
    assert caplog.records == []


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TABLE.encode("cp1251"), "cp1251"),
        (("prompt,note\n" + "plain,x\n" * 50).encode() + TABLE.encode("cp1251"), "cp1251"),
        (("prompt,note\r\n" + "latin text,x\r\n" * 9 + TABLE).encode("utf-16-le"), "utf-16-le"),
        (("prompt,note\r\n" + "latin text,x\r\n" * 9 + TABLE).encode("utf-16-be"), "utf-16-be"),
    ],
)
def test_other_encodings_are_guessed_with_a_warning(
    tmp_path: Path, content: bytes, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "p.csv", content)[-2:] == ROWS
    (message,) = (record.message for record in caplog.records)
    assert f"is read as {encoding}. Set prompts.encoding" in message


@pytest.mark.parametrize("encoding", ["koi8-r", "cp866", "cp1251", "utf-16", "utf-8", "latin-1"])
def test_a_given_encoding_is_used_without_a_warning(
    tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = TABLE if encoding != "latin-1" else "prompt,note\nétoile,ü\n"
    expected = ROWS if encoding != "latin-1" else [("étoile", "ü")]
    assert read(tmp_path / "p.csv", text.encode(encoding), encoding=encoding) == expected
    assert caplog.records == []


def test_a_few_bytes_that_are_not_utf8_reject_their_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes("prompt,note\nкруг,x\n".encode() + b"\xea\xf0\xf3\xe3,y\nb,z\n")
    found = list(read_prompts(str(path)))
    assert [isinstance(row, Prompt) for row in found] == [True, False, True]


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("utf-16", codecs.BOM_UTF16_LE + TABLE.encode("utf-16-le") + b"\x00"),
        ("utf-16", codecs.BOM_UTF16_LE + TABLE.encode("utf-16-le") + "a\ud800,b\r\n".encode(
            "utf-16-le", "surrogatepass")),
        ("utf-32", codecs.BOM_UTF32_LE + TABLE.encode("utf-32-le") + b"\xff\xff\xff\xff"),
        ("cp1251", TABLE.encode("cp1251") + b"\x98,b\r\n"),
        ("gb18030", TABLE.encode("gb18030") + b"\xff\xff,b\r\n"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_rejects_its_row_at_most(
    tmp_path: Path, encoding: str, content: bytes
) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    found = list(read_prompts(str(path), encoding=encoding))
    good = [(row.text, row.extra["note"]) for row in found if isinstance(row, Prompt)]
    assert set(good) <= set(ROWS) and len(found) in (2, 3)
    assert good == ROWS


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([None, "utf-16", "utf-32", "cp1251", "gb18030"]))
def test_any_bytes_become_lines(content: bytes, encoding: str | None) -> None:
    stream = utf8(io.BytesIO(content), "t.csv", encoding)
    for line in read_lines(stream):
        line.decode(errors="surrogateescape")


# --- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.csv.gz", "p.csv.zst", "P.CSV.GZ"])
def test_compressed_tables_are_read(tmp_path: Path, name: str) -> None:
    content = TABLE.encode()
    packed = pa.compress(content, "zstd", asbytes=True) if "zst" in name else gzip.compress(content)
    assert read(tmp_path / name, packed) == ROWS


def test_members_of_gzip_are_one_table(tmp_path: Path) -> None:
    head, tail = TABLE.encode()[:25], TABLE.encode()[25:]
    assert read(tmp_path / "p.csv.gz", gzip.compress(head) + gzip.compress(tail)) == ROWS


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_damaged_file_is_one_clear_error(codec: str) -> None:
    whole = TABLE.encode() * 50
    packed = gzip.compress(whole) if codec == "gzip" else pa.compress(whole, codec, asbytes=True)
    for content in (packed[:-9], packed[: len(packed) // 2], b"prompt\na\n", b"\x00" * 50):
        with pytest.raises(PromptError, match=f"t cannot be unpacked as {codec}"):
            unpacked(io.BytesIO(content), codec, "t", Budget("t")).read()


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("unit", [b"\0", b"\n", b"a\n"])
def test_a_bomb_is_stopped_early(codec: str, unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rudalle_lib.prompts.budgets.FREE_BYTES", 2**22)
    whole = unit * (2**25 // len(unit))
    packed = gzip.compress(whole) if codec == "gzip" else pa.compress(whole, codec, asbytes=True)
    stream = unpacked(io.BytesIO(packed), codec, "t", Budget("The table t"))
    with pytest.raises(PromptError, match="The table t unpacks to more than"):
        for _ in range(100):
            stream.read(2**20)


def test_a_copy_can_be_read_from_any_position() -> None:
    with spooled(io.BytesIO(b"abcdef")) as copy:
        copy.seek(4)
        assert copy.read() == b"ef"
        copy.seek(0)
        assert copy.read(2) == b"ab"


def test_lines_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_streams, "MAX_LINE_BYTES", 4)
    assert list(read_lines(io.BytesIO(b"abcdefgh\nxy\n"))) == [b"abcd", b"xy\n"]
