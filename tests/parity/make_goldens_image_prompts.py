"""Make the golden outputs of the reference's image prompts: which tokens are forced, and to what.

Run this in the environment of `make_goldens_vision`. It uses the same small VQ-GAN and weights:

    python -m tests.parity.make_goldens_image_prompts
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.parity import peer_stand_ins
from tests.parity.make_goldens_vision import CODES, VQGAN, fill, random_image, save

SIDE = 64
"""Side of the image in pixels."""

BORDERS = [
    {"up": 3, "down": 0, "left": 0, "right": 0},
    {"up": 0, "down": 2, "left": 1, "right": 0},
    {"up": 2, "down": 1, "left": 3, "right": 2},
]
"""Borders of the image prompts, in tokens."""


def main() -> None:
    """Write the golden file."""
    torch.set_num_threads(1)
    peer_stand_ins.install()
    from omegaconf import OmegaConf
    from PIL import Image
    from rudalle.image_prompts import ImagePrompts
    from rudalle.vae.model import VQGanGumbelVAE

    parameters = {"ddconfig": VQGAN, "n_embed": CODES, "embed_dim": 32, "kl_weight": 1e-8}
    vae = VQGanGumbelVAE(OmegaConf.create({"model": {"params": parameters}})).eval()
    shapes = fill(vae.model, seed=1)
    image = random_image(SIDE, SIDE)
    pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
    outputs: dict[str, Tensor] = {}
    with torch.inference_mode():
        for number, borders in enumerate(BORDERS):
            for crop in (False, True):
                prompts = ImagePrompts(pil_image, borders, vae, crop_first=crop)
                forced = torch.zeros(prompts.image_prompts.shape[1], dtype=torch.bool)
                forced[sorted(prompts.image_prompts_idx)] = True
                outputs[f"forced{number}-{int(crop)}"] = forced
                outputs[f"tokens{number}-{int(crop)}"] = prompts.image_prompts[0].long()
    config = {**VQGAN, "n_embed": CODES, "borders": BORDERS}
    save("image_prompts", shapes, config=config, picture=image, **outputs)


if __name__ == "__main__":
    main()
