"""The VQ-GAN: shapes, what training relies on, rejected sizes.

`tests/parity` compares it with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rudalle_lib.models.vqgan import VqGan, VqGanConfig

TINY: dict[str, Any] = dict(
    resolution=16,
    ch=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    z_channels=6,
    embed_dim=6,
    n_embed=20,
    norm_groups=4,
)


def tiny(**changes: object) -> VqGan:
    return VqGan(VqGanConfig(**{**TINY, **changes})).eval()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("dwt", [False, True])
def test_shapes_of_encoded_and_decoded_images(dwt: bool) -> None:
    model = tiny(dwt=dwt)
    tokens = model.encode(torch.rand(2, 3, 16, 12) * 2 - 1)
    assert tokens.shape == (2, 8, 6)
    assert tokens.dtype == torch.int64
    decoded = model.decode(tokens)
    assert decoded.shape == ((2, 3, 32, 24) if dwt else (2, 3, 16, 12))
    assert decoded.abs().max() <= 1


def test_decoding_is_batch_invariant() -> None:
    model = tiny()
    tokens = torch.randint(0, 20, (3, 8, 8))
    alone = torch.cat([model.decode(single[None]) for single in tokens])
    batch = model.decode_features(model.embed_codes(tokens)).clamp(-1, 1)
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=0)
    assert torch.equal(model.decode(tokens), alone)  # bit-identical on a CPU


def test_channels_last_layout_gives_the_same_results() -> None:
    model = tiny()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    plain = model.decode_features(model.encode_features(images))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = model.encode_features(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(model.decode_features(features), plain, atol=1e-5, rtol=1e-5)


def test_nearest_neighbours_with_costs_are_a_gumbel_codebook() -> None:
    """With weight 2e and bias -|e|^2 + s log p, argmax is the argmin of distance - s log p."""
    model = tiny()
    codes, costs = torch.randn(20, 6), -0.5 * torch.rand(20).log()
    with torch.no_grad():
        model.quantize.embed.weight.copy_(codes)
        model.quantize.proj.weight.copy_(2 * codes[:, :, None, None])
        assert model.quantize.proj.bias is not None
        model.quantize.proj.bias.copy_(-codes.square().sum(1) - costs)
    features = torch.randn(2, 6, 5, 5)
    distances = torch.cdist(features.permute(0, 2, 3, 1).flatten(0, 2), codes).square() + costs
    tokens = model.code_logits(features).argmax(dim=1)
    assert tokens.flatten().equal(distances.argmin(dim=1))
    assert model.embed_codes(tokens)[0, :, 2, 3].equal(codes[tokens[0, 2, 3]])


def test_every_weight_learns() -> None:
    model = tiny()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    features = model.encode_features(images)
    loss = F.mse_loss(model.decode_features(features), images)
    (loss + model.code_logits(features).square().mean()).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == ["quantize.embed.weight"]  # updated by a trainer's own quantiser


def test_decoder_widths_may_differ_from_the_encoder() -> None:
    model = tiny(decoder_ch=16, decoder_ch_mult=(1, 1))
    assert model.decoder.get_submodule("conv_out").in_channels == 16
    assert model.decode(torch.zeros(1, 2, 2, dtype=torch.int64)).shape == (1, 3, 4, 4)


def test_published_size() -> None:
    """Keys and shapes as in `vqgan.gumbelf8-sber`, on the meta device: nothing is computed."""
    with torch.device("meta"):
        state = VqGan(VqGanConfig()).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["quantize.embed.weight"] == (8192, 256)
    assert shapes["quantize.proj.weight"] == (8192, 256, 1, 1)
    assert shapes["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert shapes["encoder.down.3.attn.1.q.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.3.attn.2.proj_out.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.conv_out.weight"] == (3, 128, 3, 3)
    assert "encoder.down.3.downsample.conv.weight" not in shapes


def test_sizes_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"norm_groups=3 must divide every width, found \[8, 16\]"):
        tiny(norm_groups=3)
    with pytest.raises(ValueError, match="same number of levels, found 2 and 3"):
        tiny(decoder_ch_mult=(1, 1, 1))
    with pytest.raises(ValueError, match=r"divisible by 2, found \[15, 16\]"):
        tiny().encode(torch.zeros(1, 3, 15, 16))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\], found \[3, 16, 16\]"):
        tiny().encode(torch.zeros(3, 16, 16))
