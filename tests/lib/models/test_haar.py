"""The inverse Haar transform."""

from __future__ import annotations

import torch

from rudalle_lib.models.haar import InverseHaar


def test_inverse_haar_undoes_the_transform() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 8, 6)
    a, b = image[:, :, ::2, ::2], image[:, :, ::2, 1::2]
    c, d = image[:, :, 1::2, ::2], image[:, :, 1::2, 1::2]
    low = (a + b + c + d) / 2
    high = torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], dim=2) / 2
    bands = torch.cat([low, high.flatten(1, 2)], dim=1)
    torch.testing.assert_close(InverseHaar()(bands), image)
