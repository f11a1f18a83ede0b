"""A VQ-GAN for tests of training: cells of 2 x 2 pixels, 12 codes."""

from __future__ import annotations

from rudalle_lib.models.vqgan import VqGanConfig

TINY_VQGAN = VqGanConfig(
    resolution=16,
    ch=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(),
    z_channels=8,
    embed_dim=8,
    n_embed=12,
    norm_groups=4,
)
