"""The sizes of the segmentation network."""

from __future__ import annotations

import pytest
import torch

from rudalle_lib.models.efficient_unet import EfficientUnet, EfficientUnetConfig


def test_default_sizes_are_those_of_efficientnet_b5() -> None:
    config = EfficientUnetConfig()
    assert config.encoder_channels == (48, 40, 64, 176, 512)
    with torch.device("meta"):
        network = EfficientUnet(config)
    assert len(network.encoder._blocks) == 39
    assert network.encoder.skip_blocks == (7, 12, 26, 38)


@torch.inference_mode()
def test_every_pixel_gets_a_logit_for_each_class() -> None:
    torch.manual_seed(0)
    config = EfficientUnetConfig(0.1, 0.3, (8, 8, 8, 8, 8), classes=3)
    network = EfficientUnet(config).eval()
    assert network(torch.rand(2, 3, 64, 96)).shape == (2, 3, 64, 96)
    maps = network.encoder(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


def test_sizes_that_do_not_fit_are_rejected() -> None:
    network = EfficientUnet(EfficientUnetConfig(0.1, 0.3, (8, 8, 8, 8, 8)))
    with pytest.raises(ValueError, match="multiples of 32, found 64 x 40"):
        network(torch.rand(1, 3, 40, 64))
    with pytest.raises(ValueError, match="five decoder_channels"):
        EfficientUnetConfig(decoder_channels=(8, 8))
