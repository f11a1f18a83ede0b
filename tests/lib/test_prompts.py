"""A prompt table in any of its formats gives the same prompts; a row that cannot be used becomes a
reject with a reason, and only a table that cannot be read is an error.
"""

from __future__ import annotations

import csv
import json
import math
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rudalle_lib import prompt_tables
from rudalle_lib.errors import PromptError, RudalleError, StorageError
from rudalle_lib.prompts import (
    PROMPT_ID,
    content_digest,
    normalise,
    plan_schema,
    prompts_of,
    read_prompt_blocks,
    read_prompts,
)
from rudalle_lib.records import REASONS, Overrides, Prompt, RejectRecord
from rudalle_lib.storage import Storage

Row = dict[str, Any]


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, rows: list[Row]) -> str:
    """Write rows in the format that the name of the file says."""
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


def prompts(uri: str, **options: Any) -> list[Prompt]:
    rows = list(read_prompts(uri, **options))
    assert all(isinstance(row, Prompt) for row in rows), rows
    return rows  # type: ignore[return-value]


def one(tmp_path: Path, row: Row) -> Prompt | RejectRecord:
    path = tmp_path / "one.jsonl"
    path.write_bytes(jsonl([row]))
    (found,) = read_prompts(str(path))
    return found


# --- formats -------------------------------------------------------------------------------------

ROWS: list[Row] = [
    {"prompt": "красный круг", "prompt_id": "a", "images": 4, "top_p": 0.5, "note": "x"},
    {"prompt": 'a "quoted",\n text', "prompt_id": None, "images": None, "top_p": None, "note": "y"},
    {"prompt": "синий крест", "prompt_id": "c.1_2-3", "images": None, "top_p": 1, "note": "ё"},
]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, ending: str) -> None:
    found = prompts(write(tmp_path / f"prompts.{ending}", ROWS))
    assert found == [
        Prompt("a", "красный круг", None, None, Overrides(images=4, top_p=0.5), {"note": "x"}),
        Prompt(content_digest('a "quoted", text', {}), 'a "quoted", text', extra={"note": "y"}),
        Prompt("c.1_2-3", "синий крест", None, None, Overrides(top_p=1.0), {"note": "ё"}),
    ]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_table_is_read_from_any_url(storage: Storage, tmp_path: Path, ending: str) -> None:
    local = write(tmp_path / f"prompts.{ending}", ROWS)
    storage.write_bytes(f"in/prompts.{ending}", Path(local).read_bytes())
    assert prompts(storage.url(f"in/prompts.{ending}")) == prompts(local)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    uri = write(tmp_path / "p.csv", [{"caption": "круг", "id": "a", "prompt_id": "mine"}])
    (found,) = prompts(uri, columns={"prompt": "caption", "prompt_id": "id"})
    assert (found.prompt_id, found.text, found.extra) == ("a", "круг", {"prompt_id": "mine"})


def test_parquet_keeps_the_types_of_other_columns(tmp_path: Path) -> None:
    when = datetime(2026, 1, 2)
    uri = write(tmp_path / "p.parquet", [{"prompt": "a", "when": when, "tags": ["x", "y"]}])
    assert prompts(uri)[0].extra == {"when": when, "tags": ["x", "y"]}


def test_other_columns_of_jsonl_become_text(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": "1", "more": {"k": [None, "ё"]}}]
    found = prompts(write(tmp_path / "p.jsonl", rows))
    assert found[0].extra == {"n": "1", "more": None}
    assert found[1].extra == {"n": "1", "more": '{"k": [null, "ё"]}'}


def test_text_in_parquet_may_be_stored_in_many_ways(tmp_path: Path) -> None:
    for number, kind in enumerate(
        [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"prompt": pa.array(["круг", "крест"]).cast(kind)}), path)
        assert [row.text for row in prompts(str(path))] == ["круг", "крест"]


def test_blocks_have_the_columns_of_a_plan(tmp_path: Path) -> None:
    uri = write(tmp_path / "p.parquet", [{"prompt": "a", "x": 1}, {"prompt": None, "x": 2}])
    (block,) = read_prompt_blocks(uri)
    assert block.prompts.schema.names == [*plan_schema().names, "extra.x"]
    assert (list(block.numbers), list(block.reject_numbers)) == ([1], [2])


def test_a_limit_counts_rows_good_or_bad(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in ("a", "", "b", "c")]
    for ending in ("csv", "jsonl", "parquet"):
        uri = write(tmp_path / f"p.{ending}", [{**row, "x": 1} for row in rows])
        found = list(read_prompts(uri, limit=3))
        assert [getattr(row, "reason", row.text) for row in found] == ["a", "empty_prompt", "b"]


def test_many_blocks_are_numbered_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_tables, "BLOCK_ROWS", 7)
    rows = [{"prompt": f"p {i}" if i % 5 else "", "x": i} for i in range(1, 51)]
    for ending in ("csv", "jsonl", "parquet"):
        found = list(read_prompts(write(tmp_path / f"p.{ending}", rows), limit=43))
        assert len(found) == 43
        rejects = [row.detail.split()[1] for row in found if isinstance(row, RejectRecord)]
        assert rejects == [str(number) for number in range(5, 43, 5)]


def test_the_demo_table_is_in_the_package() -> None:
    rows = list(read_prompts("demo://prompts"))
    assert len(rows) >= 64
    reasons = {row.reason for row in rows if isinstance(row, RejectRecord)}
    assert {"empty_prompt", "too_long", "bad_override"} <= reasons


# --- identity ------------------------------------------------------------------------------------


def test_equal_prompts_have_equal_ids(tmp_path: Path) -> None:
    same = ["Йод  и йога", " Йод и\nйога ", unicodedata.normalize("NFD", "Йод и йога")]
    ids = {one(tmp_path, {"prompt": text}).prompt_id for text in same}
    assert len(ids) == 1
    assert {len(prompt_id or "") for prompt_id in ids} == {16}


def test_other_overrides_are_another_prompt(tmp_path: Path) -> None:
    rows = [{}, {"images": 1}, {"seed": 1}, {"temperature": 1}, {"temperature": 2}, {"top_k": 1}]
    assert len({one(tmp_path, {"prompt": "a", **row}).prompt_id for row in rows}) == len(rows)


def test_the_spelling_of_a_number_does_not_count(tmp_path: Path) -> None:
    spellings = [{"images": 8, "top_p": 1}, {"images": 8.0, "top_p": 1.0}]
    spellings += [{"images": "8", "top_p": "1"}, {"images": " 8.0", "top_p": "1e0"}]
    assert len({one(tmp_path, {"prompt": "a", **row}).prompt_id for row in spellings}) == 1


def test_ids_never_change() -> None:
    """These ids are in people's datasets: a change here would draw everything again."""
    assert content_digest("красный круг", {}) == "af34564328771750"
    assert content_digest("красный круг", {"images": 4, "top_p": 0.5}) == "3301fa6f50072edc"


def test_normalising_cleans_and_keeps() -> None:
    assert normalise("\x00a\x07b\u2028c\t") == "a b c"
    assert normalise("👩\u200d🎨 тест") == "👩\u200d🎨 тест"


# --- rejects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"prompt": None}, "empty_prompt", "found nothing"),
        ({"prompt": ""}, "empty_prompt", "only white space"),
        ({"prompt": " \u00a0\n\x00"}, "empty_prompt", "only white space"),
        ({"prompt": 5}, "bad_type", "expected a text as prompt, found int"),
        ({"prompt": ["a"]}, "bad_type", "found list"),
        ({"prompt": "a \ud800"}, "bad_type", "not valid UTF-8"),
        ({"prompt": "x" * 10_001}, "too_long", "10,001 characters; expected at most 10,000"),
        ({"prompt": "a", "lang": "russian!"}, "bad_type", "language code such as ru or en"),
        ({"prompt": "a", "lang": 1}, "bad_type", "language code such as ru or en"),
        ({"prompt": "a", "prompt_id": "../../etc"}, "bad_prompt_id", "'../../etc'"),
        ({"prompt": "a", "prompt_id": "/etc"}, "bad_prompt_id", "'/etc'"),
        ({"prompt": "a", "prompt_id": ".."}, "bad_prompt_id", "'..'"),
        ({"prompt": "a", "prompt_id": "a" * 65}, "bad_prompt_id", "at most 64"),
        ({"prompt": "a", "prompt_id": "a\n"}, "bad_prompt_id", "at most 64"),
        ({"prompt": "a", "prompt_id": 1.5}, "bad_prompt_id", "1.5"),
        ({"prompt": "a", "images": 0}, "bad_override", "images must be a whole number from 1 to"),
        ({"prompt": "a", "images": "many"}, "bad_override", "found 'many'"),
        ({"prompt": "a", "images": 2.5}, "bad_override", "found 2.5"),
        ({"prompt": "a", "images": True}, "bad_override", "found True"),
        ({"prompt": "a", "seed": -1}, "bad_override", "seed must be"),
        ({"prompt": "a", "seed": 2**63}, "bad_override", "seed must be"),
        ({"prompt": "a", "seed": 10**400}, "bad_override", "seed must be"),
        ({"prompt": "a", "temperature": 0}, "bad_override", "a number above 0 and at most 100"),
        ({"prompt": "a", "temperature": math.inf}, "bad_override", "temperature must be"),
        ({"prompt": "a", "top_k": -1}, "bad_override", "top_k must be"),
        ({"prompt": "a", "top_p": 1.01}, "bad_override", "top_p must be"),
        ({"prompt": "a", "top_p": {}}, "bad_override", "found {}"),
    ],
)
def test_a_bad_row_is_a_reject(tmp_path: Path, row: Row, reason: str, detail: str) -> None:
    found = one(tmp_path, row)
    assert isinstance(found, RejectRecord)
    assert found.reason == reason in REASONS
    assert found.detail.startswith(f"row 1 of {tmp_path}/one.jsonl: ")
    assert detail in found.detail
    assert found.stage == "plan" and found.image_id is None


def test_what_is_not_given_is_no_override(tmp_path: Path) -> None:
    found = one(tmp_path, {"prompt": "a", "images": None, "seed": "", "top_p": math.nan})
    assert isinstance(found, Prompt) and found.overrides == Overrides()


def test_a_whole_number_is_an_id(tmp_path: Path) -> None:
    assert one(tmp_path, {"prompt": "a", "prompt_id": 12}).prompt_id == "12"


def test_a_language_is_reduced_to_its_code(tmp_path: Path) -> None:
    found = one(tmp_path, {"prompt": "a", "lang": "RU-ru"})
    assert isinstance(found, Prompt) and found.lang == "ru"


def test_bad_lines_of_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(b'{"prompt": "a"}\nnot json\n\n[1]\n{"prompt": "b\xff"}\n' + deep + b"\n{}\n")
    found = list(read_prompts(str(path)))
    assert isinstance(found[0], Prompt)
    assert [row.reason for row in found[1:]] == ["bad_type"] * 4 + ["empty_prompt"]
    assert [row.detail.split()[1] for row in found[1:]] == ["2", "4", "5", "6", "7"]


def test_bad_lines_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    long = b'"' + b"x" * 200_000 + b'",1\n'
    path.write_bytes(b"\xef\xbb\xbfprompt,x\na,1\n\nfew\n\xff,1\nto,o,many\n" + long + b"b,2\n")
    found = list(read_prompts(str(path)))
    assert [row.text for row in found if isinstance(row, Prompt)] == ["a", "b"]
    assert [row.reason for row in found if isinstance(row, RejectRecord)] == ["bad_type"] * 4


def test_an_endless_line_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_tables, "MAX_LINE_BYTES", 100)
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "' + b"x" * 1000 + b'"}\n{"prompt": "b"}\n')
    found = list(read_prompts(str(path)))
    assert [getattr(row, "reason", row.text) for row in found] == ["a", "bad_type", "b"]


def test_text_of_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    bad = pa.array([b"\xff\xfe", b"ok"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, bad.buffers())
    pq.write_table(pa.table({"prompt": text, "note": text}), tmp_path / "p.parquet")
    first, second = read_prompts(str(tmp_path / "p.parquet"))
    assert isinstance(first, RejectRecord) and first.reason == "bad_type"
    assert isinstance(second, Prompt) and second.extra == {"note": "ok"}


# --- tables that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", b"text,x\na,1\n", "has no column 'prompt'; its columns are 'text', 'x'"),
        ("p.csv", b"", "has no column 'prompt'; its columns are none"),
        ("p.jsonl", b'{"text": "a"}\n', "has no column 'prompt'; its columns are 'text'"),
        ("p.jsonl", b"", "has no column 'prompt'"),
        ("p.jsonl", b"PAR1\x00\x01\n", "is not JSONL"),
        ("p.csv", b"prompt,prompt\n", "has two columns named 'prompt'"),
        ("p.parquet", b"", "is not readable as Parquet"),
        ("p.parquet", b"prompt\na\n", "is not readable as Parquet"),
        ("p.txt", b"a", "expected a name that ends in one of .parquet, .pq, .csv, .tsv, .jsonl"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PromptError) as error:
        list(read_prompts(str(path)))
    assert expected in str(error.value) and str(path) in str(error.value)


def test_a_table_that_is_cut_short(tmp_path: Path) -> None:
    uri = write(tmp_path / "p.parquet", ROWS)
    whole = Path(uri).read_bytes()
    Path(uri).write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(PromptError, match="is not readable as Parquet"):
        list(read_prompts(uri))


def test_a_mapped_column_must_be_there(tmp_path: Path) -> None:
    uri = write(tmp_path / "p.csv", [{"prompt": "a"}])
    with pytest.raises(PromptError, match=r"no column 'sd' \(for seed\).*prompts.columns.seed"):
        list(read_prompts(uri, {"seed": "sd"}))


def test_a_prompt_column_of_numbers(tmp_path: Path) -> None:
    uri = write(tmp_path / "p.parquet", [{"prompt": 1}])
    with pytest.raises(PromptError, match="column 'prompt' of .* holds int64, expected text"):
        list(read_prompts(uri))


def test_a_table_that_is_not_there(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"Cannot read the prompt table .*p.csv: it does not"):
        list(read_prompts(storage.url("p.csv")))
    with pytest.raises(PromptError, match="the one in the package is demo://prompts"):
        list(read_prompts("demo://other"))


# --- anything ------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)
ANY_ROW = st.dictionaries(
    st.sampled_from(["prompt", "prompt_id", "lang", "images", "seed", "top_p", "x"]), VALUES
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ANY_ROW, min_size=1, max_size=8))
def test_any_rows_become_prompts_or_rejects(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    path = tmp_path_factory.mktemp("any") / "p.jsonl"
    path.write_bytes(jsonl([{"prompt": "first"}, *rows]))
    found = list(read_prompts(str(path)))
    assert len(found) == 1 + len(rows)
    for row in found:
        assert isinstance(row, RejectRecord) or (row.text and PROMPT_ID.fullmatch(row.prompt_id))


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


def test_an_image_prompt_is_part_of_a_prompt(tmp_path: Path) -> None:
    spellings = ["up=4 left=2", "left:2,up:4", {"up": 4, "left": 2, "right": None}]
    found = [
        one(tmp_path, {"prompt": "a", "image_prompt": "b.png ", "image_prompt_borders": borders})
        for borders in spellings
    ]
    expected = Overrides(image_prompt="b.png", image_prompt_borders="up=4 left=2")
    assert [row.overrides for row in found if isinstance(row, Prompt)] == [expected] * 3
    ids = {row.prompt_id for row in found}
    assert len(ids) == 1
    other = one(tmp_path, {"prompt": "a", "image_prompt": "c.png", "image_prompt_borders": "up=4"})
    plain = one(tmp_path, {"prompt": "a", "guidance": 2, "width": 512})
    assert isinstance(plain, Prompt) and plain.overrides == Overrides(guidance=2.0, width=512)
    assert len(ids | {other.prompt_id, plain.prompt_id, content_digest("a", {})}) == 4


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image_prompt": "b.png"}, "belong together"),
        ({"image_prompt_borders": "up=4"}, "belong together"),
        ({"image_prompt": 7, "image_prompt_borders": "up=4"}, "path or URL of a picture, found 7"),
        ({"image_prompt": "a\x00b", "image_prompt_borders": "up=4"}, "path or URL"),
        ({"image_prompt": "x" * 2001, "image_prompt_borders": "up=4"}, "path or URL"),
        ({"image_prompt": "s3://u:p@h/b.png", "image_prompt_borders": "up=4"}, "user name"),
        ({"image_prompt": "b.png", "image_prompt_borders": "up=0"}, "at least 1 token"),
    ],
)
def test_a_bad_image_prompt_rejects_its_row(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    found = one(tmp_path, {"prompt": "a", **row})
    assert isinstance(found, RejectRecord) and found.reason == "bad_image_prompt"
    assert words in found.detail


def test_a_plan_of_an_older_version_is_still_read() -> None:
    names = [name for name in plan_schema().names if name not in ("guidance", "image_prompt")]
    values = {name: [None] for name in names} | {"prompt_id": ["a"], "text": ["b"], "images": [3]}
    assert prompts_of(pa.table(values)) == [Prompt("a", "b", overrides=Overrides(images=3))]
