"""The decoder network: sizes, layouts, loss. `tests/parity` compares it with the original."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from rudalle_lib.models.dalle import Dalle, DalleConfig, DalleLayer

CONFIG = DalleConfig(
    num_layers=6,
    hidden_size=24,
    num_heads=3,
    text_vocab_size=30,
    text_length=5,
    image_vocab_size=11,
    image_height=4,
    image_width=6,
)


def build(dtype: torch.dtype = torch.float64, blockwise: bool = True, **changes: Any) -> Dalle:
    torch.manual_seed(0)
    model = Dalle(replace(CONFIG, **changes), blockwise)
    model.init_weights(0.2, 0.5, 0.3, 0.7)
    return model.to(dtype)


def batch(config: DalleConfig = CONFIG) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    text = torch.randint(4, 25, (3, config.text_length))
    text[:, 3:] = 0
    return text, torch.randint(0, config.image_vocab_size, (3, config.image_length))


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_blockwise_network_equals_the_masked_one(version: str) -> None:
    tokens = torch.cat(batch(), dim=1)
    fast, plain = (build(blockwise=blockwise, version=version) for blockwise in (True, False))
    torch.testing.assert_close(fast(tokens), plain(tokens), atol=1e-9, rtol=0)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_logits_of_a_prefix_do_not_depend_on_what_follows(version: str) -> None:
    model, tokens = build(version=version), torch.cat(batch(), dim=1)
    whole, text = model(tokens), CONFIG.text_length
    for image_tokens in (0, 1, 9, CONFIG.image_length - 1):
        part = model(tokens[:, : text + image_tokens])
        assert part.shape == (3, text + image_tokens + (version == "v2"), 41)
        torch.testing.assert_close(part, whole[:, : part.shape[1]], atol=1e-9, rtol=0)


@pytest.mark.parametrize(("version", "first"), [("v2", 5), ("v3", 4)])
def test_loss_is_the_weighted_cross_entropy_of_text_and_image(version: str, first: int) -> None:
    model, (text, image) = build(version=version), batch()
    logits = model(torch.cat((text, image), dim=1)).float()
    image_logits = logits[:, first : first + CONFIG.image_length, 30:]
    image_loss = functional.cross_entropy(image_logits.transpose(1, 2), image)
    labels = torch.where(text == 0, torch.arange(25, 30), text)[:, 5 - first :]
    text_loss = functional.cross_entropy(logits[:, :first, :30].transpose(1, 2), labels)
    loss = model.loss(text, image)
    torch.testing.assert_close(loss.image, image_loss)
    torch.testing.assert_close(loss.text, text_loss)
    torch.testing.assert_close(loss.total, (text_loss + 7 * image_loss) / 8)


def test_parameters_have_the_published_names() -> None:
    names = set(build().state_dict())
    assert len(names) == 5 + 4 + 2 + 16 * CONFIG.num_layers
    layer = "transformer.layers.5."
    assert {name.removeprefix(layer) for name in names if name.startswith(layer)} == {
        f"{module}.{kind}"
        for kind in ("weight", "bias")
        for module in (
            "input_layernorm",
            "attention.query_key_value",
            "attention.dense",
            "before_first_addition_layernorm",
            "post_attention_layernorm",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
            "before_second_addition_layernorm",
        )
    }
    assert not any("addition" in name for name in build(sandwich_norm=False).state_dict())


def test_init_weights_sets_the_given_scales() -> None:
    torch.manual_seed(0)
    model = Dalle(replace(CONFIG, text_vocab_size=500, hidden_size=96))
    model.init_weights(0.02, 0.5, 0.3, 0.25)
    layer = model.transformer.layers[0]
    assert isinstance(layer, DalleLayer)
    assert model.text_embeddings.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert model.image_row_embeddings.weight.std().item() == pytest.approx(0.3, rel=0.2)
    assert layer.mlp.dense_h_to_4h.weight.std().item() == pytest.approx(0.02, rel=0.05)
    last_norm = layer.before_second_addition_layernorm
    assert isinstance(last_norm, nn.LayerNorm)
    assert last_norm.weight.unique().tolist() == [0.25]
    assert layer.input_layernorm.weight.unique().tolist() == [1.0]


def test_trains_in_bfloat16_autocast() -> None:
    model, (text, image) = build(torch.float32), batch()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(text, image).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_loads_onto_the_meta_device_and_runs_once_assigned() -> None:
    with torch.device("meta"):
        model = Dalle(CONFIG)
    source, tokens = build(), torch.cat(batch(), dim=1)
    model.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(model(tokens), source(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "v4"}, "version: expected 'v2' or 'v3', found 'v4'"),
        ({"num_heads": 5}, r"multiple of num_heads \(5\), found 24"),
        ({"image_width": 0}, "image_width: expected at least 1, found 0"),
        ({"text_vocab_size": 5}, "text_vocab_size: expected more than text_length"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
