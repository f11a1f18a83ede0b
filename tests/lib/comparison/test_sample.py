"""Diversity and duplicates: closed forms equal the mean over all pairs; samples are repeatable."""

from __future__ import annotations

import io
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from rudalle_lib.comparison.sample import (
    EMBEDDINGS,
    HASHES,
    PromptSample,
    mean_bit_distance,
    mean_cosine_distance,
    measure_sample,
)
from rudalle_lib.errors import ConfigError
from rudalle_lib.storage.storage import Storage

SHAPES = st.tuples(st.integers(2, 8), st.integers(1, 9))


@given(arrays.arrays(np.bool_, SHAPES))
def test_the_distance_of_bits_is_the_mean_over_all_pairs(bits: np.ndarray) -> None:
    pairs = [np.mean(one != other) for one, other in combinations(bits, 2)]
    assert mean_bit_distance(bits) == pytest.approx(np.mean(pairs))


@given(arrays.arrays(np.float64, SHAPES, elements=st.floats(0.1, 9)))
def test_the_distance_of_vectors_is_the_mean_over_all_pairs(vectors: np.ndarray) -> None:
    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return float(1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    pairs = [distance(one, other) for one, other in combinations(vectors, 2)]
    assert mean_cosine_distance(vectors) == pytest.approx(np.mean(pairs), abs=1e-9)


def test_one_image_has_no_distance() -> None:
    assert mean_bit_distance(np.ones((1, 64), bool)) is None
    assert mean_cosine_distance(np.ones((1, 8))) is None


def rows_of(prompts: int, images: int) -> list[dict[str, str]]:
    return [
        {"prompt_id": f"p{prompt}", "image_id": f"p{prompt}-{image:03d}", "path": "x"}
        for prompt in range(prompts)
        for image in range(images)
    ]


def test_the_sample_is_the_same_however_the_dataset_is_divided() -> None:
    rows, found = rows_of(60, 3), []
    for shards in (1, 7, 60):
        sample = PromptSample(max_images=20)
        by_prompt = [rows[start : start + 3] for start in range(0, len(rows), 3)]
        random.Random(shards).shuffle(by_prompt)
        for shard in range(shards):
            sample.add([row for prompt in by_prompt[shard::shards] for row in prompt])
        found.append(sample.prompts)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 7 and all(len(own) == 3 for own in found[0])


def test_equal_pixels_are_duplicates_whatever_the_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rows = rows_of(2, 2)
    for number, row in enumerate(rows):
        image = Image.fromarray(
            np.random.default_rng(max(number, 1)).integers(0, 255, (32, 32, 3), np.uint8)
        )
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=number)
        row["path"] = f"{number}.png"
        storage.write_bytes(row["path"], buffer.getvalue())
    found = measure_sample(storage, [rows[:2], rows[2:]], embeddings=False)
    assert (found.images, found.method, found.duplicates) == (4, HASHES, 0.25)
    assert found.diversity is not None and found.within_prompts is not None
    assert 0.2 < found.within_prompts < found.diversity < 0.6

    vectors = [[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]
    with_vectors = [{**row, "vector": one} for row, one in zip(rows, vectors, strict=True)]
    found = measure_sample(storage, [with_vectors[:2], with_vectors[2:]], embeddings=True)
    assert (found.method, found.within_prompts) == (EMBEDDINGS, 0.0)
    assert found.diversity == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="p0-000 has no embedding"):
        measure_sample(storage, [rows[:2]], embeddings=True)


def test_a_dataset_without_images_has_no_figures(tmp_path: Path) -> None:
    found = measure_sample(Storage(str(tmp_path)), [], embeddings=False)
    assert (found.images, found.diversity, found.duplicates) == (0, None, None)
