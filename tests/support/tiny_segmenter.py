"""A tiny segmentation network whose answer does not depend on the image."""

from __future__ import annotations

import torch

from rudalle_lib.models.efficient_unet import EfficientUnet, EfficientUnetConfig

SIZES = EfficientUnetConfig(width=0.1, depth=0.3, decoder_channels=(8, 8, 8, 8, 8))


def tiny_segmenter(background: float, subject: float) -> EfficientUnet:
    """A network with these logits for the two classes, at every pixel of every image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EfficientUnet(SIZES).eval().requires_grad_(False)
    torch.nn.init.zeros_(network.get_parameter("segmentation_head.0.weight"))
    bias = network.get_parameter("segmentation_head.0.bias")
    bias.copy_(torch.tensor([background, subject]))
    return network
