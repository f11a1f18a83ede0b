"""The noise is Gumbel noise, independent between images, steps and tokens, and reproducible."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rudalle_lib import kernels
from rudalle_lib.generation.noise import gumbel_argmax, gumbel_noise


def test_moments_are_those_of_a_gumbel_variate() -> None:
    noise = gumbel_noise(torch.arange(100), 0, 4000).double()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.008)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    uniform = torch.exp(-torch.exp(-noise)).flatten()
    counts = torch.histc(uniform, bins=64, min=0, max=1)
    expected = uniform.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # 63 degrees of freedom: p < 1e-5


def test_adjacent_seeds_steps_and_tokens_are_uncorrelated() -> None:
    seeds = torch.arange(50)
    noise, next_step = gumbel_noise(seeds, 0, 2000), gumbel_noise(seeds, 1, 2000)
    pairs = [(noise, next_step), (noise[:-1], noise[1:]), (noise[:, :-1], noise[:, 1:])]
    for one, other in pairs:
        both = torch.stack((one.flatten(), other.flatten()))
        assert abs(torch.corrcoef(both)[0, 1].item()) < 0.02


def test_a_row_does_not_depend_on_its_batch_nor_a_token_on_the_vocabulary() -> None:
    seeds = torch.tensor([5, 2**63 - 1, 0, 123456789012345678])
    noise = gumbel_noise(seeds, 17, 1001)
    for row, seed in enumerate(seeds):
        alone = gumbel_noise(seed[None], 17, 333)
        assert torch.equal(alone[0], noise[row, :333])
    assert torch.equal(gumbel_noise(seeds.flip(0), 17, 1001), noise.flip(0))
    assert noise.isfinite().all()


@pytest.mark.parametrize("vocab_size", [1, 13, 128, 8191])
def test_compiled_and_uncompiled_samples_are_equal(
    monkeypatch: pytest.MonkeyPatch, vocab_size: int
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, vocab_size)
    min_logit = logits.quantile(0.7, dim=1, keepdim=True)
    seeds, steps = torch.arange(500) * 7_919, torch.arange(500) % 5

    def draw() -> Tensor:
        return torch.stack(
            [gumbel_argmax(logits, min_logit, seeds, step) for step in (0, 1023, steps)]
        )

    found = draw()
    monkeypatch.setattr(kernels, "is_available", lambda: False)
    assert torch.equal(found, draw())
    assert (logits.gather(1, found.T) >= min_logit).all()


def test_the_sample_is_the_argmax_of_logit_plus_noise() -> None:
    torch.manual_seed(0)
    logits, seeds = torch.randn(200, 50), torch.arange(200)
    everything = torch.full((200, 1), -torch.inf)
    expected = (logits + gumbel_noise(seeds, 3, 50)).argmax(dim=1)
    assert torch.equal(gumbel_argmax(logits, everything, seeds, 3), expected)


def test_noise_never_changes_between_releases() -> None:
    noise = gumbel_noise(torch.tensor([0, 2**62 + 1]), 1023, 8192)[:, [0, 8191]]
    expected = torch.tensor([[0.521825731, 0.663353682], [-1.073548675, 1.766693115]])
    torch.testing.assert_close(noise, expected, atol=1e-6, rtol=0)


def test_each_row_can_have_its_own_step() -> None:
    seeds, steps = torch.tensor([5, 5, 9]), torch.tensor([0, 1023, 70_000])
    together = gumbel_noise(seeds, steps, 7)
    for row, (seed, step) in enumerate(zip(seeds, steps.tolist(), strict=True)):
        assert torch.equal(together[row], gumbel_noise(seed[None], step, 7)[0])
