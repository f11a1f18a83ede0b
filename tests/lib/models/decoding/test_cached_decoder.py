"""The sparse cache is exact: its logits equal those of the masked forward at every position."""

from __future__ import annotations

import pytest
import torch

from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder

SIZES = [(5, 5), (4, 7), (12, 12), (13, 3), (14, 6), (1, 4), (4, 1)]


def build(version: str, size: tuple[int, int], num_layers: int) -> Dalle:
    config = DalleConfig(num_layers, 12, 2, 20, 4, 9, *size, version)
    torch.manual_seed(0)
    model = Dalle(config, blockwise=False)
    model.init_weights(0.3, 0.5, 0.3, 0.7)
    return model.double().eval()


# The last of 5 and 7 layers is a convolution layer, of 2 and 6 a column layer.
@pytest.mark.parametrize("num_layers", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.inference_mode()
def test_cached_logits_equal_the_masked_forward_at_every_position(
    version: str, size: tuple[int, int], num_layers: int
) -> None:
    model = build(version, size, num_layers)
    text = torch.randint(0, 16, (3, 4))
    prompt_of = torch.tensor([2, 0, 2, 1, 2])  # 1, 1 and 3 images per prompt, in no order
    image = torch.randint(0, 9, (5, model.config.image_length))
    logits = model(torch.cat((text[prompt_of], image), dim=1))
    first = 4 if version == "v2" else 3  # the position that predicts the first image token
    expected = logits[:, first : first + model.config.image_length, 20:]

    decoder = CachedDecoder(model, text, prompt_of)
    found = [decoder.prefill()] + [decoder.decode_one_token(token) for token in image.T[:-1]]
    torch.testing.assert_close(torch.stack(found, dim=1), expected, atol=1e-9, rtol=0)
