"""Stage artifacts: found by fingerprint, whole, and with the prompts that their stage rejected."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rudalle_lib.errors import StorageError
from rudalle_lib.pipeline.artifacts import (
    REOPENED,
    find_artifact,
    read_artifact,
    rejects_in,
    with_rejects,
    write_artifact,
)
from rudalle_lib.schema.records import DeviceUse, Reject, ShardSpec
from rudalle_lib.storage.storage import Storage

SHARD = ShardSpec(3, "plan/00003.parquet", 2, "digest of the prompts")
TABLE = pa.table({"x": [1, 2]})


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_an_artifact_is_found_by_its_stage_shard_and_fingerprint(storage: Storage) -> None:
    assert find_artifact(storage, "decode", SHARD, "f") is None
    table = with_rejects(TABLE, {"a": Reject("too_long", "why")})
    use = DeviceUse(0.5, 2, "2026-01-01T00:00:00+00:00")
    written = write_artifact(storage, "decode", SHARD, "f", table, 1.23456, use)
    assert (written.rows, written.seconds) == (2, 1.235)
    assert (written.waited, written.devices, written.until) == (0.5, 2, use.until)
    assert find_artifact(storage, "decode", SHARD, "f") == written
    assert find_artifact(storage, "decode", SHARD, "g") is None
    assert find_artifact(storage, "score", SHARD, "f") is None
    assert find_artifact(storage, "decode", ShardSpec(4, "x", 2), "f") is None
    read = read_artifact(storage, written)
    assert read.column("x").to_pylist() == [1, 2]
    assert rejects_in(read) == {"a": Reject("too_long", "why")}


def test_a_table_without_rejects_has_none() -> None:
    assert rejects_in(TABLE) == {}
    assert rejects_in(with_rejects(TABLE, {})) == {}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_artifact_counts_as_missing_and_is_reported(
    local: Storage, tmp_path: Path, share: float
) -> None:
    written = write_artifact(local, "decode", SHARD, "f", TABLE, 1.0)
    path = tmp_path / local.relative(written.uri)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    notices: list[str] = []
    assert find_artifact(local, "decode", SHARD, "f", notices.append) is None
    (sentence,) = notices
    assert path.name in sentence and sentence.endswith("It is made again.")


def test_an_artifact_with_changed_bytes_counts_as_missing(local: Storage, tmp_path: Path) -> None:
    written = write_artifact(local, "decode", SHARD, "f", TABLE, 1.0)
    path = tmp_path / local.relative(written.uri)
    content = bytearray(path.read_bytes())
    content[8] ^= 1  # in the data, not in the metadata at the end
    path.write_bytes(content)
    notices: list[str] = []
    assert find_artifact(local, "decode", SHARD, "f", notices.append) is None
    assert len(notices) == 1


def test_an_artifact_with_reopened_prompts_is_not_finished(local: Storage) -> None:
    path = local.relative(write_artifact(local, "decode", SHARD, "f", TABLE, 1.0).uri)
    metadata = local.read_metadata(path)
    assert metadata is not None
    local.write_table(path, TABLE, {**metadata, REOPENED: "[]"})
    assert find_artifact(local, "decode", SHARD, "f") is None


def test_reading_a_missing_artifact_is_an_error(local: Storage) -> None:
    written = write_artifact(local, "decode", SHARD, "f", TABLE, 1.0)
    path = local.relative(written.uri)
    local.delete(path)
    with pytest.raises(StorageError, match=path):
        read_artifact(local, written)
