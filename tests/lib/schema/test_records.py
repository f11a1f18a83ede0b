"""Records survive a round trip through Arrow, and each column has a description."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rudalle_lib.schema.arrow import from_table, schema, to_table
from rudalle_lib.schema.records import (
    REASONS,
    ImageRecord,
    Overrides,
    PixelsRecord,
    PlannedPrompt,
    RejectRecord,
    ScoreRecord,
    TokensRecord,
    TranslationRecord,
    image_id,
    reject,
)

STORED = [
    ImageRecord,
    Overrides,
    PixelsRecord,
    PlannedPrompt,
    RejectRecord,
    ScoreRecord,
    TokensRecord,
    TranslationRecord,
]


@pytest.mark.parametrize("record", STORED)
def test_every_column_has_a_description(record: type) -> None:
    for column in schema(record):
        assert column.metadata[b"description"], column.name


@pytest.mark.parametrize("record", STORED)
def test_an_empty_table_has_all_columns(record: type) -> None:
    table = to_table([], record)
    assert table.schema == schema(record)
    assert from_table(table, record) == []


def test_records_survive_a_table() -> None:
    rows = [
        TokensRecord("a-000", "a", 0, 2**63 - 1, [1, 2, 3], -0.5, 2.0, 1.0, 0, 1.0, False),
        TokensRecord("a-001", "a", 1, 0, [], -1.5, 4.0, 0.5, 7, 0.25, True),
    ]
    table = to_table(rows, TokensRecord).append_column("more", pa.array([1, 2]))
    assert from_table(table, TokensRecord) == rows


def test_given_columns_replace_those_of_the_records() -> None:
    row = RejectRecord("a", None, "круг", "plan", "too_long", "cut")
    table = to_table([row, row], RejectRecord, detail=["one", "two"])
    assert table.schema == schema(RejectRecord)
    assert table.column("detail").to_pylist() == ["one", "two"]
    assert table.column("text").to_pylist() == ["круг", "круг"]
    with pytest.raises(pa.ArrowInvalid):
        to_table([row], RejectRecord, detail=["one", "two"])
    with pytest.raises(TypeError, match="RejectRecord has no column detial"):
        to_table([row], RejectRecord, detial=["one"])


def test_only_optional_columns_are_nullable() -> None:
    nullable = [column.name for column in schema(ImageRecord) if column.nullable]
    images = ["image_prompt", "image_prompt_borders"]
    assert nullable == ["probability", *images, "translator", "upscaler", "segmenter", "background"]


def test_image_ids_have_at_least_three_digits() -> None:
    assert image_id("abc", 7) == "abc-007"
    assert image_id("abc", 1234) == "abc-1234"


def test_given_returns_only_overrides_that_are_set() -> None:
    assert Overrides(images=2, top_p=0.5).given() == {"images": 2, "top_p": 0.5}
    assert Overrides().given() == {}


def test_a_reject_keeps_the_first_characters_of_its_text() -> None:
    record = reject("too_long", "far too long", stage="plan", text="x" * 10_000)
    assert record.reason in REASONS
    assert record.text == "x" * 500
