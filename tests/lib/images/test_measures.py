"""Probes, stored embeddings, perceptual hashes, the second scorer, and selection by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.scoring import PRESETS
from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.errors import ConfigError
from rudalle_lib.images.measures import (
    Second,
    compare_translations,
    hash_images,
    pack_embeddings,
    probe,
    probe_all,
)
from rudalle_lib.images.scoring import Scorer, score_rows
from rudalle_lib.images.selection import find_rejects
from rudalle_lib.schema.records import PixelsRecord, ScoreRecord
from tests.support.tiny_scorer import make_scorer, pixel_rows

TEXTS = {"black": "чёрный квадрат", "red": "красный круг"}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return make_scorer()


@pytest.fixture(scope="module")
def rows() -> list[PixelsRecord]:
    return pixel_rows("black", "red", "black")


def test_a_probe_of_one_text_is_the_similarity_and_of_more_the_probability_of_the_first() -> None:
    features = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(2, 8), dim=1)
    one = probe(features, texts[:1], 10.0)
    torch.testing.assert_close(one, features @ texts[0])
    other = probe(features, texts.flip(0), 10.0)
    torch.testing.assert_close(probe(features, texts, 10.0) + other, torch.ones(3))
    named = probe_all(features, {"a": texts, "b": texts[:1]}, 10.0)
    assert [row["b"] for row in named] == one.tolist() and list(named[0]) == ["a", "b"]


def test_scores_hold_what_was_asked_for(scorer: Scorer, rows: list[PixelsRecord]) -> None:
    section = ScoreConfig.model_validate({
        "embeddings": True, "hashes": True, "batch_size": 2,
        "probes": {"nsfw": "preset", "red": ["красный"], "pretty": ["красиво", "уродливо"]},
    })  # fmt: skip
    found = score_rows(scorer, rows, TEXTS, section)
    plain = score_rows(scorer, rows, TEXTS, ScoreConfig())
    assert [row.score for row in found] == [row.score for row in plain]
    assert all(not row.measures for row in plain)
    assert all(row.embedding is None and row.phash is None for row in plain)
    for row in found:
        assert sorted(row.measures) == ["nsfw", "pretty", "red"]
        assert 0 < row.measures["pretty"] < 1 and -1 <= row.measures["red"] <= 1
        vector = np.frombuffer(row.embedding or b"", "<f2").astype(np.float32)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=2e-3)
        assert row.phash is not None and len(row.phash) == 16 and int(row.phash, 16) >= 0


def test_embeddings_are_stored_as_float16_in_little_endian() -> None:
    assert pack_embeddings(torch.tensor([[1.0, -0.5]])) == [bytes.fromhex("003c00b8")]


def test_hashes_of_alike_images_differ_little() -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear")
    brighter = (images[:1] * 200 + 20).to(torch.uint8)
    one, other = hash_images((images * 220).to(torch.uint8))
    (near,) = hash_images(brighter)
    bits = [(int(one, 16) ^ int(hash_, 16)).bit_count() for hash_ in (near, other)]
    assert bits[0] <= 4 < 16 <= bits[1]


def test_the_second_scorer_has_a_column_of_its_own(
    scorer: Scorer, rows: list[PixelsRecord]
) -> None:
    texts = {"black": "a black square", "red": "a red circle"}
    section = ScoreConfig(batch_size=2)
    found = score_rows(scorer, rows, TEXTS, section, second=Second(scorer, texts))
    expected = score_rows(scorer, rows, texts, section)
    assert [row.second_score for row in found] == pytest.approx([row.score for row in expected])
    assert [row.score for row in found] != pytest.approx([row.second_score for row in found])


def test_translations_are_compared_if_the_scorer_can_read_both(scorer: Scorer) -> None:
    pairs = {"same": ("круг", "круг"), "other": ("круг", "крест"), "unreadable": ("赤い円", "круг")}
    found = compare_translations(scorer, pairs)
    assert list(found) == ["same", "other"]
    assert found["same"] == pytest.approx(1) and found["other"] < 0.999
    assert compare_translations(scorer, {}) == {}


def measured(name: str, second: float | None = None, **measures: float) -> ScoreRecord:
    return ScoreRecord(name, "a", 0.5, 1, measures=measures, second_score=second)


def test_images_outside_the_limits_of_a_measure_are_rejected() -> None:
    section = ScoreConfig.model_validate({
        "probes": {"nsfw": "preset", "pretty": "красиво уродливо".split()},
        "second_model": "ruclip-small",
        "minimum": {"pretty": 0.5, "second": 0.2}, "maximum": {"nsfw": 0.3}, "keep_best": 1,
    })  # fmt: skip
    rows = [
        measured("a-000", 0.3, nsfw=0.31, pretty=0.9),
        measured("a-001", 0.3, nsfw=0.1, pretty=0.4),
        measured("a-002", 0.1, nsfw=0.1, pretty=0.6),
        measured("a-003", 0.2, nsfw=0.3, pretty=0.5),
        measured("a-004", 0.3, nsfw=float("nan"), pretty=0.5),
    ]
    found = find_rejects(rows, section)
    assert {name: why.detail for name, why in found.items()} == {
        "a-000": "nsfw 0.310 exceeds its maximum 0.300",
        "a-001": "pretty 0.400 is below its minimum 0.500",
        "a-002": "second 0.100 is below its minimum 0.200",
        "a-004": "nsfw nan exceeds its maximum 0.300",
    }
    assert {why.reason for why in found.values()} == {"outside_limits"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("score: {minimum: {x: 0.5}}", "minimum.x needs such a probe in score.probes"),
        ("score: {maximum: {second: 0.5}}", "maximum.second needs score.second_model"),
        ("score: {probes: {x: preset}}", "there is no preset 'x'; known are nsfw, violence"),
        ("score: {probes: {second: [a]}}", "'second' is the name of the second scorer"),
        ("score: {probes: {Red: [a]}}", "Red"),
        ("score: {probes: {red: []}}", "probes.red"),
    ],
)
def test_wrong_measures_are_one_sentence_that_names_the_key(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunConfig.parse(text)


def test_presets_name_what_they_measure_first_and_its_opposite_second() -> None:
    assert {"nsfw", "violence", "aesthetic", "text"} == set(PRESETS)
    assert all(len(texts) == 2 for texts in PRESETS.values())
    section = ScoreConfig.model_validate({"probes": {"nsfw": "preset", "a": ["x"]}})
    assert section.probe_texts() == {"a": ("x",), "nsfw": PRESETS["nsfw"]}
