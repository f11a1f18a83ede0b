"""Probabilities against negative texts are the softmax of scaled cosines."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rudalle_lib.negatives import probabilities


def test_it_is_the_share_of_the_own_text() -> None:
    torch.manual_seed(0)
    images, texts, negatives = (F.normalize(torch.randn(n, 5), dim=1) for n in (3, 3, 2))
    found = probabilities(images, texts, negatives, 20.0)
    for row in range(3):
        candidates = torch.stack([texts[row], *negatives])
        expected = (20.0 * candidates @ images[row]).softmax(0)[0]
        torch.testing.assert_close(found[row], expected)


def test_the_own_text_among_the_negatives_halves_it() -> None:
    unit = torch.eye(4)
    found = probabilities(unit[:1], unit[:1], unit[:1], 100.0)
    torch.testing.assert_close(found, torch.tensor([0.5]))
