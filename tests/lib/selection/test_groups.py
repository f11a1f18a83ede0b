"""Values of prompts, and tables of minimum scores."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rudalle_lib.errors import ConfigError, StorageError
from rudalle_lib.schema.records import ShardSpec
from rudalle_lib.selection.groups import check_columns, group_values, read_min_scores
from rudalle_lib.storage.storage import Storage

EXTRAS = pa.table({
    "prompt_id": ["a", "b", "c", "d"],
    "category": ["cat", "dog", None, "cat"],
    "year": [1913, 1915, 1915, None],
    "signed": [True, False, None, True],
})  # fmt: skip


def limits(folder: Path, text: str, name: str = "t.csv") -> dict[str, tuple[float, str]]:
    (folder / name).write_text(text, encoding="utf-8")
    found = read_min_scores(str(folder / name)).limits(EXTRAS)
    return {prompt: (one.min_score, one.where) for prompt, one in found.items()}


def test_the_first_row_that_matches_counts_and_an_empty_value_matches_any(tmp_path: Path) -> None:
    text = "category;year;min_score\ncat;1913;0.4\ncat;;0.3\n;1915;0.2\n"
    assert limits(tmp_path, text) == {
        "a": (0.4, "category=cat, year=1913"),
        "b": (0.2, "year=1915"),
        "c": (0.2, "year=1915"),
        "d": (0.3, "category=cat"),
    }
    assert limits(tmp_path, "min_score,category\n0.1,dog\n") == {"b": (0.1, "category=dog")}
    assert limits(tmp_path, "signed,min_score\ntrue,-1\n,1\n") == {
        "a": (-1.0, "signed=true"), "b": (1.0, "all prompts"), "c": (1.0, "all prompts"),
        "d": (-1.0, "signed=true"),
    }  # fmt: skip


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    table = pa.table({"year": [1915, None], "signed": [False, None], "min_score": [0.5, 0.25]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read_min_scores(str(tmp_path / "t.parquet")).limits(EXTRAS)
    assert {name: one.min_score for name, one in found.items()} == {
        "a": 0.25, "b": 0.5, "c": 0.25, "d": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " has the columns none: expected min_score and columns of the prompt table"),
        ("category,score\ncat,1\n", " has the columns category, score: expected min_score"),
        ("a,a,min_score\n", " has the columns a, a, min_score: .*each once"),
        ("a,min_score\nx,0.1\ny\n", r", row 2: expected 2 values, found 1\."),
        ("a,min_score\nx,60\n", r", row 1: expected a min_score from -1 to 1, found '60'\."),
        ("a,min_score\nx,nan\n", ", row 1: expected a min_score from -1 to 1, found 'nan'"),
        ('a,min_score\n"x,1\n', " cannot be read as CSV: "),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^The table of minimum scores .*t.csv{message}"):
        limits(tmp_path, text)


def test_a_table_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"t.parquet cannot be read as Parquet: .*"):
        read_min_scores(str(tmp_path / "t.parquet"))
    (tmp_path / "t.csv").write_bytes(b"a,min_score\n\xff,1\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_min_scores(str(tmp_path / "t.csv"))
    with pytest.raises(StorageError, match="none.csv"):
        read_min_scores(str(tmp_path / "none.csv"))


def test_values_of_any_type_are_texts_and_nulls_have_no_group() -> None:
    assert group_values(EXTRAS, ["year", "signed", "no column"]) == {
        "year": {"a": "1913", "b": "1915", "c": "1915"},
        "signed": {"a": "true", "b": "false", "d": "true"},
        "no column": {},
    }


def test_a_column_that_no_prompt_has_is_an_error_that_names_the_others(tmp_path: Path) -> None:
    storage, shards = Storage(str(tmp_path)), []
    for index, names in enumerate((["extra.category"], ["extra.category", "extra.style"])):
        path = f"plan/{index:05d}.parquet"
        storage.write_table(path, pa.table({"prompt_id": ["a"], **{n: ["x"] for n in names}}))
        shards.append(ShardSpec(index, storage.url(path), 1))
    check_columns({"category": "x", "style": "x"}, storage, shards)
    check_columns({"categry": "x"}, storage, [])
    with pytest.raises(ConfigError) as raised:
        check_columns({"categry": "select.rules.0.per"}, storage, shards)
    assert str(raised.value) == (
        "select.rules.0.per names the column 'categry', which no prompt has (did you mean "
        "category?); the prompt table's own columns are category, style."
    )
