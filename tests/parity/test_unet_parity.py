"""The segmentation network in the published layout cuts out emoji like the reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.images.codecs import to_floats
from rudalle_lib.images.cutout import cut_out
from rudalle_lib.images.resampling import resize
from rudalle_lib.models.efficient_unet import EfficientUnet
from rudalle_lib.weights.loading import load_segmenter
from tests.parity.goldens import Golden, assert_close, load_golden

NAME = "emojich-unet"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("unet")


@pytest.fixture(scope="module")
def network(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> EfficientUnet:
    """The small model, saved in the layout of the published file and read by the public loader."""
    folder: Path = tmp_path_factory.mktemp("weights")
    path = folder / "rudalle-Emojich" / "unet_effnetb5" / "pytorch_model_v2.bin"
    path.parent.mkdir(parents=True)
    torch.save(golden.state(seed=8), path)
    small = dataclasses.replace(
        registry.get(NAME), architecture=MappingProxyType({**golden.config, "classes": 2})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_ENTRIES", {**registry._ENTRIES, NAME: small})
        return load_segmenter(NAME, WeightsConfig(folder=str(folder))).model


@torch.inference_mode()
def test_logits_of_an_image(network: EfficientUnet, golden: Golden) -> None:
    assert any("_conv_head" in key for key in golden.shapes), (
        "published files have leftovers of the classifier"
    )
    assert golden["logits"].std() > 0.02, "a golden with one value would prove little"
    assert_close(network(to_floats(golden["picture"][None])), golden["logits"], tolerance=1e-5)


def test_the_mask_of_a_sticker(network: EfficientUnet, golden: Golden) -> None:
    """The reference resizes all images to 512 x 512 with Pillow before it cuts them out."""
    image = resize(golden["small"][None], 512, 512, "bicubic")
    (cut,) = cut_out(image, network, min_confidence=0.0)
    expected = torch.from_numpy(np.unpackbits(golden["alpha"].numpy())).view(512, 512)
    assert cut.method == "network" and {*expected.unique().tolist()} == {0, 1}
    # Pixels on the boundary between the classes may have either class.
    assert ((cut.alpha == 255) != (expected == 1)).float().mean() < 1e-4
