"""Splits of codes: an unused code takes over what is reconstructed badly, and nothing else."""

from __future__ import annotations

import torch

from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.training.code_splits import Cells, look_at, split, worst_codes
from tests.support.tiny_vqgan import TINY_VQGAN


def test_an_unused_code_takes_the_bad_cells_of_the_worst() -> None:
    model = VqGan(TINY_VQGAN)
    generator = torch.Generator().manual_seed(0)
    good, bad = torch.zeros(60, 8), torch.zeros(40, 8)
    good[:, 0], bad[:, 0] = 1.0, -1.0
    features = torch.cat([good, bad]) + 0.1 * torch.randn(100, 8, generator=generator)
    logits = model.code_logits(features.T[None, :, :, None])[0, :, :, 0].T.detach()
    code = int(logits.mean(0).argmax())
    with torch.no_grad():
        bias = model.quantize.get_parameter("proj.bias")
        bias[code] += 10  # all cells choose it
        logits[:, code] += 10
    errors = torch.cat([torch.full((60,), 0.01), torch.full((40,), 0.5)])
    cells = Cells(features, logits.argmax(1), logits.max(1).values, errors)
    assert worst_codes(cells, most=3) == [code]
    new = (code + 1) % 12
    split(model, cells, [code], [new])
    codes = model.code_logits(features.T[None, :, :, None]).argmax(1).flatten()
    assert (codes[:60] == code).all() and (codes[60:] == new).all()
    assert torch.equal(model.quantize.embed.weight[new], model.quantize.embed.weight[code])


def test_what_is_reconstructed_evenly_is_not_split() -> None:
    cells = look_at(VqGan(TINY_VQGAN), torch.rand(2, 2, 3, 16, 16) * 2 - 1)
    assert cells.features.shape == (4 * 64, 8)
    even = Cells(cells.features, cells.codes, cells.logits, torch.full_like(cells.errors, 0.01))
    assert worst_codes(even, most=5) == []
