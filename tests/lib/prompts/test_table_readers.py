"""All formats contain the same prompts; a bad line is a reject, an unreadable table an error."""

from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.errors import PromptError, RudalleError
from rudalle_lib.prompts import blocks, text_streams
from rudalle_lib.prompts.rows import content_digest, read_prompts
from rudalle_lib.schema.records import Overrides, Prompt, RejectRecord
from rudalle_lib.storage.storage import Storage
from tests.support.prompt_tables import Row, read_accepted, write_table

ROWS: list[Row] = [
    {"prompt": "красный круг", "prompt_id": "a", "images": 4, "top_p": 0.5, "note": "x"},
    {"prompt": 'a "quoted",\n text', "prompt_id": None, "images": None, "top_p": None, "note": "y"},
    {"prompt": "синий крест", "prompt_id": "c.1_2-3", "images": None, "top_p": 1, "note": "ё"},
]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_all_formats_contain_the_same_prompts(tmp_path: Path, ending: str) -> None:
    found = read_accepted(write_table(tmp_path / f"prompts.{ending}", ROWS))
    assert found == [
        Prompt("a", "красный круг", None, None, Overrides(images=4, top_p=0.5), {"note": "x"}),
        Prompt(content_digest('a "quoted", text', {}), 'a "quoted", text', extra={"note": "y"}),
        Prompt("c.1_2-3", "синий крест", None, None, Overrides(top_p=1.0), {"note": "ё"}),
    ]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_table_is_read_from_any_url(storage: Storage, tmp_path: Path, ending: str) -> None:
    local = write_table(tmp_path / f"prompts.{ending}", ROWS)
    storage.write_bytes(f"in/prompts.{ending}", Path(local).read_bytes())
    assert read_accepted(storage.url(f"in/prompts.{ending}")) == read_accepted(local)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    uri = write_table(tmp_path / "p.csv", [{"caption": "круг", "id": "a", "prompt_id": "mine"}])
    (found,) = read_accepted(uri, columns={"prompt": "caption", "prompt_id": "id"})
    assert (found.prompt_id, found.text, found.extra) == ("a", "круг", {"prompt_id": "mine"})


def test_parquet_keeps_the_types_of_other_columns(tmp_path: Path) -> None:
    when = datetime(2026, 1, 2)
    uri = write_table(tmp_path / "p.parquet", [{"prompt": "a", "when": when, "tags": ["x", "y"]}])
    assert read_accepted(uri)[0].extra == {"when": when, "tags": ["x", "y"]}


def test_other_columns_of_jsonl_become_text(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"prompt": "a", "n": 1},
        {"prompt": "b", "n": "1", "more": {"k": [None, "ё"]}},
    ]
    found = read_accepted(write_table(tmp_path / "p.jsonl", rows))
    assert found[0].extra == {"n": "1", "more": None}
    assert found[1].extra == {"n": "1", "more": '{"k": [null, "ё"]}'}


def test_all_text_types_of_parquet_are_read(tmp_path: Path) -> None:
    for number, kind in enumerate(
        [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"prompt": pa.array(["круг", "крест"]).cast(kind)}), path)
        assert [row.text for row in read_accepted(str(path))] == ["круг", "крест"]


def test_row_numbers_continue_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 7)
    rows = [{"prompt": f"p {i}" if i % 5 else "", "x": i} for i in range(1, 51)]
    for ending in ("csv", "jsonl", "parquet"):
        found = list(read_prompts(write_table(tmp_path / f"p.{ending}", rows), limit=43))
        assert len(found) == 43
        rejects = [row.detail.split()[1] for row in found if isinstance(row, RejectRecord)]
        assert rejects == [str(number) for number in range(5, 43, 5)]


def test_bad_lines_of_jsonl_become_rejects(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(b'{"prompt": "a"}\nnot json\n\n[1]\n{"prompt": "b\xff"}\n' + deep + b"\n{}\n")
    found = list(read_prompts(str(path)))
    assert isinstance(found[0], Prompt)
    rejects = [row for row in found if isinstance(row, RejectRecord)]
    assert found[1:] == rejects
    assert [row.reason for row in rejects] == ["bad_type"] * 4 + ["empty_prompt"]
    assert [row.detail.split()[1] for row in rejects] == ["2", "4", "5", "6", "7"]


def test_bad_lines_of_csv_become_rejects(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    long = b'"' + b"x" * 200_000 + b'",1\n'
    path.write_bytes(b"\xef\xbb\xbfprompt,x\na,1\n\nfew\n\xff,1\nto,o,many\n" + long + b"b,2\n")
    found = list(read_prompts(str(path)))
    assert [row.text for row in found if isinstance(row, Prompt)] == ["a", "b"]
    assert [row.reason for row in found if isinstance(row, RejectRecord)] == ["bad_type"] * 4


def test_only_the_start_of_a_very_long_line_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_streams, "MAX_LINE_BYTES", 100)
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "' + b"x" * 1000 + b'"}\n{"prompt": "b"}\n')
    found = list(read_prompts(str(path)))
    assert [getattr(row, "reason", row.text) for row in found] == ["a", "bad_type", "b"]


def test_invalid_utf8_in_parquet(tmp_path: Path) -> None:
    bad = pa.array([b"\xff\xfe", b"ok"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, bad.buffers())
    pq.write_table(pa.table({"prompt": text, "note": text}), tmp_path / "p.parquet")
    first, second = read_prompts(str(tmp_path / "p.parquet"))
    assert isinstance(first, RejectRecord) and first.reason == "bad_type"
    assert isinstance(second, Prompt) and second.extra == {"note": "ok"}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", b"text,x\na,1\n", "has no column 'prompt'; its columns are 'text', 'x'"),
        ("p.csv", b"", "has no column 'prompt'; its columns are none"),
        ("p.jsonl", b'{"text": "a"}\n', "has no column 'prompt'; its columns are 'text'"),
        ("p.jsonl", b"", "has no column 'prompt'"),
        ("p.jsonl", b"PAR2\x00\x01\n", "is not JSONL"),
        ("p.csv", b"prompt,prompt\n", "has two columns named 'prompt'"),
        ("p.parquet", b"", "is not readable as Parquet"),
        ("p.parquet", b"prompt\na\n", "is not readable as Parquet"),
        ("p.txt", b"a", "expected a name that ends in one of .parquet, .pq, .csv, .tsv, .jsonl"),
    ],
)
def test_an_unreadable_table_is_an_error(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError) as error:
        list(read_prompts(str(path)))
    assert expected in str(error.value) and str(path) in str(error.value)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
OTHERS = {
    "a Git LFS pointer": LFS,
    "an HTML page": PAGE,
    "a gzip archive": gzip.compress(b"prompt\nx\n"),
    "a zip archive": b"PK\x03\x04\x14\0\0\0\0\0a.csvprompt\nx\n",
    "an Arrow table": b"ARROW1\0\0\xff\xff\xff\xff\x10\0\0\0",
    "a Parquet table": b"PAR1\x15\x04\x15PAR1",
    "an SQLite database": b"SQLite format 3\0\x10\0",
}
"""Files that are often found under the name of a table, by what they are."""


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.jsonl", "p.json", "p.parquet", "p.csv.gz"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, kind: str) -> None:
    if (name, kind) in (("p.parquet", "a Parquet table"), ("p.csv.gz", "a gzip archive")):
        return
    path = tmp_path / name
    content = OTHERS[kind]
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(PromptError, match=f"^The prompt table {path} is {kind}, .*expected one of"):
        list(read_prompts(str(path)))


@pytest.mark.parametrize(
    "name", ["BMW", "GIF89", "PAR1", "%PDF-", "Rar!", "<prompt>", "{a", "GGUF"]
)
def test_a_text_may_begin_like_a_file_of_another_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"{name},prompt\nx,круг\n", encoding="utf-8")
    assert [row.text for row in read_accepted(str(path))] == ["круг"]


def test_a_truncated_table_is_an_error(tmp_path: Path) -> None:
    uri = write_table(tmp_path / "p.parquet", ROWS)
    whole = Path(uri).read_bytes()
    Path(uri).write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(PromptError, match="is not readable as Parquet"):
        list(read_prompts(uri))


def test_a_mapped_column_must_exist(tmp_path: Path) -> None:
    uri = write_table(tmp_path / "p.csv", [{"prompt": "a"}])
    with pytest.raises(PromptError, match=r"no column 'sd' \(for seed\).*prompts.columns.seed"):
        list(read_prompts(uri, {"seed": "sd"}))


def test_a_numeric_prompt_column_is_an_error(tmp_path: Path) -> None:
    uri = write_table(tmp_path / "p.parquet", [{"prompt": 1}])
    with pytest.raises(PromptError, match="column 'prompt' of .* holds int64, expected text"):
        list(read_prompts(uri))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_any_bytes_are_rows_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
) -> None:
    path = tmp_path_factory.mktemp("any") / f"p.{ending}"
    path.write_bytes(b"prompt,x\n" + content if ending == "csv" else content)
    try:
        list(read_prompts(str(path)))
    except RudalleError as error:
        assert str(path) in str(error)
