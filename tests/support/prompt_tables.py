"""Small prompt tables in any format, written to disk and read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.schema.records import Prompt, RejectRecord

Row = dict[str, Any]


def jsonl(rows: list[Row]) -> bytes:
    """Rows as the bytes of a JSONL file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_table(path: Path, rows: list[Row]) -> str:
    """Write rows in the format of the file's suffix, and return the path as a URI."""
    if path.suffix == ".jsonl":
        path.write_bytes(jsonl(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return str(path)


def read_accepted(uri: str, **options: Any) -> list[Prompt]:
    """The prompts of a table whose rows are all accepted."""
    rows = list(read_prompts(uri, **options))
    accepted = [row for row in rows if isinstance(row, Prompt)]
    assert len(accepted) == len(rows), rows
    return accepted


def read_one(folder: Path, row: Row) -> Prompt | RejectRecord:
    """What a single row becomes."""
    path = folder / "one.jsonl"
    path.write_bytes(jsonl([row]))
    (result,) = read_prompts(str(path))
    return result
