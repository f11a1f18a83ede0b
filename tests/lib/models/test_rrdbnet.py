"""RRDBNet: scales, receptive radius, published sizes, rejected sizes.

`tests/parity` compares it with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def tiny(scale: int) -> RrdbNet:
    return RrdbNet(RrdbNetConfig(scale, num_features=6, num_blocks=1, growth=4)).eval()


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_sides_grow_by_the_scale(scale: int) -> None:
    assert tiny(scale)(torch.rand(2, 3, 6, 4)).shape == (2, 3, 6 * scale, 4 * scale)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_receptive_radius_bounds_the_gradient(scale: int) -> None:
    """The gradient of an output pixel is zero beyond the radius, which is nearly tight."""
    model = tiny(scale).double()
    for weight in model.parameters():  # no gradient may vanish or cancel
        torch.nn.init.uniform_(weight, 0.1, 0.2)
    radius = model.config.receptive_radius
    side = 2 * radius + 12
    image = torch.rand(1, 3, side, 2, dtype=torch.float64, requires_grad=True)
    centre = side // 2
    model(image)[0, 0, centre * scale : (centre + 1) * scale, 0].sum().backward()
    assert image.grad is not None
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    reach = max(centre - int(rows.min()), int(rows.max()) - centre)
    assert radius - 2 * model.config.unshuffle <= reach <= radius


def test_published_size() -> None:
    with torch.device("meta"):
        state = RrdbNet(RrdbNetConfig(8)).state_dict()
        x2 = RrdbNet(RrdbNetConfig(2)).state_dict()
    assert state["body.22.rdb3.conv5.weight"].shape == (64, 192, 3, 3)
    assert state["conv_up3.weight"].shape == (64, 64, 3, 3)
    assert x2["conv_first.weight"].shape == (64, 12, 3, 3)
    assert "conv_up3.weight" not in x2


def test_starts_near_the_identity_and_learns() -> None:
    """A fresh dense block changes its input little, so that a deep stack of them trains."""
    model = tiny(2)
    dense, hidden = model.get_submodule("body.0.rdb1"), torch.randn(1, 6, 8, 8)
    assert (dense(hidden) - hidden).abs().max() < 0.1
    model(torch.rand(1, 3, 8, 8)).square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_sizes_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"one of \(2, 4, 8\), found 3"):
        RrdbNetConfig(3)
    with pytest.raises(ValueError, match=r"divisible by 2, found \[5, 4\]"):
        tiny(2)(torch.rand(1, 3, 5, 4))
