"""ruCLIP: its text tower, published sizes, rejected inputs.

`tests/parity` compares it with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

from rudalle_lib.models.ruclip import Block, RuClip, RuClipConfig, optimize_for_inference

TINY: dict[str, Any] = dict(
    embed_dim=8,
    image_resolution=16,
    vision_layers=1,
    vision_width=16,
    vision_patch_size=8,
    vision_heads=2,
    context_length=10,
    vocab_size=20,
    transformer_width=16,
    transformer_heads=2,
    transformer_layers=2,
)
EOS = 3


@pytest.fixture
def model() -> Iterator[RuClip]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield RuClip(RuClipConfig(**TINY)).eval()


def test_ids_after_the_end_of_a_text_are_ignored(model: RuClip) -> None:
    ids = torch.tensor([[2, 7, 8, EOS, 0, 0, 0, 0, 0, 0]])
    other = torch.tensor([[2, 7, 8, EOS, 9, EOS, 11, 0, 5, 6]])
    short = ids[:, :4]
    torch.testing.assert_close(model.encode_text(ids), model.encode_text(other))
    torch.testing.assert_close(model.encode_text(ids), model.encode_text(short))


@torch.no_grad()
def test_features_of_a_text_do_not_depend_on_longer_ones(model: RuClip) -> None:
    ids = torch.tensor([[2, 7, EOS, 0, 0, 0], [2, 8, 9, 10, 11, EOS]])
    torch.testing.assert_close(model.encode_text(ids)[0], model.encode_text(ids[:1])[0])


@torch.no_grad()
def test_optimized_model_computes_the_same_features(model: RuClip) -> None:
    ids, pixels = torch.tensor([[2, 7, 8, EOS]]), torch.randn(2, 3, 16, 16)
    plain = model.encode_text(ids), model.encode_image(pixels)
    optimize_for_inference(model)
    block = model.transformer.resblocks[0]
    assert isinstance(block, Block)
    assert block.attn.fast_in_proj is not None
    for found, expected in zip(
        (model.encode_text(ids), model.encode_image(pixels)), plain, strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_order_of_words_matters(model: RuClip) -> None:
    ids = torch.tensor([[2, 7, 8, EOS], [2, 8, 7, EOS]])
    first, second = model.encode_text(ids)
    assert not torch.allclose(first, second, atol=1e-3)


def test_logits_are_scaled_cosines(model: RuClip) -> None:
    ids, pixels = torch.tensor([[2, 7, EOS], [2, EOS, 0]]), torch.randn(3, 3, 16, 16)
    per_image, per_text = model(ids, pixels)
    assert per_image.shape == (3, 2)
    assert per_text.equal(per_image.t())
    texts, images = model.encode_text(ids), model.encode_image(pixels)
    cosine = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
    torch.testing.assert_close(per_image, cosine / 0.07)


def test_every_weight_learns(model: RuClip) -> None:
    per_image, _ = model(torch.tensor([[2, 7, EOS], [2, EOS, 0]]), torch.randn(2, 3, 16, 16))
    torch.nn.functional.cross_entropy(per_image, torch.arange(2)).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_published_size() -> None:
    """Keys and shapes of ruclip-vit-large-patch14-336, on the meta device."""
    config = RuClipConfig(
        embed_dim=768,
        image_resolution=336,
        vision_layers=24,
        vision_width=1024,
        vision_patch_size=14,
        transformer_width=768,
        transformer_heads=12,
    )
    with torch.device("meta"):
        state = RuClip(config).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert config.image_heads == 16
    assert shapes["visual.positional_embedding"] == (577, 1024)
    assert shapes["visual.transformer.resblocks.23.attn.in_proj_weight"] == (3072, 1024)
    assert shapes["transformer.resblocks.11.mlp.c_fc.weight"] == (3072, 768)
    assert shapes["text_projection"] == (768, 768)
    assert shapes["logit_scale"] == ()


def test_inputs_that_do_not_fit_are_rejected(model: RuClip) -> None:
    with pytest.raises(ValueError, match=r"no end-of-text id 3 in text rows \[1\]"):
        model.encode_text(torch.tensor([[2, 7, EOS], [2, 7, 8]]))
    with pytest.raises(ValueError, match="at most 10 ids per text, found 11"):
        model.encode_text(torch.full((1, 11), EOS))
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\], found \[1, 3, 16, 24\]"):
        model.encode_image(torch.zeros(1, 3, 16, 24))
    with pytest.raises(ValueError, match="vision_patch_size=7 must divide image_resolution=16"):
        RuClipConfig(image_resolution=16, vision_patch_size=7)
    with pytest.raises(ValueError, match="transformer_width=10 must be a multiple of its 4"):
        RuClipConfig(transformer_width=10, transformer_heads=4)


@torch.no_grad()
def test_attention_gets_what_the_fused_kernels_of_gpus_accept(
    model: RuClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash attention takes 16 bits, heads of a multiple of 8, rows without gaps, and no mask."""
    calls: list[tuple[torch.Tensor, ...]] = []
    attend = functional.scaled_dot_product_attention

    def watch(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool
    ) -> torch.Tensor:
        calls.append((query, key, value))
        return attend(query, key, value, is_causal=is_causal)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watch)
    model.to(torch.bfloat16)
    model.encode_image(torch.randn(2, 3, 16, 16))
    model.encode_text(torch.tensor([[2, 7, 8, EOS]]))
    assert len(calls) == 1 + 2
    for tensors in calls:
        for tensor in tensors:
            assert tensor.dtype == torch.bfloat16
            assert tensor.stride(-1) == 1 and tensor.shape[-1] % 8 == 0
            assert not tensor.is_contiguous(), "a view: nothing was copied"
