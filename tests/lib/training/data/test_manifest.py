"""The manifest of encoded data: written last, sealed, and read back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rudalle_lib.errors import DamagedError
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.manifest import (
    DATA_MANIFEST,
    EncodedData,
    EncodedShard,
    EncodedSource,
    read_manifest,
    write_manifest,
)

SHARDS = (
    EncodedShard("stages/encode/00000.a.parquet", 3, {"no_caption": 2}, "rejects/00000.a.parquet"),
    EncodedShard("stages/encode/00001.b.parquet", 2, {"no_caption": 1, "bad_image": 1}, "r"),
)
DATA = EncodedData("decoder", 64, 64, 40, 64, (EncodedSource("s3://a/b", 2, SHARDS),))


def test_it_is_read_as_it_was_written(storage: Storage) -> None:
    assert read_manifest(storage) is None
    write_manifest(storage, DATA)
    found = read_manifest(storage)
    assert found == DATA
    assert found.rows == 5 and found.rejected == {"bad_image": 1, "no_caption": 3}
    assert found.shards == list(SHARDS) and found.sources[0].repeats == 2


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"<html>"])
def test_anything_else_is_an_error_that_says_what_to_do(storage: Storage, content: bytes) -> None:
    storage.write_bytes(DATA_MANIFEST, content)
    with pytest.raises(DamagedError, match=r"data\.json is no manifest .* delete it and run again"):
        read_manifest(storage)


def test_a_changed_digit_is_noticed(storage: Storage) -> None:
    write_manifest(storage, DATA)
    content = storage.read_bytes(DATA_MANIFEST).replace(b'"rows": 3', b'"rows": 4')
    storage.write_bytes(DATA_MANIFEST, content)
    with pytest.raises(DamagedError):
        read_manifest(storage)


def test_the_digest_is_that_of_the_rows_and_not_of_how_often_they_are_seen() -> None:
    (source,) = DATA.sources
    assert replace(DATA, sources=[replace(source, repeats=9)]).digest() == DATA.digest()
    assert replace(DATA, sources=[replace(source, shards=SHARDS[:1])]).digest() != DATA.digest()
