"""Samples follow the softmax of what top-k and top-p keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rudalle_lib.errors import SettingsError
from rudalle_lib.generation.token_sampler import SamplingSettings, TokenSampler

EVERYTHING = SamplingSettings(1.0, 0, 1.0)


def test_draws_follow_the_softmax() -> None:
    draws = 20_000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    sampler = TokenSampler([EVERYTHING] * draws, torch.arange(draws))
    found = sampler.sample(logits.expand(draws, -1), 0).bincount(minlength=5) / draws
    torch.testing.assert_close(found, logits.softmax(0), atol=0.012, rtol=0)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (EVERYTHING, {0, 1, 2, 3, 4}),
        (SamplingSettings(1.0, 2, 1.0), {0, 1}),
        (SamplingSettings(1.0, 99, 1.0), {0, 1, 2, 3, 4}),
        (SamplingSettings(1.0, 0, 0.75), {0, 1}),  # .5 and .3: the token that passes top_p is kept
        (SamplingSettings(1.0, 0, 0.85), {0, 1, 2}),
        (SamplingSettings(1.0, 0, 1e-9), {0}),
        (SamplingSettings(1.0, 2, 0.5), {0}),  # renormalised over the two: .625 and .375
        (SamplingSettings(4.0, 0, 0.6), {0, 1, 2}),  # a high temperature flattens the softmax
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(settings: SamplingSettings, allowed: set[int]) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])
    others = [EVERYTHING, SamplingSettings(1.0, 1, 0.1)]  # must not change the first rows
    sampler = TokenSampler([settings] * 2000 + others, torch.arange(2002))
    found = sampler.sample(probabilities.log().expand(2002, -1), 3)
    assert set(found[:2000].tolist()) == allowed


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(bad))):
        SamplingSettings(**bad)
