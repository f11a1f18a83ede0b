"""Tables of rejects: replaced with their shard, counted by reason for prompt tables."""

from __future__ import annotations

import pyarrow as pa

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.rejects import count_plan_rejects, plan_reject_files, write_rejects
from rudalle_lib.schema.arrow import to_table
from rudalle_lib.schema.records import DataFile, RejectRecord, reject
from rudalle_lib.storage.storage import Storage
from tests.support.image_records import VERSION


def test_rejects_are_replaced(storage: Storage) -> None:
    row = reject("below_threshold", "0.1 < 0.2", stage="score", prompt_id="a", image_id="a-000")
    write_rejects(storage, 3, VERSION, [row, row])
    file = write_rejects(storage, 3, VERSION, [row])
    assert storage.read_table(f"rejects/00003.{VERSION}.parquet").num_rows == 1
    assert file == DataFile.of(file.path, storage.read_bytes(f"rejects/00003.{VERSION}.parquet"))


def test_rows_that_the_plan_rejected_are_counted_by_reason(storage: Storage) -> None:
    assert plan_reject_files(storage) == [] and count_plan_rejects(storage) == {}
    rows = [reject("too_long", "", stage="plan"), reject("duplicate", "", stage="plan")]
    paths = [layout.plan_rejects_path(url) for url in ("one.csv", "two.csv")]
    for path, part in zip(paths, (rows, rows[:1]), strict=True):
        storage.write_table(path, to_table(part, RejectRecord))
    write_rejects(storage, 0, VERSION, rows)  # of a shard: not counted
    storage.write_bytes("rejects/notes.txt", b"")
    assert plan_reject_files(storage) == sorted(paths)
    assert count_plan_rejects(storage) == {"too_long": 2, "duplicate": 1}


def test_a_shard_without_rejects_has_an_empty_table(storage: Storage) -> None:
    file = write_rejects(storage, 0, VERSION, [])
    table: pa.Table = storage.read_table(file.path)
    assert table.num_rows == 0 and "reason" in table.column_names
