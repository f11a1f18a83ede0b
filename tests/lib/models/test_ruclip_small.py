"""ruCLIP Small: its text tower, published sizes, rejected inputs.

`tests/parity` compares it with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rudalle_lib.models.ruclip_small import Gpt2Attention, RuClipSmall, RuClipSmallConfig

TINY: dict[str, Any] = dict(
    embed_dim=8,
    image_resolution=16,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=8,
    vision_dim=12,
    vocab_size=20,
    n_positions=10,
    n_embd=16,
    n_layer=2,
    n_head=2,
    context_length=8,
)
EOS = 2


@pytest.fixture
def model() -> Iterator[RuClipSmall]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield RuClipSmall(RuClipSmallConfig(**TINY)).eval()


def test_ids_after_the_end_of_a_text_are_ignored(model: RuClipSmall) -> None:
    ids = torch.tensor([[7, 8, EOS, 0, 0, 0]])
    other = torch.tensor([[7, 8, EOS, 9, 11, 5]])
    expected = model.encode_text(ids)
    assert expected.shape == (1, 8)
    torch.testing.assert_close(model.encode_text(other), expected)
    torch.testing.assert_close(model.encode_text(ids[:, :3]), expected)


def test_features_come_from_the_end_of_each_text(model: RuClipSmall) -> None:
    ids = torch.tensor([[7, EOS, 0, 0], [8, 9, 10, EOS]])
    together = model.encode_text(ids)
    torch.testing.assert_close(together[:1], model.encode_text(ids[:1, :2]))
    torch.testing.assert_close(together[1:], model.encode_text(ids[1:]))


def test_order_of_words_matters(model: RuClipSmall) -> None:
    first, second = model.encode_text(torch.tensor([[7, 8, EOS], [8, 7, EOS]]))
    assert not torch.allclose(first, second, atol=1e-3)


def test_text_attention_is_causal() -> None:
    torch.manual_seed(0)
    attention, hidden = Gpt2Attention(16, 2), torch.randn(1, 6, 16)
    changed = hidden.clone()
    changed[:, 4:] += 1
    before, after = attention(hidden), attention(changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:], atol=1e-4)


def test_logits_are_scaled_cosines(model: RuClipSmall) -> None:
    ids, pixels = torch.tensor([[7, EOS, 0], [7, 9, EOS]]), torch.randn(3, 3, 16, 16)
    per_image, per_text = model(ids, pixels)
    assert per_image.shape == (3, 2)
    assert per_text.equal(per_image.t())
    texts, images = model.encode_text(ids), model.encode_image(pixels)
    cosine = F.cosine_similarity(images[:, None], texts[None], dim=-1)
    torch.testing.assert_close(per_image, cosine / 0.07)


def test_published_size() -> None:
    """Shapes as in `ViT-B32-small.pt`, on the meta device."""
    with torch.device("meta"):
        state = RuClipSmall(RuClipSmallConfig()).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["text_encoder.model.wte.weight"] == (50264, 768)
    assert shapes["text_encoder.model.h.11.attn.c_attn.weight"] == (768, 2304)
    assert shapes["text_encoder.projection.linear1.weight"] == (1024, 768)
    assert shapes["visual_encoder.model.positional_embedding"] == (50, 768)
    assert shapes["visual_encoder.projection.linear1.weight"] == (1024, 512)


def test_inputs_that_do_not_fit_are_rejected(model: RuClipSmall) -> None:
    with pytest.raises(ValueError, match=r"end-of-text ids in rows \[1, 2\]"):
        model.encode_text(torch.tensor([[7, EOS, 0], [7, 8, 9], [EOS, EOS, 0]]))
    with pytest.raises(ValueError, match="at most 10 ids per text, .* found 11 ids"):
        model.encode_text(torch.tensor([[7] * 10 + [EOS]]))
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\], found \[1, 3, 16, 24\]"):
        model.encode_image(torch.zeros(1, 3, 16, 24))
    with pytest.raises(ValueError, match="context_length=11 must be at most n_positions=10"):
        RuClipSmallConfig(n_positions=10, context_length=11)
    with pytest.raises(ValueError, match="n_embd=10 must be a multiple of its 4"):
        RuClipSmallConfig(n_embd=10, n_head=4)
