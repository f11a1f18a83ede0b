"""The network that cuts emoji out, in the published layout, sees pictures as the reference does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from rudalle_lib import registry
from rudalle_lib.config import WeightsConfig
from rudalle_lib.cutout import cut_out
from rudalle_lib.images import to_floats
from rudalle_lib.models.efficient_unet import EfficientUnet
from rudalle_lib.resampling import resize
from rudalle_lib.weights import load_segmenter
from tests.parity.goldens import Golden, assert_close, load_golden

NAME = "emojich-unet"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("unet")


@pytest.fixture(scope="module")
def network(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> EfficientUnet:
    """The shrunken model, saved as the published file is and read by the public loader."""
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
def test_logits_of_a_picture(network: EfficientUnet, golden: Golden) -> None:
    assert any("_conv_head" in key for key in golden.shapes), "the classifier's rest is published"
    assert golden["logits"].std() > 0.02, "a golden of one value would prove little"
    assert_close(network(to_floats(golden["picture"][None])), golden["logits"], tolerance=1e-5)


def test_the_mask_of_a_sticker(network: EfficientUnet, golden: Golden) -> None:
    """The reference makes every picture 512 pixels wide, with Pillow, before it cuts it out."""
    picture = resize(golden["small"][None], 512, 512, "bicubic")
    (cut,) = cut_out(picture, network, min_confidence=0.0)
    expected = torch.from_numpy(np.unpackbits(golden["alpha"].numpy())).view(512, 512)
    assert cut.way == "network" and {*expected.unique().tolist()} == {0, 1}
    # Pixels on the very border between the classes may fall to either side.
    assert ((cut.alpha == 255) != (expected == 1)).float().mean() < 1e-4
