"""Muon: updates are nearly orthogonal, as large as AdamW's, and match torch's own Muon."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rudalle_lib.training.muon import Muon, orthogonal

SHAPES = [(48, 16), (16, 48), (16, 16), (48, 16)]


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    for matrix in made:
        matrix.grad = torch.randn(matrix.shape, generator=generator)
    return made


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_singular_values_are_close_to_one(shape: tuple[int, int]) -> None:
    update = orthogonal(torch.randn(3, *shape, generator=torch.Generator().manual_seed(2)))
    values = torch.linalg.svdvals(update)
    assert 0.4 < values.min() <= values.max() < 1.4


def test_steps_match_those_of_torch() -> None:
    ours, theirs = matrices(), [copy.deepcopy(matrix) for matrix in matrices()]
    for matrix, twin in zip(ours, theirs, strict=True):
        twin.grad = matrix.grad
    one = Muon(ours, lr=0.01, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        one.step()
        other.step()
    for matrix, twin in zip(ours, theirs, strict=True):
        assert torch.allclose(matrix, twin, atol=1e-3)  # both round to bfloat16


def test_matrix_without_gradient_does_not_change() -> None:
    matrix = nn.Parameter(torch.ones(4, 4))
    Muon([matrix], lr=1.0).step()
    assert torch.equal(matrix, torch.ones(4, 4))
