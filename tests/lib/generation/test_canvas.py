"""Large canvases: each window equals that of a naive loop that continues the existing tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rudalle_lib.config.sections import GenerateConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.generation.canvas import (
    Canvas,
    CanvasRequest,
    choose_canvas,
    generate_canvases,
    window_starts,
    windows,
)
from rudalle_lib.generation.noise import gumbel_noise
from rudalle_lib.generation.sampling import DRAW, SamplingSettings, generate_tokens
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.schema.records import Overrides

GRID = Canvas(rows=3, columns=4)
EVERYTHING = SamplingSettings(1.0, 0, 1.0)
EMPTY = torch.tensor([2, 3, 0, 0, 0])


@pytest.fixture(scope="module")
def model() -> Dalle:
    torch.manual_seed(0)
    network = Dalle(DalleConfig(3, 16, 2, 25, 5, 12, GRID.rows, GRID.columns))
    network.init_weights(0.2, 0.5, 0.3, 0.7)
    return network.eval()


def prompts() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 20, (2, 5))


@torch.inference_mode()
def naive(model: Dalle, text: Tensor, request: CanvasRequest) -> Tensor:
    """One image, window by window and token by token, with whole forward passes."""
    canvas = request.canvas
    tokens = torch.full((canvas.rows, canvas.columns), DRAW)
    if request.given is not None:
        tokens = request.given.clone()
    tops = window_starts(canvas.rows, GRID.rows)
    lefts = window_starts(canvas.columns, GRID.columns)
    for top, left in [(top, left) for top in tops for left in lefts]:
        seen = text[None]
        for row in range(top, top + GRID.rows):
            for column in range(left, left + GRID.columns):
                logits = model(seen)[0, -1, model.config.text_vocab_size :]
                place = row * canvas.columns + column
                noise = gumbel_noise(torch.tensor([request.seed]), place, len(logits))[0]
                if tokens[row, column] == DRAW:
                    tokens[row, column] = (logits + noise).argmax()
                seen = torch.cat((seen, tokens[row, column].view(1, 1)), dim=1)
    return tokens


def requests() -> list[CanvasRequest]:
    sizes = [Canvas(3, 4), Canvas(3, 9), Canvas(7, 4), Canvas(4, 6), Canvas(3, 9)]
    return [
        CanvasRequest(index % 2, 101 * index + 3, EVERYTHING, size)
        for index, size in enumerate(sizes)
    ]


def test_all_windows_equal_those_of_a_naive_loop_in_any_batch(model: Dalle) -> None:
    expected = [naive(model, prompts()[one.prompt_index], one) for one in requests()]
    for batch_size in (1, 8):
        drawn = generate_canvases(model, prompts(), requests(), batch_size)
        for found, tokens in zip(drawn, expected, strict=True):
            assert torch.equal(found.tokens, tokens)
    alone = generate_canvases(model, prompts(), [requests()[3]], 4)[0]
    assert torch.equal(alone.tokens, expected[3])


def test_given_tokens_are_kept_on_a_large_canvas(model: Dalle) -> None:
    given = torch.full((3, 9), DRAW)
    given[:, 0], given[2] = 7, 5
    request = replace(requests()[1], given=given)
    found = generate_canvases(model, prompts(), [request], 2)[0].tokens
    assert torch.equal(found, naive(model, prompts()[1], request))
    assert torch.equal(found.where(given == DRAW, given), found)


def test_a_canvas_of_the_grid_equals_generate_tokens(model: Dalle) -> None:
    guided = SamplingSettings(1.2, 5, 0.9, 3.0)
    request = CanvasRequest(1, 42, guided, GRID)
    found = generate_canvases(model, prompts(), [request], 2, empty_text=EMPTY)[0]
    index, seed = torch.tensor([1]), torch.tensor([42])
    plain = generate_tokens(model, prompts(), index, seed, guided, 2, empty_text=EMPTY)
    assert torch.equal(found.tokens.flatten(), plain.tokens[0])
    assert found.logprob == pytest.approx(plain.logprob.item())
    assert found.ppl == pytest.approx(plain.ppl.item())


def test_progress_counts_the_tokens_of_all_windows(model: Dalle) -> None:
    seen: list[tuple[int, int]] = []
    generate_canvases(model, prompts(), requests()[:2], 8, lambda *at: seen.append(at))
    total = (1 + len(windows(Canvas(3, 9), GRID))) * GRID.cells
    assert {of for _, of in seen} == {total}
    assert seen[0] == (2, total) and seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_zero_requests_are_allowed(model: Dalle) -> None:
    assert generate_canvases(model, prompts(), [], 4) == []


@pytest.mark.parametrize(
    ("size", "window", "starts"),
    [(32, 32, [0]), (33, 32, [0, 1]), (48, 32, [0, 16]), (64, 32, [0, 16, 32]), (2, 1, [0, 1])],
)
def test_windows_start_half_a_grid_apart_and_end_with_the_canvas(
    size: int, window: int, starts: list[int]
) -> None:
    assert window_starts(size, window) == starts


@pytest.mark.parametrize(
    ("settings", "overrides", "expected"),
    [
        ({}, Overrides(), Canvas(32, 32)),
        ({"width": 512}, Overrides(), Canvas(32, 64)),
        ({"width": 512}, Overrides(width=256, height=264), Canvas(33, 32)),
        ({"size_unit": "tokens", "height": 40}, Overrides(width=48), Canvas(40, 48)),
    ],
)
def test_the_size_is_that_of_the_row_else_the_run_else_the_decoder(
    settings: dict[str, Any], overrides: Overrides, expected: Canvas
) -> None:
    assert choose_canvas(GenerateConfig(**settings), overrides, Canvas(32, 32)) == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (Overrides(width=250), "width: expected at least 256 pixels.*steps of 8, found 250"),
        (Overrides(width=260), "found 260"),
        (Overrides(height=128), "height: expected at least 256"),
        (Overrides(width=8192, height=8192), "at most 16,384 image tokens in total.*1024 x 1024"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_named(overrides: Overrides, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        choose_canvas(GenerateConfig(), overrides, Canvas(32, 32))
