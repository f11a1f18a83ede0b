"""A row of a prompt table becomes a prompt, or a reject with a reason."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rudalle_lib.errors import PromptError, StorageError
from rudalle_lib.prompts.cells import PROMPT_ID
from rudalle_lib.prompts.prompt_texts import normalise
from rudalle_lib.prompts.rows import (
    content_digest,
    plan_schema,
    prompts_of,
    read_prompt_blocks,
    read_prompts,
)
from rudalle_lib.schema.records import REASONS, Overrides, Prompt, RejectRecord
from rudalle_lib.storage.storage import Storage
from tests.support.prompt_tables import Row, jsonl, read_one, write_table


def test_blocks_have_the_columns_of_a_plan(tmp_path: Path) -> None:
    uri = write_table(tmp_path / "p.parquet", [{"prompt": "a", "x": 1}, {"prompt": None, "x": 2}])
    (block,) = read_prompt_blocks(uri)
    assert block.prompts.schema.names == [*plan_schema().names, "extra.x"]
    assert (list(block.numbers), list(block.reject_numbers)) == ([1], [2])


def test_a_limit_counts_all_rows_good_or_bad(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in ("a", "", "b", "c")]
    for ending in ("csv", "jsonl", "parquet"):
        uri = write_table(tmp_path / f"p.{ending}", [{**row, "x": 1} for row in rows])
        found = list(read_prompts(uri, limit=3))
        assert [getattr(row, "reason", row.text) for row in found] == ["a", "empty_prompt", "b"]


def test_the_demo_table_is_in_the_package() -> None:
    rows = list(read_prompts("demo://prompts"))
    assert len(rows) >= 64
    reasons = {row.reason for row in rows if isinstance(row, RejectRecord)}
    assert {"empty_prompt", "too_long", "bad_override"} <= reasons


def test_equal_prompts_have_equal_ids(tmp_path: Path) -> None:
    same = ["Йод  и йога", " Йод и\nйога ", unicodedata.normalize("NFD", "Йод и йога")]
    ids = {read_one(tmp_path, {"prompt": text}).prompt_id for text in same}
    assert len(ids) == 1
    assert {len(prompt_id or "") for prompt_id in ids} == {16}


def test_different_overrides_are_different_prompts(tmp_path: Path) -> None:
    rows = [{}, {"images": 1}, {"seed": 1}, {"temperature": 1}, {"temperature": 2}, {"top_k": 1}]
    assert len({read_one(tmp_path, {"prompt": "a", **row}).prompt_id for row in rows}) == len(rows)


def test_the_spelling_of_a_number_does_not_matter(tmp_path: Path) -> None:
    spellings: list[Row] = [{"images": 8, "top_p": 1}, {"images": 8.0, "top_p": 1.0}]
    spellings += [{"images": "8", "top_p": "1"}, {"images": " 8.0", "top_p": "1e0"}]
    assert len({read_one(tmp_path, {"prompt": "a", **row}).prompt_id for row in spellings}) == 1


def test_ids_never_change() -> None:
    """These ids are in existing datasets: a change would generate all their images again."""
    assert content_digest("красный круг", {}) == "af34564328771750"
    assert content_digest("красный круг", {"images": 4, "top_p": 0.5}) == "3301fa6f50072edc"


def test_normalising_removes_control_characters_and_keeps_emoji() -> None:
    assert normalise("\x00a\x07b\u2028c\t") == "a b c"
    assert normalise("👩\u200d🎨 тест") == "👩\u200d🎨 тест"


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"prompt": None}, "empty_prompt", "found nothing"),
        ({"prompt": ""}, "empty_prompt", "only white space"),
        ({"prompt": " \u00a0\n\x00"}, "empty_prompt", "only white space"),
        ({"prompt": 5}, "bad_type", "expected text as the prompt, found int"),
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
    found = read_one(tmp_path, row)
    assert isinstance(found, RejectRecord)
    assert found.reason == reason in REASONS
    assert found.detail.startswith(f"row 1 of {tmp_path}/one.jsonl: ")
    assert detail in found.detail
    assert found.stage == "plan" and found.image_id is None


def test_null_empty_text_and_nan_override_nothing(tmp_path: Path) -> None:
    found = read_one(tmp_path, {"prompt": "a", "images": None, "seed": "", "top_p": math.nan})
    assert isinstance(found, Prompt) and found.overrides == Overrides()


def test_an_integer_can_be_an_id(tmp_path: Path) -> None:
    assert read_one(tmp_path, {"prompt": "a", "prompt_id": 12}).prompt_id == "12"


def test_a_language_is_reduced_to_its_code(tmp_path: Path) -> None:
    found = read_one(tmp_path, {"prompt": "a", "lang": "RU-ru"})
    assert isinstance(found, Prompt) and found.lang == "ru"


def test_a_missing_table_is_an_error(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"Cannot read the prompt table .*p.csv: it does not"):
        list(read_prompts(storage.url("p.csv")))
    with pytest.raises(PromptError, match="the one in the package is demo://prompts"):
        list(read_prompts("demo://other"))


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


def test_an_image_prompt_is_part_of_a_prompt(tmp_path: Path) -> None:
    spellings = ["up=4 left=2", "left:2,up:4", {"up": 4, "left": 2, "right": None}]
    found = [
        read_one(
            tmp_path, {"prompt": "a", "image_prompt": "b.png ", "image_prompt_borders": borders}
        )
        for borders in spellings
    ]
    expected = Overrides(image_prompt="b.png", image_prompt_borders="up=4 left=2")
    assert [row.overrides for row in found if isinstance(row, Prompt)] == [expected] * 3
    ids = {row.prompt_id for row in found}
    assert len(ids) == 1
    other = read_one(
        tmp_path, {"prompt": "a", "image_prompt": "c.png", "image_prompt_borders": "up=4"}
    )
    plain = read_one(tmp_path, {"prompt": "a", "guidance": 2, "width": 512})
    assert isinstance(plain, Prompt) and plain.overrides == Overrides(guidance=2.0, width=512)
    assert len(ids | {other.prompt_id, plain.prompt_id, content_digest("a", {})}) == 4


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image_prompt": "b.png"}, "belong together"),
        ({"image_prompt_borders": "up=4"}, "belong together"),
        ({"image_prompt": 7, "image_prompt_borders": "up=4"}, "path or URL of an image, found 7"),
        ({"image_prompt": "a\x00b", "image_prompt_borders": "up=4"}, "path or URL"),
        ({"image_prompt": "x" * 2001, "image_prompt_borders": "up=4"}, "path or URL"),
        ({"image_prompt": "s3://u:p@h/b.png", "image_prompt_borders": "up=4"}, "user name"),
        ({"image_prompt": "b.png", "image_prompt_borders": "up=0"}, "at least 1 token"),
    ],
)
def test_a_bad_image_prompt_rejects_its_row(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    found = read_one(tmp_path, {"prompt": "a", **row})
    assert isinstance(found, RejectRecord) and found.reason == "bad_image_prompt"
    assert words in found.detail


def test_a_plan_of_an_earlier_version_is_still_read() -> None:
    names = [name for name in plan_schema().names if name not in ("guidance", "image_prompt")]
    values = {name: [None] for name in names} | {"prompt_id": ["a"], "text": ["b"], "images": [3]}
    assert prompts_of(pa.table(values)) == [Prompt("a", "b", overrides=Overrides(images=3))]
