"""Products per prompt equal products per image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rudalle_lib.models.decoding.prompt_sharing import GuidedReplicas, PromptSharing, Replicas


def test_replicas_are_laid_out_by_prompt_and_back() -> None:
    prompt_of = torch.tensor([1, 0, 1, 1, 2])
    replicas = Replicas(prompt_of, 3)
    images = torch.arange(5.0).view(5, 1, 1)
    by_prompt = replicas.by_prompt(images)  # [P, heads, R, D]
    assert by_prompt[1, 0, :, 0].tolist() == [0, 2, 3]
    assert by_prompt[[0, 2], 0, 0, 0].tolist() == [1, 4]
    assert torch.equal(replicas.by_image(by_prompt), images)


def assert_products_are_per_image(sharing: PromptSharing, prompt_of: Tensor) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(len(prompt_of), 2, 3, dtype=torch.float64)
    matrices = torch.randn(int(prompt_of.max()) + 1, 2, 3, 4, dtype=torch.float64)
    expected = torch.einsum("bhx,bhxy->bhy", vectors, matrices[prompt_of])
    torch.testing.assert_close(sharing.product(vectors, matrices), expected)
    moved = sharing.to(torch.device("cpu"))
    torch.testing.assert_close(moved.product(vectors, matrices), expected)


@pytest.mark.parametrize("prompts", [[0], [0, 0, 1, 1], [1, 0, 1, 1, 2], [2, 2, 2, 0, 1]])
def test_products_of_replicas_are_per_image(prompts: list[int]) -> None:
    prompt_of = torch.tensor(prompts)
    assert_products_are_per_image(Replicas(prompt_of, max(prompts) + 1), prompt_of)


@pytest.mark.parametrize(("prompts", "unguided"), [([0, 1], 1), ([1, 0, 1, 2, 2, 2, 2], 4)])
def test_products_of_guided_replicas_are_per_image(prompts: list[int], unguided: int) -> None:
    prompt_of = torch.tensor(prompts)
    sharing = GuidedReplicas(prompt_of, max(prompts) + 1, unguided)
    assert_products_are_per_image(sharing, prompt_of)
