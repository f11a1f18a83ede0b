"""Make the golden outputs of the segmentation network that cuts out emoji.

Run this in the environment of `make_goldens_vision`, with segmentation-models-pytorch==0.1.3 and
efficientnet-pytorch==0.6.3 (both `--no-deps`), which rudalle 1.1.3 requires, and
opencv-python-headless:

    python -m tests.parity.make_goldens_unet

The network is made small by its width and depth factors and has the weights of `random_weights`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.parity import peer_stand_ins
from tests.parity.make_goldens_vision import fill, random_image, save

NAME = "efficientnet-b5"
WIDTH, DEPTH = 0.25, 0.4
DECODER_CHANNELS = (24, 16, 12, 8, 8)
SEED = 8
NOT_NEEDED = """dpn vgg senet densenet inceptionresnetv2 inceptionv4 mobilenet xception resnet
timm_efficientnet timm_resnest timm_res2net timm_regnet timm_sknet"""
"""Encoders whose modules import names that no longer exist."""


class NoEncoders(ModuleType):
    """A module in which all names are empty tables of encoders."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return {}


def main() -> None:
    """Write the golden file."""
    torch.set_num_threads(1)
    peer_stand_ins.install()
    model = reference_network().eval()
    shapes = fill(model, SEED)
    image = random_image(64, 96)
    from rudalle.pipelines import convert_emoji_to_rgba

    small = random_image(40, 40)
    emoji = Image.fromarray(small.permute(1, 2, 0).numpy())
    (sticker,), (way,) = convert_emoji_to_rgba([emoji], model, score_thr=0.0)
    assert way == "unet"
    alpha = np.array(sticker)[:, :, 3]
    assert set(np.unique(alpha)) == {0, 255}
    with torch.inference_mode():
        save(
            "unet", shapes,
            config={"width": WIDTH, "depth": DEPTH, "decoder_channels": DECODER_CHANNELS},
            picture=image, logits=model(image.float()[None] / 255),
            small=small, alpha=torch.from_numpy(np.packbits(alpha > 0)),
        )  # fmt: skip


def reference_network() -> Any:
    """Build a small U-Net like rudalle does."""
    for name in NOT_NEEDED.split():
        full = f"segmentation_models_pytorch.encoders.{name}"
        sys.modules[full] = NoEncoders(full)
    import segmentation_models_pytorch as smp
    from efficientnet_pytorch import utils
    from segmentation_models_pytorch.encoders import encoders

    factors = utils.efficientnet_params
    utils.efficientnet_params = lambda name: (WIDTH, DEPTH, *factors(name)[2:])
    parameters = encoders[NAME]["params"]
    _, shared = utils.get_model_params(NAME, None)
    parameters["out_channels"] = (
        3, *(utils.round_filters(base, shared) for base in (32, 24, 40, 112, 320))
    )  # fmt: skip
    ends = np.cumsum([utils.round_repeats(blocks, shared) for blocks in (1, 2, 2, 3, 3, 4, 1)])
    parameters["stage_idxs"] = tuple(int(ends[stage]) for stage in (1, 2, 4, 6))
    return smp.Unet(NAME, encoder_weights=None, classes=2, decoder_channels=DECODER_CHANNELS)


if __name__ == "__main__":
    main()
