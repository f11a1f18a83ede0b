"""JSONL and JSON: every key keeps its values, or its row is rejected; nothing is quadratic."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.errors import PromptError
from rudalle_lib.prompts import blocks
from rudalle_lib.prompts.rows import read_prompts
from rudalle_lib.schema.records import Overrides, Prompt, RejectRecord
from tests.support.prompt_tables import read_accepted


def read(path: Path, text: str) -> list[Prompt | RejectRecord]:
    path.write_text(text, encoding="utf-8")
    return list(read_prompts(str(path)))


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


RECORDS = [{"prompt": "a", "x": 1}, {"prompt": "b", "y": [1, {"k": "ё"}]}, {"prompt": "c"}]
EXTRAS = [
    {"x": "1", "y": None},
    {"x": None, "y": '[1, {"k": "ё"}]'},
    {"x": None, "y": None},
]


# --- shapes of JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda rows: rows,
        lambda rows: {"data": rows},
        lambda rows: {"schema": {"fields": [{"data": [1]}]}, "n": 3, "data": rows, "more": 1},
    ],
)
def test_arrays_of_objects_are_read(tmp_path: Path, wrap: Any, indent: int | None) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(wrap(RECORDS), indent=indent), encoding="utf-8")
    found = read_accepted(str(path))
    assert [row.text for row in found] == ["a", "b", "c"]
    assert [row.extra for row in found] == EXTRAS


def test_lines_in_a_file_called_json_are_read(tmp_path: Path) -> None:
    found = read(tmp_path / "p.json", lines({"prompt": "a", "data": [1]}, {"prompt": "b"}))
    assert [row.text for row in found] == ["a", "b"]
    assert [row.text for row in read(tmp_path / "p.json", lines({"prompt": "a"}))] == ["a"]


def test_arrays_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rudalle_lib.prompts.json_reader.CHUNK", 7)
    rows = [{"prompt": f"круг {n}", "images": n % 3 + 1, "x": [n] * (n % 5)} for n in range(200)]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    found = read_accepted(str(path))
    assert [row.text for row in found] == [row["prompt"] for row in rows]
    assert [row.overrides.images for row in found] == [row["images"] for row in rows]


def test_a_bad_element_rejects_its_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, 7, ["b"], {"prompt": None}, {"prompt": "c"}]
    found = read(tmp_path / "p.json", json.dumps(rows))
    assert [getattr(row, "reason", row.text) for row in found] == [
        "a", "bad_type", "bad_type", "empty_prompt", "c"
    ]  # fmt: skip
    assert "row 3 of" in getattr(found[2], "detail", "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected an array of objects"),
        ("7", "expected an array of objects, or an object with an array called"),
        ('{"rows": [1]}\n ', "has no column 'prompt'; its columns are 'rows'"),
        ('{"prompt": {"0": "a"}, "x": {"0": 1}}', "expected an array of objects"),
        ('{"a":\n {"b": 1}}', "expected an array of objects"),
        ('[{"prompt": "a"},', "record 2 is not JSON"),
        ('[{"prompt": "a"} {"prompt": "b"}]', "expected ',' after record 1, found '{'"),
        ('[{"prompt": "a"}', "expected ',' after record 1, found the end of the file"),
        ('[{"prompt": "a"}, {prompt: 1}]', "record 2 is not JSON: Expecting property name"),
        ('[{"text": "a"}]', "has no column 'prompt'; its columns are 'text'"),
        ("[" * 100_000, "record 1 is nested too deep"),
        ('[{"prompt": "' + "a" * 5_000_000, "record 1 is not JSON, or has more than 1,048,576"),
    ],
)
def test_what_is_no_table_is_one_clear_error(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(PromptError) as error:
        read(tmp_path / "p.json", text)
    assert problem in str(error.value) and str(tmp_path / "p.json") in str(error.value)
    assert len(str(error.value)) < 1000


# --- keys ----------------------------------------------------------------------------------------


def test_keys_that_differ_only_in_lone_surrogates_are_not_one(tmp_path: Path) -> None:
    text = '{"prompt": "a"}\n{"prompt": "b", "\\ud800": 1, "\\udfff": 2}\n{"prompt": "c", "?": 3}\n'
    first, second, third = read(tmp_path / "p.jsonl", text)
    assert isinstance(second, RejectRecord)
    assert "a key is not valid UTF-8 text" in second.detail and second.text == "b"
    assert isinstance(third, Prompt) and third.extra == {"?": "3"}
    assert isinstance(first, Prompt)


def test_keys_without_a_name_keep_their_values(tmp_path: Path) -> None:
    rows = read(
        tmp_path / "p.jsonl",
        lines({"prompt": "a", "": 1, "column_2": 2}, {"prompt": "b", " ": 3, "column_4": 4}),
    )
    assert [row.extra for row in rows if isinstance(row, Prompt)] == [
        {"column_2_": "1", "column_2": "2", "column_4_": None, "column_4": None},
        {"column_2_": None, "column_2": None, "column_4_": "3", "column_4": "4"},
    ]


def test_blanks_around_keys_make_no_other_column(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", " seed ": 5},
        {" prompt": "b", "seed": 6},
        {"prompt": "c", "x\ufeff": 1},
    ]
    found = read(tmp_path / "p.jsonl", lines(*rows))
    assert [row.overrides for row in found if isinstance(row, Prompt)] == [
        Overrides(seed=5), Overrides(seed=6), Overrides()
    ]  # fmt: skip
    assert isinstance(found[2], Prompt) and found[2].extra == {"x": "1"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"prompt": "a", "prompt": "b"}', "a key of the row occurs twice"),
        ('{"prompt": "a", "x": 1, " x": 2}', "differ only in the blanks around them"),
        ('{"prompt": "a", "' + "k" * 300 + '": 1}', "a key has more than 256 characters"),
        ('{"prompt": "a", "x": ' + "[" * 150 + "]" * 150 + "}", "nested deeper than 100 levels"),
        ('{"prompt": "a", "x": ' + "[" * 990 + "]" * 990 + "}", "nested deeper|not JSON"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "the line is not JSON"),
        ('{"prompt": "a", "x": "' + "y" * 3_000_000 + '"}', "the line has more than 1,048,576"),
        ('{"prompt": "a", "x": "' + "y" * 300_000 + '"}', "columns have more than 262,144 bytes"),
        ('{"prompt": "a", "x": [' + "[]," * 100_000 + "1]}", "more than 50,000 lists"),
        ('{"prompt": "a", "x": [' + "1," * 200_000 + "1]}", "more than 262,144 bytes"),
    ],
)
def test_a_row_that_cannot_be_used_is_rejected_alone(
    tmp_path: Path, row: str, problem: str
) -> None:
    import re

    found = read(tmp_path / "p.jsonl", lines({"prompt": "first"}) + row + "\n" + lines(RECORDS[2]))
    assert [row.text for row in found if isinstance(row, Prompt)] == ["first", "c"]
    (bad,) = (row for row in found if isinstance(row, RejectRecord))
    assert re.search(problem, bad.detail), bad.detail


def test_a_new_key_per_row_takes_linear_time(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        rows = ({"prompt": f"p{n}", f"k{n}": n} for n in range(count))
        path = tmp_path / "p.jsonl"
        path.write_text(lines(*rows))
        started = time.process_time()
        found = read_accepted(str(path))
        assert len(found) == count and found[-1].extra[f"k{count - 1}"] == str(count - 1)
        return time.process_time() - started

    assert seconds(2000) < 4


def test_the_number_of_columns_is_bounded(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", f"k{n}": n} for n in range(blocks.MAX_COLUMNS + 50)]
    found = read(tmp_path / "p.jsonl", lines(*rows, {"prompt": "last", "k0": 1}))
    bad = [row for row in found if isinstance(row, RejectRecord)]
    assert len(bad) == 51 and "more than 2,048 different keys" in bad[0].detail
    assert isinstance(found[-1], Prompt) and found[-1].extra["k0"] == "1"
    wide = {"prompt": "wide", **{f"k{n}": n for n in range(100_000)}}
    first, second = read(tmp_path / "p.jsonl", lines(wide, {"prompt": "b"}))
    assert isinstance(first, RejectRecord) and isinstance(second, Prompt)


def test_values_of_all_kinds_become_text(tmp_path: Path) -> None:
    row = {"prompt": "a", "n": 1.5, "t": True, "none": None, "o": {"k": [None, "ё"]}, "s": "\ud800"}
    (found,) = read(tmp_path / "p.jsonl", lines(row))
    assert isinstance(found, Prompt)
    assert found.extra == {
        "n": "1.5", "t": "true", "none": None, "o": '{"k": [null, "ё"]}', "s": "?"
    }  # fmt: skip


def test_known_columns_may_be_objects(tmp_path: Path) -> None:
    row = {"prompt": "a", "image_prompt": "b.png", "image_prompt_borders": {"up": 4}}
    (found,) = read(tmp_path / "p.jsonl", lines(row))
    assert isinstance(found, Prompt) and found.overrides.image_prompt_borders == "up=4"
