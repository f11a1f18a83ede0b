"""SentencePiece models are checked before a library in C++ reads them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rudalle_lib.errors import WeightsError
from rudalle_lib.weights.marian import load_tokenizer
from rudalle_lib.weights.sentencepiece_files import MAX_MODEL_BYTES, check_sentencepiece
from tests.support.limited_process import call_limited


@pytest.fixture(scope="module")
def model() -> bytes:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle", "ab ab"] * 9), model_writer=buffer,
        model_type="char", vocab_size=20, hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return buffer.getvalue()


def field(number: int, content: bytes) -> bytes:
    """A field of a message in the encoding of Protocol Buffers."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    head = bytes([value & 127 | 128])
    return head + _varint(value >> 7) if value > 127 else bytes([value])


def translator(folder: Path, model: bytes) -> Path:
    (folder / "source.spm").write_bytes(model)
    (folder / "target.spm").write_bytes(model)
    (folder / "vocab.json").write_text('{"</s>": 0, "<unk>": 1, "<pad>": 2}')
    return folder


def load_limited(folder: str) -> str:
    tokenizer = load_tokenizer(Path(folder))
    text = tokenizer.decode([1, 7] * 99, use_source_tokenizer=False)
    return f"{len(tokenizer('a red circle')['input_ids'])} ids, {len(text) < 10**6}"


@pytest.mark.parametrize(
    "added", [b"", field(2, field(44, b" ? ")), b"\x30\x05" + b"\x3d" + bytes(4)]
)
def test_a_model_is_accepted(model: bytes, added: bytes, tmp_path: Path) -> None:
    (tmp_path / "source.spm").write_bytes(model + added)
    check_sentencepiece(tmp_path / "source.spm")


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        (field(2, field(44, b"?" * 300)), "more than 256 bytes"),
        (field(3, field(2, bytes(4) + b"a\0" + b"b" * 300 + b"\0")), "more than 256 bytes"),
        (field(5, field(2, bytes(4) + b"b" * 300)), "more than 256 bytes"),
        (b"\x0a\xff\xff\xff\x7f", "truncated, or not a SentencePiece model"),
        (b"\x0f", "not a SentencePiece model"),
        (b"\xff" * 30, "truncated, or not a SentencePiece model"),
        (bytes(MAX_MODEL_BYTES), "has more than 16,777,216 bytes"),
    ],
)
def test_another_model_is_an_error(model: bytes, added: bytes, reason: str, tmp_path: Path) -> None:
    translator(tmp_path, model + added)
    with pytest.raises(WeightsError, match=f"vocabulary in .*source.spm: .*{reason}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("size", [1_000, 15_000_000])
def test_a_long_replacement_takes_no_memory(model: bytes, size: int, tmp_path: Path) -> None:
    translator(tmp_path, model + field(2, field(44, b"?" * size)))
    found = call_limited(load_limited, str(tmp_path))
    assert found.error is not None and "replaces a character" in found.error
    assert found.megabytes < 300 and found.seconds < 15


@settings(deadline=20_000, max_examples=150, suppress_health_check=[
    HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_damaged_model_is_read_or_a_value_error(
    model: bytes, data: st.DataObject, tmp_path: Path
) -> None:
    content = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 4))] = data.draw(
            st.binary(max_size=5)
        )
    (tmp_path / "source.spm").write_bytes(content)
    try:
        check_sentencepiece(tmp_path / "source.spm")
        processor = sentencepiece.SentencePieceProcessor()
        processor.Load(str(tmp_path / "source.spm"))
        processor.encode("a red circle")
    except (ValueError, OSError, RuntimeError) as error:
        assert len(str(error)) < 500
