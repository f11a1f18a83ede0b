"""The decode stage: candidates of any size become PNG files, and bad pixels no file at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import decode_image, to_uint8
from rudalle_lib.images.decoding import check_codes, decode_rows, decode_tokens
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.schema.records import TokensRecord, image_id
from rudalle_lib.weights.loading import load_vqgan
from tests.support.tiny_stack import CODES, GRID, SIDE, write_tiny_vqgan


@pytest.fixture(scope="module")
def model(tiny_stack: Path) -> VqGan:
    return load(tiny_stack)


def load(folder: Path) -> VqGan:
    return load_vqgan("demo-vqgan", WeightsConfig(folder=str(folder), offline=True)).model


def candidate(replica: int, rows: int = GRID, columns: int = GRID) -> TokensRecord:
    """A candidate with random tokens."""
    generator = torch.Generator().manual_seed(replica)
    tokens = torch.randint(CODES, (rows * columns,), generator=generator).tolist()
    return TokensRecord(
        image_id("a", replica), "a", replica, 0, tokens, -1.0, 2.0, 1.0, 0, 1.0, False,
        rows=rows, columns=columns,
    )  # fmt: skip


def test_each_candidate_becomes_one_file_in_order(model: VqGan) -> None:
    candidates = [candidate(0), candidate(1, columns=2 * GRID), candidate(2), candidate(3)]
    rows = decode_rows(model, candidates, 2).rows()
    assert [(row.image_id, row.prompt_id) for row in rows] == [
        (row.image_id, row.prompt_id) for row in candidates
    ]
    assert [(row.width, row.height) for row in rows] == [
        (SIDE, SIDE), (2 * SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE),
    ]  # fmt: skip
    for row, one in zip(rows, candidates, strict=True):
        assert row.image is not None and row.image.startswith(b"\x89PNG")
        tokens = torch.tensor(one.tokens).view(1, one.rows, one.columns)
        with torch.inference_mode():
            expected = to_uint8(model.decode(tokens), -1.0, 1.0)[0]
        difference = decode_image(row.image).int() - expected.int()
        assert difference.abs().max() <= 1, "batches may differ in a last bit"


def test_progress_counts_images(model: VqGan) -> None:
    steps: list[tuple[int, int]] = []
    decode_rows(model, [candidate(n) for n in range(5)], 2, lambda *step: steps.append(step)).rows()
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert decode_rows(model, [], 2).rows() == []


def test_an_image_with_nan_pixels_has_no_file(model: VqGan, tmp_path: Path) -> None:
    broken = load(write_tiny_vqgan(tmp_path, damaged=True))
    (row,) = decode_rows(broken, [candidate(0)], 2).rows()
    assert (row.image, row.width, row.height) == (None, SIDE, SIDE)
    images, finite = decode_tokens(broken, torch.zeros(2, GRID, GRID, dtype=torch.int64))
    assert finite == [False, False] and images.dtype == torch.uint8
    _, finite = decode_tokens(model, torch.zeros(2, GRID, GRID, dtype=torch.int64))
    assert finite == [True, True]


def test_tokens_of_another_codebook_are_an_error(tmp_path: Path) -> None:
    small = load(write_tiny_vqgan(tmp_path, codes=2))
    with pytest.raises(SettingsError, match=r"decode.model does not belong to generate.model"):
        decode_rows(small, [candidate(0)], 2).rows()
    check_codes(torch.tensor([0, 9]), 10)
    check_codes(torch.empty(0, dtype=torch.int64), 10)
    with pytest.raises(SettingsError, match="expected tokens below 10, found 10"):
        check_codes(torch.tensor([0, 10]), 10)
