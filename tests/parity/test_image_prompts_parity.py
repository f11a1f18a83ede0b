"""Image prompts force the same tokens at the same positions as the reference."""

from __future__ import annotations

import pytest
import torch

from rudalle_lib.generation.image_prompts import encode_image_prompt
from rudalle_lib.generation.sampling import DRAW
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.schema.borders import Borders
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
def test_forced_tokens_equal_those_of_the_reference(
    golden: Golden, vqgan: VqGan, number: int, crop_first: bool
) -> None:
    borders = Borders(**golden.config["borders"][number])
    tokens = encode_image_prompt(vqgan, golden["picture"], borders, 8, 8, crop_first).flatten()
    forced = golden[f"forced{number}-{int(crop_first)}"]
    assert torch.equal(tokens != DRAW, forced)
    assert torch.equal(tokens[forced], golden[f"tokens{number}-{int(crop_first)}"][forced])
    assert tokens[forced].unique().numel() > 3, "a golden with one code would prove little"
