"""How alike images are: distances of stored embeddings and hashes, and selection by them."""

from __future__ import annotations

import numpy as np
import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.images.likeness import cosine_distances, embedding_distance, hash_distance
from rudalle_lib.images.selection import find_rejects
from rudalle_lib.schema.records import ScoreRecord


def stored(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


def scored(name: str, score: float, embedding: bytes | None, phash: str | None) -> ScoreRecord:
    return ScoreRecord(name, "a", score, 1, embedding=embedding, phash=phash)


def test_the_distance_of_embeddings_is_one_minus_their_cosine() -> None:
    assert embedding_distance(stored(1, 0), stored(3, 0)) == 0
    assert embedding_distance(stored(1, 0), stored(0, 2)) == 1
    assert embedding_distance(stored(1, 0), stored(-1, 0)) == 2
    assert embedding_distance(stored(0, 0), stored(1, 0)) == 1
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 33)).astype(np.float16)
    together = cosine_distances(rows, rows[7])
    assert [embedding_distance(row.tobytes(), rows[7].tobytes()) for row in rows] == list(together)


def test_the_distance_of_hashes_is_the_number_of_bits_that_differ() -> None:
    assert hash_distance("00000000000000ff", "00000000000000ff") == 0
    assert hash_distance("00000000000000ff", "f00000000000000f") == 8


@pytest.mark.parametrize(
    ("settings", "detail"),
    [
        (
            {"embeddings": True, "min_distance": 0.1},
            "distance 0.0513 to a-000 is below min_distance 0.1000",
        ),
        (
            {"hashes": True, "min_hash_distance": 3},
            "2 bits of the hash differ from a-000, min_hash_distance is 3",
        ),
    ],
)
def test_the_better_of_two_alike_images_is_kept_and_the_next_best_moves_up(
    settings: dict[str, object], detail: str
) -> None:
    rows = [
        scored("a-000", 0.9, stored(1, 0), "0000000000000000"),
        scored("a-001", 0.8, stored(3, 1), "0000000000000003"),
        scored("a-002", 0.7, stored(0, 1), "ffff000000000000"),
        scored("a-003", 0.6, stored(-1, 0), "0000ffff00000000"),
    ]
    found = find_rejects(rows, ScoreConfig.model_validate({"keep_best": 2, **settings}))
    assert found["a-001"] == ("near_duplicate", detail)
    assert {name: why.reason for name, why in found.items()} == {
        "a-001": "near_duplicate",
        "a-003": "not_in_best_k",
    }


def test_an_image_is_compared_with_kept_images_of_its_prompt_only() -> None:
    alike = stored(1, 0)
    settings = ScoreConfig(embeddings=True, min_distance=0.1, min_score=0.5)
    rows = [
        ScoreRecord("a-000", "a", 0.4, 1, embedding=alike),
        ScoreRecord("b-000", "b", 0.9, 1, embedding=alike),
        ScoreRecord("c-000", "c", 0.9, 1, embedding=alike),
    ]
    assert {name: why.reason for name, why in find_rejects(rows, settings).items()} == {
        "a-000": "below_threshold"
    }


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("score: {min_distance: 0.1}", "needs embeddings: true"),
        ("score: {min_hash_distance: 4}", "needs hashes: true"),
    ],
)
def test_distances_need_what_they_compare(text: str, needs: str) -> None:
    with pytest.raises(ConfigError, match=needs):
        RunConfig.parse(text)
