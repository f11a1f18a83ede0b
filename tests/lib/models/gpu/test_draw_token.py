"""The kernel draws what `TokenSampler` draws, with the same noise, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rudalle_lib.generation.noise import gumbel_noise
from rudalle_lib.generation.sampling import DRAW, SamplingSettings, TokenSampler
from rudalle_lib.models.gpu.draw_settings import UNGUIDED, Drawn, DrawSettings, no_images
from rudalle_lib.models.gpu.draw_token import draw
from tests.support.noise_kernel import noise

LENGTH = 6


def kernel_draw(
    logits: Tensor,
    settings: list[SamplingSettings],
    seeds: Tensor,
    step: int,
    device: torch.device,
    **changes: Tensor,
) -> Drawn:
    """Draw one token per row of logits [R, V]."""
    rows = len(settings)
    table = no_images(len(logits), LENGTH, device)
    values = DrawSettings(
        torch.tensor([row.temperature for row in settings]),
        torch.tensor([row.top_k for row in settings], dtype=torch.int32),
        torch.tensor([row.top_p for row in settings]),
        torch.tensor([row.guidance for row in settings]),
        torch.full((rows,), UNGUIDED, dtype=torch.int32),
        seeds,
        torch.arange(LENGTH).repeat(rows, 1),
        torch.full((rows, LENGTH), DRAW),
    )._replace(**changes)
    table.set_rows(values)
    drawn = Drawn(
        torch.zeros(len(logits), LENGTH, dtype=torch.int64, device=device),
        torch.zeros(len(logits), LENGTH, device=device),
        torch.zeros(len(logits), dtype=torch.int64, device=device),
    )
    at = torch.tensor([step], dtype=torch.int32, device=device)
    draw(logits.to(device), table, at, drawn)
    return Drawn(*(tensor.cpu() for tensor in drawn))


def test_noise_has_the_bits_of_the_cpu(device: torch.device) -> None:
    seeds = torch.tensor([0, 1, 987_654_321_987_654_321, (1 << 63) - 1])
    places = torch.tensor([0, 5, 1023, (1 << 31) - 1])
    out = torch.empty(4, 8192, device=device)
    noise(out, seeds.to(device), places.to(device))
    expected = gumbel_noise(seeds, places, 8192)
    assert torch.equal(out.cpu().view(torch.int32), expected.view(torch.int32))


SETTINGS = [
    SamplingSettings(1.0, 0, 1.0),
    SamplingSettings(0.7, 5, 1.0),
    SamplingSettings(1.3, 0, 0.9),
    SamplingSettings(2.0, 40, 0.5),
    SamplingSettings(1.0, 1, 1.0),
    SamplingSettings(1.0, 0, 1e-9),
    SamplingSettings(0.01, 99, 0.995),
    SamplingSettings(100.0, 100_000, 0.995),
    SamplingSettings(1.0, 77, 0.3),
    SamplingSettings(1.0, 78, 1.0),
]


def few_levels(rows: int, vocab: int) -> Tensor:
    """Logits of few values, so that most of them tie, at the limits of top-k and top-p too."""
    return torch.randint(-3, 4, (rows, vocab)) * 0.5


LOGITS: dict[str, Callable[[int, int], Tensor]] = {
    "normal": lambda rows, vocab: torch.randn(rows, vocab) * 3,
    "ties": few_levels,
    "signed zeros": lambda rows, vocab: torch.randn(rows, vocab).sign() * 0.0,
    "equal": lambda rows, vocab: torch.full((rows, vocab), -7.25),
    "huge": lambda rows, vocab: torch.randn(rows, vocab) * 1e30,
    "one": lambda rows, vocab: torch.eye(vocab)[torch.arange(rows) % vocab] * 200 - 100,
    "impossible": lambda rows, vocab: torch.randn(rows, vocab).masked_fill(
        torch.rand(rows, vocab) < 0.5, -torch.inf
    ),
}


@pytest.mark.parametrize("kind", LOGITS)
def test_tokens_and_log_probabilities_are_those_of_the_sampler(
    kind: str, device: torch.device
) -> None:
    torch.manual_seed(3)
    logits = LOGITS[kind](len(SETTINGS), 77).float()
    seeds = torch.arange(len(SETTINGS)) * 1_000_003
    drawn = kernel_draw(logits, SETTINGS, seeds, 5, device)
    expected = TokenSampler(SETTINGS, seeds).sample(logits, 5)
    assert torch.equal(drawn.tokens[:, 5], expected)
    assert torch.equal(drawn.latest, expected)
    logprob = logits.log_softmax(1).gather(1, expected[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs[:, 5], logprob, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_vocabulary_of_the_published_size_in_every_precision(
    dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(4)
    settings = [SamplingSettings(), SamplingSettings(0.9, 0, 0.95), SamplingSettings(1, 2048, 1)]
    logits = (torch.randn(3, 8192) * 2).to(dtype)
    seeds = torch.arange(3)
    drawn = kernel_draw(logits, settings, seeds, 2, device)
    assert torch.equal(drawn.latest, TokenSampler(settings, seeds).sample(logits.float(), 2))


def test_given_tokens_places_and_rows_without_images(device: torch.device) -> None:
    torch.manual_seed(5)
    logits, seeds = torch.randn(5, 33), torch.tensor([7, 8, 9])
    settings = [SamplingSettings(1.0, 0, 1.0)] * 3
    given = torch.full((3, LENGTH), DRAW)
    given[1, 4] = 32
    places = torch.randint(0, 1 << 31, (3, LENGTH))
    drawn = kernel_draw(logits, settings, seeds, 4, device, given=given, places=places)
    expected = TokenSampler(settings, seeds).sample(logits[:3], places[:, 4])
    expected[1] = 32
    assert drawn.latest.tolist() == [*expected.tolist(), 0, 0]
    torch.testing.assert_close(drawn.logprobs[1, 4], logits[1].log_softmax(0)[32])
    assert drawn.tokens[3:].eq(0).all() and drawn.logprobs[3:].eq(0).all()
    assert drawn.tokens[:3, :4].eq(0).all()  # of other steps nothing is written


def test_guided_rows_draw_from_both_branches(device: torch.device) -> None:
    torch.manual_seed(6)
    logits, seeds = torch.randn(5, 300), torch.tensor([1, 2, 3])
    settings = [replace(SamplingSettings(1.0, 50, 0.9), guidance=g) for g in (3.0, 1.0, 0.5)]
    empty = torch.tensor([3, UNGUIDED, 4], dtype=torch.int32)
    drawn = kernel_draw(logits, settings, seeds, 1, device, empty_row=empty)
    guided = logits[:3].clone()
    guided[0] = logits[3] + 3.0 * (logits[0] - logits[3])
    guided[2] = logits[4] + 0.5 * (logits[2] - logits[4])
    expected = TokenSampler(settings, seeds).sample(guided, 1)
    assert drawn.latest.tolist() == [*expected.tolist(), expected[0], expected[2]]
    logprob = logits[:3].log_softmax(1).gather(1, expected[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs[:3, 1], logprob)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_logits_that_are_not_finite_give_a_valid_token_and_no_finite_probability(
    bad: float, everywhere: bool, device: torch.device
) -> None:
    logits = torch.randn(3, 40)
    logits[1, slice(None) if everywhere else slice(7, 8)] = bad
    settings = [SamplingSettings(1.0, 9, 0.9)] * 3
    drawn = kernel_draw(logits, settings, torch.arange(3), 0, device)
    assert 0 <= int(drawn.latest[1]) < 40
    assert drawn.logprobs[:, 0].isfinite().tolist() == [True, False, True]
