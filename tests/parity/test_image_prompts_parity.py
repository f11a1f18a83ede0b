"""Image prompts force the tokens that the reference forces, at the same places."""

from __future__ import annotations

import pytest
import torch

from rudalle_lib.borders import Borders
from rudalle_lib.image_prompts import encode_image_prompt
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.sampling import DRAW
from tests.parity.goldens import Golden, load_golden


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("image_prompts")


@pytest.fixture(scope="module")
def vqgan(golden: Golden) -> VqGan:
    names = ("resolution", "ch", "ch_mult", "num_res_blocks", "z_channels", "n_embed")
    sizes = {name: golden.config[name] for name in names}
    attention = golden.config["attn_resolutions"]
    model = VqGan(VqGanConfig(**sizes, attention_resolutions=attention, embed_dim=32))
    model.load_state_dict(golden.state(seed=1))
    return model.eval()


@pytest.mark.parametrize("crop_first", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_forced_tokens_are_the_references(
    golden: Golden, vqgan: VqGan, number: int, crop_first: bool
) -> None:
    borders = Borders(**golden.config["borders"][number])
    found = encode_image_prompt(vqgan, golden["picture"], borders, 8, 8, crop_first).flatten()
    forced = golden[f"forced{number}-{int(crop_first)}"]
    assert torch.equal(found != DRAW, forced)
    assert torch.equal(found[forced], golden[f"tokens{number}-{int(crop_first)}"][forced])
    assert found[forced].unique().numel() > 3, "a golden of one code would prove little"
