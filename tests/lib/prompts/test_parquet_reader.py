"""Parquet is decoded by a process with limits: a run gets rows, or one clear sentence."""

from __future__ import annotations

import gc
import os
import random
import resource
import subprocess
import time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rudalle_lib.errors import PromptError, StorageError
from rudalle_lib.prompts import blocks, parquet_reader
from rudalle_lib.prompts.blocks import Columns, TableOptions
from rudalle_lib.prompts.budgets import Budget
from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.prompts.table_readers import read_blocks
from rudalle_lib.schema.records import Overrides, Prompt, RejectRecord
from rudalle_lib.storage.storage import Storage
from tests.support.prompt_tables import read_accepted


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "p.parquet"


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def error(path: Path | str) -> str:
    with pytest.raises(PromptError) as raised:
        list(read_prompts(str(path)))
    assert str(path) in str(raised.value) and len(str(raised.value)) < 1000
    return str(raised.value)


# --- what people write ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"compression": "none", "row_group_size": 3},
        {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
        {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
        {"store_schema": False},
        {"write_statistics": False, "version": "1.0"},
    ],
)
def test_all_encodings_are_read(table: Path, options: dict[str, Any]) -> None:
    texts = [f"круг {n % 7}" for n in range(50)]
    write(table, {"prompt": texts, "tags": texts[::-1]}, **options)
    found = read_accepted(str(table))
    assert [row.text for row in found] == texts
    assert [row.extra["tags"] for row in found] == texts[::-1]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([Decimal(1), Decimal(10**37)], pa.decimal128(38, 0)), ["1", str(10**37)]),
        (pa.array([Decimal("1.00"), Decimal("2.00")], pa.decimal128(5, 2)), ["1", "2"]),
        (pa.array([1.0, 12.0]), ["1", "12"]),
        (pa.array([1.0, 2.0], pa.float32()), ["1", "2"]),
        (pa.array([2**63, 7], pa.uint64()), [str(2**63), "7"]),
        (
            pa.ExtensionArray.from_storage(
                pa.uuid(), pa.array([UUID(int=1).bytes, UUID(int=2).bytes], pa.binary(16))
            ),
            [str(UUID(int=1)), str(UUID(int=2))],
        ),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
        (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
        (pa.array([b"x", b"y"]), ["x", "y"]),
    ],
)
def test_ids_of_any_kind_are_read(table: Path, ids: pa.Array, expected: list[str]) -> None:
    write(table, {"prompt": ["a", "b"], "prompt_id": ids})
    assert [row.prompt_id for row in read_accepted(str(table))] == expected


def test_uuids_of_other_writers_are_read(table: Path) -> None:
    """They have the logical type of Parquet, but no schema of Arrow."""
    ids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID(int=3).bytes], pa.binary(16)))
    write(table, {"prompt": ["a"], "prompt_id": ids}, store_schema=False)
    assert [row.prompt_id for row in read_accepted(str(table))] == [str(UUID(int=3))]


@pytest.mark.parametrize("value", [1.5, float(2**53), float("inf"), True, Decimal("1.5")])
def test_other_numbers_are_no_ids(table: Path, value: Any) -> None:
    write(table, {"prompt": ["a"], "prompt_id": [value]})
    (found,) = read_prompts(str(table))
    assert isinstance(found, RejectRecord) and found.reason == "bad_prompt_id"


def test_numbers_of_any_kind_override(table: Path) -> None:
    columns = {
        "prompt": ["a"],
        "images": pa.array([Decimal(3)], pa.decimal128(38, 0)),
        "seed": [7.0],
        "top_p": pa.array([Decimal("0.5")], pa.decimal64(3, 2)),
        "temperature": pa.array([2], pa.int8()),
        "top_k": pa.array([5]).dictionary_encode(),
    }
    (found,) = read_accepted(write(table, columns))
    expected = Overrides(images=3, seed=7, top_p=0.5, temperature=2.0, top_k=5)
    assert found.overrides == expected


def test_names_are_cleaned(table: Path) -> None:
    pq.write_table(pa.table([["a"], [1], [2]], names=[" prompt", "", "seed "]), table)
    (found,) = read_accepted(str(table))
    assert found.overrides == Overrides(seed=2) and found.extra == {"column_2": 1}


def test_many_small_row_groups_make_few_blocks(table: Path) -> None:
    write(table, {"prompt": [f"p{n}" for n in range(3000)]}, row_group_size=1)
    started = time.monotonic()
    assert len(read_accepted(str(table))) == 3000
    assert time.monotonic() - started < 20


def test_repeated_long_values_are_read_in_small_blocks(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**18)
    long = ["x" * 9_000, "y" * 9_000]
    texts = [long[n % 2] + str(n % 3) for n in range(300)]
    tags = [[text, text] for text in texts]
    write(table, {"prompt": texts, "tags": tags, "m": [{"k": text} for text in texts]})
    found = read_accepted(str(table))
    assert [row.text for row in found] == texts
    assert [row.extra["tags"] for row in found] == tags


def test_structs_with_texts_are_read_across_row_groups(table: Path) -> None:
    """Arrow cannot join the dictionaries of two row groups inside of structs."""
    tags = [{"name": f"n{n % 7}", "data": bytes([255, n])} for n in range(90)]
    write(table, {"prompt": [f"p{n}" for n in range(90)], "tags": tags}, row_group_size=40)
    assert [row.extra["tags"] for row in read_accepted(str(table))] == tags


def test_images_are_read_with_the_memory_that_their_table_is_given(table: Path) -> None:
    parquet_reader._close_all()
    large = [bytes([255]) * 2**20 + bytes([n]) for n in range(20)]
    write(table, {"prompt": [f"p{n}" for n in range(20)], "image": large})
    for memory_bytes in (3 * 2**30, 2**30):
        options = TableOptions(lambda _: Columns({"image": "image"}), memory_bytes=memory_bytes)
        with table.open("rb") as stream:
            parts = list(read_blocks(stream, str(table), "t", options, Budget("t")))
        assert [image for block in parts for image in block.values["image"]] == large
        (process,) = processes()
        limit, _ = resource.prlimit(process._process.pid, resource.RLIMIT_AS)
        assert limit == memory_bytes


def test_a_row_that_is_too_large_is_rejected_alone(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_reader, "MAX_ROW_BYTES", 2**20)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**19)
    texts = ["a", "b", "c", "d"]
    write(table, {"prompt": texts, "x": ["", "y" * 2**21, "z" * 300_000, ""]})
    found = list(read_prompts(str(table)))
    assert [getattr(row, "reason", row.text) for row in found] == ["a", "bad_type", "bad_type", "d"]
    details = [row.detail for row in found if isinstance(row, RejectRecord)]
    assert "row 2 of" in details[0] and "more than 1,048,576 bytes" in details[0]
    assert "row 3 of" in details[1] and "more than 262,144 bytes" in details[1]


def test_compressed_parquet_is_read(tmp_path: Path) -> None:
    plain = tmp_path / "p.parquet"
    write(plain, {"prompt": ["a", "b"]})
    path = tmp_path / "p.parquet.zst"
    path.write_bytes(pa.compress(plain.read_bytes(), "zstd", asbytes=True))
    assert [row.text for row in read_accepted(str(path))] == ["a", "b"]


# --- the process ---------------------------------------------------------------------------------


def processes() -> list[parquet_reader._Process]:
    return list(parquet_reader._idle)


def test_one_process_reads_many_tables(table: Path) -> None:
    parquet_reader._close_all()
    write(table, {"prompt": ["a"]})
    read_accepted(str(table))
    (first,) = processes()
    for _ in range(3):
        read_accepted(str(table))
        assert error(Path(write(table.with_name("q.parquet"), {"text": ["a"]})))
    assert processes() == [first]


def test_an_idle_process_ends(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_reader._close_all()
    monkeypatch.setattr(parquet_reader, "SECONDS_KEPT", 0.1)
    read_accepted(write(table, {"prompt": ["a"]}))
    (process,) = processes()
    deadline = time.monotonic() + 10
    while process._process.returncode is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes() == [] and process._process.returncode is not None


def test_a_table_that_is_not_read_to_its_end_leaves_the_process_usable(table: Path) -> None:
    write(table, {"prompt": [f"p{n}" for n in range(50)]}, row_group_size=5)
    rows = read_prompts(str(table))
    assert next(rows)
    del rows
    gc.collect()
    assert len(read_accepted(str(table))) == 50


def test_two_tables_can_be_read_at_once(table: Path) -> None:
    one = read_prompts(write(table, {"prompt": [f"p{n}" for n in range(20)]}, row_group_size=5))
    more = write(table.with_name("q.parquet"), {"prompt": [f"q{n}" for n in range(20)]})
    other = read_prompts(more)
    pairs = list(zip(one, other, strict=True))
    assert len(pairs) == 20


def test_a_process_that_dies_is_one_clear_error(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(table, {"prompt": ["a"]})
    parquet_reader._close_all()
    monkeypatch.setattr(parquet_reader, "_CODE", "import os; os.abort()")
    assert "unpacking it failed (signal 6)" in error(table)
    monkeypatch.undo()
    assert len(read_accepted(str(table))) == 1


def test_a_process_that_takes_too_long_is_ended(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(table, {"prompt": ["a"]})
    parquet_reader._close_all()
    monkeypatch.setattr(parquet_reader, "_CODE", "import time; time.sleep(600)")
    monkeypatch.setattr(parquet_reader, "SECONDS_PER_BLOCK", 0.5)
    started = time.monotonic()
    assert "takes more than 0 s to unpack" in error(table)
    assert time.monotonic() - started < 10 and processes() == []


def test_the_process_gets_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    assert "hidden" not in parquet_reader._environment().values()


def test_the_process_ends_with_its_parent(table: Path) -> None:
    write(table, {"prompt": ["a"] * 10}, row_group_size=5)
    code = (
        "import os, signal, sys\n"
        "from rudalle_lib.prompts import parquet_reader\n"
        "from rudalle_lib.prompts.rows import read_prompts\n"
        "rows = read_prompts(sys.argv[1]); next(rows)\n"
        "list(rows); print(parquet_reader._idle[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code, str(table)], capture_output=True, text=True)
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_fork_leaves_the_process_to_its_parent(table: Path) -> None:
    read_accepted(write(table, {"prompt": ["a"]}))
    assert processes()
    child = os.fork()
    if child == 0:
        os._exit(len(processes()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(read_accepted(str(table))) == 1


def test_errors_of_the_storage_pass_as_they_are(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(table, {"prompt": ["a"]})

    class Broken:
        def seek(self, *_: int) -> int:
            return 1000

        def read(self, _: int) -> bytes:
            raise StorageError("the server does not answer")

    options = blocks.TableOptions(lambda names: blocks.Columns({"prompt": "prompt"}))
    from rudalle_lib.prompts.budgets import Budget

    with pytest.raises(StorageError, match="does not answer"):
        list(parquet_reader.read_parquet(Broken(), "t", options, Budget("t")))  # type: ignore[arg-type]
    assert len(read_accepted(str(table))) == 1


# --- damaged files -------------------------------------------------------------------------------


def test_any_damage_is_rows_or_one_clear_error(table: Path) -> None:
    columns = {"prompt": [f"p{n}" for n in range(100)], "x": [[n, None] for n in range(100)]}
    whole = Path(write(table, columns, compression="zstd")).read_bytes()
    dice = random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(dice.choice((1, 1, 5, 50))):
            content[dice.randrange(len(content))] = dice.randrange(256)
        table.write_bytes(bytes(content))
        try:
            rows = list(read_prompts(str(table)))
        except PromptError as raised:
            assert str(table) in str(raised) and len(str(raised)) < 3000
        else:
            assert all(isinstance(row, Prompt | RejectRecord) for row in rows)


def test_a_remote_table_is_read(storage: Storage, table: Path) -> None:
    write(table, {"prompt": [f"p{n}" for n in range(5000)]}, row_group_size=1000)
    storage.write_bytes("in/p.parquet", table.read_bytes())
    assert len(read_accepted(storage.url("in/p.parquet"))) == 5000
