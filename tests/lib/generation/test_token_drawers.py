"""How a batch is handed to captured steps, and by what it is drawn."""

from __future__ import annotations

import torch

from rudalle_lib.generation.sampling import DRAW, SamplingSettings
from rudalle_lib.generation.token_drawers import (
    Batch,
    TorchDrawer,
    draw_settings,
    token_drawer_for,
)
from rudalle_lib.models.dalle import Dalle, DalleConfig


def batch() -> Batch:
    settings = [
        SamplingSettings(0.5, 0, 1.0, 2.0),
        SamplingSettings(),
        SamplingSettings(guidance=0),
    ]
    return Batch(torch.tensor([0, 1, 1]), torch.tensor([7, 8, 9]), settings, None, None)


def test_settings_as_tensors() -> None:
    drawn = draw_settings(batch(), 4)
    assert drawn.empty_row.tolist() == [3, -1, 4]  # rows of the empty text follow the images
    assert drawn.temperature.tolist() == [0.5, 1.0, 1.0]
    assert drawn.top_k.tolist() == [0, 2048, 2048] and drawn.guidance.tolist() == [2.0, 1.0, 0.0]
    torch.testing.assert_close(drawn.top_p, torch.tensor([1.0, 0.995, 0.995]))
    assert drawn.seeds.tolist() == [7, 8, 9]
    assert drawn.places.tolist() == [[0, 1, 2, 3]] * 3
    assert drawn.given.tolist() == [[DRAW] * 4] * 3


def test_given_tokens_and_places_of_a_part_of_a_batch() -> None:
    whole = batch()
    given, places = torch.arange(12).view(3, 4), torch.arange(12).view(3, 4) * 2
    part = Batch(whole.prompt_index, whole.seeds, whole.settings, given, places).rows(slice(1, 3))
    drawn = draw_settings(part, 4)
    assert drawn.empty_row.tolist() == [-1, 2]
    assert torch.equal(drawn.given, given[1:]) and torch.equal(drawn.places, places[1:])


def test_a_cpu_draws_with_torch() -> None:
    model = Dalle(DalleConfig(2, 16, 2, 30, 6, 16, 2, 2)).eval()
    text, empty = torch.zeros(2, 6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    with torch.inference_mode():
        drawer = token_drawer_for(model, text, empty, batch(), 8)
        assert isinstance(drawer, TorchDrawer)
        for step in range(4):
            drawer.draw(step)
    tokens, logprobs = drawer.result()
    assert tokens.shape == logprobs.shape == (3, 4)
    assert tokens.ge(0).all() and tokens.lt(16).all() and logprobs.lt(0).all()
