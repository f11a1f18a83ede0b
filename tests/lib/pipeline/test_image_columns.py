"""Optional columns of the metadata: only those with values, described, and told from others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rudalle_lib.config.sections import PublishConfig
from rudalle_lib.images.likeness import pack_vectors, unpack_vectors
from rudalle_lib.pipeline.image_columns import Drawn, image_columns, is_ours
from rudalle_lib.schema.records import ScoreRecord, TokensRecord, TranslationRecord

TOKENS = TokensRecord("a-000", "a", 0, 1, [1, 2, 3, 4], -1, 2, 1, 0, 1, False, rows=2, columns=2)
RUSSIAN = TranslationRecord("a", "круг", "ru", "круг")
PLAIN = ScoreRecord("a-000", "a", 0.5, 1)


def test_without_measures_there_are_no_columns() -> None:
    table = image_columns([Drawn(TOKENS, PLAIN, RUSSIAN)], PublishConfig())
    assert table.column_names == ["image_id"]
    assert image_columns([], PublishConfig()).column_names == ["image_id"]


def test_each_value_is_a_column_with_a_description() -> None:
    score = ScoreRecord(
        "a-000", "a", 0.5, 1, measures={"red": 0.25, "nsfw": 0.5}, second_score=0.1,
        embedding=np.array([1, 0], "<f2").tobytes(), phash="00000000000000ff",
        translation_similarity=0.75,
    )  # fmt: skip
    english = TranslationRecord("a", "a cat", "en", "кошка", -0.25, "cat")
    table = image_columns([Drawn(TOKENS, score, english)], PublishConfig(tokens=True))
    assert table.to_pylist() == [{
        "image_id": "a-000", "probe_nsfw": 0.5, "probe_red": 0.25,
        "second_score": np.float32(0.1), "phash": "00000000000000ff",
        "translation_confidence": -0.25, "translation_ratio": 1.0, "unknown_words": "cat",
        "translation_similarity": 0.75, "embedding": [1.0, 0.0], "tokens": [1, 2, 3, 4],
        "token_columns": 2,
    }]  # fmt: skip
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 2)
    ours = list(table.schema)[1:]
    assert all(field.metadata[b"description"] and is_ours(field) for field in ours)
    assert not any(is_ours(field.remove_metadata()) for field in ours)
    assert not is_ours(pa.field("theme", pa.string()))


def test_an_image_without_an_embedding_has_null() -> None:
    column = pack_vectors([np.array([1, 2], "<f2").tobytes(), None])
    assert column.to_pylist() == [[1.0, 2.0], None]
    both = pa.chunked_array([column.slice(0, 1), column.slice(0, 1)])
    assert unpack_vectors(both).tolist() == [[1.0, 2.0], [1.0, 2.0]]
