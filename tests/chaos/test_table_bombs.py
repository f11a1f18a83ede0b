"""Small prompt tables that unpack to anything: planned, rejected, or one clear sentence.

Each is planned in a process of its own that may use 500 MB more memory than it starts with, and 30
seconds.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.storage.storage import Storage
from tests.support.limited_process import Outcome, call_limited

pytestmark = pytest.mark.chaos

RESERVED = 3 * 1024
"""Megabytes of address space that planning may add; Arrow reserves a gigabyte for nothing."""

MAX_RESIDENT = 500
"""Megabytes of memory that planning may use."""

SECONDS = 30
"""Seconds of a processor that it may take."""

X = "x" * 2**20


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def repeated(value: str | bytes, count: int) -> pa.Array:
    """An array that needs no memory per row."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def parquet(columns: dict[str, object], **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", **options)
    return sink.getvalue().to_pybytes()


def nested(depth: int) -> pa.Array:
    array = pa.array([1])
    for _ in range(depth):
        array = pa.StructArray.from_arrays([array], ["a"])
    return array


def wide(columns: int, rows: int) -> bytes:
    header = ",".join(["prompt", *(f"c{n}" for n in range(columns))])
    lines = (f"p{n}{',' * columns}" for n in range(rows))
    return "\n".join([header, *lines, ""]).encode()


def sparse(columns: int, rows: int) -> str:
    first = json.dumps({"prompt": "first", **{f"k{n}": 1 for n in range(columns)}})
    return "\n".join([first, *(f'{{"prompt":"p{n}"}}' for n in range(rows)), ""])


BOMBS: dict[str, tuple[str, Callable[[], bytes | str], str]] = {
    "dictionary of a megabyte": (
        "p.parquet", lambda: parquet({"prompt": repeated(X, 20_000)}), "unpacks to more than"),
    "dictionary in another column": (
        "p.parquet",
        lambda: parquet({"prompt": [f"p{n}" for n in range(9000)], "x": repeated(X, 9000)}),
        "unpacks to more than"),
    "dictionary of bytes in lists": (
        "p.parquet",
        lambda: parquet({"prompt": ["a"], "x": pa.ListArray.from_arrays(
            [0, 10_000], repeated(X.encode(), 10_000))}),
        "bad_type"),
    "run of rows": (
        "p.parquet",
        lambda: parquet({"prompt": repeated("a", 30_000_000)}, row_group_size=30_000_000),
        "unpacks to more than"),
    "list of nulls": (
        "p.parquet",
        lambda: parquet({"prompt": ["a"], "x": pa.ListArray.from_arrays(
            [0, 80_000_000], pa.nulls(80_000_000))}),
        "bytes of memory to unpack"),
    "prefixes of the value before": (
        "p.parquet",
        lambda: parquet({"prompt": [X] * 1200}, use_dictionary=False,
                        column_encoding={"prompt": "DELTA_BYTE_ARRAY"}),
        "bytes of memory to unpack"),
    "one large page": (
        "p.parquet",
        lambda: parquet({"prompt": ["x" * 10_000] * 20_000}, use_dictionary=False,
                        data_page_size=2**30, row_group_size=20_000),
        "unpacks to more than"),
    "binary of a fixed size": (
        "p.parquet",
        lambda: parquet({"prompt": ["a"] * 200, "x": pa.array(
            [bytes(2**20)] * 200, pa.binary(2**20))}),
        "unpacks to more than"),
    "deeply nested type": (
        "p.parquet", lambda: parquet({"prompt": ["a"], "x": nested(60)}), "nested deeper than 20"),
    "20,000 columns of Parquet": (
        "p.parquet",
        lambda: parquet({"prompt": ["a"], **{f"c{n}": [1] for n in range(20_000)}}),
        "20,001 columns, expected at most"),
    "row groups of one row": (
        "p.parquet",
        lambda: parquet({"prompt": [f"p{n}" for n in range(5000)]}, row_group_size=1),
        "planned 5000"),
    "compressed zeros for Parquet": (
        "p.parquet.zst", lambda: zstd(bytes(2**30)), "unpacks to more than"),
    "20,000 columns of CSV": ("p.csv", lambda: wide(20_000, 3), "20,001 columns, expected at most"),
    "2,000 columns of CSV": ("p.csv", lambda: wide(2000, 60), "planned 60"),
    "empty values": ("p.csv.zst", lambda: zstd(wide(2000, 20_000)), "too many columns"),
    "zeros": ("p.csv.gz", lambda: gzip.compress(bytes(2**28)), "unpacks to more than"),
    "empty lines": (
        "p.csv.zst", lambda: zstd(b"prompt\n" + b"\n" * 2**29), "unpacks to more than"),
    "short rows": (
        "p.csv.zst", lambda: zstd(b"prompt\n" + b"a\n" * 2**28), "unpacks to more than"),
    "a quote per line": (
        "p.csv", lambda: "prompt,x\n" + 'a"b,"c\n' * 50_000, "planned 0 {'bad_type': 50000}"),
    "quotes that look a hundred lines ahead": (
        "p.csv", lambda: "prompt,x\n" + ('"a,b\n' + "c,d\n" * 98) * 500, "'bad_type': 500"),
    "lines that are lists": ("p.jsonl", lambda: "[]\n" * 100_000, "is not JSONL"),
    "lists after a row": (
        "p.jsonl", lambda: '{"prompt":"a"}\n' + "[]\n" * 50_000, "'bad_type': 50000"),
    "empty lists": (
        "p.jsonl.zst",
        lambda: zstd(b'{"prompt":"a"}\n' + b'{"prompt":"a","x":[' + b"[]," * 600_000 + b"1]}\n"),
        "'bad_type': 1"),
    "many empty lists": (
        "p.jsonl.zst",
        lambda: zstd(b'{"prompt":"a"}\n' + (
            b'{"prompt":"a","x":[' + b"[]," * 300_000 + b"1]}\n") * 300),
        "unpacks to more than"),
    "empty lists in an array": (
        "p.json.zst",
        lambda: zstd(b'[{"prompt":"a"},' + (
            b'{"prompt":"a","x":[' + b"[]," * 300_000 + b"1]},\n") * 300),
        "unpacks to more than"),
    "deep lists": (
        "p.jsonl",
        lambda: '{"prompt":"a"}\n' + ("[" * 50_000 + "\n") * 50 + '{"prompt":' * 900 + "1",
        "'bad_type': 51"),
    "huge numbers": (
        "p.jsonl",
        lambda: '{"prompt":"a"}\n' + '{"prompt":"b","seed":' + "9" * 1_500_000 + "}\n" + (
            '{"prompt":"c","seed":1e999999}\n'),
        "'bad_type': 1, 'bad_override': 1"),
    "a new key per row": (
        "p.jsonl",
        lambda: "".join(f'{{"prompt":"p{n}","k{n}":1}}\n' for n in range(6000)),
        "planned 2047"),
    "keys that later rows lack": ("p.jsonl", lambda: sparse(2000, 60_000), "too many columns"),
    "an endless string": ("p.json", lambda: '[{"prompt":"' + "a" * 2**25, "is not JSON"),
    "deep arrays": ("p.json", lambda: "[" * 1_000_000, "nested too deep"),
    "short records": (
        "p.json.zst", lambda: zstd(b"[" + b'{"prompt":"a"},' * 2**24), "unpacks to more than"),
}  # fmt: skip
"""The name of a file, what makes its content, and what planning it says."""


def plan_limited(uri: str) -> str:
    """Plan a table, in a process of its own; returns how many prompts and rejects it has."""
    with tempfile.TemporaryDirectory() as output:
        config = RunConfig.model_validate({"output": output, "prompts": {"uri": uri}})
        plan = plan_run(config, Storage(output))
        return f"planned {plan.prompts} {dict(plan.rejected)}"


def plan(uri: Path) -> tuple[str, Outcome]:
    """What planning a table says, and what it took."""
    found = call_limited(plan_limited, str(uri), megabytes=RESERVED, seconds=SECONDS)
    return found.error or found.value, found


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_defused(tmp_path: Path, name: str) -> None:
    file, make, expected = BOMBS[name]
    content = make()
    path = tmp_path / file
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert path.stat().st_size < 40_000_000
    said, took = plan(path)
    assert expected in said and "\n" not in said and len(said) < 1000
    assert took.megabytes < MAX_RESIDENT and took.seconds < SECONDS


@pytest.mark.parametrize(
    ("count", "expected"), [(2_000, "planned 1 {'duplicate': 1999}"), (10_500, "more than 10,000")]
)
def test_thousands_of_part_files_are_read_or_refused(
    tmp_path: Path, count: int, expected: str
) -> None:
    content = parquet({"prompt": ["a"]})
    folder = tmp_path / "table"
    folder.mkdir()
    for number in range(count):
        (folder / f"part-{number:05}.parquet").write_bytes(content)
    said, took = plan(folder)
    assert expected in said and took.seconds < SECONDS


def test_a_folder_of_bombs_is_one_bomb(tmp_path: Path) -> None:
    content = parquet({"prompt": repeated(X, 20_000)})
    for number in range(500):
        (tmp_path / f"part-{number:05}.parquet").write_bytes(content)
    said, took = plan(tmp_path)
    assert "unpacks to more than" in said and took.seconds < SECONDS
